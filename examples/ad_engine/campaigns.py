"""The campaigns and their state. Events may arrive twice, late, and from the feed and a webhook at the same time."""

import threading
from dataclasses import dataclass, field
from decimal import Decimal


@dataclass
class Campaign:
    """A user's campaign after the newest event. `seen` has the highest user_seq of each event type."""

    user_id: int
    balance: Decimal = Decimal(0)
    user_seq: int = 0
    changed_at: str = ""
    seen: dict[str, int] = field(default_factory=dict)

    @property
    def on(self) -> bool:
        return self.balance > 0


class Campaigns:
    """All campaigns. Thread-safe."""

    def __init__(self) -> None:
        self._campaigns: dict[int, Campaign] = {}
        self._lock = threading.Lock()

    def hear(self, kind: str, user_id: int, user_seq: int, balance: str, at: str) -> bool:
        """Applies an event and returns whether it was new.

        Ignores an event whose user_seq is not higher than the last one of its type. The feed and the webhooks deliver
        in parallel, so a new event of one type can be older than the last event of another. Then the balance stays.
        """
        with self._lock:
            campaign = self._campaigns.setdefault(user_id, Campaign(user_id))
            if user_seq <= campaign.seen.get(kind, 0):
                return False
            campaign.seen[kind] = user_seq
            if user_seq >= campaign.user_seq:
                was_on = campaign.on
                campaign.balance, campaign.user_seq = Decimal(balance), user_seq
                if campaign.on != was_on or not campaign.changed_at:
                    campaign.changed_at = at
            return True

    def listed(self) -> list[dict[str, object]]:
        """Returns the campaigns as JSON objects, ordered by user id."""
        with self._lock:
            return [
                {"user_id": c.user_id, "on": c.on, "balance": str(c.balance), "changed_at": c.changed_at}
                for _, c in sorted(self._campaigns.items())
            ]
