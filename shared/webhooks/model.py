"""Domain types of webhooks and deliveries, shared by use cases, views and statements."""

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple
from uuid import UUID


class Webhook(NamedTuple):
    """A webhook without its secrets. `threshold` in minor units, instants in UTC."""

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
    """A claimed delivery. `claimed_until` also identifies the claim. Balance and threshold in minor units."""

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
    """A webhook with due deliveries: slots to use, seconds since the first was due, and whether its receiver fails."""

    webhook_id: int
    slots: int
    overdue_seconds: float
    is_failing: bool


class DeadLetterKey(NamedTuple):
    """The position of a delivery among those of its webhook."""

    event_id: int
    position: int


class DeadLetter(NamedTuple):
    """A delivery without further attempts. `balance` in minor units, instants in UTC."""

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
        """Returns the position of this dead letter, for a cursor."""
        return DeadLetterKey(self.event_id, self.position)


class WebhookBacklog(NamedTuple):
    """The delay of deliveries in seconds, dead letters, disabled webhooks, and pending deliveries.

    The delay covers due deliveries and events that are not expanded yet. At most MAX_COUNTED_DELIVERIES deliveries are
    counted per webhook.
    """

    overdue_seconds: float
    dead: int
    off: int
    pending: int
