"""Statements on webhooks and their cursors: add, find, change, switch off, rewind."""

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import Connection, text

from shared.database import array, text_array
from shared.queries.deliveries import NEWEST_OF_LANE


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


_COLUMNS = "id, url, events, threshold, created_at, disabled_at, disabled_reason, failing_since"
_INSERT = text(f"""
    INSERT INTO webhooks (url, events, threshold, secret)
    VALUES (:url, CAST(:events AS text[]), :threshold, :secret) RETURNING {_COLUMNS}
""")
# A batch that is being committed comes after: its ids are higher than any of its lane that can be seen.
_BEGIN = text(f"""
    INSERT INTO webhook_cursors (webhook_id, lane, through)
    SELECT :webhook_id, lane, coalesce(({NEWEST_OF_LANE.format(lane="CAST(lane.lane AS smallint)")}), 0)
    FROM generate_series(0, :lanes - 1) AS lane (lane)
""")
_FIND = text(f"SELECT {_COLUMNS} FROM webhooks WHERE id = :webhook_id AND deleted_at IS NULL")
_LIST = text(f"SELECT {_COLUMNS} FROM webhooks WHERE deleted_at IS NULL ORDER BY id")
_SECRETS = text("""
    SELECT secret, CASE WHEN previous_secret_until > statement_timestamp() THEN previous_secret END
    FROM webhooks WHERE id = :webhook_id
""")
_ROTATE = text("""
    UPDATE webhooks SET previous_secret = secret, secret = :secret,
        previous_secret_until = clock_timestamp() + make_interval(secs => :seconds)
    WHERE id = :webhook_id AND deleted_at IS NULL
""")
_DELETE = text("""
    UPDATE webhooks SET deleted_at = clock_timestamp(), secret = '', previous_secret = NULL
    WHERE id = :webhook_id AND deleted_at IS NULL
""")
_DISABLE = text("""
    UPDATE webhooks SET disabled_at = clock_timestamp(), disabled_reason = :reason
    WHERE id = :webhook_id AND disabled_at IS NULL
""")
_ENABLE = text("""
    UPDATE webhooks SET disabled_at = NULL, disabled_reason = NULL, failing_since = NULL, rests_until = NULL
    WHERE id = :webhook_id AND (disabled_at IS NOT NULL OR failing_since IS NOT NULL)
""")
_LOCK_CURSORS = text("SELECT lane FROM webhook_cursors WHERE webhook_id = :webhook_id ORDER BY lane FOR UPDATE")
_REWIND = text("""
    UPDATE webhook_cursors SET through = least(webhook_cursors.through, back.through)
    FROM unnest(CAST(:ids AS bigint[])) WITH ORDINALITY AS back (through, position)
    WHERE webhook_id = :webhook_id AND lane = back.position - 1
""")
# Whose turn it was waits for what is now to be told before it.
_TAKE_TURNS_BACK = text("""
    UPDATE deliveries SET next_attempt_at = NULL, claimed_until = NULL
    FROM webhook_cursors AS cursor
    WHERE cursor.webhook_id = :webhook_id AND cursor.lane = deliveries.user_id % :lanes
      AND deliveries.webhook_id = :webhook_id AND deliveries.next_attempt_at IS NOT NULL
      AND deliveries.event_id > cursor.through
""")


class NewWebhook(NamedTuple):
    """A webhook to add. `threshold` in minor units."""

    url: str
    events: Sequence[str]
    threshold: int


def insert_webhook(connection: Connection, new: NewWebhook, secret: str, lanes: int) -> Webhook:
    """Add a webhook that begins with what is settled from now on."""
    values = {"url": new.url, "events": text_array(new.events), "threshold": new.threshold, "secret": secret}
    webhook = Webhook(*connection.execute(_INSERT, values).one())
    connection.execute(_BEGIN, {"webhook_id": webhook.id, "lanes": lanes})
    return webhook


def find_webhook(connection: Connection, webhook_id: int) -> Webhook | None:
    row = connection.execute(_FIND, {"webhook_id": webhook_id}).one_or_none()
    return Webhook(*row) if row else None


def list_webhooks(connection: Connection) -> list[Webhook]:
    return [Webhook(*row) for row in connection.execute(_LIST)]


def get_secrets(connection: Connection, webhook_id: int) -> list[str]:
    """The secrets that are valid now, the newest first."""
    return [secret for secret in connection.execute(_SECRETS, {"webhook_id": webhook_id}).one() if secret]


def rotate_secret(connection: Connection, webhook_id: int, secret: str, both_seconds: float) -> bool:
    """Whether there is such a webhook."""
    values = {"webhook_id": webhook_id, "secret": secret, "seconds": both_seconds}
    return connection.execute(_ROTATE, values).rowcount == 1


def delete_webhook(connection: Connection, webhook_id: int) -> bool:
    """Whether there was such a webhook. Its rows are taken away later, some at a time."""
    return connection.execute(_DELETE, {"webhook_id": webhook_id}).rowcount == 1


def disable_webhook(connection: Connection, webhook_id: int, reason: str) -> bool:
    """Whether it was on."""
    return connection.execute(_DISABLE, {"webhook_id": webhook_id, "reason": reason}).rowcount == 1


def enable_webhook(connection: Connection, webhook_id: int) -> None:
    connection.execute(_ENABLE, {"webhook_id": webhook_id})


def rewind_webhook(connection: Connection, webhook_id: int, through: Sequence[int]) -> None:
    """Tell again what came after these last ids, one per lane, in order: later events wait for it."""
    values = {"webhook_id": webhook_id, "ids": array(through), "lanes": len(through)}
    connection.execute(_LOCK_CURSORS, values)
    connection.execute(_REWIND, values)
    connection.execute(_TAKE_TURNS_BACK, values)
