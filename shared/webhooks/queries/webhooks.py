"""Statements on webhooks, their secrets and their cursors: add, find, change, disable, rewind."""

from collections.abc import Sequence
from typing import Final, NamedTuple

from sqlalchemy import Connection, text

from shared.database import array, text_array
from shared.webhooks.model import NewWebhook, Webhook
from shared.webhooks.queries.outbox import NEWEST_OF_LANE

_COLUMNS = "id, url, events, threshold, created_at, disabled_at, disabled_reason, failing_since"
_HAS_KEY: Final = "idempotency_key IS NOT NULL AND deleted_at IS NULL"  # the predicate of the unique index
_INSERT = text(f"""
    INSERT INTO webhooks (url, events, threshold, secret, idempotency_key)
    VALUES (:url, CAST(:events AS text[]), :threshold, :secret, :key)
    ON CONFLICT (idempotency_key) WHERE {_HAS_KEY} DO NOTHING RETURNING {_COLUMNS}
""")
_FIND_BY_KEY = text(f"""
    SELECT {_COLUMNS}, secret FROM webhooks WHERE idempotency_key = :key AND {_HAS_KEY}
""")
# A batch that is not committed yet comes later: its ids are higher than all visible ids of its lane.
_BEGIN = text(f"""
    INSERT INTO webhook_cursors (webhook_id, lane, through)
    SELECT :webhook_id, lane, coalesce(({NEWEST_OF_LANE.format(lane="CAST(lane.lane AS smallint)")}), 0)
    FROM generate_series(0, :lanes - 1) AS lane (lane)
""")
_FIND = text(f"SELECT {_COLUMNS} FROM webhooks WHERE id = :webhook_id AND deleted_at IS NULL")
_LIST = text(f"SELECT {_COLUMNS} FROM webhooks WHERE deleted_at IS NULL ORDER BY id")
# The valid secrets of a row of `webhooks`, the newest first. `previous_secret` is read too, because the previous release
# writes it and does not know webhook_secrets.
VALID_SECRETS: Final = """
    ARRAY(
        SELECT valid.secret FROM (
            SELECT webhooks.secret, CAST('infinity' AS timestamptz) AS valid_until
            UNION ALL SELECT webhooks.previous_secret, webhooks.previous_secret_until
            UNION ALL SELECT older.secret, older.valid_until FROM webhook_secrets AS older
                      WHERE older.webhook_id = webhooks.id
        ) AS valid
        WHERE valid.secret <> '' AND valid.valid_until > statement_timestamp()
        GROUP BY valid.secret ORDER BY max(valid.valid_until) DESC
    )
"""
_SECRETS = text(f"SELECT {VALID_SECRETS} FROM webhooks WHERE id = :webhook_id")
_LOCK = text("SELECT FROM webhooks WHERE id = :webhook_id AND deleted_at IS NULL FOR NO KEY UPDATE")
_KEEP_SECRETS = text("""
    INSERT INTO webhook_secrets (webhook_id, secret, valid_until)
    SELECT id, old.secret, old.valid_until FROM webhooks
    CROSS JOIN LATERAL (VALUES (secret, clock_timestamp() + make_interval(secs => :seconds)),
                               (previous_secret, previous_secret_until)) AS old (secret, valid_until)
    WHERE id = :webhook_id AND old.valid_until > clock_timestamp()
    ON CONFLICT (webhook_id, secret) DO NOTHING
""")
_COUNT_OLDER = text("""
    SELECT count(*) AS valid, extract(epoch FROM min(valid_until) - clock_timestamp()) AS seconds
    FROM webhook_secrets WHERE webhook_id = :webhook_id AND valid_until > clock_timestamp()
""")
_ROTATE = text("""
    UPDATE webhooks SET previous_secret = secret, secret = :secret,
        previous_secret_until = clock_timestamp() + make_interval(secs => :seconds)
    WHERE id = :webhook_id
""")
_DELETE_EXPIRED = text("""
    DELETE FROM webhook_secrets WHERE (webhook_id, secret) IN (
        SELECT webhook_id, secret FROM webhook_secrets WHERE valid_until < statement_timestamp()
        ORDER BY valid_until LIMIT :limit)
""")
_DELETE = text("""
    UPDATE webhooks SET deleted_at = clock_timestamp(), secret = '', previous_secret = NULL
    WHERE id = :webhook_id AND deleted_at IS NULL
""")
_DELETE_SECRETS = text("DELETE FROM webhook_secrets WHERE webhook_id = :webhook_id")
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
# A delivery beyond the rewound cursor loses its turn, because earlier events now come before it.
_TAKE_TURNS_BACK = text("""
    UPDATE deliveries SET next_attempt_at = NULL, claimed_until = NULL
    FROM webhook_cursors AS cursor
    WHERE cursor.webhook_id = :webhook_id AND cursor.lane = deliveries.user_id % :lanes
      AND deliveries.webhook_id = :webhook_id AND deliveries.next_attempt_at IS NOT NULL
      AND deliveries.event_id > cursor.through
""")


def insert_webhook(connection: Connection, new: NewWebhook, secret: str, key: str | None, lanes: int) -> Webhook | None:
    """Adds a webhook that starts at the newest events, and returns it. Returns None if the Idempotency-Key is taken."""
    values: dict[str, object] = {"url": new.url, "events": text_array(new.events), "threshold": new.threshold}
    values |= {"secret": secret, "key": key}
    row = connection.execute(_INSERT, values).one_or_none()
    if row is None:
        return None
    webhook = Webhook(*row)
    connection.execute(_BEGIN, {"webhook_id": webhook.id, "lanes": lanes})
    return webhook


def find_by_key(connection: Connection, key: str) -> tuple[Webhook, str] | None:
    """Returns the webhook that was added with this Idempotency-Key and its current secret, or None."""
    row = connection.execute(_FIND_BY_KEY, {"key": key}).one_or_none()
    return (Webhook(*row[:-1]), row.secret) if row else None


def find_webhook(connection: Connection, webhook_id: int) -> Webhook | None:
    """Returns a webhook, or None if there is none or it is deleted."""
    row = connection.execute(_FIND, {"webhook_id": webhook_id}).one_or_none()
    return Webhook(*row) if row else None


def list_webhooks(connection: Connection) -> list[Webhook]:
    """Returns all webhooks that are not deleted, in the order of their ids."""
    return [Webhook(*row) for row in connection.execute(_LIST)]


def get_secrets(connection: Connection, webhook_id: int) -> list[str]:
    """Returns the valid secrets of a webhook, the newest first."""
    return list(connection.execute(_SECRETS, {"webhook_id": webhook_id}).scalar_one())


class OlderSecrets(NamedTuple):
    """The number of older secrets that are still valid, and the seconds until the first of them expires."""

    valid: int
    seconds: float


def lock_webhook(connection: Connection, webhook_id: int) -> bool:
    """Locks the row of a webhook. Returns whether there is such a webhook."""
    return connection.execute(_LOCK, {"webhook_id": webhook_id}).one_or_none() is not None


def rotate_secret(connection: Connection, webhook_id: int, secret: str, older_seconds: float) -> OlderSecrets:
    """Sets a new secret; the previous one stays valid for `older_seconds`. Returns the older secrets that are valid.

    The caller has locked the webhook.
    """
    values = {"webhook_id": webhook_id, "secret": secret, "seconds": older_seconds}
    connection.execute(_KEEP_SECRETS, values)
    connection.execute(_ROTATE, values)
    older = connection.execute(_COUNT_OLDER, values).one()
    return OlderSecrets(older.valid, float(older.seconds))


def delete_expired_secrets(connection: Connection, limit: int) -> int:
    """Deletes up to `limit` expired secrets. Returns their number."""
    return connection.execute(_DELETE_EXPIRED, {"limit": limit}).rowcount


def delete_webhook(connection: Connection, webhook_id: int) -> bool:
    """Deletes a webhook and its secrets. Returns whether there was one. Its other rows are pruned later."""
    existed = connection.execute(_DELETE, {"webhook_id": webhook_id}).rowcount == 1
    connection.execute(_DELETE_SECRETS, {"webhook_id": webhook_id})
    return existed


def disable_webhook(connection: Connection, webhook_id: int, reason: str) -> bool:
    """Disables a webhook. Returns whether it was enabled."""
    return connection.execute(_DISABLE, {"webhook_id": webhook_id, "reason": reason}).rowcount == 1


def enable_webhook(connection: Connection, webhook_id: int) -> None:
    """Enables a webhook and clears the mark of its failing receiver."""
    connection.execute(_ENABLE, {"webhook_id": webhook_id})


def rewind_webhook(connection: Connection, webhook_id: int, through: Sequence[int]) -> None:
    """Moves the cursors back to these event ids, one per lane. Later deliveries wait for the events in between."""
    values = {"webhook_id": webhook_id, "ids": array(through), "lanes": len(through)}
    connection.execute(_LOCK_CURSORS, values)
    connection.execute(_REWIND, values)
    connection.execute(_TAKE_TURNS_BACK, values)
