"""Webhooks: what they cost settling, also while a receiver hangs, and how soon a healthy one is told beside an ill one."""

import http.client
import itertools
import json
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any
from uuid import uuid4

from bench.generator import Address, open_loop
from bench.loads import await_settled, end_to_end, open_accounts, payments
from bench.loads import http as request_of
from bench.plan import Run, Values
from bench.stack import BenchError, server, wait_until

RATE = 100.0  # events a second
DELIVERED_TIMEOUT_SECONDS = 60.0
ROUNDS = 3


def settling(run: Run) -> Values:
    """Single PUTs, settled per second: without a webhook, with one that is told, with one that hangs, by turns."""
    url = run.stack.database_url
    users = open_accounts(run.stack.web, url, run.plan.users)
    rates: dict[str, list[float]] = {"": [], "well": [], "hangs": []}
    with server("bench.receiver", run.log("receiver")) as receiver:
        for kind in [*rates] * ROUNDS:
            with webhooks(run.stack.web, receiver, *([kind] if kind else [])):
                sample, seconds = end_to_end(run.stack.web, url, payments(users), run.plan.seconds / ROUNDS)
            if set(sample.statuses) - {200, 202}:
                raise BenchError(f"answered with {sample.statuses}")
            rates[kind].append(sum(sample.statuses.values()) / seconds)
    run.notes["settled per second by webhook"] = rates
    none, well, hangs = (sorted(found)[ROUNDS // 2] for found in rates.values())
    return {"told_none_per_s": none, "told_well_per_s": well, "told_hanging_per_s": hangs}


def beside_an_ill_one(run: Run) -> Values:
    """From sending a PUT to the healthy receiver's having the event, at 100 a second, while another one hangs."""
    users = open_accounts(run.stack.web, run.stack.database_url, run.plan.users)
    sent: dict[str, float] = {}

    def deposits() -> Iterator[bytes]:
        for user in itertools.cycle(users):
            body = {"uid": str(uuid4()), "user_id": user, "type": "DEPOSIT", "amount": "1.00"}
            sent[str(body["uid"])] = time.monotonic()
            yield request_of("PUT", "/api/transaction/", json.dumps(body).encode())

    with (
        server("bench.receiver", run.log("receiver")) as receiver,
        webhooks(run.stack.web, receiver, "hangs", "well"),
    ):
        open_loop(run.stack.web, deposits(), RATE, run.plan.seconds)
        await_settled(run.stack.database_url)
        got: dict[str, float] = {}

        def all_are_told() -> bool:
            got.update(ask(receiver, "GET", "/got"))
            return got.keys() >= sent.keys()

        wait_until(all_are_told, "the healthy receiver has all", DELIVERED_TIMEOUT_SECONDS, every=0.2)
    late = sorted(got[uid] - sent[uid] for uid in sent)
    return {"told_p50_ms": 1000 * late[len(late) // 2], "told_p99_ms": 1000 * late[int(len(late) * 0.99)]}


@contextmanager
def webhooks(web: Address, receiver: Address, *kinds: str) -> Iterator[None]:
    """Webhooks to those paths of the receiver, deleted with the block."""
    made = []
    for kind in kinds:
        asked = {"url": f"http://{receiver[0]}:{receiver[1]}/{kind}", "events": ["transaction.completed"]}
        made.append(ask(web, "POST", "/api/webhook/", asked)["id"])
    try:
        yield
    finally:
        for number in made:
            ask(web, "DELETE", f"/api/webhook/{number}/")


def ask(address: Address, method: str, path: str, body: Any = None) -> Any:
    with closing(http.client.HTTPConnection(*address, timeout=10)) as connection:
        content = None if body is None else json.dumps(body)
        connection.request(method, path, content, {"Content-Type": "application/json"} if content else {})
        answer = connection.getresponse()
        read = answer.read()
    if answer.status >= 300:
        raise BenchError(f"{method} {path}: {answer.status} {read[:300]!r}")
    return json.loads(read) if read else None
