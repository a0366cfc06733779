"""A long list waits in the running service, and a payment of somebody else in the same lane does not wait for it."""

import os
import signal
from collections.abc import Callable
from uuid import uuid4

import pytest
from redis import Redis

from tests.kit.database import query
from tests.kit.http import Api, transaction
from tests.kit.processes import family
from tests.kit.service import Service
from tests.kit.waiting import wait_until

pytestmark = pytest.mark.system

PENDING = "SELECT count(*) FROM transactions WHERE user_id = %s AND status = 'PENDING'"
SETTLED_LATER = """
    SELECT count(*) FROM transactions WHERE user_id = %s AND settled_at > (SELECT settled_at FROM transactions WHERE uid = %s)
"""


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
    wait_until(lambda: query(service.database_url, PENDING, importer)[0][0] == 0, "the list is settled", 60)
    assert api.look_up(payment).json["status"] == "COMPLETED"
    # by the rows' own instants: a look while they are settled would depend on how fast that goes
    assert count_settled_later(service, importer, payment) > 20_000, "the payment waited for the list"
    assert count_settled_later(service, importer, after_the_list) == 0, "the importer's own payment follows the list"
    assert api.look_up(after_the_list).json["balance_after"] == "30100.00"
    with Redis.from_url(service.broker_url) as broker:
        wait_until(lambda: broker.llen("settle") == 0, "no message is left over")


def count_settled_later(service: Service, user_id: int, uid: str) -> int:
    """Returns how many of the user's transactions were settled after that one."""
    ((count,),) = query(service.database_url, SETTLED_LATER, user_id, uid)
    return int(count)
