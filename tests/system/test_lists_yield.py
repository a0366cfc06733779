"""A long list waits in the running service, and a payment of somebody else in the same lane does not wait for it."""

import os
import signal
from collections.abc import Callable
from uuid import uuid4

import pytest
from redis import Redis

from tests.system.api import Api, query, transaction
from tests.system.running_service import Service, family, wait_until

pytestmark = pytest.mark.system

PENDING = "SELECT count(*) FROM transactions WHERE user_id = %s AND status = 'PENDING'"


def test_a_payment_does_not_wait_for_a_list_of_another_user(start_service: Callable[..., Service]) -> None:
    service = start_service()
    api = Api(service.url)
    importer, *others = [api.add_user() for _ in range(17)]
    payer = next(user for user in others if user % 16 == importer % 16)
    workers = family(service.pid_of("worker"))
    for pid in workers:
        os.kill(pid, signal.SIGSTOP)
    try:
        for _ in range(3):
            items = [transaction(importer, uid=str(uuid4()), amount="1.00") for _ in range(10_000)]
            assert api.ask("PUT", "/api/transactions/", items).status == 202
        payment = api.put(transaction(payer)).json["uid"]
        after_the_list = api.put(transaction(importer)).json["uid"]
    finally:
        for pid in workers:
            os.kill(pid, signal.SIGCONT)
    assert api.wait_final(payment)["status"] == "COMPLETED"
    (waiting,) = query(service.database_url, PENDING, importer)[0]
    assert waiting > 10_000, "the list is not settled before it"
    assert api.look_up(after_the_list).json["status"] == "PENDING", "the importer's own payment follows the list"
    wait_until(lambda: query(service.database_url, PENDING, importer)[0][0] == 0, "the list is settled", 60)
    assert api.look_up(after_the_list).json["balance_after"] == "30100.00"
    with Redis.from_url(service.broker_url) as broker:
        wait_until(lambda: broker.llen("settle") == 0, "no message is left over")
