"""`./payments up` as an operator meets it: refusals before anything is touched, restarts, and ends without remains."""

import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import psycopg2  # type: ignore[import-untyped]
import pytest
import redis

from payments_client import Payments
from tests.kit.processes import ROOT, assert_all_ended, environment, family, living, started_at
from tests.kit.service import Service, payments
from tests.kit.waiting import wait_until

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc"),
]

Start = Callable[..., Service]
ROLES = ["web", "worker", "notify", "flower", "broker", "postgres"]


def refused(done: "subprocess.CompletedProcess[str]", *words: str) -> None:
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stdout == ""
    for word in words:
        assert word in done.stderr


def test_it_says_a_line_per_process_and_then_ready(service: Service) -> None:
    plain = service.plain_lines()
    assert sorted(line.split()[0] for line in plain) == sorted([*ROLES, "ready"])
    assert plain[-1] == f"ready {service.url}"
    assert service.answers()


def test_no_password_is_in_its_output(service: Service) -> None:
    output = "\n".join(service.lines()) + service.errors()
    for url in (service.database_url, service.broker_url):
        password = url.rpartition("@")[0].rpartition(":")[2]
        assert len(password) > 20
        assert password not in output


def test_every_log_line_is_json_and_names_its_process(service: Service) -> None:
    lines = service.log_lines()
    assert {line["process"] for line in lines} >= {"web", "worker", "broker", "postgres", "migrations"}
    assert all({"timestamp", "level", "event"} <= line.keys() for line in lines)


def test_ps_lists_each_role_with_its_pid_and_where_it_is(service: Service) -> None:
    listed = {process["role"]: process for process in service.ps()}
    assert set(listed) >= {"up", *ROLES}
    assert listed["up"]["pid"] == service.pid
    assert {process["pid"] for process in listed.values()} <= set(family(service.pid))
    assert listed["web"]["url"] == service.url
    assert listed["flower"]["url"].startswith("http://127.0.0.1:")
    table = payments("ps", "--data", service.data).stdout
    assert [line.split()[0] for line in table.splitlines()] == [process["role"] for process in service.ps()]


def test_ps_urls_are_complete_and_the_owner_no_superuser(service: Service) -> None:
    with closing(psycopg2.connect(service.database_url)) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT rolname, rolsuper, rolcreatedb FROM pg_roles WHERE rolname = current_user")
        assert cursor.fetchone() == ("payments", False, True)
        cursor.execute("SELECT current_setting('max_connections'), current_setting('fsync')")
        assert cursor.fetchone() == ("200", "on")
    with closing(redis.Redis.from_url(service.broker_url)) as broker:
        assert broker.ping()


@pytest.mark.parametrize("change", [(":wrong@"), ("@")])
def test_neither_server_lets_in_who_has_no_password(service: Service, change: str) -> None:
    def without(url: str) -> str:
        head, _, tail = url.rpartition("@")
        return f"{head.rpartition(':')[0]}{change}{tail}"

    with pytest.raises(psycopg2.OperationalError):
        psycopg2.connect(without(service.database_url))
    with closing(redis.Redis.from_url(without(service.broker_url))) as broker, pytest.raises(redis.RedisError):
        broker.ping()


def test_what_holds_secrets_is_the_operators_alone(service: Service) -> None:
    assert stat.S_IMODE(service.data.stat().st_mode) == 0o700
    for name in ("run/state.json", "postgres.password", "owner.password", "app.password", "broker/valkey.conf"):
        assert stat.S_IMODE((service.data / name).stat().st_mode) == 0o600


def test_migrate_finds_the_database_through_the_data(service: Service) -> None:
    assert payments("migrate", "--data", service.data).returncode == 0


def test_psql_passes_its_arguments_on(service: Service) -> None:
    done = payments("psql", "--data", service.data, "-Atc", "select current_user, 1 - 2")
    assert (done.stdout, done.stderr) == ("payments|-1\n", "")


def test_a_second_up_on_the_same_data_is_refused(service: Service) -> None:
    done = payments("up", "--port", "0", "--flower-port", "0", "--data", service.data)
    refused(done, "already running", str(service.pid))
    assert service.answers()


def test_an_older_release_starts_and_pays_on_a_newer_database(start_service: Start) -> None:
    service = start_service()
    with closing(psycopg2.connect(service.database_url)) as connection, connection.cursor() as cursor:
        cursor.execute("UPDATE alembic_version SET version_num = '9999'")
        cursor.execute("CREATE TABLE of_a_later_release (id bigint PRIMARY KEY)")
        connection.commit()
    service.stop()
    older = start_service()
    said = [line for line in older.log_lines() if line["process"] == "migrations" and line["level"] == "warning"]
    assert [line["database"] for line in said] == ["9999"]
    client = Payments(older.url)
    assert client.deposit(client.add_user("Ada").id, "1", wait=10).status == "COMPLETED"
    assert payments("verify", "--data", older.data).returncode == 0


@pytest.mark.parametrize("option", ["--port", "--flower-port"])
def test_a_taken_port_is_refused_and_nothing_is_made(tmp_path: Path, option: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        options = {"--port": "0", "--flower-port": "0", option: port}
        done = payments("up", *(word for pair in options.items() for word in pair), "--data", tmp_path / "data")
    refused(done, port, option)
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--host", "0.0.0.0"], "no API key"),
        (["--host", "nowhere"], "not an address"),
        (["--port", "99999"], "port"),
        (["--port", "http"], "port"),
        (["--workers", "0"], "workers"),
        (["--colour", "red"], "--colour"),
    ],
)
def test_a_wrong_option_is_refused_and_nothing_is_made(tmp_path: Path, arguments: list[str], word: str) -> None:
    refused(payments("up", "--data", tmp_path / "data", *arguments), word)
    assert not (tmp_path / "data").exists()


def test_a_wrong_variable_is_refused_by_its_name(tmp_path: Path) -> None:
    refused(payments("up", "--data", tmp_path / "data", PAYMENTS_PORT="many"), "PAYMENTS_PORT")


def test_a_folder_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for data in (tmp_path / "file", tmp_path / "file" / "data"):
        refused(payments("up", "--port", "0", "--flower-port", "0", "--data", data), str(data))


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_an_unwritable_folder_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    refused(payments("up", "--port", "0", "--flower-port", "0", "--data", tmp_path / "data"), "ermission")


@pytest.mark.parametrize("command", ["ps", "migrate", "psql"])
def test_without_a_running_service_a_command_says_so(tmp_path: Path, command: str) -> None:
    refused(payments(command, "--data", tmp_path), "no service runs", str(tmp_path))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_all_in_time_and_nothing_is_left(start_service: Start, number: signal.Signals) -> None:
    service = start_service()
    before = family(service.pid)
    assert len(before) > len(ROLES) + 3  # settling processes and Postgres's own are among them
    service.process.send_signal(number)
    assert service.process.wait(30) == 0
    assert_all_ended(before)


def test_a_second_signal_hurries(start_service: Start) -> None:
    service = start_service()
    before = family(service.pid)
    os.kill(service.pid_of("flower"), signal.SIGSTOP)  # it will not stop by itself
    os.kill(service.pid_of("worker"), signal.SIGSTOP)
    service.process.send_signal(signal.SIGTERM)

    def ends() -> bool:
        service.process.send_signal(signal.SIGTERM)
        return service.process.poll() is not None

    wait_until(ends, "the end", 15)
    assert service.process.returncode == 0
    assert_all_ended(before)


def test_it_can_be_stopped_while_it_starts(start_service: Start) -> None:
    service = start_service(wait=False)
    wait_until(lambda: any(line.startswith("postgres pid") for line in service.lines()), "Postgres is up")
    service.stop()
    assert not service.url
    start_service()


def test_a_first_start_that_is_killed_leaves_no_half_a_database(start_service: Start) -> None:
    service = start_service(wait=False)
    wait_until((service.data / "postgres.unfinished").exists, "initdb has begun")
    assert_all_ended(service.kill(), seconds=10)
    start_service()


def test_after_a_kill_of_up_the_next_one_continues(start_service: Start) -> None:
    service = start_service()
    with closing(psycopg2.connect(service.database_url)) as connection, connection.cursor() as cursor:
        cursor.execute("CREATE TABLE kept AS SELECT 7 AS n")
        connection.commit()
    url, remains = service.url, service.kill()
    again = start_service("--port", url.rpartition(":")[2])
    assert not living(remains)
    assert again.url == url
    with closing(psycopg2.connect(again.database_url)) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT n FROM kept")
        assert cursor.fetchone() == (7,)


def test_each_killed_process_is_started_again_at_its_place(start_service: Start) -> None:
    service = start_service()
    before = {process["role"]: process for process in service.ps()}
    for role in ROLES:
        os.kill(before[role]["pid"], signal.SIGKILL)
    wait_until(lambda: len(service.ps()) == len(before), "all roles are back", 60)
    after = {process["role"]: process for process in service.ps()}
    for role in ROLES:
        assert after[role]["pid"] != before[role]["pid"]
        assert after[role].get("url") == before[role].get("url")
    wait_until(service.answers, "web answers again")
    ended = [line for line in service.log_lines() if line["process"] == "up" and line["event"] == "process ended"]
    assert {line["role"] for line in ended} == set(ROLES)


def test_a_killed_postgres_comes_back_past_a_busy_backend(start_service: Start) -> None:
    service = start_service()
    url = service.database_url
    with closing(psycopg2.connect(url, async_=1)) as connection:
        wait_until(lambda: connection.poll() == psycopg2.extensions.POLL_OK, "connected")
        backend = connection.info.backend_pid
        # it computes, so it does not notice that its postmaster is gone
        connection.cursor().execute("SELECT sum(n) FROM generate_series(1, 1000000000) n")
        os.kill(service.pid_of("postgres"), signal.SIGKILL)

        def recovers() -> bool:
            try:
                psycopg2.connect(url).close()
            except psycopg2.OperationalError:
                return False
            return True

        wait_until(recovers, "Postgres accepts again", 40)
        assert started_at(backend) is None


def test_given_servers_are_used_and_listed_without_a_pid(service: Service, start_service: Start) -> None:
    given = {"DATABASE_URL": service.database_url, "BROKER_URL": service.broker_url}
    own = start_service(**given)
    listed = {process["role"]: process for process in own.ps()}
    assert listed["postgres"] == {"role": "postgres", "pid": None, "url": service.database_url}
    assert listed["broker"] == {"role": "broker", "pid": None, "url": service.broker_url}
    assert not (own.data / "postgres").exists()
    own.stop()
    assert payments("psql", "--data", own.data, "-Atc", "select 1", **given).stdout == "1\n"


def test_a_reader_that_goes_away_does_not_stop_the_service(tmp_path: Path) -> None:
    arguments = ["up", "--port", "0", "--flower-port", "0", "--data", str(tmp_path / "dätä folder")]
    with subprocess.Popen(
        [sys.executable, "-m", "local", *arguments],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as up:
        assert up.stdout
        while not up.stdout.readline().startswith("ready "):
            assert up.poll() is None
        up.stdout.close()
        before = family(up.pid)
        worker = next(p for p in before if b"worker" in Path(f"/proc/{p}/cmdline").read_bytes())
        os.kill(worker, signal.SIGKILL)  # makes log lines
        listed = ["ps", "--json", "--data", arguments[-1]]
        wait_until(lambda: payments(*listed).stdout.count('"worker"') == 1, "the worker is back")
        up.terminate()
        assert up.wait(30) == 0
        assert_all_ended(before)


@pytest.mark.skipif(not shutil.which("python3.10"), reason="no older Python on PATH")
def test_an_older_python_gets_one_clear_line() -> None:
    done = subprocess.run(
        ["python3.10", str(ROOT / "payments"), "up"], capture_output=True, text=True, check=False, timeout=30
    )
    if done.returncode == 127:
        pytest.skip("python3.10 is only a shim")
    refused(done, "needs Python 3.11 or newer")
