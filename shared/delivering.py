"""Deliveries: events become deliveries, whose turn it is is claimed, sent, and recorded. Postgres keeps all of it.

Three short transactions, and none while something is sent. A claim is a lease that outlives any sending, so whoever
is killed between sending and recording leaves a delivery that is made again, under the same id: at least once. For
the same reason none of them waits for the disk: a crash of Postgres forgets the last of them, and they are repeated.
"""

import random
import time
from typing import Final, NamedTuple

from shared import metrics
from shared.database import leave_unflushed, transaction
from shared.instants import format_instant
from shared.logs import get_logger
from shared.money import format_amount
from shared.queries import actions, attempts, deliveries, retention, webhooks
from shared.queries.attempts import Delivery, Due
from shared.queries.deliveries import NewDelivery, give_turns
from shared.queries.transactions import Transaction, find_transactions
from shared.sending import GONE, TOTAL_SECONDS, Message, Receipt, send, write_body
from shared.settings import settings
from shared.showing import show_transaction
from shared.telling import Told, delay_seconds, types_told, webhook_id

MOST_AT_ONCE: Final = 8  # to one receiver; one that fails gets one
LEASE_SECONDS: Final = 2 * TOTAL_SECONDS
PAGE: Final = 200  # events of a lane
SLICE_SECONDS: Final = 2.0
PRUNED_ROWS: Final = 1000

log = get_logger("delivering")


class Tally(NamedTuple):
    """What a slice did. Its text is what Flower shows."""

    webhook_id: int
    delivered: int = 0
    failed: int = 0

    def __str__(self) -> str:
        counts = {"delivered": self.delivered, "failed": self.failed}
        did = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
        return f"{did or 'nothing to do'}; webhook {self.webhook_id}"


def expand() -> bool:
    """Make deliveries of the events that came since; whether there may be more at once."""
    with transaction() as connection:
        behind = deliveries.find_behind(connection)
    more = [_expand(*one) for one in behind]
    return any(more)


def _expand(webhook: int, wanted: list[str], threshold: int) -> bool:
    with transaction() as connection:
        leave_unflushed(connection)
        cursors = deliveries.lock_cursors(connection, webhook)
        events = deliveries.read_events(connection, cursors, PAGE)
        told = [
            (event, NewDelivery(event.id, position, type_))
            for event in events
            for position, type_ in enumerate(
                types_told(event.type, event.balance_before, event.balance_after, threshold)
            )
            if type_ in wanted
        ]
        if told:
            deliveries.insert_deliveries(connection, webhook, [new for _, new in told])
        if events:
            deliveries.advance(connection, webhook, {event.lane: event.id for event in events})  # the last one counts
        if told:
            give_turns(connection, webhook, {event.user_id for event, _ in told})
    return len(events) >= PAGE


def find_due() -> list[Due]:
    """The webhooks with deliveries to make now."""
    with transaction() as connection:
        return attempts.find_due(connection, MOST_AT_ONCE)


def work(webhook: int, seconds: float = SLICE_SECONDS) -> Tally:
    """Make what is due of a webhook, one delivery after the other; no new one is begun after so many seconds."""
    ends = time.monotonic() + seconds
    tally = Tally(webhook)
    while time.monotonic() < ends and (claimed := _claim(webhook)):
        delivery, about = claimed
        receipt = send(delivery.url, delivery.secrets, write_message(delivery, about))
        _record(delivery, receipt)
        tally = tally._replace(
            delivered=tally.delivered + receipt.delivered, failed=tally.failed + (not receipt.delivered)
        )
    if tally.delivered or tally.failed:
        log.info("notified", **tally._asdict())
    return tally


def _claim(webhook: int) -> tuple[Delivery, Transaction | None] | None:
    """A delivery and the transaction that it tells of, if it tells of one."""
    with transaction() as connection:
        leave_unflushed(connection)
        delivery = attempts.claim(connection, webhook, MOST_AT_ONCE, LEASE_SECONDS)
        if delivery is None:
            return None
        about = None
        if delivery.type in (Told.COMPLETED, Told.REJECTED):
            about = find_transactions(connection, [delivery.uid])[delivery.uid]
        return delivery, about


def write_message(delivery: Delivery, about: Transaction | None) -> Message:
    """The same at each attempt: it tells what is final."""
    data = {
        "event_id": delivery.event_id,
        "user_id": delivery.user_id,
        "user_seq": delivery.user_seq,
        "balance": format_amount(delivery.balance),
    }
    if about:
        data["transaction"] = show_transaction(about)
    else:
        data["threshold"] = format_amount(delivery.threshold)
    return Message(
        webhook_id(delivery.event_id, delivery.webhook_id, Told(delivery.type)),
        write_body(delivery.type, format_instant(delivery.occurred_at), data),
    )


def _record(delivery: Delivery, receipt: Receipt) -> None:
    if receipt.delivered:
        with transaction() as connection:
            leave_unflushed(connection)
            attempts.end(connection, delivery, None)
            attempts.note_success(connection, delivery.webhook_id)
        metrics.WEBHOOK_DELIVERIES.labels("delivered").inc()
        return
    delay = delay_seconds(delivery.attempts + 1, random.random())
    if receipt.status == GONE:
        delay = 0.0  # it is as it was, should the webhook be switched on again
    with transaction() as connection:
        leave_unflushed(connection)
        if delay is None:
            attempts.end(connection, delivery, receipt.told)
        else:
            attempts.retry(connection, delivery, receipt.told, delay, LEASE_SECONDS)
        failing = attempts.note_failure(connection, delivery.webhook_id)
        reason = _reason_to_disable(receipt, failing)
        disabled = reason and webhooks.disable_webhook(connection, delivery.webhook_id, reason)
        if disabled:
            actions.record(connection, actions.SERVICE, "webhook.disable", delivery.webhook_id, reason=reason)
    metrics.WEBHOOK_DELIVERIES.labels("failed" if delay is not None else "dead").inc()
    told = {"webhook": delivery.webhook_id, "event_id": delivery.event_id, "error": receipt.told}
    if delay is None:
        log.error("a delivery was given up", **told, attempts=delivery.attempts + 1)
    if disabled:
        log.error("a webhook was switched off", **told, reason=reason)


def _reason_to_disable(receipt: Receipt, failing_seconds: float) -> str | None:
    if receipt.status == GONE:
        return "the receiver answered 410"
    days = settings().webhook_off_days
    return f"it failed for {days:g} days without a success" if failing_seconds > days * 86_400 else None


def prune() -> int:
    """Take away what is old, some rows at a time; how many went."""
    seconds = settings().event_days * 86_400
    with transaction() as connection:
        gone = retention.delete_delivered(connection, seconds, PRUNED_ROWS)
    with transaction() as connection:
        gone += retention.delete_events(connection, seconds, PRUNED_ROWS)
    with transaction() as connection:
        return gone + retention.delete_deleted(connection, PRUNED_ROWS)
