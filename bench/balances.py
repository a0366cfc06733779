"""A balance now and at a date, of a user with a short history and of one with a very long one."""

import random
import statistics
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta

from bench import in_process
from bench.generator import closed_loop
from bench.loads import http
from bench.plan import Run, Values
from bench.stack import BenchError, add_users, query
from shared.payments.reads import get_balance

BEGIN = datetime(2025, 1, 1, tzinfo=UTC)  # an entry a second from here on
LATE_EVERY = 33  # every so manieth entry is a late one: 3 %
LATE_SECONDS = 100
CHUNK = 250_000

# Only what a balance is read from: users and ledger. Time-ordered uids, since random ones would take an hour and no
# balance is found by uid.
_FILL = """
    INSERT INTO ledger (user_id, seq, uid, amount, balance_after, effective_at, history_at, recorded_at)
    SELECT %(user)s, n, uuidv7(), 1, n,
           moment - CASE WHEN late THEN %(lateness)s ELSE 0 END * interval '1 second',
           moment - CASE WHEN late THEN 1 ELSE 0 END * interval '1 second', moment
    FROM (SELECT n, n %% %(every)s = 0 AS late, %(begin)s + n * interval '1 second' AS moment
          FROM generate_series(%(first)s, %(last)s) AS n) AS entry
"""
_FINISH = """
    UPDATE users SET (balance, last_seq, last_event_seq, last_history_at) =
        (SELECT balance_after, seq, seq, history_at FROM ledger WHERE user_id = users.id ORDER BY seq DESC LIMIT 1)
    WHERE id = %s
"""


def measure(run: Run) -> Values:
    users = {name: _fill(run, size) for name, size in zip(("small", "large"), run.plan.entries, strict=True)}
    found: dict[str, list[float]] = {}
    with in_process.use(run.stack.database_url, run.stack.broker_url, run.log("in_process")):
        for user, size in zip(users.values(), run.plan.entries, strict=True):
            _check(run.stack.database_url, user, BEGIN + _across_a_late_entry(size))
        for _ in range(run.plan.runs):
            for (name, user), size in zip(users.items(), run.plan.entries, strict=True):
                for key, milliseconds in _look_up(run, user, size).items():
                    found.setdefault(f"{key}_{name}_ms", []).append(milliseconds)
    run.notes["balance"] = {"entries": run.plan.entries, "late_share": 1 / LATE_EVERY}
    return {key: statistics.median(values) for key, values in found.items()}


def _fill(run: Run, size: int) -> int:
    """A new user with so many entries."""
    url = run.stack.database_url
    (user,) = add_users(url, 1)
    for first in range(1, size + 1, CHUNK):
        last = min(size, first + CHUNK - 1)
        values = {"user": user, "first": first, "last": last, "begin": BEGIN}
        query(url, _FILL, {**values, "every": LATE_EVERY, "lateness": LATE_SECONDS})
        run.say(f"balance: {last:,} of {size:,} entries")
    query(url, _FINISH, user)
    query(url, "VACUUM ANALYZE ledger")
    query(url, "VACUUM ANALYZE users")
    return user


def _across_a_late_entry(size: int) -> timedelta:
    """From the beginning to an instant in the middle that late entries lie across."""
    return timedelta(seconds=size // 2 // LATE_EVERY * LATE_EVERY - LATE_SECONDS / 2)


def _check(url: str, user: int, instant: datetime) -> None:
    """That the history is one the service could have written: its look-up must equal the plain sum."""
    total = query(url, "SELECT sum(amount) FROM ledger WHERE user_id = %s AND effective_at <= %s", user, instant)[0][0]
    if (found := get_balance(user, instant).balance) != (total or 0):
        raise BenchError(f"the balance of user {user} at {instant} is {found}, the sum of the entries {total}")


def _look_up(run: Run, user: int, size: int) -> dict[str, float]:
    """p50 of each kind of question, over HTTP on one connection and by the service's code alone."""
    now = http("GET", f"/api/user/{user}/balance/")
    instants = [BEGIN + timedelta(seconds=random.uniform(0, size)) for _ in range(run.plan.look_ups)]
    dated = (http("GET", f"/api/user/{user}/balance/?date={instant:%Y-%m-%dT%H:%M:%S.%fZ}") for instant in instants)
    return {
        "balance_now": _over_http(run, iter([now] * run.plan.look_ups)),
        "balance_at": _over_http(run, dated),
        "balance_now_sql": _timed(lambda _: get_balance(user), instants),
        "balance_at_sql": _timed(lambda instant: get_balance(user, instant), instants),
    }


def _over_http(run: Run, requests: Iterator[bytes]) -> float:
    sample = closed_loop(run.stack.web, requests, 1, 300)
    if set(sample.statuses) != {200}:
        raise BenchError(f"balances were answered with {sample.statuses}")
    return sample.percentile(50) * 1000


def _timed(look_up: Callable[[datetime], object], instants: list[datetime]) -> float:
    times = []
    for instant in instants:
        began = time.perf_counter()
        look_up(instant)
        times.append(time.perf_counter() - began)
    return statistics.median(times) * 1000
