"""Rules of webhooks: event types, message ids and the retry schedule. No IO, no clock.

Settlement does not know webhooks: it stores the balance before and after. The event types are computed from these
balances and the threshold of the webhook, so that a new webhook can replay old events.
"""

from enum import StrEnum
from typing import Final, NamedTuple


class WebhookEventType(StrEnum):
    """The event types that a webhook can subscribe to."""

    COMPLETED = "transaction.completed"
    REJECTED = "transaction.rejected"
    FUNDED = "account.funded"
    DEPLETED = "account.depleted"


# Delays before the second attempt, the third, and so on: five attempts within a minute, then more for three days.
DELAYS_SECONDS: Final = (2, 6, 12, 25, 60, 300, 1200, 3600, 7200, 14_400, *[28_800] * 9)
MAX_RETRY_AFTER_SECONDS: Final = max(DELAYS_SECONDS)
JITTER: Final = 0.2  # only shortens a delay, so that five attempts fit in the first minute


def webhook_event_types(event: str, before: int, after: int, threshold: int) -> list[WebhookEventType]:
    """Returns the types of an event for a webhook, in the order of delivery. Balances and threshold in minor units."""
    types = [WebhookEventType(event)]
    if before <= threshold < after:
        types.append(WebhookEventType.FUNDED)
    elif after <= threshold < before:
        types.append(WebhookEventType.DEPLETED)
    return types


def delay_seconds(attempts: int, chance: float) -> float | None:
    """Returns the seconds from the start of the last attempt to the next one, or None if there is no next one.

    `chance` is a random number from 0 to 1.
    """
    if attempts > len(DELAYS_SECONDS):
        return None
    return DELAYS_SECONDS[attempts - 1] * (1 - JITTER * chance)


class Retry(NamedTuple):
    """The next attempt of a delivery, counted from the start of its last attempt.

    `remaining_seconds`: time until the end of the schedule; None if no Retry-After has delayed an attempt yet.
    """

    delay_seconds: float
    remaining_seconds: float | None = None


def plan_retry(
    attempts: int, chance: float, retry_after: float | None = None, remaining: float | None = None
) -> Retry | None:
    """Returns the next attempt after `attempts` failed ones, or None if the last one has failed.

    `retry_after` (seconds from the start of the attempt) can only make a delay longer. The limits are
    MAX_RETRY_AFTER_SECONDS and the end of the original schedule. `remaining` is `Retry.remaining_seconds` of the delivery.
    """
    delay = delay_seconds(attempts, chance)
    if delay is None:
        return None
    if retry_after is not None and retry_after > delay:
        remaining = float(sum(DELAYS_SECONDS[attempts - 1 :])) if remaining is None else remaining
    if remaining is None:
        return Retry(delay)
    if delay > remaining:
        return None
    return Retry(min(max(delay, min(retry_after or 0.0, MAX_RETRY_AFTER_SECONDS)), remaining), remaining)


def message_id(event_id: int, webhook: int, event_type: WebhookEventType) -> str:
    """Returns the id that lets a receiver detect repeats: the same at each attempt and in each replay."""
    noun, _, verb = event_type.partition(".")
    return f"evt_{event_id}_{webhook}" + (f"_{verb}" if noun == "account" else "")
