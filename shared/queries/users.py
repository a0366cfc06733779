"""Statements on users: create, get, lock for settling, write back."""

from collections.abc import Iterable
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import Connection, text

from shared.database import array
from shared.ledger import Account


class User(NamedTuple):
    """A user. `balance` in minor units."""

    id: int
    name: str
    created_at: datetime
    balance: int


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
_LOCK = text("""
    SELECT id, balance, last_seq, last_history_at, last_event_seq FROM users
    WHERE id = ANY(CAST(:user_ids AS bigint[])) ORDER BY id FOR NO KEY UPDATE
""")
_WRITE = text("""
    UPDATE users SET balance = account.balance, last_seq = account.last_seq,
        last_history_at = account.last_history_at, last_event_seq = account.last_event_seq
    FROM unnest(CAST(:user_ids AS bigint[]), CAST(:balances AS bigint[]), CAST(:last_seqs AS bigint[]),
                CAST(:last_history_ats AS timestamptz[]), CAST(:last_event_seqs AS bigint[]))
        AS account (user_id, balance, last_seq, last_history_at, last_event_seq)
    WHERE users.id = account.user_id
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
    found: int | None = connection.scalar(_FIND_LAST_EVENT_SEQ, {"user_id": user_id})
    return found


def lock_accounts(connection: Connection, user_ids: Iterable[int]) -> dict[int, Account]:
    """Lock the users' rows in id order, for settling; the accounts by user id."""
    rows = connection.execute(_LOCK, {"user_ids": array(user_ids)})
    return {row.id: Account(*row) for row in rows}


def write_accounts(connection: Connection, accounts: Iterable[Account]) -> int:
    """Write balances and counters back; the number of rows."""
    accounts = list(accounts)
    result = connection.execute(
        _WRITE,
        {
            "user_ids": array(a.user_id for a in accounts),
            "balances": array(a.balance for a in accounts),
            "last_seqs": array(a.last_seq for a in accounts),
            "last_history_ats": array(a.last_history_at for a in accounts),
            "last_event_seqs": array(a.last_event_seq for a in accounts),
        },
    )
    return result.rowcount
