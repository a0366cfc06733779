"""What the promises need of a session is set by us, whatever the server's defaults say."""

from collections.abc import Iterator

import pytest
from sqlalchemy import make_url, text
from sqlalchemy.exc import DBAPIError

from shared import database
from shared.database import autocommit, count_connections, engine, is_infrastructure_error, transaction
from shared.errors import Unavailable
from shared.settings import settings
from tests.integration.factories import run_sql

pytestmark = pytest.mark.integration

HOSTILE = {
    "synchronous_commit": "off",
    "default_transaction_isolation": "'serializable'",
    "lock_timeout": "0",
    "statement_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    "timezone": "'Asia/Kathmandu'",
    "datestyle": "'German'",
}
NEEDED = {
    "synchronous_commit": "on",
    "transaction_isolation": "read committed",
    "lock_timeout": "2s",
    "statement_timeout": "5s",
    "idle_in_transaction_session_timeout": "5s",
    "TimeZone": "UTC",
}


@pytest.fixture(params=["DATABASE {database}", "ROLE {role} IN DATABASE {database}"])
def hostile_defaults(request: pytest.FixtureRequest) -> Iterator[None]:
    url = make_url(settings().database_url)
    target = request.param.format(database=f'"{url.database}"', role=f'"{url.username}"')
    for name, value in HOSTILE.items():
        run_sql(f"ALTER {target} SET {name} = {value}")
    database.engine().dispose()  # its connections were made before
    yield
    run_sql(f"ALTER {target} RESET ALL")
    database.engine().dispose()


def in_force() -> dict[str, str]:
    with database.transaction() as connection:
        return {name: connection.scalar(text("SELECT current_setting(:name)"), {"name": name}) for name in NEEDED}


def test_connections_have_the_settings_that_we_need() -> None:
    assert in_force() == NEEDED


@pytest.mark.usefixtures("hostile_defaults")
def test_the_defaults_of_database_and_role_do_not_matter() -> None:
    assert in_force() == NEEDED


def test_a_transaction_has_a_time_out_where_postgres_knows_one() -> None:
    with database.transaction() as connection:
        if connection.dialect.server_version_info < (17,):  # type: ignore[operator]
            pytest.skip("transaction_timeout came with Postgres 17")
        assert connection.scalar(text("SHOW transaction_timeout")) == "30s"


def test_a_statement_that_takes_too_long_is_cut_off() -> None:
    with database.transaction() as connection:
        connection.execute(text("SET LOCAL statement_timeout = '50ms'"))
        with pytest.raises(DBAPIError) as raised:
            connection.execute(text("SELECT pg_sleep(2)"))
    assert database.is_infrastructure_error(raised.value)
    assert in_force() == NEEDED, "SET LOCAL is gone with its transaction"


def test_a_transaction_is_rolled_back_by_any_exception() -> None:
    def create_and_fail() -> None:
        with database.transaction() as connection:
            connection.execute(text("CREATE TABLE never (id int)"))
            raise KeyError

    with pytest.raises(KeyError):
        create_and_fail()
    with database.transaction() as connection:
        assert connection.scalar(text("SELECT to_regclass('never') IS NULL"))


def test_a_session_that_is_not_as_it_was_asked_for_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """As behind a pooler that drops `options`: no 2xx may stand on a commit that is not durable."""
    engine().dispose()
    monkeypatch.setitem(database.SESSION_SETTINGS, "synchronous_commit", "remote_apply")  # not on the server
    with pytest.raises(Unavailable, match="synchronous_commit is on") as raised, transaction():
        pass
    assert is_infrastructure_error(raised.value)


def test_a_connection_lost_before_checkin_is_checked_in() -> None:
    """What its statement has committed stands, and was answered: nothing may fail afterwards."""
    with autocommit() as connection:
        connection.execute(text("SELECT 1"))  # the connection is one that was given back before
    with autocommit() as connection:
        pid = connection.scalar(text("SELECT pg_backend_pid()"))
        run_sql("SELECT pg_terminate_backend(:pid, 1000)", pid=pid)
    assert count_connections().in_use == 0
    with pytest.raises(DBAPIError) as raised, autocommit() as connection:  # whoever gets it finds out
        connection.execute(text("SELECT 1"))
    assert is_infrastructure_error(raised.value)
    with autocommit() as connection:
        assert connection.scalar(text("SELECT pg_backend_pid()")) != pid
    assert count_connections().in_use == 0


def test_a_session_is_as_it_was_after_a_statement_of_its_own() -> None:
    with autocommit() as connection:
        connection.execute(text("SELECT 1"))
    with transaction() as connection:
        connection.execute(text("SET LOCAL lock_timeout = '7s'"))
        assert connection.scalar(text("SHOW lock_timeout")) == "7s", "it is a transaction"
    assert in_force() == NEEDED
