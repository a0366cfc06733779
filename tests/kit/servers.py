"""A Postgres and a broker of a test's own: the programs that `./payments up` runs."""

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from local.stack.ports import free_port
from shared.processes import die_with_parent
from tests.kit.waiting import wait_until

if TYPE_CHECKING:
    from local.stack.postgres import Cluster
    from local.stack.process import Program


class Broker(NamedTuple):
    url: str
    process: "subprocess.Popen[bytes]"


@contextmanager
def running_broker(folder: Path) -> Iterator[Broker]:
    """Runs a broker in a folder of its own while the block runs, also if the block leaves it stopped by a signal."""
    from local.stack import valkey  # here: not needed, nor perhaps installed, where other tests run

    program = valkey.server(folder, free_port(), os.environ)
    process = start_program(program)
    try:
        wait_until(program.is_ready, "the broker listens")
        yield Broker(str(program.url), process)
    finally:
        process.send_signal(signal.SIGCONT)
        process.terminate()
        process.wait(10)


@contextmanager
def embedded_postgres(folder: Path) -> Iterator[str]:
    """Runs the Postgres that `./payments up` runs, in a folder of its own, and gives its URL."""
    from local.stack import postgres  # here: not needed, nor perhaps installed, where DATABASE_URL is given

    cluster = postgres.prepare(folder, free_port())
    initdb = start_program(postgres.initdb(cluster, os.environ))
    assert initdb.wait(120) == 0
    postgres.adopt(cluster)
    server = start_program(postgres.server(cluster, os.environ))
    try:
        _await_roles(cluster, server)
        yield cluster.url
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(30)


def start_program(program: "Program") -> subprocess.Popen[bytes]:
    """Starts a program as the supervisor of `up` does, without its output. It ends with us, even if we are killed."""

    def prepare() -> None:
        program.before_exec()
        die_with_parent(signal.SIGINT)

    return subprocess.Popen(
        program.argv,
        cwd=program.folder,
        env=program.environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=prepare,  # noqa: PLW1509 - one thread so far
    )


def _await_roles(cluster: "Cluster", server: subprocess.Popen[bytes]) -> None:
    """Waits until the server answers, and has its roles made."""
    from local.command import CommandError
    from local.stack.postgres import ensure_roles

    def has_roles() -> bool:
        assert server.poll() is None, f"Postgres ended with {server.returncode}"
        with suppress(CommandError):
            ensure_roles(cluster)
            return True
        return False

    wait_until(has_roles, "Postgres answers", interval=0.1)
