"""The broker answers and is of no use. Payments settle meanwhile, and afterwards rings are heard without a restart."""

import signal
from collections.abc import Iterator

import pytest

from tests.faults.paying import COMPLETED_ONCE, add_user, payment, put, wait_final
from tests.faults.refusals import JUNK, QUEUES, REFUSALS, await_junk_taken, put_junk, put_junk_beside, put_wrong_types
from tests.faults.stack import Stack
from tests.kit.http import Http, get
from tests.kit.receiver import receiving
from tests.kit.waiting import wait_until

pytestmark = pytest.mark.system

FINAL_SECONDS = 10
RINGS_HEARD_TIMEOUT_SECONDS = 30
STARTED_SECONDS = 30
DEAF_SECONDS = "4"  # a watchdog that took refusals for deafness would restart the worker within the test


@pytest.fixture(scope="module")
def whole_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    changes = {"PAYMENTS_DEAF_SECONDS": DEAF_SECONDS, "WEBHOOK_ALLOW_PRIVATE": "1"}
    started = Stack(tmp_path_factory.mktemp("refusing"), changes=changes)
    try:
        yield started.wait_ready()
    finally:
        started.stop()


@pytest.fixture
def stack(whole_stack: Stack) -> Iterator[Stack]:
    yield whole_stack
    whole_stack.heal_and_verify()


@pytest.fixture
def http(stack: Stack) -> Http:
    return Http(stack.url)


def number(stack: Stack, name: str) -> float:
    """A metric of /metrics; 0 while there is none."""
    answer = get(f"{stack.url}/metrics", seconds=10)
    assert answer, "no whole answer"
    text = answer.body.decode()
    return sum(float(line.rpartition(" ")[2]) for line in text.splitlines() if line.rpartition(" ")[0] == name)


def settled_by(stack: Stack, name: str) -> float:
    return number(stack, f'payments_settled_by_total{{by="{name}"}}')


def pays(stack: Stack, http: Http, user_id: int) -> None:
    """A payment is accepted at once, and becomes final in time."""
    content = payment(user_id, "1.00")
    answer = put(http, content)
    assert answer is not None
    assert answer.status in (200, 202), answer
    assert wait_final(stack, content["uid"], FINAL_SECONDS) == COMPLETED_ONCE


def await_heard(stack: Stack, http: Http, user_id: int) -> None:
    """Rings are heard: a payment is settled by a task."""
    before = settled_by(stack, "ring")

    def heard() -> bool:
        pays(stack, http, user_id)
        return settled_by(stack, "ring") > before

    wait_until(heard, "a payment is settled by its ring", RINGS_HEARD_TIMEOUT_SECONDS)


@pytest.mark.parametrize("name", REFUSALS)
def test_payments_settle_while_the_broker_refuses(stack: Stack, http: Http, name: str) -> None:
    user_id = add_user(http, balance="1.00")
    await_heard(stack, http, user_id)
    families = stack.family_of("worker"), stack.pid_of("notify")
    with stack.redis() as broker:  # they stay in the queue where nothing may be taken out
        broker.lpush("settle", *[JUNK["a lane that is none"]] * 50)
    with REFUSALS[name](stack):
        for _ in range(6):
            pays(stack, http, user_id)
    await_heard(stack, http, user_id)
    assert (stack.family_of("worker"), stack.pid_of("notify")) == families, "something was restarted"
    await_delivered(stack, http, user_id)


def await_delivered(stack: Stack, http: Http, user_id: int) -> None:
    """Webhooks get their events, too."""
    with receiving() as receiver:
        webhook = {"url": receiver.url, "events": ["transaction.completed"]}
        added = http.try_send("POST", "/api/webhook/", webhook)
        assert added is not None
        assert added.status == 201, added
        pays(stack, http, user_id)
        wait_until(lambda: receiver.got, "the webhook gets an event", RINGS_HEARD_TIMEOUT_SECONDS)
        http.try_send("DELETE", f"/api/webhook/{added.json['id']}/")


def test_junk_in_the_queues_is_dropped_and_counted(stack: Stack, http: Http) -> None:
    user_id = add_user(http, balance="1.00")
    families = stack.family_of("worker"), stack.pid_of("notify")
    before = number(stack, "payments_messages_dropped_total")
    with stack.redis() as broker:
        put_junk_beside(broker)
        count = put_junk(broker)
        await_junk_taken(broker, RINGS_HEARD_TIMEOUT_SECONDS)
        wait_until(
            lambda: number(stack, "payments_messages_dropped_total") >= before + count,
            "all are counted",
            RINGS_HEARD_TIMEOUT_SECONDS,
        )
    await_heard(stack, http, user_id)
    await_delivered(stack, http, user_id)
    assert (stack.family_of("worker"), stack.pid_of("notify")) == families, "something was restarted"
    lines = stack.service.lines()
    assert not [line for line in lines if "x" * 100 in line or "%%%" in line], "content of a dropped message is logged"
    assert [line for line in lines if "headers.task: another task" in line], "the reason is logged"
    assert not [line for line in lines if "CPendingDeprecation" in line]


def test_keys_of_the_wrong_type_are_removed(stack: Stack, http: Http) -> None:
    user_id = add_user(http, balance="1.00")
    families = stack.family_of("worker"), stack.pid_of("notify")
    with stack.redis() as broker:
        put_wrong_types(broker)
        wait_until(
            lambda: {broker.type(q) for q in QUEUES} <= {b"list", b"none"}, "lists again", RINGS_HEARD_TIMEOUT_SECONDS
        )
    await_heard(stack, http, user_id)
    await_delivered(stack, http, user_id)
    assert (stack.family_of("worker"), stack.pid_of("notify")) == families, "something was restarted"


def test_a_worker_that_starts_while_the_broker_refuses_settles(stack: Stack, http: Http) -> None:
    user_id = add_user(http, balance="1.00")
    with REFUSALS["broker without replicas (NOREPLICAS)"](stack):
        old = stack.signal("worker", signal.SIGKILL)
        stack.await_restart("worker", old)
        worker = stack.pid_of("worker")
        for _ in range(6):
            content = payment(user_id, "1.00")
            assert put(http, content)
            assert wait_final(stack, content["uid"], STARTED_SECONDS) == COMPLETED_ONCE
        assert not (stack.service.data / "run" / "worker.heartbeat").exists(), "it does not consume yet"
        assert stack.pid_of("worker") == worker
    stack.await_ready()
    await_heard(stack, http, user_id)
    assert stack.pid_of("worker") == worker
