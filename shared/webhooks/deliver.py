"""Turns events into deliveries, claims the due ones, sends them and records the results. All state is in Postgres.

Expanding, claiming and recording are three short transactions; none is open while a message is sent. A claim is a lease
that is longer than any attempt. After a crash between sending and recording, the delivery is sent again under the same
id: at least once. For the same reason expand, claim and record do not wait for the disk: work lost in a crash of
Postgres is repeated.
"""

import random
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from functools import cache
from typing import Final, NamedTuple

from shared import metrics, operator_actions
from shared.backoff import Backoff
from shared.database import (
    disable_sync_commit,
    first_line,
    is_infrastructure_error,
    may_be_single_user,
    set_statement_timeout,
    transaction,
)
from shared.logs import get_logger
from shared.money import format_amount
from shared.operator_actions import SERVICE
from shared.payments.model import Transaction
from shared.payments.queries.transactions import find_transactions
from shared.payments.to_json import transaction_to_json
from shared.settings import settings
from shared.timestamps import format_instant
from shared.webhooks.model import Delivery, Due
from shared.webhooks.policy import Retry, WebhookEventType, message_id, plan_retry, webhook_event_types
from shared.webhooks.queries import attempts, outbox, retention, webhooks
from shared.webhooks.queries.outbox import LaggingCursor, NewDelivery, WebhookCursor, give_turns
from shared.webhooks.slots import MAX_SLOT_SECONDS, Attempt, Slots
from shared.webhooks.transport import DELIVERY_TIMEOUT_SECONDS, GONE, Message, Receipt, send, write_body

MAX_CONCURRENT_DELIVERIES: Final = 8  # to one receiver; a failing receiver gets one
LEASE_SECONDS: Final = 2 * DELIVERY_TIMEOUT_SECONDS
EXPAND_PAGE_SIZE: Final = 600  # events per commit, over all webhooks and lanes
MAX_EXPANDED_CURSORS: Final = 600  # per commit
SUSPECT_PAGE_SIZE: Final = 50
SUSPECT_TIMEOUT_SECONDS: Final = 1
MAX_EXPAND_BACKOFF_SECONDS: Final = 60.0  # for a webhook whose expansion fails
DELIVER_SLICE_SECONDS: Final = 2.0
PRUNE_BATCH_ROWS: Final = 500
PRUNE_BATCH_ROWS_PER_LANE: Final = 200

log = get_logger("deliver")


class DeliveryCounts(NamedTuple):
    """The result of one slice of deliveries. Flower shows its text."""

    webhook_id: int
    delivered: int = 0
    failed: int = 0
    under_way: int = 0  # longer than a slot is held; recorded when it ends

    def __str__(self) -> str:
        counts = {"delivered": self.delivered, "failed": self.failed, "under way": self.under_way}
        summary = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
        return f"{summary or 'nothing to do'}; webhook {self.webhook_id}"


def expand(failing: Backoff[int] | None = None) -> bool:
    """Turns a bounded number of new events into deliveries. Returns whether more events may be left.

    All cursors that lag get the same share, so the backlog of one webhook does not delay the others. After a failure
    each webhook is expanded alone. A webhook that fails alone is retried after a pause, with fewer rows.
    `failing` holds these webhooks from call to call. Raises errors that may concern all webhooks.
    """
    failing = failing or Backoff(MAX_EXPAND_BACKOFF_SECONDS)
    with transaction() as connection:
        lagging = outbox.find_lagging_cursors(connection, failing.paused(), MAX_EXPANDED_CURSORS)
    suspects = {cursor.webhook_id for cursor in lagging if failing.has_failed(cursor.webhook_id)}
    healthy = [cursor for cursor in lagging if cursor.webhook_id not in suspects]
    has_more = False
    try:
        has_more = _expand(healthy, EXPAND_PAGE_SIZE)
    except Exception as error:
        if not _may_be_single_webhook(error):
            raise
        suspects |= {cursor.webhook_id for cursor in healthy}
    for webhook in sorted(suspects):
        has_more |= _expand_suspect(webhook, [cursor for cursor in lagging if cursor.webhook_id == webhook], failing)
    return has_more


def _may_be_single_webhook(error: Exception) -> bool:
    return may_be_single_user(error) or not is_infrastructure_error(error)


def _expand_suspect(webhook: int, lagging: Sequence[LaggingCursor], failing: Backoff[int]) -> bool:
    try:
        has_more = _expand(lagging, SUSPECT_PAGE_SIZE, SUSPECT_TIMEOUT_SECONDS)
    except Exception as error:
        if not _may_be_single_webhook(error):
            raise
        pause = failing.fail(webhook)
        metrics.DUTY_FAILURES.labels("expand_webhook").inc()
        log.error("webhook expansion failed", webhook=webhook, error=first_line(error), next_try_seconds=pause)
        return False
    failing.succeed(webhook)
    return has_more


def _expand(lagging: Sequence[LaggingCursor], page: int, seconds: int | None = None) -> bool:
    """Expands the next events of all cursors that nobody else has locked. Returns whether more may be left.

    Reads at most `page` events together, but at least one of each cursor. `seconds` is the statement time-out.
    """
    if not lagging:
        return False
    webhook_by_id = {cursor.webhook_id: cursor for cursor in lagging}
    with transaction() as connection:
        disable_sync_commit(connection)
        if seconds:
            set_statement_timeout(connection, seconds)
        cursors = outbox.lock_cursors(connection, lagging)
        if not cursors:
            return False
        share = max(1, page // len(cursors))
        events = outbox.read_events(connection, cursors, share)
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
            outbox.insert_deliveries(connection, [delivery for _, delivery in new])
        if events:  # the dictionary keeps the last event of each cursor
            reached = {(webhook, event.lane): event.id for webhook, event in events}
            outbox.advance(connection, [WebhookCursor(*cursor, last) for cursor, last in reached.items()])
        if new:
            give_turns(connection, {(delivery.webhook_id, user_id) for user_id, delivery in new})
    read = Counter((webhook, event.lane) for webhook, event in events)
    return any(count >= share for count in read.values())


def find_due() -> list[Due]:
    """Returns the webhooks with due deliveries.

    The list has each webhook once with one slot, then again with all its slots if it has several. So every webhook gets
    one slot before any gets a second one. Healthy webhooks come first, ordered by their attempts under way in this
    process. Webhooks whose receivers fail or hang are left out while no slot for failing ones is free.
    """
    with transaction() as connection:
        candidates = attempts.find_due(connection, MAX_CONCURRENT_DELIVERIES)
    candidates.sort(key=lambda candidate: (candidate.is_failing, slots().count(candidate.webhook_id)))
    free = slots().free_for_failing()
    due = []
    for candidate in candidates:
        in_trouble = candidate.is_failing or slots().is_hanging(candidate.webhook_id)
        granted = min(candidate.slots, free) if in_trouble else candidate.slots
        free -= granted if in_trouble else 0
        if granted:
            due.append(candidate._replace(slots=granted))
    return [webhook._replace(slots=1) for webhook in due] + [webhook for webhook in due if webhook.slots > 1]


@cache
def slots() -> Slots:
    """Returns the slots of this process."""
    return Slots(settings().notify_slots)


@cache
def _senders() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(slots().limit, thread_name_prefix="send")


class Claim(NamedTuple):
    """A claimed delivery, its transaction (None for account events), and the attempt that holds the slot."""

    delivery: Delivery
    transaction: Transaction | None
    attempt: Attempt


def deliver_webhook(webhook: int, seconds: float = DELIVER_SLICE_SECONDS) -> DeliveryCounts:
    """Makes the due deliveries of a webhook, one after the other. Returns how many succeeded and failed.

    Starts no delivery after `seconds`. Returns early if one takes longer than a slot is held: it goes on in its thread.
    """
    deadline = time.monotonic() + seconds
    tally = DeliveryCounts(webhook)
    while time.monotonic() < deadline and (claim := _claim(webhook)):
        future = _senders().submit(_deliver, claim)
        if not wait([future], MAX_SLOT_SECONDS).done:
            future.add_done_callback(lambda unfinished: _log_unfinished(webhook, unfinished))
            tally = tally._replace(under_way=1)
            break
        tally = _count(tally, future.result())
    if tally.delivered or tally.failed:
        log.info("notified", **tally._asdict())
    return tally


def _count(tally: DeliveryCounts, receipt: Receipt) -> DeliveryCounts:
    if receipt.delivered:
        return tally._replace(delivered=tally.delivered + 1)
    return tally._replace(failed=tally.failed + 1)


def _log_unfinished(webhook: int, delivery: Future[Receipt]) -> None:
    """Logs the result of a delivery that was unfinished when its caller stopped waiting."""
    if (error := delivery.exception()) is None:
        log.info("notified", **_count(DeliveryCounts(webhook), delivery.result())._asdict())
    elif is_infrastructure_error(error):
        log.warning("delivery not recorded, repeated", webhook=webhook, error=repr(error))
    else:
        log.error("delivery failed in our code, repeated", webhook=webhook, exc_info=error)


def _claim(webhook: int) -> Claim | None:
    """Claims the delivery that has been due longest. Returns None if there is none, or no slot for it."""
    with ExitStack() as cleanup:
        with transaction() as connection:
            disable_sync_commit(connection)
            is_failing = attempts.lock_webhook(connection, webhook)
            attempt = None if is_failing is None else slots().begin(webhook, is_failing=is_failing)
            if attempt is None:
                return None
            cleanup.callback(slots().end, attempt)
            delivery = attempts.claim(connection, webhook, MAX_CONCURRENT_DELIVERIES, LEASE_SECONDS)
            if delivery is None:
                return None
            settled = None
            if delivery.type in (WebhookEventType.COMPLETED, WebhookEventType.REJECTED):
                settled = find_transactions(connection, [delivery.uid])[delivery.uid]
        cleanup.pop_all()
        return Claim(delivery, settled, attempt)


def _deliver(claim: Claim) -> Receipt:
    try:
        delivery = claim.delivery
        receipt = send(delivery.url, delivery.secrets, write_message(delivery, claim.transaction))
        _record(delivery, receipt, time.monotonic() - claim.attempt.began)
        return receipt
    finally:
        slots().end(claim.attempt)


def write_message(delivery: Delivery, settled: Transaction | None) -> Message:
    """Returns the message of a delivery. It is the same at each attempt, because it holds final facts only."""
    data = {
        "event_id": delivery.event_id,
        "user_id": delivery.user_id,
        "user_seq": delivery.user_seq,
        "balance": format_amount(delivery.balance),
    }
    if settled:
        data["transaction"] = transaction_to_json(settled)
    else:
        data["threshold"] = format_amount(delivery.threshold)
    return Message(
        message_id(delivery.event_id, delivery.webhook_id, WebhookEventType(delivery.type)),
        write_body(delivery.type, format_instant(delivery.occurred_at), data),
    )


def _record(delivery: Delivery, receipt: Receipt, seconds: float) -> None:
    """Records the result of an attempt. `seconds` is its duration."""
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
            operator_actions.record(connection, SERVICE, "webhook.disable", delivery.webhook_id, reason=reason)
    metrics.WEBHOOK_DELIVERIES.labels("failed" if next_retry else "dead").inc()
    fields = {"webhook": delivery.webhook_id, "event_id": delivery.event_id, "error": receipt.summary}
    if next_retry is None:
        log.error("dead letter", **fields, attempts=delivery.attempts + 1)
    if disabled:
        log.error("webhook disabled", **fields, reason=reason)


def _plan_retry(delivery: Delivery, receipt: Receipt, seconds: float) -> Retry | None:
    """Returns the next attempt, counted from the claim, or None after the last one. `seconds` is the attempt's duration."""
    if receipt.status == GONE:
        return Retry(0.0)  # due at once if the webhook is enabled again
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
    """Deletes up to PRUNE_BATCH_ROWS deliveries of deleted webhooks, and webhooks without any. Returns the deliveries deleted."""
    with transaction() as connection:
        return retention.delete_deleted(connection, PRUNE_BATCH_ROWS)


def prune_delivered() -> int:
    """Deletes up to PRUNE_BATCH_ROWS deliveries that succeeded before the retention period. Returns their number."""
    with transaction() as connection:
        return retention.delete_delivered(connection, _retention_seconds(), PRUNE_BATCH_ROWS)


def prune_events() -> int:
    """Deletes events older than the retention period, up to PRUNE_BATCH_ROWS_PER_LANE per lane. Returns their number."""
    with transaction() as connection:
        return retention.delete_events(connection, _retention_seconds(), PRUNE_BATCH_ROWS_PER_LANE)


def prune_secrets() -> int:
    """Deletes up to PRUNE_BATCH_ROWS expired secrets. Returns their number."""
    with transaction() as connection:
        return webhooks.delete_expired_secrets(connection, PRUNE_BATCH_ROWS)


def _retention_seconds() -> float:
    return settings().event_days * 86_400
