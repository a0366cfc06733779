"""Statements on users: create them, find them, lock them for settling."""

from collections.abc import Iterable
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import Connection, text

from shared.database import array
from shared.payments.model import User
from shared.payments.rules import Account

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
# Counting the locked rows forces the clock to be read after the last lock. So the previous holder of a lock has an
# earlier moment.
_LOCK = text("""
    WITH account AS MATERIALIZED (
        SELECT id, balance, last_seq, last_history_at, last_event_seq FROM users
        WHERE id = ANY(CAST(:user_ids AS bigint[])) ORDER BY id FOR NO KEY UPDATE
    ), clock AS MATERIALIZED (SELECT count(*), clock_timestamp() AS moment FROM account)
    SELECT account.*, clock.moment FROM account CROSS JOIN clock
""")


def insert_user(connection: Connection, name: str) -> User:
    """Returns a new user with balance 0."""
    return User(*connection.execute(_INSERT, {"name": name}).one())


def insert_user_with_key(connection: Connection, name: str, stored: str, bare: str) -> User | None:
    """Returns a new user with an idempotency key, or None if the key is taken.

    The key is taken if it exists as `stored`, or as `bare`, which is the form of an older release.
    """
    row = connection.execute(_INSERT_WITH_KEY, {"name": name, "stored": stored, "bare": bare}).one_or_none()
    return User(*row) if row else None


def get_user_by_key(connection: Connection, stored: str, bare: str) -> User:
    """Returns the user with this idempotency key in either form. Raises NoResultFound if there is none."""
    return User(*connection.execute(_FIND_BY_KEY, {"stored": stored, "bare": bare}).one())


def find_user(connection: Connection, user_id: int) -> User | None:
    """Returns a user with the balance now, or None."""
    row = connection.execute(_FIND, {"user_id": user_id}).one_or_none()
    return User(*row) if row else None


def find_last_event_seq(connection: Connection, user_id: int) -> int | None:
    """Returns the user_seq of the user's last event, 0 without events; None if there is no such user."""
    last_event_seq: int | None = connection.scalar(_FIND_LAST_EVENT_SEQ, {"user_id": user_id})
    return last_event_seq


class LockedAccounts(NamedTuple):
    """Accounts by user id, and the database clock (UTC) after the last lock."""

    accounts: dict[int, Account]
    moment: datetime


def lock_accounts(connection: Connection, user_ids: Iterable[int]) -> LockedAccounts:
    """Locks the rows of one or more users in the order of their ids. Returns the accounts and the clock."""
    rows = connection.execute(_LOCK, {"user_ids": array(user_ids)}).all()
    return LockedAccounts({row.id: Account(*row[:-1]) for row in rows}, rows[0].moment)
