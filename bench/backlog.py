"""A backlog settled from a standing start: how fast the workers are when nothing else runs."""

import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from bench import in_process
from bench.loads import await_settled
from bench.plan import Run, Values
from bench.stack import add_users, query
from shared.payments import doorbell
from shared.payments.model import LANES

_FILL = """
    INSERT INTO transactions (uid, user_id, type, amount, accept_order, accepted_at, request_id, bulk)
    SELECT gen_random_uuid(), %s + n %% %s, 'DEPOSIT', 100, nextval('transactions_accept_order_seq'),
           clock_timestamp(), md5(n::text), %s
    FROM generate_series(1, %s) AS n
"""


def fill(url: str, users: Sequence[int], rows: int, *, bulk: bool = False) -> None:
    """Adds PENDING rows spread over the users, as if accepted one by one, or in lists.

    Postgres's statistics are from before they came, as in life: those of a service at rest say that nothing is
    PENDING, and plans are made by that. Without this they would depend on when autovacuum comes by.
    """
    query(url, "VACUUM ANALYZE transactions")
    query(url, _FILL, users[0], len(users), bulk, rows)


def drain(run: Run, name: str) -> Values:
    """From the instant that the workers may run until nothing is pending."""
    url, rows = run.stack.database_url, run.plan.backlog
    users = add_users(url, run.plan.users)
    with stopped(run.stack.pids_of("worker")):
        fill(url, users, rows)
        with in_process.use(url, run.stack.broker_url, run.log("in_process")):
            doorbell.ring({lane: doorbell.RingSource(f"bench-{lane}") for lane in range(LANES)})
    began = time.perf_counter()
    await_settled(url)
    return {f"{name}_per_s": rows / (time.perf_counter() - began)}


def drain_with_one(run: Run) -> Values:
    return drain(run, "drain_1")


def drain_with_two(run: Run) -> Values:
    return drain(run, "drain_2")


@contextmanager
def stopped(pids: Sequence[int]) -> Iterator[None]:
    """The processes stand still while the block runs."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
