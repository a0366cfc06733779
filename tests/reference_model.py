"""The rules of money told the slow and obvious way: a list of entries, and sums over it. The code must agree."""

from dataclasses import dataclass, field
from datetime import datetime

from shared.payments.model import Type


@dataclass
class NaiveAccount:
    """One user's completed payments as (instant, signed amount), in the order in which they were settled."""

    entries: list[tuple[datetime, int]] = field(default_factory=list)

    def balance_at(self, instant: datetime) -> int:
        return sum(amount for at, amount in self.entries if at <= instant)

    def balance(self) -> int:
        return sum(amount for _, amount in self.entries)

    def last_instant(self, moment: datetime) -> datetime:
        """The moment, or the newest entry's instant where that is newer."""
        return max([moment, *(at for at, _ in self.entries)])

    def settle(self, type_: Type, amount: int, at: datetime) -> bool:
        """Whether the payment may complete; if so, it has. A withdrawal must leave every instant from its own on."""
        if type_ == Type.WITHDRAW:
            later = [at, *(instant for instant, _ in self.entries if instant >= at)]
            if any(self.balance_at(instant) < amount for instant in later):
                return False
        self.entries.append((at, amount if type_ == Type.DEPOSIT else -amount))
        return True

    def never_negative(self) -> bool:
        return all(self.balance_at(instant) >= 0 for instant, _ in self.entries)
