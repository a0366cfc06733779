"""Statements on events: the next ones of all lanes, or of one user. What a page reads does not grow with the feed."""

from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import Connection, TextClause, text

from shared.database import array
from shared.model import LANES, Event, EventType
from shared.queries.transactions import TRANSACTION_COLUMNS, transaction_of

# OFFSET 0: each transaction and each entry is looked up, whatever the planner thinks of reading the whole tables
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
# Compared as a pair, for which there is but one index: with lane and id each by itself the planner may go through the ids
# of all lanes and throw away those of the others, where the statistics say that one lane has nearly all of them.
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
# As a pair here, too, and of values that the planner does not see: else it may read all that it believes the user to have,
# and sort.
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
    """The oldest events, by id, of those that come after the given id of their lane."""
    return _events(connection, _READ, {"lanes": array(range(LANES)), "lasts": array(lasts), "limit": limit})


def read_events_of_user(connection: Connection, user_id: int, after: int, limit: int) -> list[Event]:
    """The user's events that come after this user_seq."""
    return _events(connection, _READ_OF_USER, {"user_id": user_id, "after": after, "limit": limit})


def _events(connection: Connection, statement: TextClause, parameters: dict[str, Any]) -> list[Event]:
    return [
        Event(id_, user_id, user_seq, EventType(type_), balance, occurred_at, transaction_of(row))
        for id_, user_id, user_seq, type_, balance, occurred_at, *row in connection.execute(statement, parameters)
    ]


# A user's ids grow with user_seq, which has no gaps: halving finds the place in some twenty look-ups, wherever in a long
# feed it lies (what was pruned by age lies before every place). Reading on from the id would pass all events of other users, counting from 1 all earlier ones.
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


# The number that the last event took, committed or not: retention may have deleted the event itself.
_LAST_ID = text("SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM events_id_seq")


def is_ahead(connection: Connection, lasts: Sequence[int]) -> bool:
    """Returns whether an id among these was never given, in these books, to an event.

    After a restore ids are given again, so one that is not ahead may name another event than the reader knows: that
    cannot be told here.
    """
    return max(lasts) > int(connection.execute(_LAST_ID).scalar_one())


def find_seq(connection: Connection, user_id: int, last: int) -> int:
    """The user_seq of the user's last event up to this id, 0 if there is none."""
    return int(connection.execute(_FIND_SEQ, {"user_id": user_id, "last": last}).scalar_one())
