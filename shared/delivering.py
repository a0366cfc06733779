"""Deliveries: events become deliveries, whose turn it is is claimed, sent, and recorded. Postgres keeps all of it.

Three short transactions, and none while something is sent. A claim is a lease that outlives any sending, so whoever
is killed between sending and recording leaves a delivery that is made again, under the same id: at least once. For
the same reason none of them waits for the disk: a crash of Postgres forgets the last of them, and they are repeated.
"""

import random
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from functools import cache
from typing import Final, NamedTuple

from shared import metrics
from shared.actions import SERVICE
from shared.backoff import Backoff
from shared.database import (
    disable_sync_commit,
    first_line,
    is_infrastructure_error,
    may_be_single_user,
    set_statement_timeout,
    transaction,
)
from shared.instants import format_instant
from shared.logs import get_logger
from shared.model import Transaction
from shared.money import format_amount
from shared.queries import actions, attempts, deliveries, retention, webhooks
from shared.queries.deliveries import LaggingCursor, NewDelivery, WebhookCursor, give_turns
from shared.queries.transactions import find_transactions
from shared.sending import DELIVERY_TIMEOUT_SECONDS, GONE, Message, Receipt, send, write_body
from shared.settings import settings
from shared.showing import transaction_to_json
from shared.slots import MAX_SLOT_SECONDS, Attempt, Slots
from shared.telling import Retry, WebhookEventType, message_id, plan_retry, webhook_event_types
from shared.webhook_model import Delivery, Due

MAX_CONCURRENT_DELIVERIES: Final = 8  # to one receiver; one that fails gets one
LEASE_SECONDS: Final = 2 * DELIVERY_TIMEOUT_SECONDS
EXPAND_PAGE_SIZE: Final = 600  # deliveries made of events by one commit, of all webhooks and lanes together
MAX_EXPANDED_CURSORS: Final = 600  # of webhooks and lanes, looked at by one commit
SUSPECT_PAGE_SIZE: Final = 50
SUSPECT_TIMEOUT_SECONDS: Final = 1
MAX_EXPAND_BACKOFF_SECONDS: Final = 60.0  # for a webhook whose events cannot be made deliveries
DELIVER_SLICE_SECONDS: Final = 2.0
PRUNE_BATCH_ROWS: Final = 500
PRUNE_BATCH_ROWS_PER_LANE: Final = 200

log = get_logger("delivering")


class DeliveryCounts(NamedTuple):
    """What a slice did. Its text is what Flower shows."""

    webhook_id: int
    delivered: int = 0
    failed: int = 0
    under_way: int = 0  # it takes longer than a slot is held, and is recorded when it ends

    def __str__(self) -> str:
        counts = {"delivered": self.delivered, "failed": self.failed, "under way": self.under_way}
        did = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
        return f"{did or 'nothing to do'}; webhook {self.webhook_id}"


def expand(failing: Backoff[int] | None = None) -> bool:
    """Make deliveries of the events that came since, a bounded number; whether there may be more at once.

    All webhooks and lanes that are behind get the same share, so a long backlog of one keeps no other waiting. What one
    webhook raises keeps no other's events from becoming deliveries: after a failure each goes by itself, and one that
    fails then is tried again after a pause, with fewer rows. Raises what all of them may have met.
    """
    failing = failing or Backoff(MAX_EXPAND_BACKOFF_SECONDS)
    with transaction() as connection:
        behind = deliveries.find_lagging_cursors(connection, failing.paused(), MAX_EXPANDED_CURSORS)
    suspects = {one.webhook_id for one in behind if failing.has_failed(one.webhook_id)}
    healthy = [one for one in behind if one.webhook_id not in suspects]
    has_more = False
    try:
        has_more = _expand(healthy, EXPAND_PAGE_SIZE)
    except Exception as error:
        if not _may_be_single_webhook(error):
            raise
        suspects |= {one.webhook_id for one in healthy}
    for webhook in sorted(suspects):
        has_more |= _expand_suspect(webhook, [one for one in behind if one.webhook_id == webhook], failing)
    return has_more


def _may_be_single_webhook(error: Exception) -> bool:
    return may_be_single_user(error) or not is_infrastructure_error(error)


def _expand_suspect(webhook: int, behind: Sequence[LaggingCursor], failing: Backoff[int]) -> bool:
    try:
        has_more = _expand(behind, SUSPECT_PAGE_SIZE, SUSPECT_TIMEOUT_SECONDS)
    except Exception as error:
        if not _may_be_single_webhook(error):
            raise
        pause = failing.fail(webhook)
        metrics.DUTY_FAILURES.labels("expand_webhook").inc()
        log.error("webhook expansion failed", webhook=webhook, error=first_line(error), next_try_seconds=pause)
        return False
    failing.succeed(webhook)
    return has_more


def _expand(behind: Sequence[LaggingCursor], page: int, seconds: int | None = None) -> bool:
    """The next events beyond the cursors that are free, together `page` at most (but of each at least one)."""
    if not behind:
        return False
    webhook_by_id = {one.webhook_id: one for one in behind}
    with transaction() as connection:
        disable_sync_commit(connection)
        if seconds:
            set_statement_timeout(connection, seconds)
        cursors = deliveries.lock_cursors(connection, behind)
        if not cursors:
            return False
        share = max(1, page // len(cursors))
        events = deliveries.read_events(connection, cursors, share)
        new = [
            (event.user_id, NewDelivery(webhook, event.id, position, type_))
            for webhook, event in events
            for position, type_ in enumerate(
                webhook_event_types(
                    event.type, event.balance_before, event.balance_after, webhook_by_id[webhook].threshold
                )
            )
            if type_ in webhook_by_id[webhook].events
        ]
        if new:
            deliveries.insert_deliveries(connection, [delivery for _, delivery in new])
        if events:  # the last one of each counts
            reached = {(webhook, event.lane): event.id for webhook, event in events}
            deliveries.advance(connection, [WebhookCursor(*cursor, last) for cursor, last in reached.items()])
        if new:
            give_turns(connection, {(delivery.webhook_id, user_id) for user_id, delivery in new})
    read = Counter((webhook, event.lane) for webhook, event in events)
    return any(count >= share for count in read.values())


def find_due() -> list[Due]:
    """The webhooks with deliveries to make now, each once for its first slot, then for all of its slots.

    So every webhook has its turn before any has a second one. The healthy ones come first, of these the ones with the
    fewest attempts under way here. Those whose receivers fail or hang are left out while they have as many slots as
    they may.
    """
    with transaction() as connection:
        candidates = attempts.find_due(connection, MAX_CONCURRENT_DELIVERIES)
    candidates.sort(key=lambda one: (one.fails, slots().count(one.webhook_id)))
    free = slots().free_for_failing()
    due = []
    for one in candidates:
        in_trouble = one.fails or slots().is_hanging(one.webhook_id)
        granted = min(one.slots, free) if in_trouble else one.slots
        free -= granted if in_trouble else 0
        if granted:
            due.append(one._replace(slots=granted))
    return [one._replace(slots=1) for one in due] + [one for one in due if one.slots > 1]


@cache
def slots() -> Slots:
    """This process's."""
    return Slots(settings().notify_slots)


@cache
def _senders() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(slots().limit, thread_name_prefix="send")


class Claim(NamedTuple):
    """A delivery to make, the transaction that it tells of if it tells of one, and the attempt that makes it."""

    delivery: Delivery
    subject: Transaction | None
    attempt: Attempt


def deliver_webhook(webhook: int, seconds: float = DELIVER_SLICE_SECONDS) -> DeliveryCounts:
    """Make what is due of a webhook, one delivery after the other; no new one is begun after so many seconds.

    Returns sooner where a delivery takes longer than a slot is held: that one goes on in its own thread.
    """
    deadline = time.monotonic() + seconds
    tally = DeliveryCounts(webhook)
    while time.monotonic() < deadline and (claim := _claim(webhook)):
        sending = _senders().submit(_deliver, claim)
        if not wait([sending], MAX_SLOT_SECONDS).done:
            sending.add_done_callback(lambda late: _log_late(webhook, late))
            tally = tally._replace(under_way=1)
            break
        tally = _count(tally, sending.result())
    if tally.delivered or tally.failed:
        log.info("notified", **tally._asdict())
    return tally


def _count(tally: DeliveryCounts, receipt: Receipt) -> DeliveryCounts:
    if receipt.delivered:
        return tally._replace(delivered=tally.delivered + 1)
    return tally._replace(failed=tally.failed + 1)


def _log_late(webhook: int, late: Future[Receipt]) -> None:
    """Nobody waits for the delivery any more: log how it ended."""
    if (error := late.exception()) is None:
        log.info("notified", **_count(DeliveryCounts(webhook), late.result())._asdict())
    elif is_infrastructure_error(error):
        log.warning("delivery not recorded, repeated", webhook=webhook, error=repr(error))
    else:
        log.error("delivery failed in our code, repeated", webhook=webhook, exc_info=error)


def _claim(webhook: int) -> Claim | None:
    """Claim the delivery that is due first. None where there is none, or no slot for it."""
    with ExitStack() as undo:
        with transaction() as connection:
            disable_sync_commit(connection)
            fails = attempts.lock_webhook(connection, webhook)
            attempt = None if fails is None else slots().begin(webhook, fails=fails)
            if attempt is None:
                return None
            undo.callback(slots().end, attempt)
            delivery = attempts.claim(connection, webhook, MAX_CONCURRENT_DELIVERIES, LEASE_SECONDS)
            if delivery is None:
                return None
            subject = None
            if delivery.type in (WebhookEventType.COMPLETED, WebhookEventType.REJECTED):
                subject = find_transactions(connection, [delivery.uid])[delivery.uid]
        undo.pop_all()
        return Claim(delivery, subject, attempt)


def _deliver(claim: Claim) -> Receipt:
    try:
        delivery = claim.delivery
        receipt = send(delivery.url, delivery.secrets, write_message(delivery, claim.subject))
        _record(delivery, receipt, time.monotonic() - claim.attempt.began)
        return receipt
    finally:
        slots().end(claim.attempt)


def write_message(delivery: Delivery, subject: Transaction | None) -> Message:
    """The same at each attempt: it tells what is final."""
    data = {
        "event_id": delivery.event_id,
        "user_id": delivery.user_id,
        "user_seq": delivery.user_seq,
        "balance": format_amount(delivery.balance),
    }
    if subject:
        data["transaction"] = transaction_to_json(subject)
    else:
        data["threshold"] = format_amount(delivery.threshold)
    return Message(
        message_id(delivery.event_id, delivery.webhook_id, WebhookEventType(delivery.type)),
        write_body(delivery.type, format_instant(delivery.occurred_at), data),
    )


def _record(delivery: Delivery, receipt: Receipt, seconds: float) -> None:
    """Record how an attempt went that took so long."""
    if receipt.delivered:
        with transaction() as connection:
            disable_sync_commit(connection)
            attempts.finish(connection, delivery, None)
            attempts.note_success(connection, delivery.webhook_id)
        metrics.WEBHOOK_DELIVERIES.labels("delivered").inc()
        return
    next_retry = _plan_retry(delivery, receipt, seconds)
    with transaction() as connection:
        disable_sync_commit(connection)
        if next_retry is None:
            attempts.finish(connection, delivery, receipt.summary)
        else:
            attempts.retry(connection, delivery, receipt.summary, next_retry, LEASE_SECONDS)
        failing = attempts.note_failure(connection, delivery.webhook_id, seconds)
        reason = _reason_to_disable(receipt, failing)
        disabled = reason and webhooks.disable_webhook(connection, delivery.webhook_id, reason)
        if disabled:
            actions.record(connection, SERVICE, "webhook.disable", delivery.webhook_id, reason=reason)
    metrics.WEBHOOK_DELIVERIES.labels("failed" if next_retry else "dead").inc()
    fields = {"webhook": delivery.webhook_id, "event_id": delivery.event_id, "error": receipt.summary}
    if next_retry is None:
        log.error("dead letter", **fields, attempts=delivery.attempts + 1)
    if disabled:
        log.error("webhook disabled", **fields, reason=reason)


def _plan_retry(delivery: Delivery, receipt: Receipt, seconds: float) -> Retry | None:
    """When to try again, counted from the claim; None where the attempt, which took so long, was the last one."""
    if receipt.status == GONE:
        return Retry(0.0)  # it is as it was, should the webhook be switched on again
    retry_after, remaining = receipt.retry_after_seconds, None
    if retry_after is not None:
        retry_after += seconds
    if delivery.schedule_ends_at:
        remaining = (delivery.schedule_ends_at - delivery.claimed_until).total_seconds() + LEASE_SECONDS
    return plan_retry(delivery.attempts + 1, random.random(), retry_after, remaining)


def _reason_to_disable(receipt: Receipt, failing_seconds: float) -> str | None:
    if receipt.status == GONE:
        return "the receiver answered 410"
    days = settings().webhook_off_days
    return f"it failed for {days:g} days without a success" if failing_seconds > days * 86_400 else None


def prune_deleted() -> int:
    """Some of what belongs to deleted webhooks; how many deliveries."""
    with transaction() as connection:
        return retention.delete_deleted(connection, PRUNE_BATCH_ROWS)


def prune_delivered() -> int:
    """Some of the deliveries that were made long ago; how many."""
    with transaction() as connection:
        return retention.delete_delivered(connection, _retention_seconds(), PRUNE_BATCH_ROWS)


def prune_events() -> int:
    """Some of the old events; how many."""
    with transaction() as connection:
        return retention.delete_events(connection, _retention_seconds(), PRUNE_BATCH_ROWS_PER_LANE)


def prune_secrets() -> int:
    """Delete some of the secrets that are no longer valid; how many."""
    with transaction() as connection:
        return webhooks.delete_expired_secrets(connection, PRUNE_BATCH_ROWS)


def _retention_seconds() -> float:
    return settings().event_days * 86_400
