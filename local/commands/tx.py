"""`tx`: prints the complete history of a transaction, as text or as JSON."""

import json
from datetime import timedelta
from typing import TYPE_CHECKING
from uuid import UUID

import click

from local.command import setting_options, verbatim
from local.database_session import database_session
from shared.money import format_amount
from shared.payments.model import Status, Type
from shared.payments.rules import CLOCK_TOLERANCE
from shared.settings import Settings
from shared.timestamps import format_instant

if TYPE_CHECKING:
    from shared.payments.model import Story, Transaction

DESCRIPTION = """\
Prints all that the database has about a transaction: when it was accepted and by which request (search the logs for its
id), what it waits for or why it is parked, when it was settled, its entry, its event, and the response to a client.

  ./payments tx 0193e7a5-5bb2-7b3c-8f0a-3f2d6f1f2a10
  ./payments tx 0193e7a5-5bb2-7b3c-8f0a-3f2d6f1f2a10 --json"""

STATUS_CODES = {Status.PENDING: "202", Status.COMPLETED: "200", Status.REJECTED: "409"}


@click.command("tx", short_help="print the history of a transaction", help=verbatim(DESCRIPTION))
@click.argument("uid", type=click.UUID)
@click.option("--json", "as_json", is_flag=True, help="one JSON object")
@setting_options()
def command(options: Settings, uid: UUID, as_json: bool) -> int:
    from shared.payments.reads import get_story

    with database_session(options.data):
        story = get_story(uid)
    print(json.dumps(_as_json(story), default=str) if as_json else "\n".join(_lines(story)))
    return 0


def _lines(story: "Story") -> list[str]:
    t = story.transaction
    chapters = {
        "accepted": _accepted(story),
        "waits": _waits(story) if t.status == Status.PENDING else [],
        "settled": _settled(story),
        "entry": _entry(story),
        "event": _event(story),
        "user": [f"{t.user_id}, {story.user_name}; balance now {format_amount(story.user_balance)}"],
        "client": [
            f"PUT again: {STATUS_CODES[t.status]}{f' {t.reason}' if t.reason else ''}; GET: 200 with",
            json.dumps(_public_json(t)),
        ],
    }
    lines = [f"{t.status} {t.type} of {format_amount(t.amount)} for user {t.user_id}, uid {t.uid}"]
    for name, chapter_lines in chapters.items():
        lines += [
            f"{title:<10}{line}" for title, line in zip([name, *[""] * len(chapter_lines)], chapter_lines, strict=False)
        ]
    return lines


def _accepted(story: "Story") -> list[str]:
    t = story.transaction
    return [
        f"{format_instant(t.accepted_at)} by request {story.request_id or 'without an id'}",
        f"lane {t.lane}, number {t.accept_order} in the order of acceptance",
        _describe_timestamp(t),
    ]


def _describe_timestamp(t: "Transaction") -> str:
    if t.requested_at is None:
        return "no timestamp requested: it is effective when it is settled"
    requested = f"timestamp requested: {format_instant(t.requested_at)}"
    if t.requested_at < t.accepted_at - CLOCK_TOLERANCE:
        return f"{requested}, {_duration(t.accepted_at - t.requested_at)} before: kept"
    return f"{requested}, within {CLOCK_TOLERANCE.seconds} s of acceptance: it means now"


def _waits(story: "Story") -> list[str]:
    failed = (
        [f"failed {story.attempts} times, last with: {' '.join(str(story.last_error).split())}"]
        if story.attempts
        else []
    )
    if story.parked_at and story.parked_before:
        since = f"parked since {format_instant(story.parked_at)} behind {story.parked_before}"
        return [since, *failed, f"./payments parked release {story.parked_before}"]
    if story.parked_at:
        release = f"it is retried automatically; to retry now: ./payments parked release {story.transaction.uid}"
        return [f"parked since {format_instant(story.parked_at)}", *failed, release]
    return [f"for a worker; {story.pending_before} before it in its lane", *failed]


def _settled(story: "Story") -> list[str]:
    t = story.transaction
    if t.settled_at is None:
        return []
    failed = f" and {story.attempts} failed attempts" if story.attempts else ""
    outcome = f"{t.status}: {t.reason}" if t.reason else t.status
    return [f"{format_instant(t.settled_at)}, after {_duration(t.settled_at - t.accepted_at)}{failed}: {outcome}"]


def _entry(story: "Story") -> list[str]:
    t = story.transaction
    if story.seq is None or t.balance_after is None or t.effective_at is None or story.history_at is None:
        return []
    sign = "+" if t.type == Type.DEPOSIT else "-"
    change = t.amount if t.type == Type.DEPOSIT else -t.amount
    before, after = format_amount(t.balance_after - change), format_amount(t.balance_after)
    return [
        f"number {story.seq}: {sign}{format_amount(t.amount)}, balance {before} -> {after}",
        f"effective {format_instant(t.effective_at)}, {'late' if story.late else 'not late'}",
        f"history   {format_instant(story.history_at)}",
    ]


def _event(story: "Story") -> list[str]:
    if story.event_id is not None:
        return [f"id {story.event_id}, number {story.user_seq} of the user's outcomes"]
    return ["no longer kept"] if story.transaction.settled_at else []


def _duration(time: timedelta) -> str:
    """Returns a duration: "0.006 s" under two minutes, otherwise such as "3 days, 0:00:01"."""
    seconds = time.total_seconds()
    return f"{seconds:.3f} s" if abs(seconds) < 120 else str(timedelta(seconds=round(seconds)))


def _public_json(t: "Transaction") -> dict[str, object]:
    """Returns the transaction as the JSON object of the API."""
    from shared.payments.to_json import transaction_to_json

    return transaction_to_json(t)


def _as_json(story: "Story") -> dict[str, object]:
    """Returns the transaction as in the API, with the internal fields added."""
    t, rest = story.transaction, story._asdict()
    del rest["transaction"]
    rest |= {"lane": t.lane, "accept_order": t.accept_order, "requested_at": t.requested_at}
    amounts = ("user_balance", "balance_before")
    instants = ("requested_at", "parked_at", "history_at")
    rest |= {name: format_amount(rest[name]) for name in amounts if rest[name] is not None}
    rest |= {name: format_instant(rest[name]) for name in instants if rest[name] is not None}
    return {**_public_json(t), **rest}
