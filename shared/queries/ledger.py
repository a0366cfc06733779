"""Statements on the ledger and its events: write a batch, scan a past, look a balance up."""

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import Connection, text

from shared.database import allow, array
from shared.ledger import Account, Outcome, Past
from shared.status import lane_of

LATE_SCAN_SECONDS = 12  # it may come twice in a transaction: the rules, then the trigger

_INSERT_ENTRIES = text("""
    INSERT INTO ledger (user_id, seq, uid, amount, balance_after, effective_at, history_at, recorded_at)
    SELECT user_id, seq, uid, amount, balance_after, effective_at, history_at, :moment
    FROM unnest(CAST(:user_ids AS bigint[]), CAST(:seqs AS bigint[]), CAST(:uids AS uuid[]),
                CAST(:amounts AS bigint[]), CAST(:balances AS bigint[]),
                CAST(:effective_ats AS timestamptz[]), CAST(:history_ats AS timestamptz[]))
        AS entry (user_id, seq, uid, amount, balance_after, effective_at, history_at)
""")
# In the batch's order, so that ids grow with user_seq; within a lane they also commit in order (the lane's
# lock is held until after the commit), which is what the feed's cursor stands on.
_INSERT_EVENTS = text("""
    INSERT INTO events (lane, user_id, user_seq, type, uid, balance_before, balance_after, occurred_at)
    SELECT lane, user_id, user_seq, type, uid, balance_before, balance_after, :moment
    FROM unnest(CAST(:lanes AS smallint[]), CAST(:user_ids AS bigint[]), CAST(:user_seqs AS bigint[]),
                CAST(:types AS text[]), CAST(:uids AS uuid[]), CAST(:befores AS bigint[]),
                CAST(:afters AS bigint[])) WITH ORDINALITY
        AS event (lane, user_id, user_seq, type, uid, balance_before, balance_after, position)
    ORDER BY position
""")
# One sort, by instant; what peers of one instant do counts together (the window's default frame takes them all).
# A start without entries of its own counts too: the balance carried there is a balance.
_SCAN_PAST = text("""
    SELECT bucket, min(running) AS lowest, sum(amount) AS change FROM (
        SELECT width_bucket(at, CAST(:starts AS timestamptz[])) AS bucket, amount,
               sum(amount) OVER (ORDER BY at) AS running
        FROM (
            SELECT effective_at AS at, amount FROM ledger
            WHERE user_id = :user_id AND history_at >= :first AND effective_at >= :first
            UNION ALL SELECT start, 0 FROM unnest(CAST(:starts AS timestamptz[])) AS start
        ) AS change
    ) AS instant
    GROUP BY bucket ORDER BY bucket
""")
_BALANCE_AT = text("""
    SELECT coalesce((SELECT balance_after FROM ledger WHERE user_id = :user_id AND history_at <= :instant
                     ORDER BY history_at DESC, seq DESC LIMIT 1), 0)
         + coalesce((SELECT sum(amount) FROM ledger
                     WHERE user_id = :user_id AND late
                       AND tstzrange(effective_at, history_at) @> CAST(:instant AS timestamptz)), 0)
""")


def insert_entries(connection: Connection, outcomes: Sequence[Outcome], moment: datetime) -> None:
    """Write the completed outcomes' entries in one statement, so that triggers see batch-mates together."""
    completed = [(o.pending, o.entry) for o in outcomes if o.entry]
    if not completed:
        return
    connection.execute(
        _INSERT_ENTRIES,
        {
            "user_ids": array(p.user_id for p, _ in completed),
            "seqs": array(e.seq for _, e in completed),
            "uids": array(p.uid for p, _ in completed),
            "amounts": array(e.amount for _, e in completed),
            "balances": array(e.balance_after for _, e in completed),
            "effective_ats": array(e.effective_at for _, e in completed),
            "history_ats": array(e.history_at for _, e in completed),
            "moment": moment,
        },
    )


def insert_events(connection: Connection, outcomes: Sequence[Outcome], moment: datetime) -> None:
    """Write one event per outcome, in their order."""
    connection.execute(
        _INSERT_EVENTS,
        {
            "lanes": array(lane_of(o.pending.user_id) for o in outcomes),
            "user_ids": array(o.pending.user_id for o in outcomes),
            "user_seqs": array(o.user_seq for o in outcomes),
            "types": array(o.event for o in outcomes),
            "uids": array(o.pending.uid for o in outcomes),
            "befores": array(o.balance_before for o in outcomes),
            "afters": array(o.balance_after for o in outcomes),
            "moment": moment,
        },
    )


def allow_late_scan(connection: Connection) -> None:
    """Give the rest of the transaction the time that reading a long past may take."""
    allow(connection, LATE_SCAN_SECONDS)


def scan_past(connection: Connection, account: Account, starts: Sequence[datetime]) -> Past:
    """The lowest balances of a locked account from each of the given instants (in order) to the next.

    Reads every entry from the first instant on, and keeps none: today's balance less all that has changed since
    is the balance before the first instant.
    """
    rows = connection.execute(
        _SCAN_PAST, {"user_id": account.user_id, "first": starts[0], "starts": array(starts)}
    ).all()
    opening = account.balance - sum(int(row.change) for row in rows)
    return Past(starts, [opening + int(row.lowest) for row in rows])


def get_balance_at(connection: Connection, user_id: int, instant: datetime) -> int:
    """The sum of the user's entries effective at or before the instant, in minor units, by index look-ups.

    The snapshot of the last entry by history, plus the late entries recorded after it that lie before the
    instant. `history_at` is the running maximum of `effective_at`, so the two sets are exactly those entries.
    """
    return int(connection.execute(_BALANCE_AT, {"user_id": user_id, "instant": instant}).scalar_one())
