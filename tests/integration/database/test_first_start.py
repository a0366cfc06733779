"""The first start of a deployment with two database roles, in its order, by the commands and the file that it has."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import pytest
from sqlalchemy import make_url

from local.stack.postgres import APP_ROLE, binary
from tests.integration.conftest import NOBODY_LISTENS
from tests.kit.processes import ROOT
from tests.kit.servers import embedded_postgres

pytestmark = pytest.mark.integration

PASSWORD = "its'own"


class Roles(NamedTuple):
    """The urls of a server's roles."""

    superuser: str
    owner: str
    app: str


@pytest.fixture(scope="module")
def roles(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Roles]:
    """A server as the DBA has it: the owner and its database; `up` would have made the other role already."""
    folder = tmp_path_factory.mktemp("server")
    with embedded_postgres(folder) as owner:
        url = make_url(owner)
        superuser = url.set(username="postgres", password=(folder / "postgres.password").read_text())
        app = url.set(username=APP_ROLE, password=PASSWORD)
        made = Roles(*(found.render_as_string(hide_password=False) for found in (superuser, url, app)))
        psql(made.superuser, "-c", f"DROP ROLE {APP_ROLE}")
        yield made


def psql(url: str, *arguments: str) -> str:
    """As the image of Postgres runs what it finds in /docker-entrypoint-initdb.d."""
    command = [binary("psql"), url, "-v", "ON_ERROR_STOP=1", "--no-psqlrc", "-At", *arguments]
    environment = {**os.environ, "APP_PASSWORD": PASSWORD}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.strip()


def run(url: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    own = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "PAYMENTS_DATA": "/nonexistent", "DATABASE_URL": url}
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=ROOT,
        env={**own, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@contextmanager
def waiting(url: str) -> Iterator[Any]:
    """What each pod's init container runs."""
    command = [sys.executable, "-m", "migrations", "--wait"]
    environment = {**os.environ, "DATABASE_URL": url}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def test_a_deployment_starts_with_two_roles(roles: Roles) -> None:
    failed = run(roles.owner, "migrations", PAYMENTS_APP_ROLE=APP_ROLE)
    assert failed.returncode == 1, "there is no such role yet, and nothing is done by halves"
    assert f'role \\"{APP_ROLE}\\" does not exist' in failed.stdout
    for _ in range(2):  # the second time it sets the password again
        psql(roles.superuser, "-f", str(ROOT / "compose" / "app-role.sql"))
    wanted = psql(
        roles.superuser, "-c", f"SELECT rolsuper, rolcreatedb, rolcreaterole FROM pg_roles WHERE rolname = '{APP_ROLE}'"
    )
    assert wanted == "f|f|f"

    assert run(roles.owner, "migrations").returncode == 0
    with waiting(roles.app) as process:  # beside an older release that knew one role
        assert "permission denied" in process.stdout.readline()
        assert process.poll() is None
        granted = run(roles.owner, "migrations", PAYMENTS_APP_ROLE=APP_ROLE)
        assert granted.returncode == 0, granted.stdout
        assert process.wait(20) == 0


@pytest.fixture
def deployed(roles: Roles) -> Roles:
    """All that the test above does step by step."""
    psql(roles.superuser, "-f", str(ROOT / "compose" / "app-role.sql"))
    assert run(roles.owner, "migrations", PAYMENTS_APP_ROLE=APP_ROLE).returncode == 0
    return roles


def test_the_owner_makes_keys_and_the_app_does_not(deployed: Roles) -> None:
    create = ("local", "key", "create", "--name", "shop", "--scope", "write")
    made = run(deployed.owner, *create)
    assert made.returncode == 0, made.stderr
    assert made.stdout.split()[-1].startswith("pay_1_")
    refused = run(deployed.app, *create)
    assert refused.returncode == 1
    assert refused.stderr == "payments: the database does not serve: permission denied for table api_keys\n"
    assert " shop write " in run(deployed.app, "local", "key", "list").stdout


def test_the_app_verifies_and_records_it(deployed: Roles) -> None:
    done = run(deployed.app, "local", "verify", "--record", BROKER_URL=NOBODY_LISTENS)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "the books balance" in done.stdout
    assert psql(deployed.owner, "-c", "SELECT count(*) FROM verifications") == "1"
