"""The floor of draining: a settle loop that is SQL alone, set-based. No rules, no log: deposits only."""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack

import psycopg2  # type: ignore[import-untyped]

from bench.backlog import fill
from bench.floors import books
from bench.plan import Run, Values
from bench.stack import BenchError, add_users, environment, query
from shared.payments.model import LANES

BATCH = 1_000

_TRY_LOCK = "SELECT pg_try_advisory_xact_lock(7411, %s)"
_SETTLE = f"""
    WITH pending AS MATERIALIZED (
        SELECT uid, user_id, amount, accept_order FROM transactions
        WHERE lane = %(lane)s AND status = 'PENDING' AND parked_at IS NULL ORDER BY accept_order LIMIT {BATCH}
    ), account AS MATERIALIZED (
        SELECT id, balance, last_seq, last_history_at, last_event_seq FROM users
        WHERE id IN (SELECT user_id FROM pending) ORDER BY id FOR NO KEY UPDATE
    ), folded AS MATERIALIZED (
        SELECT p.*, greatest(a.last_history_at, now()) AS at,
               a.last_seq + row_number() OVER per_user AS seq,
               a.last_event_seq + row_number() OVER per_user AS user_seq,
               a.balance + sum(p.amount) OVER per_user AS balance_after
        FROM pending p JOIN account a ON a.id = p.user_id
        WINDOW per_user AS (PARTITION BY p.user_id ORDER BY p.accept_order)
    ), booked AS (
        INSERT INTO ledger (user_id, seq, uid, amount, balance_after, effective_at, history_at, recorded_at)
        SELECT user_id, seq, uid, amount, balance_after, at, at, at FROM folded
    ), told AS (
        INSERT INTO events (lane, user_id, user_seq, type, uid, balance_before, balance_after, occurred_at)
        SELECT %(lane)s, user_id, user_seq, 'transaction.completed', uid, balance_after - amount, balance_after, at
        FROM folded ORDER BY accept_order
    ), written AS (
        UPDATE users SET balance = last.balance_after, last_seq = last.seq, last_history_at = last.at,
            last_event_seq = last.user_seq
        FROM (SELECT DISTINCT ON (user_id) * FROM folded ORDER BY user_id, seq DESC) AS last
        WHERE users.id = last.user_id
    )
    UPDATE transactions t SET status = 'COMPLETED', settled_at = at FROM folded WHERE t.uid = folded.uid
"""


def with_one(run: Run) -> Values:
    return _measure(run, 1)


def with_two(run: Run) -> Values:
    return _measure(run, 2)


def _measure(run: Run, processes: int) -> Values:
    url = books.make(run, "sql_loop")
    fill(url, add_users(url, run.plan.users), run.plan.backlog)
    with ExitStack() as stack:
        loops = [
            stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-m", "bench.floors.sql_loop", *map(str, range(first, LANES, processes))],
                    env=environment(DATABASE_URL=url),
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                )
            )
            for first in range(processes)
        ]
        _hear(loops)  # they are connected
        began = time.perf_counter()
        for loop in loops:
            assert loop.stdin
            loop.stdin.write(b"go\n")
            loop.stdin.flush()
        _hear(loops)  # they are done
        seconds = time.perf_counter() - began
    if query(url, "SELECT 1 FROM transactions WHERE status = 'PENDING' LIMIT 1"):
        raise BenchError("the bare SQL loop has left rows PENDING")
    books.check(url, "sql_loop")
    return {f"sql_loop_{processes}_per_s": run.plan.backlog / seconds}


def _hear(loops: Sequence[subprocess.Popen[bytes]]) -> None:
    for loop in loops:
        if not (loop.stdout and loop.stdout.readline()):
            raise BenchError("the bare SQL loop has ended early")


def _loop(lanes: Sequence[int]) -> None:
    """Settle the lanes until they are empty, a batch of each in turn."""
    connection = psycopg2.connect(os.environ["DATABASE_URL"])
    cursor = connection.cursor()
    connection.commit()
    print("ready", flush=True)
    sys.stdin.readline()
    left = list(lanes)
    while left:
        for lane in tuple(left):
            cursor.execute(_TRY_LOCK, (lane,))
            cursor.execute(_SETTLE, {"lane": lane})
            if cursor.rowcount < BATCH:
                left.remove(lane)
            connection.commit()
    print("done", flush=True)


if __name__ == "__main__":
    _loop([int(lane) for lane in sys.argv[1:]])
