"""Webhooks: secrets that are rotated, a receiver's Retry-After, a repeated registration."""

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import text

from shared.database import transaction
from shared.errors import Conflict, Refused
from shared.settings import settings
from shared.webhooks import deliver, manage
from shared.webhooks.deliver import deliver_webhook, expand
from shared.webhooks.model import NewWebhook
from shared.webhooks.policy import DELAYS_SECONDS, MAX_RETRY_AFTER_SECONDS
from tests.integration.factories import clock, deposit, new_user, prune, run_sql, settled
from tests.integration.webhooks.test_webhooks import DONE, FUNDED, Hook
from tests.kit.receiver import Got, Receiver

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("receivers_on_loopback")]

HOUR, DAY = 3600, 86_400
WHOLE_SCHEDULE = sum(DELAYS_SECONDS)


@pytest.fixture
def hook(receiver: Receiver) -> Hook:
    return Hook(receiver, [DONE])


def read(statement: str, **values: object) -> Any:
    with transaction() as connection:
        return connection.execute(text(statement), values).one()


def trial(hook: Hook) -> Got:
    assert manage.send_test_event(hook.id).delivered
    return hook.receiver.got[-1]


def go_on(hook: Hook, seconds: float) -> None:
    """So much time has passed for the secrets of a webhook."""
    passed = f"make_interval(secs => {seconds})"
    run_sql(f"UPDATE webhook_secrets SET valid_until = valid_until - {passed} WHERE webhook_id = {hook.id}")
    run_sql(f"UPDATE webhooks SET previous_secret_until = previous_secret_until - {passed} WHERE id = {hook.id}")


def test_an_older_secret_is_valid_for_a_day(hook: Hook) -> None:
    secrets = [hook.secret]
    for _ in range(3):
        secrets.append(manage.rotate_secret(hook.id))
        go_on(hook, 6 * HOUR)
    assert [trial(hook).verified_by(secret) for secret in secrets] == [True] * 4
    settled(deposit(user := new_user(), 1))
    hook.deliver()
    (got,) = hook.receiver.of(user)
    assert [got.verified_by(secret) for secret in secrets] == [True] * 4
    assert len(got.headers["webhook-signature"].split(" ")) == 4
    for valid in ([False, True, True, True], [False, False, True, True], [False, False, False, True]):
        go_on(hook, 6 * HOUR)
        assert [trial(hook).verified_by(secret) for secret in secrets] == valid


def test_a_rotation_too_many_is_refused(hook: Hook) -> None:
    secrets = [hook.secret]
    for _ in range(manage.MAX_OLDER_SECRETS):
        secrets.append(manage.rotate_secret(hook.id))
        go_on(hook, HOUR)
    with pytest.raises(Refused) as raised:
        manage.rotate_secret(hook.id)
    assert raised.value.code == "too_many_secrets"
    left = DAY - manage.MAX_OLDER_SECRETS * HOUR
    assert left - 60 < raised.value.retry_seconds <= left
    assert all(trial(hook).verified_by(secret) for secret in secrets)
    go_on(hook, raised.value.retry_seconds)
    secrets.append(manage.rotate_secret(hook.id))
    assert [trial(hook).verified_by(secret) for secret in secrets] == [False] + [True] * (len(secrets) - 1)


def test_rotations_at_once_keep_every_secret(hook: Hook) -> None:
    with ThreadPoolExecutor(5) as threads:
        secrets = list(threads.map(lambda _: manage.rotate_secret(hook.id), range(5)))
    got = trial(hook)
    assert all(got.verified_by(secret) for secret in (hook.secret, *secrets))


def test_a_secret_rotated_by_the_previous_release_is_kept(hook: Hook) -> None:
    """It knows `previous_secret` alone, while both releases run."""
    first = manage.rotate_secret(hook.id)
    second = manage._new_secret()
    run_sql(
        "UPDATE webhooks SET previous_secret = secret, secret = :secret,"
        " previous_secret_until = clock_timestamp() + interval '1 day' WHERE id = :id",
        secret=second,
        id=hook.id,
    )
    assert all(trial(hook).verified_by(secret) for secret in (hook.secret, first, second))
    third = manage.rotate_secret(hook.id)
    assert all(trial(hook).verified_by(secret) for secret in (hook.secret, first, second, third))
    before = read("SELECT secret, previous_secret FROM webhooks WHERE id = :id", id=hook.id)
    assert tuple(before) == (third, second), "which the release before this one signs with"


def test_expired_and_orphaned_secrets_are_deleted(hook: Hook) -> None:
    manage.rotate_secret(hook.id)
    go_on(hook, 12 * HOUR)
    manage.rotate_secret(hook.id)
    kept = "SELECT count(*) FROM webhook_secrets WHERE webhook_id = :id"
    go_on(hook, 13 * HOUR)
    prune()
    assert read(kept, id=hook.id)[0] == 1
    manage.delete(hook.id)
    assert read(kept, id=hook.id)[0] == 0


def attempt(hook: Hook) -> tuple[float, int]:
    """Make one attempt. In how many seconds after it the next one is due, and the number of attempts so far."""
    hook.hurry()
    deliver_webhook(hook.id, 0.001)
    answered = hook.answered_at  # type: ignore[attr-defined]
    row = read("SELECT next_attempt_at, attempts FROM deliveries WHERE webhook_id = :id", id=hook.id)
    return (row.next_attempt_at - answered).total_seconds() if row.next_attempt_at else -1.0, row.attempts


@pytest.fixture
def waiting(hook: Hook) -> Hook:
    """A webhook with one event, whose receiver answers 503 and asks to be left alone for a while."""
    settled(deposit(new_user(), 1))
    expand()

    def answer(_: Got) -> int:
        hook.answered_at = clock()  # type: ignore[attr-defined]
        return 503

    hook.receiver.answer = answer
    return hook


def test_the_next_attempt_is_not_before_a_retry_after(waiting: Hook) -> None:
    waiting.receiver.headers["Retry-After"] = "1000"
    assert 1000 <= attempt(waiting)[0] < 1060
    waiting.receiver.headers["Retry-After"] = "0"
    assert 0 < attempt(waiting)[0] <= DELAYS_SECONDS[1], "never sooner than the schedule has it"
    waiting.receiver.headers["Retry-After"] = "no time"
    assert DELAYS_SECONDS[2] / 2 < attempt(waiting)[0] <= DELAYS_SECONDS[2]
    waiting.receiver.headers["Retry-After"] = str(10**9)
    assert abs(attempt(waiting)[0] - MAX_RETRY_AFTER_SECONDS) < 60


def test_no_retry_after_moves_the_end_of_the_schedule(waiting: Hook) -> None:
    waiting.receiver.headers["Retry-After"] = str(DAY)
    waited, attempts = 0.0, 0
    while (seconds := attempt(waiting)[0]) > 0:
        waited, attempts = waited + seconds, attempts + 1
        # so much time passes
        passed = f"make_interval(secs => {seconds})"
        run_sql(f"UPDATE deliveries SET schedule_ends_at = schedule_ends_at - {passed} WHERE webhook_id = {waiting.id}")
    assert WHOLE_SCHEDULE - MAX_RETRY_AFTER_SECONDS < waited <= WHOLE_SCHEDULE + 60
    assert attempts < len(DELAYS_SECONDS)
    assert [letter.last_error for letter in manage.get_dead_letters(waiting.id, None, 10).items] == ["status 503"]


def test_a_replay_begins_a_new_schedule(waiting: Hook) -> None:
    waiting.receiver.headers["Retry-After"] = "100"
    attempt(waiting)
    ends_at: datetime = read("SELECT schedule_ends_at FROM deliveries WHERE webhook_id = :id", id=waiting.id)[0]
    assert WHOLE_SCHEDULE - 60 < (ends_at - clock()).total_seconds() <= WHOLE_SCHEDULE
    manage.replay(waiting.id, [0] * 16)
    while expand():
        pass
    ended = "SELECT count(*) FROM deliveries WHERE webhook_id = :id AND schedule_ends_at IS NOT NULL"
    assert read(ended, id=waiting.id)[0] == 0


def test_a_receiver_that_hangs_leaves_its_slot_and_gets_no_other(hook: Hook) -> None:
    """What it does to other receivers: tests/system/outgoing_webhooks/test_webhook_slots.py."""
    go = threading.Event()

    def hang(_: Got) -> int:
        go.wait(9)
        return 200

    hook.receiver.answer = hang
    settled(*[deposit(new_user(), 1) for _ in range(30)])
    while expand():
        pass
    try:
        assert deliver_webhook(hook.id).under_way == 1
        assert deliver.slots().free_for_failing() >= 15
    finally:
        go.set()
    assert deliver.slots().wait_until_idle(10)
    assert len(hook.rows("delivered_at IS NOT NULL")) == 1


def new(receiver: Receiver, **changes: Any) -> NewWebhook:
    return NewWebhook(receiver.url, [DONE, FUNDED], 500)._replace(**changes)


def test_a_repeated_key_returns_the_webhook_and_its_secret(receiver: Receiver) -> None:
    key = f"5\t{uuid4()}"
    first = manage.register(new(receiver), key)
    again = manage.register(new(receiver, events=[FUNDED, DONE]), key)
    assert (again.webhook, again.secret) == (first.webhook, first.secret)
    assert (first.replayed, again.replayed) == (False, True)
    rotated = manage.rotate_secret(first.webhook.id)
    assert manage.register(new(receiver), key).secret == rotated, "the one that is worth having"


@pytest.mark.parametrize("changes", [{"events": [DONE]}, {"threshold": 501}, {"url": "http://127.0.0.1:9/"}])
def test_the_same_key_with_other_content_is_refused(receiver: Receiver, changes: dict[str, Any]) -> None:
    key = f"5\t{uuid4()}"
    manage.register(new(receiver), key)
    with pytest.raises(Conflict) as raised:
        manage.register(new(receiver, **changes), key)
    assert raised.value.code == "key_reused"


def test_the_same_key_of_another_owner_is_another_key(receiver: Receiver) -> None:
    key = str(uuid4())
    made = [manage.register(new(receiver), f"{owner}\t{key}") for owner in (0, 1, 11)]
    assert len({one.webhook.id for one in made}) == 3
    assert not any(one.replayed for one in made)


def test_one_key_sent_many_times_at_once_adds_one_webhook(receiver: Receiver) -> None:
    key = f"0\t{uuid4()}"
    with ThreadPoolExecutor(20) as threads:
        made = list(threads.map(lambda _: manage.register(new(receiver), key), range(20)))
    assert len({(one.webhook.id, one.secret) for one in made}) == 1
    assert sorted(one.replayed for one in made) == [False] + [True] * 19
    assert read("SELECT count(*) FROM webhook_cursors WHERE webhook_id = :id", id=made[0].webhook.id)[0] == 16


def test_the_key_of_a_deleted_webhook_is_free(receiver: Receiver) -> None:
    key = f"0\t{uuid4()}"
    first = manage.register(new(receiver), key)
    manage.delete(first.webhook.id)
    again = manage.register(new(receiver), key)
    assert again.webhook.id != first.webhook.id
    assert not again.replayed


def test_a_repeat_is_answered_even_if_its_url_is_private_now(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = f"0\t{uuid4()}"
    first = manage.register(new(receiver), key)
    monkeypatch.setenv("WEBHOOK_ALLOW_PRIVATE", "0")
    settings.cache_clear()
    assert manage.register(new(receiver), key).webhook == first.webhook
