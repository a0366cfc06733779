"""The feed: every outcome at least once, in order per user, none skipped, also while settling goes on."""

import itertools
import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis
from hypothesis import strategies as st
from sqlalchemy import event as hooks
from sqlalchemy import text

from shared.database import engine, transaction
from shared.errors import NotFound
from shared.payments.batch import settle_batch
from shared.payments.feed import EventPage, FeedPosition, get_events, get_user_events
from shared.payments.model import LANES, Event, EventType, lane_of
from shared.payments.queries.events import find_seq, read_events_of_user
from shared.payments.settle import settle_lanes
from tests.integration.factories import accepted, deposit, new_user, new_users, settled, stored, withdrawal

pytestmark = pytest.mark.integration

ONE, TWO = 1, 2
Reading = Callable[[FeedPosition, int], EventPage]


def here() -> FeedPosition:
    """The end of the feed: where a test begins."""
    lasts = text("SELECT coalesce(max(id), 0) FROM generate_series(0, :lanes - 1) AS of (lane) "
                 "LEFT JOIN events USING (lane) GROUP BY lane ORDER BY lane")  # fmt: skip
    with transaction() as connection:
        return FeedPosition(tuple(connection.scalars(lasts, {"lanes": LANES})))


def of(user_id: int) -> Reading:
    return lambda after, limit: get_user_events(user_id, after, limit)


def pages(after: FeedPosition, limit: int = 100, read: Reading = get_events) -> Iterator[EventPage]:
    """To the end so far."""
    while (page := read(after, limit)).items:
        yield page
        after = page.next
    assert page.next == after


def read_all(after: FeedPosition, limit: int = 100, read: Reading = get_events) -> list[Event]:
    return [event for page in pages(after, limit, read) for event in page.items]


def told(user_id: int) -> list[int]:
    """The ids of a user's events as the table has them, in their order."""
    ids = text("SELECT id FROM events WHERE user_id = :user_id ORDER BY user_seq")
    with transaction() as connection:
        return list(connection.scalars(ids, {"user_id": user_id}))


def ids(events: list[Event], user_id: int | None = None) -> list[int]:
    return [event.id for event in events if user_id in (None, event.user_id)]


@contextmanager
def held_at_commit(lane: int) -> Iterator[None]:
    """A worker settles the lane meanwhile; all is written, and its commit waits for the end of the block."""
    written, go_on = threading.Event(), threading.Event()

    def wait(_connection: object) -> None:
        if threading.current_thread() is worker:
            written.set()
            assert go_on.wait(4)

    worker = threading.Thread(target=settle_batch, args=[[lane]])
    hooks.listen(engine(), "commit", wait)
    try:
        worker.start()
        assert written.wait(4)
        yield
    finally:
        go_on.set()
        worker.join()
        hooks.remove(engine(), "commit", wait)


def test_an_event_has_the_outcome_and_the_balance() -> None:
    start, user = here(), new_user()
    rows = [deposit(user, 500), withdrawal(user, 700), withdrawal(user, 200)]
    settled(*rows)
    events = read_all(start)
    assert [(e.user_id, e.user_seq, e.type, e.balance) for e in events] == [
        (user, 1, EventType.COMPLETED, 500),
        (user, 2, EventType.REJECTED, 500),
        (user, 3, EventType.COMPLETED, 300),
    ]
    assert [e.transaction for e in events] == stored(*rows)
    assert [e.occurred_at for e in events] == [row.settled_at for row in stored(*rows)]


def test_an_event_of_a_slower_commit_is_not_skipped() -> None:
    start, slow, quick = here(), new_user(ONE), new_user(TWO)
    accepted(deposit(slow, 5), deposit(quick, 6))
    with held_at_commit(ONE):
        settle_batch([TWO])
        (page,) = pages(start)
        assert [event.user_id for event in page.items] == [quick]
    (later,) = read_all(page.next)
    assert later.user_id == slow
    assert later.id < page.items[0].id, "or there was nothing to pass over"


def test_the_oldest_come_first_whichever_their_lane() -> None:
    start, (one, two) = here(), (new_user(ONE), new_user(TWO))
    for _ in range(3):
        settled(deposit(one, 1), deposit(one, 1), deposit(one, 1))
        settled(deposit(two, 1))
    got = [[event.user_id for event in page.items] for page in pages(start, 4)]
    assert got == [[one, one, one, two]] * 3


def test_the_end_of_the_feed_gives_the_same_cursor_again() -> None:
    user = new_user()
    settled(deposit(user, 1))
    for end in (here(), get_user_events(user, FeedPosition(), 9).next):
        assert get_user_events(user, end, 9) == ([], end)
    assert get_events(here(), 9) == ([], here())


def test_a_user_who_does_not_exist_has_no_feed() -> None:
    user = new_user()
    settled(deposit(user, 1))
    own = get_user_events(user, FeedPosition(), 1).next
    for after in (
        FeedPosition(),
        here(),
        own,
        own._replace(user_position=own.user_position and own.user_position._replace(user_id=2**62)),
    ):
        with pytest.raises(NotFound):
            get_user_events(2**62, after, 1)


def test_a_user_without_events_has_an_empty_feed() -> None:
    assert get_user_events(new_user(), FeedPosition(), 1) == ([], FeedPosition())


def test_a_users_feed_begins_at_any_cursor() -> None:
    user, mate = new_users(2, ONE)
    starts = [here()]
    for count in (1, 2, 3, 1, 4):
        settled(*[deposit(mate, 1) for _ in range(count)], *[deposit(user, 1) for _ in range(count)])
        settled(deposit(mate, 1))
        starts.append(here())
    for start, gone in zip(starts, (0, 1, 3, 6, 7, 11), strict=True):
        assert ids(read_all(start, 2, of(user))) == told(user)[gone:]


@pytest.fixture(scope="module")
def told_users(database_url: str) -> tuple[FeedPosition, list[int]]:
    """Users of three lanes whose events lie mingled, and the cursor before the first of them."""
    start, users = here(), [*new_users(3, ONE), *new_users(2, TWO), new_user(7)]
    for number in range(12):
        settled(*[deposit(user, 1) for user in users[number % 4 :]], withdrawal(users[number % 6], 999))
    return start, users


@hypothesis(
    max_examples=25,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(sizes=st.lists(st.integers(1, 30), min_size=1, max_size=20))
def test_pages_of_any_sizes_make_the_same_feed(told_users: tuple[FeedPosition, list[int]], sizes: list[int]) -> None:
    start, users = told_users
    end = here()
    for user_id in (None, users[0], users[-1]):
        limits = itertools.cycle(sizes)
        seen, after = [], start
        while (
            page := get_user_events(user_id, after, next(limits)) if user_id else get_events(after, next(limits))
        ).items:
            seen += page.items
            after = page.next
        assert user_id or after == end
        for user in [user_id] if user_id else users:
            assert ids(seen, user) == told(user)


@hypothesis(
    max_examples=50,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(turns=st.lists(st.tuples(st.none() | st.integers(0, 5), st.integers(1, 20)), max_size=20))
def test_one_cursor_serves_all_users_and_one_user_by_turns(
    told_users: tuple[FeedPosition, list[int]], turns: list[tuple[int | None, int]]
) -> None:
    after, users = told_users
    seen: list[Event] = []
    for index, limit in turns:
        page = get_events(after, limit) if index is None else get_user_events(users[index], after, limit)
        seen += page.items
        after = page.next
    rest = {user: read_all(after, 100, of(user)) for user in users}
    for user in users:
        assert set(ids(seen, user)) | set(ids(rest[user])) == set(told(user))
    seen += read_all(after)
    for user in users:
        assert set(ids(seen, user)) == set(told(user))


def work(seed: int, users: list[int]) -> None:
    """Pay in and out, and settle what is free, as a worker does beside others."""
    chance = random.Random(seed)
    for _ in range(60):
        rows = [chance.choice((deposit, deposit, withdrawal))(chance.choice(users), 3) for _ in range(4)]
        accepted(*rows)
        for lane in {lane_of(row.user_id) for row in rows}:
            settle_batch([lane])


def follow(after: FeedPosition, limit: int, read: Reading, ended: threading.Event) -> list[Event]:
    """Read on and on; once it has ended, to the end."""
    seen: list[Event] = []
    last_look = False
    while not last_look:
        last_look = ended.is_set()
        for page in pages(after, limit, read):
            seen += page.items
            after = page.next
    return seen


FINAL = text("""
    SELECT uid, status, reason, settled_at, balance_after FROM transactions LEFT JOIN ledger USING (uid)
    WHERE transactions.user_id = ANY(:users) ORDER BY uid
""")


def test_readers_miss_nothing_while_many_lanes_are_settled() -> None:
    start, users = here(), [user for lane in range(8) for user in new_users(2, lane)]
    ended = threading.Event()
    with ThreadPoolExecutor(8) as threads:
        readers = [threads.submit(follow, start, limit, get_events, ended) for limit in (1000, 7, 20)]
        narrowed = threads.submit(follow, start, 3, of(users[0]), ended)
        try:
            for worker in [threads.submit(work, seed, users) for seed in range(4)]:
                worker.result()
            for lane in range(8):
                settle_lanes([lane])
        finally:
            ended.set()
    with transaction() as connection:
        expected = connection.execute(FINAL, {"users": users}).all()
    assert {row.status for row in expected} == {"COMPLETED", "REJECTED"}
    for reader in readers:
        seen = reader.result()
        rows = sorted((event.transaction for event in seen), key=lambda row: row.uid)
        assert [(row.uid, row.status, row.reason, row.settled_at, row.balance_after) for row in rows] == expected
        assert all(ids(seen, user) == told(user) for user in users)
    assert ids(narrowed.result()) == told(users[0])


def test_a_user_with_pruned_events_is_still_found() -> None:
    """By age, as retention does it; rolled back, since the books of a test must be whole."""
    user = new_user()
    start = here()
    settled(*[deposit(user, 1) for _ in range(9)])
    with engine().connect() as connection:
        connection.execute(text("DELETE FROM events WHERE user_id = :id AND user_seq < 6"), {"id": user})
        seq = find_seq(connection, user, start.lanes[lane_of(user)])
        found = read_events_of_user(connection, user, seq or 0, 100)
        assert (seq is not None, [event.user_seq for event in found]) == (True, [6, 7, 8, 9])
        connection.rollback()
