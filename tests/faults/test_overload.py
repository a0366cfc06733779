"""Many times the load that it can take: what was accepted settles, the rest is told to come back, memory stays flat."""

import itertools
import multiprocessing
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from bench.generator import Address, closed_loop
from bench.loads import BULK_ITEMS, await_settled, bulks, payments
from bench.processes import sizes_of
from bench.stack import Stack, add_users, environment, query

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]

SECONDS = 12.0
ROUNDS = 3
SINGLES, LISTS = 400, 24  # connections
LIMIT = "3000"


@pytest.fixture
def stack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stack]:
    monkeypatch.setattr(
        "bench.stack.environment", lambda **changes: environment(**{**changes, "PAYMENTS_BACKLOG_LIMIT": LIMIT})
    )
    with Stack(tmp_path / "data") as started:
        yield started


def offer(address: Address, users: range, kind: str, seconds: float) -> Counter[int]:
    """How many payments were offered, by the status of the answer. Runs in a process of its own."""
    requests = payments(users) if kind == "singles" else bulks(users)
    sample = closed_loop(address, requests, SINGLES if kind == "singles" else LISTS, seconds)
    each = 1 if kind == "singles" else BULK_ITEMS
    return Counter({status: count * each for status, count in sample.statuses.items()})


def test_far_more_than_it_can_take(stack: Stack) -> None:
    url = stack.database_url
    users = add_users(url, 1000)
    alone = closed_loop(stack.web, payments(users), 64, SECONDS)
    await_settled(url)
    capacity = alone.rate
    offered: Counter[int] = Counter()
    memory: list[dict[str, float]] = []
    before = rows(url)
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as generators:
        for _ in range(ROUNDS):
            runs = [generators.submit(offer, stack.web, users, kind, SECONDS) for kind in ("singles", "lists")]
            for run in runs:
                offered += run.result()
            memory.append({role: sum(pss for pss, _ in sizes_of(stack, role)) for role in ("web", "worker")})
    times = sum(offered.values()) / (ROUNDS * SECONDS) / capacity
    # shown by -s: the record of a run
    print(f"capacity {capacity:.0f}/s, offered {times:.1f} times that: {dict(offered)}; MB {memory}")  # noqa: T201
    assert set(offered) <= {200, 202, 429, 503}
    assert offered[429] > 0
    await_settled(url)
    assert query(url, "SELECT count(*) FROM transactions WHERE status = 'PENDING'") == [(0,)]
    accepted = rows(url) - before
    # of a list that was answered 503 it is not known whether it was accepted
    assert offered[200] + offered[202] <= accepted <= sum(offered.values()) - offered[429]
    for role in ("web", "worker"):
        assert memory[-1][role] < 1.2 * memory[0][role] + 20, memory


def rows(url: str) -> int:
    return int(query(url, "SELECT count(*) FROM transactions")[0][0])


def test_offering_is_counted_by_payments() -> None:
    assert next(itertools.islice(bulks(range(1, 3)), 1)).count(b'"uid"') == BULK_ITEMS
