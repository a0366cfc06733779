"""Statements on events: the next ones of all lanes, or of one user. The cost of a page does not grow with the feed."""

from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import Connection, TextClause, text

from shared.database import array
from shared.payments.model import LANES, Event, EventType
from shared.payments.queries.transactions import TRANSACTION_COLUMNS, transaction_of

# OFFSET 0 forces a look-up of each transaction and entry, so that the planner never reads whole tables.
_SELECT_EVENTS: Final = f"""
    SELECT event.id, event.user_id, event.user_seq, event.type, event.balance_after, event.occurred_at,
           t.*, entry.effective_at, entry.balance_after
    FROM ({{events}} LIMIT :limit) AS event
    CROSS JOIN LATERAL (SELECT {TRANSACTION_COLUMNS} FROM transactions t WHERE t.uid = event.uid OFFSET 0) AS t
    LEFT JOIN LATERAL (
        SELECT effective_at, balance_after FROM ledger WHERE ledger.uid = event.uid OFFSET 0
    ) AS entry ON true
    ORDER BY event.{{order}}
"""
# The pair (lane, id) matches only one index. With separate comparisons the planner may scan the ids of all lanes, if
# the statistics say that one lane has nearly all events.
_READ = text(
    _SELECT_EVENTS.format(
        events="""
            SELECT event.* FROM unnest(CAST(:lanes AS smallint[]), CAST(:lasts AS bigint[])) AS seen (lane, last)
            CROSS JOIN LATERAL (
                SELECT * FROM events WHERE (lane, id) > (seen.lane, seen.last) AND lane <= seen.lane
                ORDER BY lane, id LIMIT :limit
            ) AS event
            ORDER BY event.id
        """,
        order="id",
    )
)
# A pair here, too. OFFSET 0 hides the values from the planner: otherwise it may read and sort all events of the user.
_READ_OF_USER = text(
    _SELECT_EVENTS.format(
        events="""
            SELECT event.* FROM (
                SELECT CAST(:user_id AS bigint) AS user_id, CAST(:after AS bigint) AS last OFFSET 0
            ) AS seen
            CROSS JOIN LATERAL (
                SELECT * FROM events
                WHERE (user_id, user_seq) > (seen.user_id, seen.last) AND user_id <= seen.user_id
                ORDER BY user_id, user_seq LIMIT :limit
            ) AS event
            ORDER BY event.user_seq
        """,
        order="user_seq",
    )
)


def read_events(connection: Connection, lasts: Sequence[int], limit: int) -> list[Event]:
    """Returns the oldest events, by id, that come after the given id of their lane."""
    return _events(connection, _READ, {"lanes": array(range(LANES)), "lasts": array(lasts), "limit": limit})


def read_events_of_user(connection: Connection, user_id: int, after: int, limit: int) -> list[Event]:
    """Returns the user's next events after this user_seq, in order."""
    return _events(connection, _READ_OF_USER, {"user_id": user_id, "after": after, "limit": limit})


def _events(connection: Connection, statement: TextClause, parameters: dict[str, Any]) -> list[Event]:
    return [
        Event(id_, user_id, user_seq, EventType(type_), balance, occurred_at, transaction_of(row))
        for id_, user_id, user_seq, type_, balance, occurred_at, *row in connection.execute(statement, parameters)
    ]


# A user's ids grow with user_seq, which has no gaps. So halving finds the position in about twenty look-ups, in a feed
# of any length (pruned events come before every position). A scan from the id would read all events of other users,
# and a scan from user_seq 1 all earlier events of this user.
_FIND_SEQ = text("""
    WITH RECURSIVE search (low, high) AS (
        SELECT CAST(0 AS bigint), last_event_seq FROM users WHERE id = :user_id
        UNION ALL
        SELECT CASE WHEN event.id > :last THEN low ELSE middle END, CASE WHEN event.id > :last THEN middle - 1 ELSE high END
        FROM (SELECT low, high, (low + high + 1) / 2 AS middle FROM search WHERE low < high) AS half
        LEFT JOIN events event ON event.user_id = :user_id AND event.user_seq = middle
    )
    SELECT low FROM search WHERE low = high
""")


# The last id taken by an event, committed or not: retention may have deleted the event itself.
_LAST_ID = text("SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM events_id_seq")


def is_ahead(connection: Connection, lasts: Sequence[int]) -> bool:
    """Returns whether one of these ids is higher than the last id taken.

    After a restore ids are taken again. So an id that is not ahead may belong to another event than the reader saw;
    this function cannot detect that.
    """
    return max(lasts) > int(connection.execute(_LAST_ID).scalar_one())


def find_seq(connection: Connection, user_id: int, last: int) -> int:
    """Returns the user_seq of the user's last event up to this id, 0 if there is none."""
    return int(connection.execute(_FIND_SEQ, {"user_id": user_id, "last": last}).scalar_one())
