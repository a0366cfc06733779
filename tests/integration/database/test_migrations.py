"""The migrations can be run again at any time, at once or after a failure, and on a newer database they do nothing."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.pool import NullPool

from local.stack.postgres import APP_ROLE
from migrations.__main__ import configuration
from shared.errors import NotReady
from shared.health import MIGRATION, check_server
from shared.processes import operator_name
from tests.integration.conftest import empty_database, migrate
from tests.kit.processes import ROOT
from tests.kit.waiting import wait_until

pytestmark = pytest.mark.integration

CATALOG = {
    "columns": """
        SELECT attrelid::regclass::text, attname, format_type(atttypid, atttypmod), attnotnull, attidentity,
               attgenerated, attcollation, pg_get_expr(adbin, adrelid)
        FROM pg_attribute LEFT JOIN pg_attrdef ON (adrelid, adnum) = (attrelid, attnum)
        WHERE attrelid = ANY(:tables) AND attnum > 0 AND NOT attisdropped
    """,
    "order of columns": """
        SELECT attrelid::regclass::text, array_agg(attname ORDER BY attnum) FROM pg_attribute
        WHERE attrelid = ANY(:tables) AND attnum > 0 AND NOT attisdropped GROUP BY 1
    """,
    "constraints": """
        SELECT conrelid::regclass::text, conname, contype, pg_get_constraintdef(oid) FROM pg_constraint
        WHERE conrelid = ANY(:tables)
    """,
    "indexes": "SELECT indexrelid::regclass::text, pg_get_indexdef(indexrelid) FROM pg_index WHERE indrelid = ANY(:tables)",
    "options": "SELECT oid::regclass::text, reloptions, relpersistence FROM pg_class WHERE oid = ANY(:tables)",
    "sequences": "SELECT seqrelid::regclass::text, seqtypid::regtype::text, seqstart, seqincrement, seqmax, seqmin,"
    " seqcache, seqcycle FROM pg_sequence",
}


def connect(url: str) -> Engine:
    return create_engine(url, poolclass=NullPool)


def catalog(url: str) -> dict[str, list[str]]:
    tables = text("""
        SELECT oid::int FROM pg_class
        WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace AND relname <> 'alembic_version'
    """)
    with connect(url).connect() as connection:
        oids = connection.scalars(tables).all()
        return {
            part: sorted(str(tuple(row)) for row in connection.execute(text(statement), {"tables": oids}))
            for part, statement in CATALOG.items()
        }


@pytest.fixture
def another_database(server_url: str) -> Iterator[str]:
    with empty_database(server_url) as url:
        yield url


def test_the_code_needs_the_newest_migration() -> None:
    assert ScriptDirectory.from_config(configuration()).get_heads() == [MIGRATION]


def test_running_the_migrations_again_changes_nothing(database_url: str) -> None:
    before = catalog(database_url)
    assert migrate(database_url).returncode == 0
    assert catalog(database_url) == before


def test_a_run_waits_for_another_one(another_database: str) -> None:
    with ThreadPoolExecutor(1) as threads, connect(another_database).begin() as other:
        other.execute(text("SELECT pg_advisory_xact_lock(8097887115748996211)"))  # "payments" as a bigint
        run = threads.submit(migrate, another_database)
        tries = text("""
            SELECT count(*) FROM pg_stat_activity
            WHERE datname = current_database() AND pid <> pg_backend_pid()
              AND (query LIKE '%pg_try_advisory_xact_lock%' OR query = 'ROLLBACK') -- it tries, and rests
        """)
        with connect(another_database).execution_options(isolation_level="AUTOCOMMIT").connect() as watch:
            wait_until(lambda: watch.scalar(tries), "it tries", 30)
            assert watch.scalar(text("SELECT to_regclass('users')")) is None
        other.commit()
        assert run.result().returncode == 0


def test_two_runs_at_once_both_succeed(database_url: str, another_database: str) -> None:
    with ThreadPoolExecutor(2) as threads:
        runs = list(threads.map(migrate, [another_database] * 2))
    assert [run.returncode for run in runs] == [0, 0]
    assert catalog(another_database) == catalog(database_url)


def test_what_fails_is_said_in_a_line_and_by_the_exit_code(another_database: str) -> None:
    with connect(another_database).begin() as connection:
        connection.execute(text("CREATE TABLE events (id int)"))
    with pytest.raises(subprocess.CalledProcessError) as raised:
        migrate(another_database)
    assert raised.value.returncode == 1
    assert 'relation \\"events\\" already exists' in raised.value.stdout
    with connect(another_database).connect() as connection:
        assert connection.scalar(text("SELECT to_regclass('users')")) is None, "rolled back whole"


def set_revision(url: str, revision: str) -> None:
    """As a later release leaves the database: with a table that this code does not know."""
    with connect(url).begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = :revision"), {"revision": revision})
        connection.execute(text("CREATE TABLE of_a_later_release (id bigint PRIMARY KEY)"))


def test_a_database_of_a_later_release_is_left_and_granted(
    another_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    migrate(another_database)
    set_revision(another_database, "9999")
    with connect(another_database).begin() as connection:
        connection.execute(text(f"GRANT SELECT, TRUNCATE ON events TO {APP_ROLE}"))  # what the later one granted
    monkeypatch.setenv("PAYMENTS_APP_ROLE", APP_ROLE)
    run = migrate(another_database)
    said = json.loads(run.stdout.splitlines()[-1])
    assert (said["level"], said["database"], said["release"]) == ("warning", "9999", MIGRATION)
    assert "newer than this release" in said["event"]
    with connect(another_database).connect() as connection:
        assert connection.scalar(text("SELECT version_num FROM alembic_version")) == "9999"
        for table, privilege in (("events", "TRUNCATE"), ("events", "DELETE"), ("ledger", "INSERT")):
            granted = text(f"SELECT has_table_privilege('{APP_ROLE}', '{table}', '{privilege}')")
            assert connection.scalar(granted), (table, privilege)
    waited = [sys.executable, "-m", "migrations", "--wait"]
    environment = {**os.environ, "DATABASE_URL": another_database}
    assert subprocess.run(waited, cwd=ROOT, env=environment, check=False, timeout=60).returncode == 0


@pytest.mark.parametrize("revision", ["garbage", "0000", "9999x"])
def test_an_unknown_revision_that_is_not_newer_is_an_error(another_database: str, revision: str) -> None:
    migrate(another_database)
    set_revision(another_database, revision)
    with pytest.raises(subprocess.CalledProcessError) as raised:
        migrate(another_database)
    assert f"Can't locate revision identified by '{revision}'" in raised.value.stdout


def test_applied_migrations_are_recorded_once(another_database: str) -> None:
    for _ in range(2):
        migrate(another_database)
    with connect(another_database).connect() as connection:
        rows = connection.execute(text("SELECT actor, action, target FROM operator_actions ORDER BY id")).all()
    known = [script.revision for script in ScriptDirectory.from_config(configuration()).walk_revisions()]
    assert rows == [(operator_name(), "migration.apply", revision) for revision in reversed(known)]


def test_a_database_without_the_needed_migration_is_not_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    check_server()
    monkeypatch.setattr("shared.health.MIGRATION", "9999")
    with pytest.raises(NotReady, match="9999 is needed"):
        check_server()
