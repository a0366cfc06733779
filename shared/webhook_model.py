"""What a webhook is and what it is told: the types that use cases, views and statements share."""

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple
from uuid import UUID


class Webhook(NamedTuple):
    """A webhook, without its secrets. `threshold` in minor units."""

    id: int
    url: str
    events: list[str]
    threshold: int
    created_at: datetime
    disabled_at: datetime | None
    disabled_reason: str | None
    failing_since: datetime | None


class NewWebhook(NamedTuple):
    """A webhook to add. `threshold` in minor units."""

    url: str
    events: Sequence[str]
    threshold: int


class Delivery(NamedTuple):
    """One that was claimed until an instant, which is the claim's name, too. Balance and threshold in minor units."""

    webhook_id: int
    event_id: int
    position: int
    type: str
    user_id: int
    user_seq: int
    uid: UUID
    balance: int
    occurred_at: datetime
    attempts: int
    claimed_until: datetime
    schedule_ends_at: datetime | None
    url: str
    threshold: int
    secrets: list[str]


class Due(NamedTuple):
    """A webhook with deliveries to make now: how many at once, for how long the first has been due, whether it fails."""

    webhook_id: int
    slots: int
    overdue_seconds: float
    fails: bool


class DeadLetterKey(NamedTuple):
    """A delivery's place among those of its webhook."""

    event_id: int
    position: int


class DeadLetter(NamedTuple):
    """A delivery that was given up. `balance` in minor units."""

    event_id: int
    position: int
    type: str
    user_id: int
    user_seq: int
    balance: int
    attempts: int
    last_error: str | None
    occurred_at: datetime
    dead_at: datetime

    @property
    def key(self) -> DeadLetterKey:
        return DeadLetterKey(self.event_id, self.position)


class WebhookBacklog(NamedTuple):
    """How late deliveries are in seconds, how many were given up, webhooks that are off, deliveries still to be made.

    Late is what is due, and what has happened and is no delivery yet. Of each webhook MAX_COUNTED_DELIVERIES deliveries are
    counted at most.
    """

    overdue_seconds: float
    dead: int
    off: int
    pending: int
