"""The floor of all: pgbench, one commit per payment, the same rows. No HTTP, no Python, nothing but Postgres."""

import re
import subprocess
from pathlib import Path

from psycopg2.extensions import parse_dsn  # type: ignore[import-untyped]

from bench.floors import books
from bench.plan import Run, Values
from bench.stack import BenchError, add_users, environment
from local.stack.postgres import binary

CLIENTS = 16
THREADS = 2

# One statement, so one round trip: as fast as a payment per commit can be. The user's row is locked first, and what
# the lock waited for is seen (READ COMMITTED reads the row again).
SCRIPT = r"""
\set user random(:first, :last)
\set amount random(100, 10000)
WITH account AS MATERIALIZED (
    SELECT id, balance, last_seq, last_event_seq, gen_random_uuid() AS uid,
           greatest(last_history_at, clock_timestamp()) AS at
    FROM users WHERE id = :user FOR NO KEY UPDATE
), kept AS (
    INSERT INTO transactions
        (uid, user_id, type, amount, accept_order, status, accepted_at, settled_at, request_id)
    SELECT uid, id, 'DEPOSIT', :amount, nextval('transactions_accept_order_seq'), 'COMPLETED', now(), at,
           '0123456789abcdef0123456789abcdef'
    FROM account
), booked AS (
    INSERT INTO ledger (user_id, seq, uid, amount, balance_after, effective_at, history_at, recorded_at)
    SELECT id, last_seq + 1, uid, :amount, balance + :amount, at, at, at FROM account
), told AS (
    INSERT INTO events (lane, user_id, user_seq, type, uid, balance_before, balance_after, occurred_at)
    SELECT id % 16, id, last_event_seq + 1, 'transaction.completed', uid, balance, balance + :amount, at FROM account
)
UPDATE users SET balance = account.balance + :amount, last_seq = account.last_seq + 1,
    last_history_at = account.at, last_event_seq = account.last_event_seq + 1
FROM account WHERE users.id = account.id;
"""


def spread(run: Run) -> Values:
    rate, _ = _measure(run, run.plan.users, CLIENTS, run.plan.seconds)
    return {"pgbench_spread_per_s": rate}


def one_user(run: Run) -> Values:
    rate, _ = _measure(run, 1, CLIENTS, run.plan.seconds)
    return {"pgbench_one_user_per_s": rate}


def lone(run: Run) -> Values:
    _, milliseconds = _measure(run, run.plan.users, 1, run.plan.side_seconds)
    return {"pgbench_lone_commit_ms": milliseconds}


def _measure(run: Run, count: int, clients: int, seconds: float) -> tuple[float, float]:
    url = books.make(run, "pgbench")
    users = add_users(url, count)
    script = run.folder / "payment.sql"
    script.write_text(SCRIPT, encoding="utf-8")
    measured = pgbench(url, script, clients, seconds, {"first": users[0], "last": users[-1]})
    books.check(url, "pgbench")
    return measured


def pgbench(url: str, script: Path, clients: int, seconds: float, variables: dict[str, int]) -> tuple[float, float]:
    """Transactions a second, and the mean latency of one in milliseconds."""
    address = parse_dsn(url)
    login = {f"PG{key.upper()}": str(address[key]) for key in ("host", "port", "user", "password")}
    done = subprocess.run(
        [
            *(binary("pgbench"), "-n", "-M", "prepared", "-f", str(script), "-T", str(max(1, round(seconds)))),
            *("-c", str(clients), "-j", str(min(THREADS, clients))),
            *(f"--define={name}={value}" for name, value in variables.items()),
            address["dbname"],
        ],
        env=environment(**login),
        capture_output=True,
        text=True,
        check=False,
    )
    rate = re.search(r"^tps = ([\d.]+)", done.stdout, re.MULTILINE)
    latency = re.search(r"^latency average = ([\d.]+) ms", done.stdout, re.MULTILINE)
    if done.returncode or not rate or not latency or "number of failed transactions: 0" not in done.stdout:
        raise BenchError(f"pgbench: {done.stderr.strip()[-300:] or done.stdout.strip()[-300:]}")
    return float(rate[1]), float(latency[1])
