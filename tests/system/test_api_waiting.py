"""API.md, `Prefer: wait=N`: a client of a synchronous payment API needs no change."""

import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
import urllib3
from api import Answer, Api, held_lane, transaction
from running_service import Service, wait_until

pytestmark = pytest.mark.system

ROOM = 128
AT_ONCE_SECONDS = 10.0  # on a machine that is busy; who waits here, waits for 30


@pytest.fixture(scope="module")
def api(service: Service) -> Api:
    return Api(service.url)


@pytest.fixture(scope="module")
def done(api: Api) -> str:
    """The uid of a completed deposit."""
    return str(api.deposit(api.add_user()).json["uid"])


@pytest.fixture
def user_id(api: Api) -> int:
    return api.add_user()


def applied(answer: Answer) -> str | None:
    return answer.headers.get("Preference-Applied")


def test_put_and_get_answer_at_the_latest_after_the_seconds(api: Api, service: Service, user_id: int) -> None:
    content = transaction(user_id)
    with held_lane(service.database_url, user_id):
        for ask in (lambda: api.put(content, Prefer="wait=1"), lambda: api.look_up(content["uid"], Prefer="wait=1")):
            began = time.monotonic()
            answer = ask()
            assert 0.9 < time.monotonic() - began < 15
            assert (answer.json["status"], applied(answer)) == ("PENDING", "wait=1")
    api.wait_final(content["uid"])


def test_they_answer_as_soon_as_it_is_final(api: Api, service: Service, user_id: int) -> None:
    contents = [transaction(user_id), transaction(user_id, type="WITHDRAW", amount="500")]
    with ThreadPoolExecutor(4) as threads:
        with held_lane(service.database_url, user_id):
            puts = [threads.submit(api.put, content, Prefer="wait=30") for content in contents]
            for content in contents:
                wait_until(lambda uid=content["uid"]: api.look_up(uid).status == 200, "accepted")
            gets = [threads.submit(api.look_up, content["uid"], Prefer="wait=30") for content in contents]
            began = time.monotonic()
        assert [future.result().status for future in puts] == [200, 409]
        assert [future.result().json["status"] for future in gets] == ["COMPLETED", "REJECTED"]
        assert time.monotonic() - began < 25, "not only after the 30 seconds"
    assert {applied(future.result()) for future in puts + gets} == {"wait=30"}


@pytest.mark.parametrize(
    ("preference", "told"),
    [
        ("wait=2", "wait=2"),
        ("WAIT=2", "wait=2"),
        ('wait="2"', "wait=2"),
        ("wait = 2", "wait=2"),
        ("wait=2; why=not", "wait=2"),
        ("respond-async, wait=2", "wait=2"),
        ("wait=2, wait=3", "wait=2"),
        ('foo="a, wait=9", wait=2', "wait=2"),
        ('foo="\\", wait=9", wait=2', "wait=2"),
        ("wait=x, wait=2", "wait=2"),
        ("wait=0", "wait=0"),
        ("wait=30", "wait=30"),
        ("wait=31", "wait=30"),
        ("wait=" + "9" * 5000, "wait=30"),
        ("", None),
        ("wait", None),
        ("wait=", None),
        ("wait=x", None),
        ("wait=-1", None),
        ("wait=1.5", None),
        ("wait=1e3", None),
        ('wait="2', None),
        ("nowait=2", None),
        ("wait=2 3", None),
        ("\u00b2=\u00b2, wait=\u00b2", None),
        (",,,;;;===" + '"' * 999, None),
        ("return=minimal", None),
    ],
)
def test_a_preference_is_read_as_rfc_7240_has_it_and_ignored_if_unreadable(
    api: Api, done: str, preference: str, told: str | None
) -> None:
    for method in ("GET", "POST"):
        answer = api.ask(method, f"/api/transaction/{done}", headers={"Prefer": preference})
        assert (answer.status, applied(answer)) == (200, told)


def test_several_header_lines_are_one(api: Api, done: str) -> None:
    headers = urllib3.HTTPHeaderDict([("Prefer", "respond-async"), ("Prefer", "wait=2")])
    assert applied(api.ask("GET", f"/api/transaction/{done}", headers=headers)) == "wait=2"


def test_without_a_preference_nothing_is_applied(api: Api, done: str) -> None:
    assert applied(api.look_up(done)) is None


def test_a_304_is_waited_for_too(api: Api, service: Service, user_id: int) -> None:
    content = transaction(user_id)
    with held_lane(service.database_url, user_id):
        tag = api.put(content).headers and api.look_up(content["uid"]).headers["ETag"]
        answer = api.look_up(content["uid"], **{"If-None-Match": tag, "Prefer": "wait=1"})
        assert (answer.status, applied(answer)) == (304, "wait=1")
    answer = api.look_up(content["uid"], **{"If-None-Match": tag, "Prefer": "wait=15"})
    assert (answer.status, answer.json["status"]) == (200, "COMPLETED")


def test_128_wait_at_once_more_are_answered_at_once_and_nobody_else_is_kept(
    api: Api, service: Service, user_id: int
) -> None:
    content = transaction(user_id)
    other = api.add_user()  # of the next lane
    with ThreadPoolExecutor(ROOM + 40) as threads:

        def wait_long(_: int) -> tuple[float, Answer]:
            began = time.monotonic()
            answer = api.look_up(content["uid"], Prefer="wait=30")
            return time.monotonic() - began, answer

        with held_lane(service.database_url, user_id):
            api.put(content)
            waiting = [threads.submit(wait_long, number) for number in range(ROOM + 20)]
            wait_until(lambda: sum(future.done() for future in waiting) == 20, "the surplus has its answer")
            began = time.monotonic()
            assert applied(api.put(content, Prefer="wait=30")) is None
            assert api.ask("GET", "/livez").status == 200
            assert api.balance(other) == "0.00"
            sent = [threads.submit(api.put, transaction(other, amount="1.00")) for _ in range(20)]
            assert {future.result().status for future in sent} <= {200, 202}
            assert time.monotonic() - began < AT_ONCE_SECONDS
            assert sum(future.done() for future in waiting) == 20
        answers = [future.result() for future in waiting]
    assert Counter(applied(answer) for _, answer in answers) == {"wait=30": ROOM, None: 20}
    for seconds, answer in answers:
        assert answer.json["status"] == ("COMPLETED" if applied(answer) else "PENDING")
        assert applied(answer) or seconds < AT_ONCE_SECONDS
    wait_until(lambda: api.balance(other) == "20.00", "the other user's payments")
