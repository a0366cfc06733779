"""How the cost of a statement grows with what is stored and with the number of users, and the plans that explain it."""

import random
import statistics
import time
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID, uuid4

from sqlalchemy import Connection, event

from bench import in_process
from bench.floors import books
from bench.plan import Run, Values
from bench.stack import BenchError, add_users, query
from shared.database import engine
from shared.payments.accept import accept
from shared.payments.batch import SETTLE_BATCH_ROWS, settle_batch
from shared.payments.model import LANES, TransactionRequest, Type, lane_of
from shared.payments.queries import lanes, transactions

ACCEPT_ROWS = 1_000
CHUNK = 100_000
ANOTHER_REDIS_DATABASE = "/3"  # its rings are heard by nobody

# Settled transactions as they end up: row, entry and event, in the order that they would have come in.
_FILL = """
    WITH asked AS MATERIALIZED (
        SELECT users.id AS user_id, last_seq + n AS seq, balance + n * 100 AS balance, last_event_seq + n AS user_seq,
               {uid} AS uid, now() AS at
        FROM generate_series(1, %(each)s) AS n, users ORDER BY n, users.id
    ), kept AS (
        INSERT INTO transactions (uid, user_id, type, amount, accept_order, status, accepted_at, settled_at, request_id)
        SELECT uid, user_id, 'DEPOSIT', 100, nextval('transactions_accept_order_seq'), 'COMPLETED', at, at, md5(seq::text)
        FROM asked
    ), booked AS (
        INSERT INTO ledger (user_id, seq, uid, amount, balance_after, effective_at, history_at, recorded_at)
        SELECT user_id, seq, uid, 100, balance, at, at, at FROM asked
    ), told AS (
        INSERT INTO events (lane, user_id, user_seq, type, uid, balance_before, balance_after, occurred_at)
        SELECT user_id % 16, user_id, user_seq, 'transaction.completed', uid, balance - 100, balance, at FROM asked
    )
    UPDATE users SET balance = balance + %(each)s * 100, last_seq = last_seq + %(each)s,
        last_event_seq = last_event_seq + %(each)s, last_history_at = now()
"""
_UIDS = {"uuid4": "gen_random_uuid()", "uuid7": "uuidv7()"}


def measure(run: Run) -> Values:
    values: Values = {}
    for kind in _UIDS:
        url = books.make(run, f"growth_{kind}")
        add_users(url, run.plan.users)
        for rows in run.plan.stored:
            _fill(run, url, kind, rows)
            values |= _measure(run, url, kind, f"growth_{kind}_{rows}_stored")
    for count in run.plan.user_counts:
        url = books.make(run, f"growth_{count}_users")
        add_users(url, count)
        _fill(run, url, "uuid4", max(count, run.plan.stored[1]))
        values |= _measure(run, url, "uuid4", f"growth_uuid4_{count}_users")
    return values


def _fill(run: Run, url: str, kind: str, rows: int) -> None:
    """Up to about so many stored transactions, the same number for each user."""
    ((users, stored),) = query(url, "SELECT count(*), coalesce(sum(last_seq), 0) FROM users")
    statement = _FILL.format(uid=_UIDS[kind]).replace("% 16", "%% 16")
    while (left := (rows - int(stored)) // users) > 0:
        each = min(left, max(1, CHUNK // users))
        query(url, statement, {"each": each})
        stored += each * users
        run.say(f"growth, {kind}, {users:,} users: {int(stored):,} of {rows:,} stored")
    for table in ("users", "transactions", "ledger", "events"):
        query(url, f"VACUUM ANALYZE {table}")


def _measure(run: Run, url: str, kind: str, name: str) -> Values:
    broker = urlsplit(run.stack.broker_url)._replace(path=ANOTHER_REDIS_DATABASE).geturl()
    users = [user for (user,) in query(url, "SELECT id FROM users")]
    accepting, settling = [], []
    with in_process.use(url, broker, run.log("in_process")):
        # lane after lane, so that what is PENDING stays two batches: this is about what is stored
        for lane in range(LANES):
            of_lane = [user for user in users if lane_of(user) == lane]
            accepting.append(_timed(accept, _requests(kind, of_lane)))
            if lane == 0:
                run.notes[name] = _plans(_requests(kind, of_lane))
            settling += [_timed(_settle_whole_batch, lane) for _ in range(ACCEPT_ROWS // SETTLE_BATCH_ROWS)]
    return {
        f"{name}_accept_{ACCEPT_ROWS}_rows_ms": statistics.median(accepting),
        f"{name}_settle_{SETTLE_BATCH_ROWS}_rows_ms": statistics.median(settling),
    }


def _timed(act: Any, *arguments: Any) -> float:
    began = time.perf_counter()
    act(*arguments)
    return (time.perf_counter() - began) * 1000


def _settle_whole_batch(lane: int) -> None:
    batch = settle_batch([lane])
    if batch is None or len(batch.outcomes) != SETTLE_BATCH_ROWS:
        raise BenchError(f"lane {lane} did not settle {SETTLE_BATCH_ROWS} rows: {batch}")


def _requests(kind: str, users: Sequence[int]) -> list[TransactionRequest]:
    make = uuid4 if kind == "uuid4" else uuid7
    return [
        TransactionRequest(make(), random.choice(users), Type.DEPOSIT, 100, None, uuid4().hex)
        for _ in range(ACCEPT_ROWS)
    ]


def uuid7() -> UUID:
    """A time-ordered uid as clients make them; Python has one from 3.14 on."""
    milliseconds = time.time_ns() // 1_000_000
    return UUID(int=milliseconds << 80 | 0x7 << 76 | random.getrandbits(12) << 64 | 0b10 << 62 | random.getrandbits(62))


def _plans(requests: Sequence[TransactionRequest]) -> dict[str, list[str]]:
    """EXPLAIN (ANALYZE, BUFFERS) of the two statements that every payment goes through. What it did is rolled back."""
    plans = {}
    for what, act in (
        ("accept", lambda connection: transactions.insert_pending(connection, requests)),
        ("read pending", lambda connection: lanes.read_pending(connection, [0], SETTLE_BATCH_ROWS)),
    ):
        with engine().connect() as connection:
            statement, parameters = _sent_by(connection, act)
            connection.rollback()
            lines = connection.exec_driver_sql(f"EXPLAIN (ANALYZE, BUFFERS) {statement}", parameters).scalars()
            plans[what] = list(lines)
            connection.rollback()
    return plans


def _sent_by(connection: Connection, act: Any) -> tuple[str, Any]:
    sent: list[tuple[str, Any]] = []

    def note(_connection: object, _cursor: object, statement: str, parameters: Any, *_: object) -> None:
        sent.append((statement, parameters))

    event.listen(connection, "before_cursor_execute", note)
    act(connection)
    event.remove(connection, "before_cursor_execute", note)
    return sent[-1]
