"""What others are told of an event, under which name, and when it is tried again. No IO, no clock.

Settling knows no webhooks: it writes the balance before and after, and what a webhook hears is worked out of that and
of its own threshold, so that a webhook made today can be told of yesterday.
"""

from enum import StrEnum
from typing import Final, NamedTuple


class WebhookEventType(StrEnum):
    """The types that a webhook can ask for."""

    COMPLETED = "transaction.completed"
    REJECTED = "transaction.rejected"
    FUNDED = "account.funded"
    DEPLETED = "account.depleted"


# Before the second attempt, the third, and so on, in seconds: five attempts within a minute, then for three days.
DELAYS_SECONDS: Final = (2, 6, 12, 25, 60, 300, 1200, 3600, 7200, 14_400, *[28_800] * 9)
MAX_RETRY_AFTER_SECONDS: Final = max(DELAYS_SECONDS)
JITTER: Final = 0.2  # downwards only: five attempts are to lie within the minute


def webhook_event_types(event: str, before: int, after: int, threshold: int) -> list[WebhookEventType]:
    """What an event means to a webhook with this threshold, in the order in which it is told."""
    types = [WebhookEventType(event)]
    if before <= threshold < after:
        types.append(WebhookEventType.FUNDED)
    elif after <= threshold < before:
        types.append(WebhookEventType.DEPLETED)
    return types


def delay_seconds(attempts: int, chance: float) -> float | None:
    """From the beginning of the last attempt to the next one; None: it was the last. `chance` is from 0 to 1."""
    if attempts > len(DELAYS_SECONDS):
        return None
    return DELAYS_SECONDS[attempts - 1] * (1 - JITTER * chance)


class Retry(NamedTuple):
    """When a delivery is tried again, counted from the beginning of its last attempt.

    `remaining_seconds`: until the end of its schedule; None as long as no Retry-After has moved an attempt.
    """

    delay_seconds: float
    remaining_seconds: float | None = None


def plan_retry(
    attempts: int, chance: float, retry_after: float | None = None, remaining: float | None = None
) -> Retry | None:
    """When to try again after so many attempts; None: that was the last one.

    A receiver's Retry-After (seconds from the beginning of the attempt) makes the wait longer than the schedule has it,
    never shorter: up to the schedule's longest delay, and not beyond the instant at which the schedule would have ended.
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
    """The name by which a receiver knows a repeat; the same at each attempt and in each replay."""
    noun, _, verb = event_type.partition(".")
    return f"evt_{event_id}_{webhook}" + (f"_{verb}" if noun == "account" else "")
