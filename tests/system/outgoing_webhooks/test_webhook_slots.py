"""A hundred receivers that hang, and one that does not."""

import os
import signal
from collections.abc import Callable

import pytest

from tests.kit.database import query
from tests.kit.http import Api, transaction
from tests.kit.receiver import HANG, Receiver, receiving
from tests.kit.service import Service
from tests.kit.waiting import wait_until

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]

HANGING = 100
SLOTS = 32  # as PAYMENTS_NOTIFY_SLOTS has it where nothing is set
DONE = "transaction.completed"


def add_hanging_and_then_a_healthy_one(api: Api, hanging: Receiver, healthy: Receiver) -> None:
    urls = [f"{hanging.url}/{number}" for number in range(HANGING)]
    for url in (*urls, healthy.url):
        api.ask("POST", "/api/webhook/", {"url": url, "events": [DONE]}, expected=201)


def count(service: Service, condition: str) -> int:
    (row,) = query(service.database_url, f"SELECT count(*) FROM {condition}")
    return int(row[0])


FAILING = "webhooks WHERE failing_since IS NOT NULL"
UNDER_WAY = (
    "deliveries JOIN webhooks ON webhooks.id = webhook_id WHERE claimed_until > now() AND failing_since IS NOT NULL"
)


@pytest.mark.parametrize("broker", ["broker", "no broker"])
def test_a_healthy_receiver_does_not_wait_for_those_that_hang(
    start_service: Callable[..., Service], broker: str
) -> None:
    """Few attempts to those that hang have ended, so few are known as failing, when the healthy one has its event."""
    service = start_service(WEBHOOK_ALLOW_PRIVATE="1")
    api = Api(service.url)
    with receiving() as hanging, receiving() as healthy:
        hanging.answer = lambda _: HANG
        add_hanging_and_then_a_healthy_one(api, hanging, healthy)
        users = [api.add_user() for _ in range(10)]
        if broker == "no broker":
            os.kill(frozen := service.pid_of("broker"), signal.SIGSTOP)
        api.put(transaction(users[0]))
        wait_until(lambda: healthy.got, "the healthy one has its event", 60)
        assert count(service, FAILING) < SLOTS // 2, "not even one full round of attempts has ended"
        if broker == "no broker":
            os.kill(frozen, signal.SIGCONT)
        assert len(hanging.got) >= SLOTS // 2, "so many hang meanwhile"
        wait_until(lambda: count(service, FAILING) == HANGING, "all that hang are known to", 60)

        api.ask("PUT", "/api/transactions/", [transaction(user) for user in users], expected=202)
        wait_until(lambda: len(healthy.got) == len(users) + 1, "the healthy one has all", 60)
        wait_until(lambda: count(service, UNDER_WAY) <= SLOTS // 2, "attempts begun before it was known have ended", 60)
        tried, at_once = len(hanging.got), []

        def tried_again() -> bool:
            at_once.append(count(service, UNDER_WAY))
            return len(hanging.got) >= tried + SLOTS

        wait_until(tried_again, "those that hang are tried again", 60)
        assert max(at_once) <= SLOTS // 2
        assert healthy.told(users[0]) == [(1, DONE), (2, DONE)]
