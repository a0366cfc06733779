"""Operator actions: who changed a key, a webhook, a parked payment or the schema, and when.

A use case records its action on its own connection, so that the action and its record are committed together.
Details never hold a secret; of a URL only the host, because its path may be one.
"""

import json
from datetime import datetime
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, text

SERVICE: Final = "service"  # the actor of actions that our own processes take


class Action(NamedTuple):
    """A recorded action. `actor` is `key ID NAME`, `user@host`, `no key, ADDRESS` or `service`; `at` is UTC."""

    id: int
    at: datetime
    actor: str
    action: str
    target: str
    details: dict[str, Any]


_INSERT = text("""
    INSERT INTO operator_actions (actor, action, target, details)
    VALUES (:actor, :action, :target, CAST(:details AS jsonb))
""")
_NEWEST = text("SELECT id, at, actor, action, target, details FROM operator_actions ORDER BY id DESC LIMIT :limit")


def record(connection: Connection, actor: str, action: str, target: object, **details: object) -> None:
    """Records an action in the transaction that performs it. `details` become JSON."""
    values = {"actor": actor, "action": action, "target": str(target), "details": json.dumps(details)}
    connection.execute(_INSERT, values)


def read_newest(connection: Connection, limit: int) -> list[Action]:
    """Returns the last `limit` actions, the newest first."""
    return [Action(*row) for row in connection.execute(_NEWEST, {"limit": limit})]
