"""The statement of a user: pages of transactions by key, newest accepted first."""

from datetime import datetime
from typing import NamedTuple

from sqlalchemy import Connection, text

from shared.queries.transactions import VIEW, Transaction, transaction_of
from shared.status import Status, Type


class Key(NamedTuple):
    """Where a page ended: the last item's place in the index that orders the statement."""

    accepted_at: datetime
    accept_order: int


class Filter(NamedTuple):
    """What the statement is narrowed to; None: not. `since` and `until` are half-open on accepted_at."""

    status: Status | None = None
    type: Type | None = None
    since: datetime | None = None
    until: datetime | None = None


def read_statement(
    connection: Connection, user_id: int, wanted: Filter, after: Key | None, limit: int
) -> list[Transaction]:
    """Up to `limit` transactions that come after the key."""
    conditions = {
        "t.status = :status": wanted.status,
        "t.type = :type": wanted.type,
        "t.accepted_at >= :since": wanted.since,
        "t.accepted_at < :until": wanted.until,
        "(t.accepted_at, t.accept_order) < (:accepted_at, :accept_order)": after,
    }
    asked = [condition for condition, value in conditions.items() if value is not None]
    statement = text(
        f"{VIEW} WHERE {' AND '.join(['t.user_id = :user_id', *asked])} "
        "ORDER BY t.accepted_at DESC, t.accept_order DESC LIMIT :limit"
    )
    parameters = {
        "user_id": user_id,
        "limit": limit,
        **wanted._asdict(),
        **(after._asdict() if after else {}),
    }
    named = statement.compile().params.keys()
    rows = connection.execute(statement, {name: parameters[name] for name in named})
    return [transaction_of(row) for row in rows]
