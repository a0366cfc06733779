"""Judges a history: each rule is a function that yields what breaks it. It believes nothing but what clients saw,
what the API says at the end, and, apart from both, the rows."""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from decimal import Decimal
from itertools import groupby
from typing import Final

from tests.faults.history import FINAL, Attempt, Books, Document, History, by_user, documents, effective_of, instant_of
from tests.faults.time_rules import (
    PAST,
    none_is_settled_before_it_is_accepted,
    only_a_business_reason_rejects,
    past_balances_are_sums,
    the_past_does_not_change_by_itself,
)

RECOVERY_SECONDS: Final = 10.0

Rule = Callable[[History, Books], Iterator[str]]


def check(history: History, books: Books) -> list[str]:
    """Every violation, each with the rule's name."""
    return [f"{rule.__name__}: {found}" for rule in RULES for found in rule(history, books)]


def accepted_transactions_exist(history: History, books: Books) -> Iterator[str]:
    known = {document["uid"] for document in documents(books)}
    stored = {row.uid for row in books.rows}
    for uid in sorted({attempt.uid for attempt in history.attempts if attempt.accepted}):
        if uid not in known or uid not in stored:
            yield f"{uid} was accepted and is gone"


def all_become_final(history: History, books: Books) -> Iterator[str]:
    for recovery in history.recoveries:
        if recovery.stuck or recovery.seconds > RECOVERY_SECONDS:
            yield f"after {recovery.fault}: {recovery.seconds:.1f} s, {len(recovery.stuck)} stuck {recovery.stuck[:3]}"
    for document in documents(books):
        if document["status"] not in FINAL:
            yield f"{document['uid']} is {document['status']} at the end"
    for row in books.rows:
        if row.status not in FINAL:
            yield f"the row {row.uid} is {row.status} at the end"


def each_happened_once_or_never(history: History, books: Books) -> Iterator[str]:
    """Also what nobody has an answer for; and nothing is there that nobody sent."""
    sent = {attempt.uid for attempt in history.attempts}
    for uid, times in _counts(document["uid"] for document in documents(books)):
        if times > 1 or uid not in sent:
            yield f"{uid} stands {times} times in statements{'' if uid in sent else ' and was never sent'}"
    for uid, times in _counts(row.uid for row in books.rows):
        if times > 1 or uid not in sent:
            yield f"{uid} has {times} rows{'' if uid in sent else ' and was never sent'}"
    for row in books.rows:
        wanted = (1 if row.status == "COMPLETED" else 0, 1 if row.status in FINAL else 0)
        if (row.entries, row.events) != wanted:
            yield f"{row.uid}, {row.status}, has {row.entries} entries and {row.events} events"


def final_states_never_change(history: History, books: Books) -> Iterator[str]:
    seen: dict[str, list[tuple[float, float, Document]]] = defaultdict(list)
    for sent, heard, document in _sightings(history):
        seen[document["uid"]].append((sent, heard, document))
    for document in documents(books):
        seen[document["uid"]].append((float("inf"), float("inf"), document))
    for uid, sightings in seen.items():
        finals = [(heard, document) for _, heard, document in sightings if document["status"] in FINAL]
        if not finals:
            continue
        first_heard, first = min(finals, key=lambda final: final[0])
        for _, document in finals:
            if document != first:
                yield f"{uid} was {first} and then {document}"
                break
        if any(sent > first_heard for sent, _, document in sightings if document["status"] not in FINAL):
            yield f"{uid} was final and then PENDING"


def content_is_what_was_first_accepted(history: History, books: Books) -> Iterator[str]:
    first: dict[str, Document] = {}
    for attempt in sorted((a for a in history.attempts if a.accepted), key=lambda a: a.answered_at):
        first.setdefault(attempt.uid, attempt.content)
    shown = [document for _, _, document in _sightings(history)]
    told = set()
    for document in [*shown, *documents(books)]:
        asked = first.get(document["uid"])
        if asked and document["uid"] not in told and not _agree(asked, document):
            told.add(document["uid"])
            yield f"was asked as {asked} and is {document}"


def money_is_conserved(history: History, books: Books) -> Iterator[str]:
    """By the API alone: a balance is the sum of what the statement says was COMPLETED."""
    for user_id, statement in books.statements.items():
        total = sum((_change(d) for d in statement if d["status"] == "COMPLETED"), Decimal(0))
        if books.balances[user_id] != total:
            yield f"user {user_id} has {books.balances[user_id]}, and the statement says {total}"


def no_balance_is_negative(history: History, books: Books) -> Iterator[str]:
    """Neither by the snapshots, which must be the running sum, nor at any instant of the past."""
    for user_id, rows in by_user(books.rows).items():
        entries = sorted((row for row in rows if row.seq is not None), key=lambda row: row.seq or 0)
        running = Decimal(0)
        for row in entries:
            running += row.amount or 0
            if row.balance_after != running or running < 0:
                yield f"user {user_id} entry {row.seq}: balance_after {row.balance_after}, running sum {running}"
        running = Decimal(0)
        by_instant = sorted(entries, key=effective_of)
        for instant, together in groupby(by_instant, key=effective_of):
            running += sum((row.amount or Decimal(0) for row in together), Decimal(0))
            if running < 0:
                yield f"user {user_id} had {running} at {instant}"
                break


def each_user_is_settled_in_order(history: History, books: Books) -> Iterator[str]:
    """What was answered before another was first sent is settled before it, by the order of the events."""
    place = {row.uid: row.user_seq for row in books.rows}
    for user_id, attempts in _attempts_by_user(history).items():
        answered: dict[str, float] = {}
        sent: dict[str, float] = {}
        for attempt in attempts:
            sent[attempt.uid] = min(attempt.sent_at, sent.get(attempt.uid, float("inf")))
            if attempt.accepted:
                answered[attempt.uid] = min(attempt.answered_at, answered.get(attempt.uid, float("inf")))
        before = sorted(answered, key=lambda uid: answered[uid])
        instants = [answered[uid] for uid in before]
        last: list[str] = []  # of those answered so far, the one settled last
        for uid in before:
            last.append(uid if not last or (place.get(uid) or 0) > (place.get(last[-1]) or 0) else last[-1])
        for uid, moment in sent.items():
            index = bisect_left(instants, moment)
            mine = place.get(uid)
            if index and mine is not None and (place.get(last[index - 1]) or 0) > mine:
                yield f"user {user_id}: {last[index - 1]} was answered before {uid} was sent, and settled after it"


def verify_agrees(history: History, books: Books) -> Iterator[str]:
    if books.verify_exit:
        yield f"./payments verify ended with {books.verify_exit}"


def queues_are_drained_and_nothing_leaks(history: History, books: Books) -> Iterator[str]:
    if books.queued:
        yield f"{books.queued} rings are left in the broker"
    yield from books.leaks


def every_outcome_is_told_in_order(history: History, books: Books) -> Iterator[str]:
    """To a receiver that is well: each at least once, and none for the first time after a later one of its user."""
    if books.told is None:
        return
    for user_id, rows in by_user(books.rows).items():
        wanted = sorted(row.user_seq for row in rows if row.user_seq is not None)
        first_told = list(dict.fromkeys(books.told.get(user_id, [])))
        if first_told != wanted:
            yield f"user {user_id} has outcomes {wanted} and its receiver heard {first_told}"


RULES: Final[tuple[Rule, ...]] = (
    accepted_transactions_exist,
    all_become_final,
    each_happened_once_or_never,
    final_states_never_change,
    content_is_what_was_first_accepted,
    money_is_conserved,
    no_balance_is_negative,
    each_user_is_settled_in_order,
    the_past_does_not_change_by_itself,
    past_balances_are_sums,
    none_is_settled_before_it_is_accepted,
    only_a_business_reason_rejects,
    every_outcome_is_told_in_order,
    verify_agrees,
    queues_are_drained_and_nothing_leaks,
)


def _sightings(history: History) -> Iterator[tuple[float, float, Document]]:
    yield from history.sightings
    for attempt in history.attempts:
        if attempt.document is not None:
            yield attempt.sent_at, attempt.answered_at, attempt.document


def _counts(uids: Iterable[str]) -> list[tuple[str, int]]:
    counts: dict[str, int] = defaultdict(int)
    for uid in uids:
        counts[uid] += 1
    return list(counts.items())


def _agree(asked: Document, shown: Document) -> bool:
    """In all that a client says. A timestamp near acceptance, or none, means now: it is moved to the settling."""
    if any(asked[name] != shown[name] for name in ("user_id", "type")):
        return False
    if Decimal(asked["amount"]) != Decimal(shown["amount"]):
        return False
    asked_at, shown_at = instant_of(asked.get("timestamp")), instant_of(shown["timestamp"])
    accepted_at = instant_of(shown["accepted_at"])
    if shown["status"] != "COMPLETED" or (asked_at and accepted_at and asked_at < accepted_at - PAST):
        return asked_at == shown_at
    settled_at = instant_of(shown["settled_at"])
    return bool(shown_at and accepted_at and settled_at and accepted_at - PAST <= shown_at <= settled_at)


def _change(document: Document) -> Decimal:
    amount = Decimal(document["amount"])
    return amount if document["type"] == "DEPOSIT" else -amount


def _attempts_by_user(history: History) -> dict[int, list[Attempt]]:
    found: dict[int, list[Attempt]] = defaultdict(list)
    for attempt in history.attempts:
        found[int(attempt.content["user_id"])].append(attempt)
    return found
