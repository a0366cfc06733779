"""The campaigns: on while their user has money. What they hear may come twice, late and from two sides at once."""

import threading
from dataclasses import dataclass, field
from decimal import Decimal


@dataclass
class Campaign:
    """A user's campaign, as the newest event has it. `seen`: the highest user_seq by type of event."""

    user_id: int
    balance: Decimal = Decimal(0)
    user_seq: int = 0
    changed_at: str = ""
    seen: dict[str, int] = field(default_factory=dict)

    @property
    def on(self) -> bool:
        return self.balance > 0


class Campaigns:
    """All campaigns. Threads may share them."""

    def __init__(self) -> None:
        self._campaigns: dict[int, Campaign] = {}
        self._lock = threading.Lock()

    def hear(self, kind: str, user_id: int, user_seq: int, balance: str, at: str) -> bool:
        """Take in an event of this type; whether it was news.

        Of each type what is not newer than one already seen is dropped. The feed and the webhooks bring events side by
        side, so one of another type may be news and still be older than what the campaign stands on: it changes nothing.
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
        """As JSON, by user."""
        with self._lock:
            return [
                {"user_id": c.user_id, "on": c.on, "balance": str(c.balance), "changed_at": c.changed_at}
                for _, c in sorted(self._campaigns.items())
            ]
