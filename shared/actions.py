"""Operator actions: who changed a key, a webhook, a parked payment or the schema, and when."""

from datetime import datetime
from typing import Any, Final, NamedTuple

SERVICE: Final = "service"  # the actor of what our own processes do by themselves


class Action(NamedTuple):
    """A recorded action. `actor` is `key ID NAME`, `user@host`, `no key, ADDRESS` or `service`."""

    id: int
    at: datetime
    actor: str
    action: str
    target: str
    details: dict[str, Any]
