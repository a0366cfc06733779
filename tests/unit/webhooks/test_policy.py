"""What a webhook is told of an event, and when it is tried again."""

from itertools import accumulate, pairwise

import pytest

from shared.webhooks.policy import (
    DELAYS_SECONDS,
    MAX_RETRY_AFTER_SECONDS,
    Retry,
    WebhookEventType,
    delay_seconds,
    message_id,
    plan_retry,
    webhook_event_types,
)

pytestmark = pytest.mark.unit

DONE, REFUSED = "transaction.completed", "transaction.rejected"


@pytest.mark.parametrize(
    ("event", "before", "after", "threshold", "told"),
    [
        (DONE, 0, 1, 0, [DONE, "account.funded"]),
        (DONE, 1, 2, 0, [DONE]),
        (DONE, 1, 0, 0, [DONE, "account.depleted"]),
        (DONE, 2, 1, 0, [DONE]),
        (REFUSED, 0, 0, 0, [REFUSED]),
        (REFUSED, 5, 5, 5, [REFUSED]),
        (DONE, 499, 500, 500, [DONE]),  # at the threshold is not above it
        (DONE, 500, 501, 500, [DONE, "account.funded"]),
        (DONE, 501, 500, 500, [DONE, "account.depleted"]),
        (DONE, 500, 499, 500, [DONE]),
        (DONE, 0, 10_000, 500, [DONE, "account.funded"]),
        (DONE, 10_000, 0, 500, [DONE, "account.depleted"]),
    ],
)
def test_what_an_event_means(event: str, before: int, after: int, threshold: int, told: list[str]) -> None:
    assert webhook_event_types(event, before, after, threshold) == told


def test_a_batch_that_crosses_several_times_tells_each_crossing() -> None:
    balances = [0, 10, 5, 20, 0, 0, 3]
    told = [webhook_event_types(DONE, *pair, 4)[1:] for pair in pairwise(balances)]
    assert told == [[WebhookEventType.FUNDED], [], [], [WebhookEventType.DEPLETED], [], []]


def test_five_attempts_within_a_minute_the_last_in_three_days() -> None:
    for chance in (0.0, 0.5, 1.0):
        delays = [delay_seconds(attempts, chance) for attempts in range(1, len(DELAYS_SECONDS) + 1)]
        at = [0.0, *accumulate(delay for delay in delays if delay is not None)]
        assert at[4] < 60 < at[5], "five attempts"
        assert all(later > earlier for earlier, later in pairwise(delays[:10]))  # type: ignore[operator]
        assert 60 * 3600 < at[-1] < 84 * 3600
        assert 3600 < max(delay or 0 for delay in delays) <= 8 * 3600
    assert delay_seconds(len(DELAYS_SECONDS) + 1, 0.5) is None


def test_jitter_spreads_what_failed_together() -> None:
    assert delay_seconds(7, 1.0) != delay_seconds(7, 0.0)


def test_a_message_id_names_event_webhook_and_type() -> None:
    assert message_id(12, 3, WebhookEventType.COMPLETED) == message_id(12, 3, WebhookEventType.REJECTED) == "evt_12_3"
    assert message_id(12, 3, WebhookEventType.FUNDED) == "evt_12_3_funded"
    assert message_id(12, 3, WebhookEventType.DEPLETED) == "evt_12_3_depleted"


def test_a_retry_after_makes_the_wait_longer_and_never_shorter() -> None:
    for attempts, delay in enumerate(DELAYS_SECONDS, 1):
        assert plan_retry(attempts, 0) == Retry(delay)
        assert plan_retry(attempts, 0, delay - 1) == Retry(delay)
        wanted = plan_retry(attempts, 0, delay + 1)
        assert wanted
        assert wanted.delay_seconds == min(delay + 1, MAX_RETRY_AFTER_SECONDS)
        assert wanted.remaining_seconds == sum(DELAYS_SECONDS[attempts - 1 :])


def test_retry_after_does_not_extend_the_schedule() -> None:
    assert plan_retry(1, 0, 10**9, 5000) == Retry(5000, 5000), "the last attempt is at the end"
    assert plan_retry(1, 0, 10**9, 0) is None
    assert plan_retry(1, 0, None, 100) == Retry(DELAYS_SECONDS[0], 100)
    assert plan_retry(len(DELAYS_SECONDS), 0, None, 100) is None, "the schedule's own delay would pass the end"


def test_no_retry_after_adds_an_attempt() -> None:
    assert plan_retry(len(DELAYS_SECONDS) + 1, 0, 10) is None
