"""Operator actions: the record of changes to keys, webhooks, parked payments and the schema."""

from datetime import datetime
from typing import Any, Final, NamedTuple

SERVICE: Final = "service"  # the actor of actions that our own processes take


class Action(NamedTuple):
    """A recorded action. `actor` is `key ID NAME`, `user@host`, `no key, ADDRESS` or `service`; `at` is UTC."""

    id: int
    at: datetime
    actor: str
    action: str
    target: str
    details: dict[str, Any]
