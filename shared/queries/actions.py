"""Statements on operator actions: changes to keys, webhooks, parked payments and the schema.

A use case records its action on its own connection, so that one commit covers both. Details never contain a secret. Of
a URL they contain only the host, because the path may be a secret.
"""

import json

from sqlalchemy import Connection, text

from shared.actions import Action

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
