"""The role of web and workers: what it needs, and nothing that could change the past."""

from collections.abc import Iterator

import pytest
from sqlalchemy import Connection, create_engine, make_url, text
from sqlalchemy.exc import ProgrammingError
from sqlalchemy.pool import NullPool

from local.stack.postgres import APP_ROLE
from migrations.grants import GRANTS, grant

pytestmark = pytest.mark.integration

FORBIDDEN = [
    "UPDATE ledger SET amount = amount",
    "DELETE FROM ledger",
    "TRUNCATE ledger",
    "ALTER TABLE ledger DISABLE TRIGGER ledger_append_only",
    "DROP TRIGGER transactions_final ON transactions",
    "ALTER TABLE users DROP CONSTRAINT users_balance_not_negative",
    "UPDATE transactions SET amount = amount",
    "UPDATE transactions SET user_id = user_id",
    "DELETE FROM transactions",
    "DELETE FROM users",
    "UPDATE users SET name = name",
    "UPDATE events SET balance_after = 0",
    "TRUNCATE events",
    "INSERT INTO api_keys (name, scope, secret_hash) VALUES ('me', 'admin', sha256('x'))",
    "UPDATE api_keys SET scope = 'admin'",
    "UPDATE operator_actions SET actor = actor",
    "DELETE FROM operator_actions",
    "UPDATE alembic_version SET version_num = '0000'",
    "CREATE TABLE mine (id int)",
    "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NEW; END $$",
    "SELECT setval('transactions_accept_order_seq', 1)",
    "SELECT setval('events_id_seq', 1)",
    "COPY users TO PROGRAM 'true'",
    "SET session_replication_role = replica",
]


ALLOWED = [
    "SELECT count(*) FROM api_keys",
    "UPDATE users SET balance = balance WHERE id = 0",
    "SELECT FROM users WHERE id = 0 FOR NO KEY UPDATE",
    "UPDATE transactions SET status = status WHERE uid = gen_random_uuid()",
    "SELECT nextval('transactions_accept_order_seq')",
    "DELETE FROM events WHERE id = 0",
    "SELECT last_value FROM events_id_seq",
    "DELETE FROM deliveries WHERE webhook_id = 0",
    "INSERT INTO operator_actions (actor, action, target) VALUES ('a test', 'test', 'nothing')",
]


@pytest.fixture(scope="module")
def app(database_url: str) -> Iterator[Connection]:
    """The owner's connection, with the rights of the role that the embedded server has for web and workers."""
    with create_engine(make_url(database_url), poolclass=NullPool).connect() as connection:
        if not connection.scalar(text("SELECT count(*) FROM pg_roles WHERE rolname = :role"), {"role": APP_ROLE}):
            pytest.skip(f"this server has no role {APP_ROLE}")
        grant(connection, APP_ROLE)
        connection.execute(text(f"SET ROLE {APP_ROLE}"))
        connection.commit()
        yield connection


@pytest.mark.parametrize("statement", FORBIDDEN)
def test_web_and_workers_may_not(app: Connection, statement: str) -> None:
    with pytest.raises(ProgrammingError) as raised:
        app.execute(text(statement))
    app.rollback()
    assert raised.value.orig.pgcode == "42501", raised.value


@pytest.mark.parametrize("statement", ALLOWED)
def test_web_and_workers_may(app: Connection, statement: str) -> None:
    app.execute(text(statement))
    app.rollback()


def test_every_table_is_decided_upon(app: Connection) -> None:
    """A new one is closed to web and workers until it is listed."""
    tables = "SELECT relname FROM pg_class WHERE relkind = 'r' AND relnamespace = CAST('public' AS regnamespace)"
    assert {*GRANTS} == {*app.scalars(text(tables))}


def test_what_was_granted_by_hand_is_taken_back(app: Connection) -> None:
    app.execute(text("RESET ROLE"))
    app.execute(text(f"GRANT ALL ON ledger TO {APP_ROLE}"))
    grant(app, APP_ROLE)
    held = "SELECT has_table_privilege(:role, 'ledger', 'DELETE'), has_table_privilege(:role, 'ledger', 'INSERT')"
    assert tuple(app.execute(text(held), {"role": APP_ROLE}).one()) == (False, True)
    app.rollback()
