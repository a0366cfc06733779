"""A duty that fails is counted, waits longer each time, and keeps no other from being done."""

import threading
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from sqlalchemy import text

from shared import metrics
from shared.backoff import Backoff
from shared.database import transaction
from shared.payments.model import lane_of
from shared.webhooks import deliver, manage
from shared.webhooks.deliver import expand
from shared.webhooks.model import NewWebhook
from shared.webhooks.queries import outbox
from tests.integration.factories import (
    accepted,
    deposit,
    new_user,
    new_users,
    outsider,
    recorded_statements,
    run_sql,
    settled,
    states,
)
from tests.kit.waiting import wait_until
from worker import duty as duty_module
from worker import notify, sweep
from worker.duty import Duty
from worker.notify import Notifier

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("receivers_on_loopback")]

DONE = "transaction.completed"


def failures(duty: str) -> float:
    return metrics.DUTY_FAILURES.labels(duty)._value.get()


def new_webhooks(count: int) -> list[int]:
    return [manage.register(NewWebhook("http://127.0.0.1:1024/", [DONE], 0))[0].id for _ in range(count)]


def expanded(webhook_id: int) -> int:
    with transaction() as connection:
        counted = text("SELECT count(*) FROM deliveries WHERE webhook_id = :id")
        return connection.scalar(counted, {"id": webhook_id}) or 0


def fail() -> None:
    raise ZeroDivisionError


def test_a_failing_duty_backs_off_up_to_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr("shared.backoff.time.monotonic", lambda: now[0])
    before, tries = failures("prune_events"), []
    duty = Duty("prune_events", lambda: tries.append(now[0]) or fail(), 5)
    for _ in range(200):
        duty.run()
        now[0] += 0.1
    assert [round(later - earlier) for earlier, later in pairwise(tries)] == [1, 2, 4, 5, 5]
    assert failures("prune_events") == before + len(tries)


def test_after_a_success_a_duty_is_repeated_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr("shared.backoff.time.monotonic", lambda: now[0])
    fails = [True, False, True]
    duty = Duty("deliver", lambda: fail() if fails.pop(0) else "done", 60)
    assert duty.run() is None
    now[0] += 1.1
    assert duty.run() == "done"
    assert duty.run() is None
    now[0] += 1.1
    fails.append(False)
    assert duty.run() == "done", "the first pause again"


def test_each_failure_is_logged_under_the_duty_s_name(monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[dict[str, Any]] = []

    class Log:
        def error(self, event: str, **fields: object) -> None:
            lines.append({"event": event, **fields})

    monkeypatch.setattr(duty_module, "log", Log())
    Duty("prune_events", fail, 60).run()
    assert [(line["event"], line["duty"], line["next_try_seconds"]) for line in lines] == [
        ("duty failed", "prune_events", 1.0)
    ]


@pytest.mark.parametrize(
    "broken", ["expand", "find_due", "prune_deleted", "prune_delivered", "prune_events", "prune_secrets"]
)
def test_of_the_notifier_s_duties_one_that_fails_stops_no_other(broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    done: set[str] = set()

    def stand_in(name: str) -> Callable[..., Any]:
        def act(*_: object) -> list[object] | int:
            done.add(name)
            if name == broken:
                raise ZeroDivisionError
            return [] if name == "find_due" else 0

        return act

    names = ["expand", "find_due", "prune_deleted", "prune_delivered", "prune_events", "prune_secrets"]
    for name in names:
        monkeypatch.setattr(notify, name, stand_in(name))
    for _, duty in Notifier().duties():
        duty.run()
    assert done == set(names)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_notifier_whose_pruning_hangs_goes_on_expanding(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each duty has a thread. The threads of this test end when their duties are released."""
    hangs, looks = threading.Event(), []

    def hang() -> int:
        if hangs.wait(20):
            raise SystemExit  # ends the thread
        return 0

    monkeypatch.setattr(notify, "prune_events", hang)
    monkeypatch.setattr(notify, "PRUNE_INTERVAL_SECONDS", 0.01)

    def look(*_: object) -> bool:
        looks.append(time.monotonic())
        if hangs.is_set():
            raise SystemExit  # ends the thread
        return False

    monkeypatch.setattr(notify, "expand", look)
    threads = [
        duty.run_for_ever(interval) for interval, duty in Notifier().duties() if duty.name in ("expand", "prune_events")
    ]
    try:
        wait_until(lambda: len(looks) >= 5, "it looks again", 10, 0.01)
    finally:
        hangs.set()
        for thread in threads:
            thread.join(20)


def test_a_sweep_whose_retries_fail_goes_on_settling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "LANE_OVERDUE_SECONDS", 0.0)
    monkeypatch.setattr(sweep, "retry_due", lambda *_: fail())
    before = failures("retry_parked")
    duties = sweep.duties()
    for _ in range(2):
        accepted(row := deposit(new_user(), 1))
        for duty in duties:
            duty.run()
        assert states(row) == ["COMPLETED"]
    assert failures("retry_parked") == before + 1, "it pauses"


def test_a_webhook_that_cannot_be_expanded_delays_no_other() -> None:
    """Somebody holds a lock on a delivery that is to be made again: its webhook's expansion runs into a time-out."""
    locked, free = new_webhooks(2)
    user = new_user()
    settled(deposit(user, 1))
    assert not expand()
    back = "UPDATE webhook_cursors SET through = through - 1 WHERE webhook_id = :id AND lane = :lane"
    run_sql(back, id=locked, lane=lane_of(user))
    failing, before = Backoff(60), failures("expand_webhook")
    with outsider() as holder:
        holder.execute(text("SELECT FROM deliveries WHERE webhook_id = :id FOR UPDATE"), {"id": locked})
        settled(deposit(user, 1))
        expand(failing)
        assert expanded(free) == 2
        assert failures("expand_webhook") == before + 1
        settled(deposit(user, 1))
        began = time.monotonic()
        expand(failing)
        assert time.monotonic() - began < 0.9, "it is left alone for a second: nobody waits for the lock"
        assert expanded(free) == 3
    wait_until(lambda: not failing.paused(), "it is no longer left alone", 10)
    while expand(failing):
        pass
    assert expanded(locked) == 3
    assert not failing.has_failed(locked)


def test_a_long_backlog_of_one_user_delays_no_other_user(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each look takes of each webhook and lane the same share, so what is new in another lane is in the next look."""
    monkeypatch.setattr(deliver, "EXPAND_PAGE_SIZE", 40)
    hooks = new_webhooks(5)
    (busy,), (other,) = new_users(1, lane=2), new_users(1, lane=9)
    settled(*[deposit(busy, 1) for _ in range(100)])
    assert expand(), "there is more"
    settled(deposit(other, 1))
    assert expand(), "there is more"
    with transaction() as connection:
        found = connection.execute(
            text("SELECT webhook_id, count(*) FROM deliveries WHERE user_id = :user GROUP BY 1"), {"user": other}
        ).all()
        behind = outbox.find_lagging_cursors(connection, [], 100)
    assert sorted(found) == [(hook, 1) for hook in hooks]
    assert {(one.webhook_id, one.lane) for one in behind} == {(hook, 2) for hook in hooks}, "the backlog is still there"


def test_all_lagging_cursors_have_their_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(deliver, "MAX_EXPANDED_CURSORS", 3)
    hooks = new_webhooks(4)
    users = [new_users(1, lane)[0] for lane in range(4)]
    settled(*[deposit(user, 1) for user in users])
    looks = 0
    while any(expanded(hook) < len(users) for hook in hooks):
        expand()
        looks += 1
        assert looks <= 6 + len(hooks) * len(users)
    assert looks >= len(hooks) * len(users) / 3


def test_ten_webhooks_take_as_many_statements_as_one() -> None:
    counts = []
    for more in (1, 9):
        new_webhooks(more)
        settled(deposit(new_user(), 1))
        with recorded_statements() as sent:
            expand()
        counts.append(len(sent))
    assert counts[0] == counts[1]
