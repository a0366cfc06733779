"""Statements on users: create, get, lock for settling, write back."""

from collections.abc import Iterable
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import Connection, text

from shared.database import array
from shared.ledger import Account
from shared.model import User

_COLUMNS = "id, name, created_at, balance"
_INSERT = text(f"INSERT INTO users (name) VALUES (:name) RETURNING {_COLUMNS}")
_INSERT_WITH_KEY = text(f"""
    INSERT INTO users (name, idempotency_key)
    SELECT :name, :stored WHERE NOT EXISTS (SELECT FROM users WHERE idempotency_key = :bare)
    ON CONFLICT (idempotency_key) DO NOTHING RETURNING {_COLUMNS}
""")
_FIND_BY_KEY = text(f"""
    SELECT {_COLUMNS} FROM users WHERE idempotency_key IN (:stored, :bare) ORDER BY idempotency_key = :bare LIMIT 1
""")
_FIND = text(f"SELECT {_COLUMNS} FROM users WHERE id = :user_id")
_FIND_LAST_EVENT_SEQ = text("SELECT last_event_seq FROM users WHERE id = :user_id")
# The clock is read after the last lock: it counts the locked rows first. So whoever had a lock before has an earlier moment.
_LOCK = text("""
    WITH account AS MATERIALIZED (
        SELECT id, balance, last_seq, last_history_at, last_event_seq FROM users
        WHERE id = ANY(CAST(:user_ids AS bigint[])) ORDER BY id FOR NO KEY UPDATE
    ), clock AS MATERIALIZED (SELECT count(*), clock_timestamp() AS moment FROM account)
    SELECT account.*, clock.moment FROM account CROSS JOIN clock
""")


def insert_user(connection: Connection, name: str) -> User:
    return User(*connection.execute(_INSERT, {"name": name}).one())


def insert_user_with_key(connection: Connection, name: str, stored: str, bare: str) -> User | None:
    """Returns the new user, or None where the key is taken: as it is stored, or bare, as an older release stored it."""
    row = connection.execute(_INSERT_WITH_KEY, {"name": name, "stored": stored, "bare": bare}).one_or_none()
    return User(*row) if row else None


def get_user_by_key(connection: Connection, stored: str, bare: str) -> User:
    return User(*connection.execute(_FIND_BY_KEY, {"stored": stored, "bare": bare}).one())


def find_user(connection: Connection, user_id: int) -> User | None:
    row = connection.execute(_FIND, {"user_id": user_id}).one_or_none()
    return User(*row) if row else None


def find_last_event_seq(connection: Connection, user_id: int) -> int | None:
    """Returns the user_seq of the user's last event, 0 if there is none; None where there is no such user."""
    last_event_seq: int | None = connection.scalar(_FIND_LAST_EVENT_SEQ, {"user_id": user_id})
    return last_event_seq


class LockedAccounts(NamedTuple):
    """Accounts by user id, and Postgres's clock when all of them were locked."""

    accounts: dict[int, Account]
    moment: datetime


def lock_accounts(connection: Connection, user_ids: Iterable[int]) -> LockedAccounts:
    """Locks the rows of users, at least one, in the order of their ids, for settling."""
    rows = connection.execute(_LOCK, {"user_ids": array(user_ids)}).all()
    return LockedAccounts({row.id: Account(*row[:-1]) for row in rows}, rows[0].moment)
