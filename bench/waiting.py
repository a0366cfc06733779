"""Clients that wait until a payment is final before they send the next one, beside FastAPI with as many clients.

Most users live at light load: there the answer is bounded by the way from acceptance to settling, not by the processors.
"""

from collections.abc import Sequence

from bench.floors import fastapi_service
from bench.generator import Address, closed_loop
from bench.loads import await_settled, expect, open_accounts, payments
from bench.plan import Run, Values

CLIENTS = (1, 4, 8, 16, 64)


def measure(run: Run) -> Values:
    """Payments per second until final, p50 and p99: ours and the floor by turns, for each number of clients."""
    web, url = run.stack.web, run.stack.database_url
    values: Values = {}
    with fastapi_service.running(run, "waiting") as (floor, floor_url):
        users = open_accounts(web, url, run.plan.users)
        floor_users = open_accounts(floor, floor_url, run.plan.users)
        for clients in CLIENTS:
            values |= _measure(run, f"waiting_{clients}", web, users, clients)
            await_settled(url)
            values |= _measure(run, f"waiting_{clients}_fastapi", floor, floor_users, clients)
    return values


def _measure(run: Run, name: str, address: Address, users: Sequence[int], clients: int) -> Values:
    """Only a final answer is a payment: one that was answered 202 is in neither the rate nor the percentiles."""
    sample = closed_loop(address, payments(users, "Prefer: wait=10"), clients, run.plan.seconds)
    expect(sample, {200, 202})
    declined = sample.statuses.get(202, 0)
    return {
        f"{name}_per_s": sample.statuses.get(200, 0) / sample.seconds,
        f"{name}_p50_ms": sample.percentile(50, 200) * 1000,
        f"{name}_p99_ms": sample.percentile(99, 200) * 1000,
        f"{name}_not_waited_percent": 100 * declined / sum(sample.statuses.values()),
    }
