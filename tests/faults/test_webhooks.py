"""Two thousand events to receivers that fail, hang, drop the line, move or are gone, while the notifiers are killed.

Who should gets every event at least once, in order per user, signed, repeats under the same id.
"""

import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from tests.kit.http import Http
from tests.kit.processes import family
from tests.kit.receiver import DROP, HANG, Got, Receiver, receiving
from tests.kit.service import Service, payments
from tests.kit.waiting import wait_until

pytestmark = [pytest.mark.system, pytest.mark.timeout(420)]

USERS, PER_USER = 100, 20
KILLS_SECONDS = 30.0
ALL_SECONDS = 240.0
DONE = "transaction.completed"


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    started = Service(tmp_path / "data", (), {"WEBHOOK_ALLOW_PRIVATE": "1"})
    try:
        yield started.wait_ready()
    finally:
        started.stop()


def kill_notifiers(service: Service, until: threading.Event) -> None:
    while not until.wait(3):
        with suppress(StopIteration, ProcessLookupError):
            for pid in family(service.pid_of("notify")):
                os.kill(pid, signal.SIGKILL)


def test_every_receiver_that_should_gets_every_event_in_order(service: Service) -> None:
    draw = random.Random(7)
    answers = {
        "well": lambda _: 200,
        "fails": lambda _: 500 if draw.random() < 0.2 else 200,
        "hangs": lambda _: HANG if draw.random() < 0.002 else 200,
        "drops": lambda _: DROP if draw.random() < 0.2 else 200,
        "moved": lambda _: 301,
        "gone": lambda _: 410,
    }
    http = Http(service.url)
    with ExitStack() as stack:
        receivers: dict[str, tuple[Receiver, str, int]] = {}
        for name, answer in answers.items():
            receiver = stack.enter_context(receiving())
            receiver.answer = answer
            made = ask(http, "POST", "/api/webhook/", {"url": receiver.url, "events": [DONE]})
            receivers[name] = (receiver, made["secret"], made["id"])
        users = [ask(http, "POST", "/api/user/", {"name": "Ann"})["id"] for _ in range(USERS)]
        enough = threading.Event()
        killing = threading.Thread(target=kill_notifiers, args=[service, enough])
        killing.start()
        began = time.monotonic()
        try:
            for number in range(PER_USER):
                asked = [{"uid": str(uuid4()), "user_id": u, "type": "DEPOSIT", "amount": "1.00"} for u in users]
                ask(http, "PUT", "/api/transactions/", asked)
                time.sleep(max(0.0, began + (number + 1) * KILLS_SECONDS / PER_USER - time.monotonic()))
        finally:
            enough.set()
            killing.join()
        whole = [(seq, DONE) for seq in range(1, PER_USER + 1)]
        for name in ("well", "fails", "hangs", "drops"):
            receiver, secret, _ = receivers[name]
            wait_until(lambda: missing(receiver, users, whole) == [], f"{name} has all", ALL_SECONDS)  # noqa: B023
            assert_in_order(receiver, users, whole)
            assert all(got.verified_by(secret) for got in sample(receiver))
            assert_same_ids(receiver)
        moved, _, _ = receivers["moved"]
        assert {got.path for got in moved.got} == {"/hook"}, "not followed"
        assert all(len({got.told for got in moved.of(user)}) <= 1 for user in users)
        gone, _, webhook = receivers["gone"]
        assert ask(http, "GET", f"/api/webhook/{webhook}/")["disabled_reason"] == "the receiver answered 410"
        assert len(gone.got) < USERS
        verified = payments("verify", "--data", service.data)
        assert verified.returncode == 0, verified.stdout


def ask(http: Http, method: str, path: str, body: Any = None) -> Any:
    answer = http.try_send(method, path, body)
    assert answer is not None
    assert answer.status < 300, answer
    return answer.json


def by_user(receiver: Receiver) -> dict[int, list[Got]]:
    found: dict[int, list[Got]] = {}
    for got in list(receiver.got):
        found.setdefault(got.json["data"]["user_id"], []).append(got)
    return found


def missing(receiver: Receiver, users: list[int], whole: list[tuple[int, str]]) -> list[int]:
    found = by_user(receiver)
    return [user for user in users if {got.told for got in found.get(user, [])} != set(whole)]


def assert_in_order(receiver: Receiver, users: list[int], whole: list[tuple[int, str]]) -> None:
    """A repeat may come only while nothing later has."""
    found = by_user(receiver)
    for user in users:
        told = [got.told for got in found[user]]
        assert told == sorted(told), (user, told)
        assert list(dict.fromkeys(told)) == whole


def assert_same_ids(receiver: Receiver) -> None:
    ids: dict[tuple[int, int], set[tuple[str, bytes]]] = {}
    for user, gots in by_user(receiver).items():
        for got in gots:
            ids.setdefault((user, got.told[0]), set()).add((got.id, got.body))
    assert all(len(known) == 1 for known in ids.values())
    assert len({name for known in ids.values() for name, _ in known}) == len(ids)


def sample(receiver: Receiver) -> list[Got]:
    """Of the last minutes: who verifies later than five minutes after must refuse."""
    return [got for got in receiver.got if time.monotonic() - got.at < 250]
