"""A base backup and archived WAL, restored as docs/operations/backup.md says: `up` waits for the recovery and then serves."""

import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID, uuid4

import psycopg2  # type: ignore[import-untyped]
import pytest

from local.stack.postgres import binary
from payments_client import NotFound, Payments
from tests.kit.processes import assert_all_ended, environment, family
from tests.kit.service import STOP_SECONDS, Service, payments
from tests.kit.waiting import wait_until

pytestmark = pytest.mark.system

Start = Callable[..., Service]
PASSWORDS = ("postgres.password", "owner.password", "app.password")


class Backup(NamedTuple):
    """A base backup with its archive, and the payments made before it, after it, and after the target."""

    folder: Path
    archive: Path
    user_id: int
    uids: list[UUID]


def superuser(service: Service) -> Any:
    password = (service.data / "postgres.password").read_text()
    port = service.database_url.rpartition(":")[2].partition("/")[0]
    connection = psycopg2.connect(host="127.0.0.1", port=port, user="postgres", password=password, dbname="postgres")
    connection.autocommit = True
    return connection


@pytest.fixture(scope="module")
def backup(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backup]:
    folder = tmp_path_factory.mktemp("bäckup of it")
    data, archive, base = folder / "data", folder / "archive", folder / "base"
    archive.mkdir()
    assert payments("key", "create", "--name", "one", "--scope", "read", "--data", data).returncode == 0
    with open(data / "postgres" / "postgresql.conf", "a", encoding="utf-8") as file:
        command = f'test ! -f "{archive}/%f" && cp "%p" "{archive}/%f"'
        file.write(f"archive_mode = on\narchive_command = '{command}'\n")
    service = Service(data).wait_ready()
    try:
        client = Payments(service.url)
        user_id = client.add_user("Ada").id
        uids = [uuid4() for _ in range(3)]
        client.deposit(user_id, "100", uid=uids[0], wait=10)
        port = service.database_url.rpartition(":")[2].partition("/")[0]
        subprocess.run(
            [binary("pg_basebackup"), "-h", "127.0.0.1", "-p", port, "-U", "postgres", "-c", "fast", "-D", str(base)],
            env=environment(PGPASSWORD=(data / "postgres.password").read_text()),
            check=True,
        )
        client.withdraw(user_id, "30", uid=uids[1], wait=10)
        with closing(superuser(service)) as connection, connection.cursor() as cursor:
            cursor.execute("SELECT pg_create_restore_point('before the mistake')")
            client.deposit(user_id, "7", uid=uids[2], wait=10)
            cursor.execute("SELECT pg_walfile_name(pg_switch_wal())")
            (last,) = cursor.fetchone()
        wait_until((archive / last).exists, "the last WAL file is archived")
        for name in PASSWORDS:
            shutil.copy(data / name, folder / name)
        yield Backup(base, archive, user_id, uids)
    finally:
        service.stop()


def restore(backup: Backup, data: Path, action: str) -> None:
    """As docs/operations/backup.md has it."""
    data.mkdir(mode=0o700)
    for name in PASSWORDS:
        shutil.copy(backup.folder.with_name(name), data / name)
    shutil.copytree(backup.folder, data / "postgres")
    with open(data / "postgres" / "postgresql.auto.conf", "a", encoding="utf-8") as file:
        file.write(f'restore_command = \'cp "{backup.archive}/%f" "%p"\'\n')
        file.write(f"recovery_target_name = 'before the mistake'\nrecovery_target_action = '{action}'\n")
    (data / "postgres" / "recovery.signal").touch()


def refused(done: "subprocess.CompletedProcess[str]", *words: str) -> None:
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (1, "", 1), done
    assert all(word in done.stderr for word in words), done.stderr


def test_up_waits_for_a_paused_recovery_and_then_serves(backup: Backup, start_service: Start, tmp_path: Path) -> None:
    data = tmp_path / "data"
    restore(backup, data, "pause")
    interrupted = start_service(wait=False)
    wait_until(lambda: "has paused its recovery" in interrupted.errors(), "it says that it waits", 60)
    before = family(interrupted.pid)
    interrupted.process.send_signal(signal.SIGTERM)
    assert interrupted.process.wait(STOP_SECONDS) == 0, interrupted.errors()
    assert_all_ended(before)

    service = start_service(wait=False)
    wait_until(lambda: "has paused its recovery" in service.errors(), "it says that it waits", 60)
    assert "replayed up to 0/" in service.errors()
    assert not service.url
    resume = service.errors().partition("then end the recovery: ")[2].splitlines()[0]
    subprocess.run(["sh", "-c", resume], check=True, capture_output=True)
    service.wait_ready()

    client = Payments(service.url)
    assert [str(client.get(uid).status) for uid in backup.uids[:2]] == ["COMPLETED"] * 2
    with pytest.raises(NotFound):
        client.get(backup.uids[2])
    assert str(client.balance(backup.user_id).balance) == "70.00"
    verified = payments("verify", "--data", data)
    assert (verified.returncode, "the books balance" in verified.stdout) == (0, True), verified
    assert str(client.deposit(backup.user_id, "7", uid=backup.uids[2], wait=10).balance_after) == "77.00"


def test_up_serves_a_backup_that_promotes_itself(backup: Backup, start_service: Start, tmp_path: Path) -> None:
    restore(backup, tmp_path / "data", "promote")
    service = start_service()
    assert str(Payments(service.url).balance(backup.user_id).balance) == "70.00"


def test_a_standby_is_refused_in_a_line(backup: Backup, tmp_path: Path) -> None:
    data = tmp_path / "data"
    restore(backup, data, "pause")
    (data / "postgres" / "recovery.signal").rename(data / "postgres" / "standby.signal")
    done = payments("up", "--port", "0", "--flower-port", "0", "--data", data)
    refused(done, "is a standby", "recovery.signal", str(data))


def test_passwords_that_are_not_restored_are_named(backup: Backup, tmp_path: Path) -> None:
    data = tmp_path / "data"
    restore(backup, data, "promote")
    up = ("up", "--port", "0", "--flower-port", "0", "--data", data)
    (data / "postgres.password").unlink()
    refused(payments(*up), "postgres.password is missing")
    (data / "postgres.password").write_text("of another server")
    done = payments(*up)
    assert done.returncode == 1
    assert "restore the password files" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
