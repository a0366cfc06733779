"""DATABASE_URL with several servers: a connection is made to one that takes it, whatever the others do."""

import os
import socket
import subprocess
import sys
from contextlib import closing
from urllib.parse import urlsplit

import pytest

from local.stack.ports import free_port
from tests.kit.processes import ROOT

pytestmark = pytest.mark.integration

PROGRAM = """
from sqlalchemy import text
from shared.database import engine
for _ in range(2):
    with engine().connect() as connection:
        print(connection.scalar(text("SELECT inet_server_port()")))
    engine().dispose()
"""


def ports_reached(url: str) -> list[int]:
    """Of two connections, one after the other, of a process of its own."""
    environment = {**os.environ, "DATABASE_URL": url, "PYTHONPATH": str(ROOT)}
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    return list(map(int, ran.stdout.split()))


@pytest.mark.parametrize("form", ["libpq", "SQLAlchemy"])
def test_silent_and_refusing_servers_are_passed_over(server_url: str, form: str) -> None:
    """Silent is a machine that is gone, or a listener that nobody serves."""
    parts = urlsplit(server_url)
    user, _, address = parts.netloc.rpartition("@")
    with closing(socket.create_server(("127.0.0.1", 0))) as silent:
        servers = [f"127.0.0.1:{silent.getsockname()[1]}", f"127.0.0.1:{free_port()}", address]
        url = (
            f"postgresql://{user}@{','.join(servers)}{parts.path}?target_session_attrs=read-write"
            if form == "libpq"
            else f"postgresql://{user}@{parts.path}?{'&'.join(f'host={one}' for one in servers)}&target_session_attrs=read-write"
        )
        assert ports_reached(url) == [parts.port] * 2


def test_if_no_server_connects_all_reasons_are_given() -> None:
    first, second = free_port(), free_port()
    environment = {
        **os.environ,
        "DATABASE_URL": f"postgresql://pay@127.0.0.1:{first},127.0.0.1:{second}/x",
        "PYTHONPATH": str(ROOT),
    }
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 1
    assert f"127.0.0.1:{first}: " in ran.stderr
    assert f"127.0.0.1:{second}: " in ran.stderr
