"""The loads on the service: single PUTs, bulk, at a rate, alone. All money moves: each user starts with enough."""

import itertools
import json
import random
import time
from collections.abc import Iterator, Sequence
from uuid import uuid4

from bench.generator import Address, Sample, closed_loop, open_loop
from bench.plan import Run, Skipped, Values
from bench.processes import SwitchCounter, cpu_per_payment, cpu_seconds
from bench.stack import BenchError, add_users, query, sql, wait_until

CONNECTIONS = 64
BULK_CONNECTIONS = 4
BULK_ITEMS = 1_000
MAX_BULKS_PER_S = 40
OPENING = "1000000.00"  # the first deposit of each user: no withdrawal is refused
SETTLED_SECONDS = 300.0
LONE_REQUESTS = 300
LEVELS = (10, 50, 80)  # per cent of capacity

_PENDING = "SELECT EXISTS (SELECT FROM transactions WHERE status = 'PENDING' AND parked_at IS NULL)"


def http(method: str, path: str, body: bytes = b"", *headers: str) -> bytes:
    """A request as it goes over the wire."""
    lines = [f"{method} {path} HTTP/1.1", "Host: bench", *headers]
    if body:
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    return "\r\n".join([*lines, "", ""]).encode() + body


def payments(users: Sequence[int], *headers: str) -> Iterator[bytes]:
    """Single PUTs without end: deposits and smaller withdrawals of random users."""
    head, tail = http("PUT", "/api/transaction/", b"-", *headers)[:-1].split(b"Content-Length: 1")
    choose, number = random.choice, random.random
    while True:
        kind = "DEPOSIT" if number() < 0.5 else "WITHDRAW"
        body = (
            f'{{"uid": "{uuid4()}", "user_id": {choose(users)}, "type": "{kind}", "amount": "{1 + number() * 99:.2f}"}}'
        )
        yield b"%bContent-Length: %d%b%b" % (head, len(body), tail, body.encode())


def bulks(users: Sequence[int]) -> Iterator[bytes]:
    while True:
        items = [
            {"uid": str(uuid4()), "user_id": random.choice(users), "type": random.choice(("DEPOSIT", "WITHDRAW")),
             "amount": f"{1 + random.random() * 99:.2f}"}
            for _ in range(BULK_ITEMS)
        ]  # fmt: skip
        yield http("PUT", "/api/transactions/", json.dumps(items).encode())


def open_accounts(address: Address, url: str, count: int) -> range:
    """New users with money, paid in by the service under test."""
    users = add_users(url, count)
    openings = (
        http(
            "PUT",
            "/api/transaction/",
            json.dumps({"uid": str(uuid4()), "user_id": user, "type": "DEPOSIT", "amount": OPENING}).encode(),
        )
        for user in users
    )
    sample = closed_loop(address, openings, CONNECTIONS, 600)
    expect(sample, {200, 202})
    await_settled(url)
    return users


def await_settled(url: str) -> None:
    """Asks on one connection: making one costs more than the question."""
    with sql(url) as cursor:

        def is_settled() -> bool:
            cursor.execute(_PENDING)
            return not cursor.fetchone()[0]

        wait_until(is_settled, "nothing is pending", SETTLED_SECONDS)


def end_to_end(address: Address, url: str, requests: Iterator[bytes], seconds: float) -> tuple[Sample, float]:
    """A closed loop, and the seconds from its first request until all is final."""
    connections = CONNECTIONS
    began = time.perf_counter()
    sample = closed_loop(address, requests, connections, seconds)
    await_settled(url)
    return sample, time.perf_counter() - began


def single_puts(run: Run, name: str, address: Address, url: str, count: int) -> Values:
    """Accepted and settled per second, over `count` users; for the service and for what it is compared with."""
    users = open_accounts(address, url, count)
    values, _ = _measure_single_puts(run, name, address, url, users)
    return values


def _measure_single_puts(run: Run, name: str, address: Address, url: str, users: Sequence[int]) -> tuple[Values, int]:
    """The rates, and the number of payments."""
    sample, seconds = end_to_end(address, url, payments(users), run.plan.seconds)
    rejected = query(url, "SELECT count(*) FROM transactions WHERE status = 'REJECTED'")[0][0]
    expect(sample, {200, 202})
    if rejected:
        raise BenchError(f"{rejected} were rejected: that is not what is to be measured")
    number = sum(sample.statuses.values())
    values = {
        f"{name}_accepted_per_s": sample.rate,
        f"{name}_settled_per_s": number / seconds,
        f"{name}_accept_p50_ms": sample.percentile(50) * 1000,
        f"{name}_accept_p99_ms": sample.percentile(99) * 1000,
    }
    return values, number


def spread(run: Run) -> Values:
    return _of_the_service(run, "spread", run.plan.users)


def one_user(run: Run) -> Values:
    return _of_the_service(run, "one_user", 1)


def _of_the_service(run: Run, name: str, users: int) -> Values:
    """Besides, who used the processors, and how often web's threads changed places: that is where to look first."""
    web, url = run.stack.web, run.stack.database_url
    accounts = open_accounts(web, url, users)
    before = cpu_seconds(run.stack)
    with SwitchCounter(run.stack.pids_of("web")) as switches:
        values, number = _measure_single_puts(run, name, web, url, accounts)
    values |= cpu_per_payment(name, before, cpu_seconds(run.stack), number)
    return values | {f"{name}_web_switches_per_request": switches.count / number}


def bulk(run: Run) -> Values:
    url = run.stack.database_url
    users = open_accounts(run.stack.web, url, run.plan.users)
    probe = closed_loop(run.stack.web, itertools.islice(bulks(users), 1), 1, 1)
    if set(probe.statuses) & {404, 405}:
        raise Skipped("this version has no PUT /api/transactions/")
    await_settled(url)
    (before,) = query(url, "SELECT count(*) FROM transactions")[0]
    # made before they are sent: a thousand uids cost us what a look-up costs the service
    ready = list(itertools.islice(bulks(users), int(run.plan.seconds * MAX_BULKS_PER_S)))
    began = time.perf_counter()
    sample = closed_loop(run.stack.web, iter(ready), BULK_CONNECTIONS, run.plan.seconds)
    await_settled(url)
    seconds = time.perf_counter() - began
    expect(sample, {202})
    rows = query(url, "SELECT count(*) FROM transactions")[0][0] - before
    run.notes["bulk"] = {"statuses": sample.statuses, "rows": rows}
    return {"bulk_accepted_per_s": rows / sample.seconds, "bulk_settled_per_s": rows / seconds}


def latency(run: Run) -> Values:
    """Open loop at three levels of this run's capacity: until accepted, and until final."""
    capacity = run.values.get("spread_settled_per_s")
    if capacity is None:
        raise Skipped("spread was not measured, so its capacity is not known")
    users = open_accounts(run.stack.web, run.stack.database_url, run.plan.users)
    values: Values = {}
    for level in LEVELS:
        rate = capacity * level / 100
        for what, headers, status, seconds in (
            ("accept", (), 202, run.plan.side_seconds),
            ("final", ("Prefer: wait=10",), 200, run.plan.seconds),
        ):
            sample = open_loop(run.stack.web, payments(users, *headers), rate, seconds)
            await_settled(run.stack.database_url)
            run.notes[f"{what}_at_{level}"] = {"per_s": rate, "statuses": sample.statuses}
            expect(sample, {200, 202})
            for percent, word in ((50, "p50"), (99, "p99"), (99.9, "p999")):
                values[f"{what}_at_{level}_{word}_ms"] = sample.percentile(percent, status) * 1000
            # accepted at once because too many waited already: no latencies of a final state
            if what == "final":
                share = sample.statuses.get(202, 0) / sum(sample.statuses.values())
                values[f"final_at_{level}_not_waited_percent"] = share * 100
    return values


def lone_put(run: Run) -> Values:
    """One connection, one PUT after the other, each answered when final; and the CPU that one costs."""
    users = open_accounts(run.stack.web, run.stack.database_url, 100)
    requests = itertools.islice(payments(users, "Prefer: wait=10"), LONE_REQUESTS)
    before = cpu_seconds(run.stack)
    sample = closed_loop(run.stack.web, requests, 1, 60)
    after = cpu_seconds(run.stack)
    expect(sample, {200})
    return cpu_per_payment("lone_put", before, after, sample.statuses[200]) | {
        "lone_put_p50_ms": sample.percentile(50, 200) * 1000,
        "lone_put_p99_ms": sample.percentile(99, 200) * 1000,
    }


def expect(sample: Sample, statuses: set[int]) -> None:
    """A load that was refused, were it in part, is no measurement."""
    if not set(sample.statuses) <= statuses:
        raise BenchError(f"answered with {sample.statuses}; {statuses} were to be measured")
