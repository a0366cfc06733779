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
from shared.database import allow, first_line, is_machinery, leave_unflushed, may_be_one_users, transaction
from shared.instants import format_instant
from shared.logs import get_logger
from shared.model import Transaction
from shared.money import format_amount
from shared.queries import actions, attempts, deliveries, retention, webhooks
from shared.queries.deliveries import Behind, Cursor, NewDelivery, give_turns
from shared.queries.transactions import find_transactions
from shared.sending import GONE, TOTAL_SECONDS, Message, Receipt, send, write_body
from shared.settings import settings
from shared.showing import show_transaction
from shared.slots import SLOT_SECONDS, Attempt, Slots
from shared.telling import Retry, Told, plan_retry, types_told, webhook_id
from shared.webhook_model import Delivery, Due

MOST_AT_ONCE: Final = 8  # to one receiver; one that fails gets one
LEASE_SECONDS: Final = 2 * TOTAL_SECONDS
PAGE: Final = 600  # deliveries made of events by one commit, of all webhooks and lanes together
MAX_CURSORS: Final = 600  # of webhooks and lanes, looked at by one commit
SUSPECT_PAGE: Final = 50
SUSPECT_SECONDS: Final = 1
MAX_PAUSE_SECONDS: Final = 60.0  # for a webhook whose events cannot be made deliveries
SLICE_SECONDS: Final = 2.0
PRUNED_ROWS: Final = 500
PRUNED_ROWS_OF_LANE: Final = 200

log = get_logger("delivering")


class Tally(NamedTuple):
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
    failing = failing or Backoff(MAX_PAUSE_SECONDS)
    with transaction() as connection:
        behind = deliveries.find_behind(connection, failing.paused(), MAX_CURSORS)
    suspects = {one.webhook_id for one in behind if failing.has_failed(one.webhook_id)}
    sound = [one for one in behind if one.webhook_id not in suspects]
    more = False
    try:
        more = _expand(sound, PAGE)
    except Exception as error:
        if not _may_be_of_one_webhook(error):
            raise
        suspects |= {one.webhook_id for one in sound}
    for webhook in sorted(suspects):
        more |= _expand_suspect(webhook, [one for one in behind if one.webhook_id == webhook], failing)
    return more


def _may_be_of_one_webhook(error: Exception) -> bool:
    return may_be_one_users(error) or not is_machinery(error)


def _expand_suspect(webhook: int, behind: Sequence[Behind], failing: Backoff[int]) -> bool:
    try:
        more = _expand(behind, SUSPECT_PAGE, SUSPECT_SECONDS)
    except Exception as error:
        if not _may_be_of_one_webhook(error):
            raise
        pause = failing.fail(webhook)
        metrics.DUTY_FAILURES.labels("expand_webhook").inc()
        log.error(
            "events of a webhook were not expanded", webhook=webhook, error=first_line(error), next_try_seconds=pause
        )
        return False
    failing.succeed(webhook)
    return more


def _expand(behind: Sequence[Behind], page: int, seconds: int | None = None) -> bool:
    """The next events beyond the cursors that are free, together `page` at most (but of each at least one)."""
    if not behind:
        return False
    asked = {one.webhook_id: one for one in behind}
    with transaction() as connection:
        leave_unflushed(connection)
        if seconds:
            allow(connection, seconds)
        cursors = deliveries.lock_cursors(connection, behind)
        if not cursors:
            return False
        share = max(1, page // len(cursors))
        events = deliveries.read_events(connection, cursors, share)
        new = [
            (event.user_id, NewDelivery(webhook, event.id, position, type_))
            for webhook, event in events
            for position, type_ in enumerate(
                types_told(event.type, event.balance_before, event.balance_after, asked[webhook].threshold)
            )
            if type_ in asked[webhook].events
        ]
        if new:
            deliveries.insert_deliveries(connection, [delivery for _, delivery in new])
        if events:  # the last one of each counts
            reached = {(webhook, event.lane): event.id for webhook, event in events}
            deliveries.advance(connection, [Cursor(*cursor, last) for cursor, last in reached.items()])
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
        found = attempts.find_due(connection, MOST_AT_ONCE)
    found.sort(key=lambda one: (one.fails, slots().count(one.webhook_id)))
    free = slots().free_for_trouble()
    due = []
    for one in found:
        in_trouble = one.fails or slots().hangs(one.webhook_id)
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
    about: Transaction | None
    attempt: Attempt


def work(webhook: int, seconds: float = SLICE_SECONDS) -> Tally:
    """Make what is due of a webhook, one delivery after the other; no new one is begun after so many seconds.

    Returns sooner where a delivery takes longer than a slot is held: that one goes on in its own thread.
    """
    ends = time.monotonic() + seconds
    tally = Tally(webhook)
    while time.monotonic() < ends and (claim := _claim(webhook)):
        sending = _senders().submit(_deliver, claim)
        if not wait([sending], SLOT_SECONDS).done:
            sending.add_done_callback(lambda late: _log_late(webhook, late))
            tally = tally._replace(under_way=1)
            break
        tally = _count(tally, sending.result())
    if tally.delivered or tally.failed:
        log.info("notified", **tally._asdict())
    return tally


def _count(tally: Tally, receipt: Receipt) -> Tally:
    if receipt.delivered:
        return tally._replace(delivered=tally.delivered + 1)
    return tally._replace(failed=tally.failed + 1)


def _log_late(webhook: int, late: Future[Receipt]) -> None:
    """Nobody waits for the delivery any more: log how it ended."""
    if (error := late.exception()) is None:
        log.info("notified", **_count(Tally(webhook), late.result())._asdict())
    elif is_machinery(error):
        log.warning("a delivery was not recorded; it is repeated", webhook=webhook, error=repr(error))
    else:
        log.error("a delivery failed in our own code; it is repeated", webhook=webhook, exc_info=error)


def _claim(webhook: int) -> Claim | None:
    """Claim the delivery that is due first. None where there is none, or no slot for it."""
    with ExitStack() as undo:
        with transaction() as connection:
            leave_unflushed(connection)
            fails = attempts.lock_webhook(connection, webhook)
            attempt = None if fails is None else slots().begin(webhook, fails=fails)
            if attempt is None:
                return None
            undo.callback(slots().end, attempt)
            delivery = attempts.claim(connection, webhook, MOST_AT_ONCE, LEASE_SECONDS)
            if delivery is None:
                return None
            about = None
            if delivery.type in (Told.COMPLETED, Told.REJECTED):
                about = find_transactions(connection, [delivery.uid])[delivery.uid]
        undo.pop_all()
        return Claim(delivery, about, attempt)


def _deliver(claim: Claim) -> Receipt:
    try:
        delivery = claim.delivery
        receipt = send(delivery.url, delivery.secrets, write_message(delivery, claim.about))
        _record(delivery, receipt, time.monotonic() - claim.attempt.began)
        return receipt
    finally:
        slots().end(claim.attempt)


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


def _record(delivery: Delivery, receipt: Receipt, seconds: float) -> None:
    """Record how an attempt went that took so long."""
    if receipt.delivered:
        with transaction() as connection:
            leave_unflushed(connection)
            attempts.end(connection, delivery, None)
            attempts.note_success(connection, delivery.webhook_id)
        metrics.WEBHOOK_DELIVERIES.labels("delivered").inc()
        return
    following = _plan_retry(delivery, receipt, seconds)
    with transaction() as connection:
        leave_unflushed(connection)
        if following is None:
            attempts.end(connection, delivery, receipt.told)
        else:
            attempts.retry(connection, delivery, receipt.told, following, LEASE_SECONDS)
        failing = attempts.note_failure(connection, delivery.webhook_id, seconds)
        reason = _reason_to_disable(receipt, failing)
        disabled = reason and webhooks.disable_webhook(connection, delivery.webhook_id, reason)
        if disabled:
            actions.record(connection, SERVICE, "webhook.disable", delivery.webhook_id, reason=reason)
    metrics.WEBHOOK_DELIVERIES.labels("failed" if following else "dead").inc()
    told = {"webhook": delivery.webhook_id, "event_id": delivery.event_id, "error": receipt.told}
    if following is None:
        log.error("a delivery was given up", **told, attempts=delivery.attempts + 1)
    if disabled:
        log.error("a webhook was switched off", **told, reason=reason)


def _plan_retry(delivery: Delivery, receipt: Receipt, seconds: float) -> Retry | None:
    """When to try again, counted from the claim; None where the attempt, which took so long, was the last one."""
    if receipt.status == GONE:
        return Retry(0.0)  # it is as it was, should the webhook be switched on again
    wanted, remaining = receipt.retry_after_seconds, None
    if wanted is not None:
        wanted += seconds
    if delivery.schedule_ends_at:
        remaining = (delivery.schedule_ends_at - delivery.claimed_until).total_seconds() + LEASE_SECONDS
    return plan_retry(delivery.attempts + 1, random.random(), wanted, remaining)


def _reason_to_disable(receipt: Receipt, failing_seconds: float) -> str | None:
    if receipt.status == GONE:
        return "the receiver answered 410"
    days = settings().webhook_off_days
    return f"it failed for {days:g} days without a success" if failing_seconds > days * 86_400 else None


def prune_deleted() -> int:
    """Some of what belongs to deleted webhooks; how many deliveries."""
    with transaction() as connection:
        return retention.delete_deleted(connection, PRUNED_ROWS)


def prune_delivered() -> int:
    """Some of the deliveries that were made long ago; how many."""
    with transaction() as connection:
        return retention.delete_delivered(connection, _kept_seconds(), PRUNED_ROWS)


def prune_events() -> int:
    """Some of the old events; how many."""
    with transaction() as connection:
        return retention.delete_events(connection, _kept_seconds(), PRUNED_ROWS_OF_LANE)


def prune_secrets() -> int:
    """Delete some of the secrets that are no longer valid; how many."""
    with transaction() as connection:
        return webhooks.delete_expired_secrets(connection, PRUNED_ROWS)


def _kept_seconds() -> float:
    return settings().event_days * 86_400
