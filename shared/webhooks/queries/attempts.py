"""Statements on delivery attempts: find due ones, claim one, record its result."""

from typing import Any, Final

from sqlalchemy import Connection, text

from shared.payments.model import LANES
from shared.webhooks.model import Delivery, Due
from shared.webhooks.policy import Retry
from shared.webhooks.queries.outbox import WEBHOOK_IS_ON, give_turns
from shared.webhooks.queries.webhooks import VALID_SECRETS

FAILING_AFTER_SECONDS: Final = 5
DUE_PER_SLOT: Final = 4  # a message costs more than a delivery; slow receivers get more slots at the next look


_FAILS: Final = f"""
    coalesce(failing_since <= statement_timestamp() - interval '{FAILING_AFTER_SECONDS} seconds', false)
"""
# A failing receiver gets one attempt at a time, one second apart, so that it does not take the slots of others.
_ALLOWED: Final = f"""
    CASE WHEN NOT {_FAILS} THEN :most WHEN rests_until > statement_timestamp() THEN 0 ELSE 1 END
    - (SELECT count(*) FROM deliveries
       WHERE webhook_id = webhooks.id AND claimed_until > statement_timestamp())
"""
# Failing webhooks come last, ordered by their last failure, the oldest first.
_FIND_DUE = text(f"""
    SELECT id, least(ceil(due.count / {DUE_PER_SLOT}.0), allowed) AS slots, due.overdue, fails FROM (
        SELECT id, {_ALLOWED} AS allowed, {_FAILS} AS fails, rests_until FROM webhooks WHERE {WEBHOOK_IS_ON}
    ) AS webhook CROSS JOIN LATERAL (
        SELECT count(*) AS count, extract(epoch FROM statement_timestamp() - min(next_attempt_at)) AS overdue FROM (
            SELECT next_attempt_at FROM deliveries
            WHERE (webhook_id, next_attempt_at) <= (webhook.id, statement_timestamp()) AND webhook_id >= webhook.id
              AND next_attempt_at IS NOT NULL
            ORDER BY webhook_id, next_attempt_at LIMIT :most
        ) AS due
    ) AS due
    WHERE due.count > 0 AND allowed > 0
    ORDER BY fails, rests_until NULLS FIRST, due.overdue DESC
""")
# The row of the webhook is the lock for counting its claims. It is held briefly, never while a message is sent.
_LOCK_WEBHOOK = text(f"SELECT {_FAILS} FROM webhooks WHERE id = :webhook_id AND {WEBHOOK_IS_ON} FOR NO KEY UPDATE")
# MATERIALIZED, because a join can run a locking sub-select twice, and the second run would also claim the next row.
_CLAIM = text(f"""
    WITH due AS MATERIALIZED (
        SELECT webhook_id, event_id, position FROM deliveries
        WHERE (webhook_id, next_attempt_at) <= (:webhook_id, statement_timestamp()) AND webhook_id >= :webhook_id
          AND next_attempt_at IS NOT NULL AND (SELECT {_ALLOWED} FROM webhooks WHERE id = :webhook_id) > 0
        ORDER BY webhook_id, next_attempt_at LIMIT 1 FOR UPDATE SKIP LOCKED
    )
    UPDATE deliveries SET claimed_until = statement_timestamp() + make_interval(secs => :seconds),
        next_attempt_at = statement_timestamp() + make_interval(secs => :seconds)
    FROM due JOIN webhooks ON webhooks.id = due.webhook_id
    WHERE deliveries.webhook_id = due.webhook_id AND deliveries.event_id = due.event_id
      AND deliveries.position = due.position
    RETURNING deliveries.webhook_id, deliveries.event_id, deliveries.position, deliveries.type, deliveries.user_id,
        deliveries.user_seq, deliveries.uid, deliveries.balance, deliveries.occurred_at, deliveries.attempts,
        deliveries.claimed_until, deliveries.schedule_ends_at, webhooks.url, webhooks.threshold, {VALID_SECRETS} AS secrets
""")


def find_due(connection: Connection, max_at_once: int) -> list[Due]:
    """Returns the webhooks with due deliveries, healthy ones first. `max_at_once` limits the claims of a healthy one."""
    rows = connection.execute(_FIND_DUE, {"most": max_at_once})
    return [Due(row.id, int(row.slots), float(row.overdue), row.fails) for row in rows]


def lock_webhook(connection: Connection, webhook_id: int) -> bool | None:
    """Locks a webhook for a claim. Returns whether its receiver fails, or None if it is deleted or disabled."""
    return connection.execute(_LOCK_WEBHOOK, {"webhook_id": webhook_id}).scalar_one_or_none()


def claim(connection: Connection, webhook_id: int, max_at_once: int, seconds: float) -> Delivery | None:
    """Claims the delivery that has been due longest, for `seconds`, and returns it. Returns None if none may be made now.

    The caller has locked the webhook.
    """
    values = {"webhook_id": webhook_id, "most": max_at_once, "seconds": seconds}
    row = connection.execute(_CLAIM, values).one_or_none()
    return Delivery(*row) if row else None


_CLAIMED: Final = """
    webhook_id = :webhook_id AND event_id = :event_id AND position = :position AND claimed_until = :claimed_until
"""
_LOCK_CURSOR = text("""
    SELECT FROM webhook_cursors WHERE webhook_id = :webhook_id AND lane = :lane FOR UPDATE
""")
_END = text(f"""
    UPDATE deliveries SET attempts = attempts + 1, next_attempt_at = NULL, claimed_until = NULL, last_error = :error,
        delivered_at = CASE WHEN :delivered THEN clock_timestamp() END,
        dead_at = CASE WHEN NOT :delivered THEN clock_timestamp() END
    WHERE {_CLAIMED}
""")
_RETRY = text(f"""
    UPDATE deliveries SET attempts = attempts + 1, claimed_until = NULL, last_error = :error,
        next_attempt_at = greatest(clock_timestamp(), claimed_until - make_interval(secs => :lease)
                                                      + make_interval(secs => :delay)),
        schedule_ends_at = coalesce(schedule_ends_at, claimed_until - make_interval(secs => :lease)
                                    + make_interval(secs => CAST(:remaining AS double precision)))
    WHERE {_CLAIMED}
""")
_NOTE_SUCCESS = text("""
    UPDATE webhooks SET failing_since = NULL, rests_until = NULL WHERE id = :webhook_id AND failing_since IS NOT NULL
""")
_NOTE_FAILURE = text("""
    UPDATE webhooks SET
        failing_since = coalesce(failing_since, clock_timestamp() - make_interval(secs => :seconds)),
        rests_until = clock_timestamp() + interval '1 second'
    WHERE id = :webhook_id
    RETURNING extract(epoch FROM clock_timestamp() - failing_since)
""")


def finish(connection: Connection, delivery: Delivery, error: str | None) -> bool:
    """Marks a delivery as delivered, or as dead if there is an `error`, and gives the turn to the next one.

    Returns False if the claim no longer holds.
    """
    values = {**_name(delivery), "error": error, "delivered": error is None}
    connection.execute(_LOCK_CURSOR, {"webhook_id": delivery.webhook_id, "lane": delivery.user_id % LANES})
    if connection.execute(_END, values).rowcount == 0:
        return False
    give_turns(connection, [(delivery.webhook_id, delivery.user_id)])
    return True


def retry(connection: Connection, delivery: Delivery, error: str, following: Retry, lease: float) -> bool:
    """Plans the next attempt, counted from the start of the claim, which lasted `lease` seconds.

    Returns False if the claim no longer holds.
    """
    values = {**_name(delivery), "error": error, "lease": lease}
    values |= {"delay": following.delay_seconds, "remaining": following.remaining_seconds}
    return connection.execute(_RETRY, values).rowcount == 1


def note_success(connection: Connection, webhook_id: int) -> None:
    """Marks the receiver of a webhook as healthy."""
    connection.execute(_NOTE_SUCCESS, {"webhook_id": webhook_id})


def note_failure(connection: Connection, webhook_id: int, seconds: float) -> float:
    """Marks the receiver as failing after an attempt of `seconds`. Returns the seconds that it has failed."""
    return float(connection.execute(_NOTE_FAILURE, {"webhook_id": webhook_id, "seconds": seconds}).scalar_one())


def _name(delivery: Delivery) -> dict[str, Any]:
    return {
        "webhook_id": delivery.webhook_id,
        "event_id": delivery.event_id,
        "position": delivery.position,
        "claimed_until": delivery.claimed_until,
    }
