"""How soon 30 webhooks have an event while one user has nearly all of three million events.

Half of the old events are older than retention keeps them, so it deletes meanwhile. Postgres logs each statement of the
service that takes longer than 50 ms: the slowest one is told. Afterwards the busy user gets a long backlog more: what
comes after it in its lane waits until it has become deliveries.
"""

import itertools
import json
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import urlsplit
from uuid import uuid4

from bench.generator import Address, open_loop
from bench.loads import await_settled, open_accounts
from bench.loads import http as request_of
from bench.plan import Run, Values
from bench.stack import BenchError, add_users, query, server, wait_until
from bench.telling import ask, webhooks

WEBHOOKS = 30
EVENTS_PER_BACKLOG = 15  # 3,000,000 events at the plan's 200,000
LIST_ROWS = 1_000
LISTS = 20
RATE = 4.0  # payments a second, half of them the busy user's; each is delivered 30 times
RECEIVED_SECONDS = 600.0
SLOW_MS = 50
MANY_USERS = 1_000
MIN_SECONDS = 20.0

# Nine of ten are one user's; the older half is a year old.
_FILL = """
    INSERT INTO events (lane, user_id, user_seq, type, uid, balance_before, balance_after, occurred_at)
    SELECT user_id %% 16, user_id, -n, 'transaction.completed', gen_random_uuid(), 0, 1,
           now() - CASE WHEN n > %(rows)s / 2 THEN interval '1 year' ELSE interval '1 day' END
    FROM (SELECT n, CASE WHEN n %% 10 < 9 THEN %(busy)s ELSE %(first)s + n %% %(many)s END AS user_id
          FROM generate_series(%(rows)s, 1, -1) AS n) AS event
"""
_OLD = "SELECT count(*) FROM events WHERE occurred_at < now() - interval '200 days'"


def measure(run: Run) -> Values:
    """From sending a PUT until the last of 30 receivers has its event, in ms; rows that retention deleted meanwhile.

    The same for users beside whom the busy one has a backlog of 20,000 events.
    """
    url, rows = run.stack.database_url, EVENTS_PER_BACKLOG * run.plan.backlog
    busy, *_ = open_accounts(run.stack.web, url, 1)
    others = open_accounts(run.stack.web, url, 16)
    many = add_users(url, MANY_USERS)
    query(url, _FILL, {"rows": rows, "busy": busy, "first": many[0], "many": len(many)})
    log = _log_slow_statements(run)
    with (
        server("bench.receiver", run.log("receiver")) as receiver,
        webhooks(run.stack.web, receiver, *["well"] * WEBHOOKS),
    ):
        old, began = query(url, _OLD)[0][0], log.stat().st_size
        payers = [user for other in others for user in (busy, other)]
        stored = _told(run, receiver, payers)
        deleted = old - query(url, _OLD)[0][0]
        slowest, commits = _slow_statements(log, began)
        for _ in range(LISTS):
            ask(run.stack.web, "PUT", "/api/transactions/", [_deposit(busy) for _ in range(LIST_ROWS)])
        beside_backlog = _told(run, receiver, others)
    run.notes["slowest statements"] = slowest[:10]
    run.notes["slowest commits, ms"] = commits[:10]
    return {
        "skew_told_p50_ms": _percentile(stored, 50),
        "skew_told_p99_ms": _percentile(stored, 99),
        "skew_deleted_events": deleted,
        "skew_slowest_statement_ms": slowest[0][0] if slowest else 0.0,
        "skew_backlog_told_p50_ms": _percentile(beside_backlog, 50),
        "skew_backlog_told_p99_ms": _percentile(beside_backlog, 99),
    }


def _told(run: Run, receiver: Address, payers: Sequence[int]) -> list[float]:
    """The seconds from each PUT until the last receiver has its event, in order of length."""
    sent: dict[str, float] = {}
    open_loop(run.stack.web, _payments(payers, sent), RATE, max(MIN_SECONDS, run.plan.seconds))
    await_settled(run.stack.database_url)
    got: dict[str, list[float]] = {}

    def all_have_all() -> bool:
        got.update(ask(receiver, "GET", "/got-each"))
        return all(len(got.get(uid, ())) >= WEBHOOKS for uid in sent)

    wait_until(all_have_all, "all receivers have the events", RECEIVED_SECONDS, every=0.5)
    return sorted(sorted(got[uid])[WEBHOOKS - 1] - at for uid, at in sent.items())


def _percentile(seconds: Sequence[float], percent: int) -> float:
    """In ms."""
    return 1000 * seconds[min(len(seconds) - 1, len(seconds) * percent // 100)]


def _deposit(user: int) -> dict[str, object]:
    return {"uid": str(uuid4()), "user_id": user, "type": "DEPOSIT", "amount": "1.00"}


def _payments(users: Sequence[int], sent: dict[str, float]) -> Iterator[bytes]:
    for user in itertools.cycle(users):
        body = _deposit(user)
        sent[str(body["uid"])] = time.monotonic()
        yield request_of("PUT", "/api/transaction/", json.dumps(body).encode())


def _log_slow_statements(run: Run) -> Path:
    """Have Postgres log them; the log of the stack."""
    passwords = list(run.stack.data.rglob("postgres.password"))
    if not passwords:
        raise BenchError(f"no password of the superuser in {run.stack.data}")
    parts = urlsplit(run.stack.database_url)
    superuser = parts._replace(netloc=f"postgres:{passwords[0].read_text().strip()}@{parts.hostname}:{parts.port}")
    query(superuser.geturl(), f"ALTER SYSTEM SET log_min_duration_statement = {SLOW_MS}")
    query(superuser.geturl(), "SELECT pg_reload_conf()")
    return run.stack.log


def _slow_statements(log: Path, since: int) -> tuple[list[tuple[float, str]], list[float]]:
    """What was logged from a place of the log on, the slowest first: statements with their milliseconds; commits'.

    A commit takes as long as the disk does.
    """
    text = log.read_bytes()[since:].decode(errors="replace")
    found = re.findall(r"duration: ([\d.]+) ms  (?:statement|execute [^:]*): (.{0,300})", text, re.DOTALL)
    slow = sorted(((float(ms), " ".join(statement.split())) for ms, statement in found), reverse=True)
    commits = [ms for ms, statement in slow if statement.startswith("COMMIT")]
    asked_here = ("interval '200 days'", "COMMIT", "SELECT count(*) FROM transactions")
    return [(ms, told) for ms, told in slow if not any(mine in told for mine in asked_here)], commits
