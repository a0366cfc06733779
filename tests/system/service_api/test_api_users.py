"""API.md, Users: line by line against the running service."""

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
from urllib3 import HTTPHeaderDict

from tests.kit.database import count_rows
from tests.kit.http import Api
from tests.kit.service import Service

pytestmark = pytest.mark.system

# The deposit stands at 2023-01-30 12:00 UTC: each of these is that instant, or a later one.
FORMS = [
    "2023-01-30T12:00:00Z",
    "2023-01-30T12:00:00.000000Z",
    "2023-01-30t12:00:00z",
    "2023-01-30T12:00:00.123456789Z",
    "2023-01-30T12:00:00." + "9" * 1000 + "Z",
    "2023-01-30T12:00:00,5Z",
    "2023-01-30T12:00:00",
    "2023-01-30T12:00",
    "2023-01-30%2012:00:00Z",
    "2023-01-30T14:00:00%2B02:00",
    "2023-01-30T14:00:00+02:00",  # an unescaped plus, which a server reads as a space
    "2023-01-30T14:00:00%2B0200",
    "2023-01-30T06:30:00-05:30",
    "20230130T120000Z",
    "2023-01-31",
    "2999-01-01T00:00:00Z",
]


@pytest.fixture(scope="module")
def dated(api: Api) -> int:
    """A user with 100.00 from 2023-01-30 noon on."""
    user_id = api.add_user()
    assert api.deposit(user_id, timestamp="2023-01-30T12:00:00Z").status == 200
    return user_id


def test_a_user_is_added_and_found_where_location_says(api: Api) -> None:
    for path in ("/api/user/", "/api/user"):
        answer = api.ask("POST", path, {"name": "Ada Lovelace \u00e9\U0001f600"})
        assert answer.status == 201
        assert answer.media == "application/json"
        user = answer.json
        assert list(user) == ["id", "name", "created_at"]
        assert type(user["id"]) is int
        assert user["id"] > 0
        assert user["name"] == "Ada Lovelace \u00e9\U0001f600"
        assert is_recent(user["created_at"])
        found = api.ask("GET", answer.headers["Location"])
        assert (found.status, found.json) == (200, {**user, "balance": "0.00"})
        assert api.ask("GET", f"/api/user/{user['id']}").json == found.json


def is_recent(instant: str) -> bool:
    assert instant.endswith("Z")
    return abs(datetime.fromisoformat(instant) - datetime.now(UTC)) < timedelta(seconds=60)


def test_a_name_has_1_to_200_characters(api: Api) -> None:
    assert api.ask("POST", "/api/user/", {"name": "\U0001f600" * 200}).status == 201
    assert api.ask("POST", "/api/user/", {"name": "x"}).status == 201
    api.ask("POST", "/api/user/", {"name": "x" * 201}).refused(422, "invalid_request", "name")


def test_without_a_key_the_same_name_is_another_user(api: Api) -> None:
    assert api.add_user("Twin") != api.add_user("Twin")


def test_a_repeat_with_the_same_key_answers_the_same_user(api: Api) -> None:
    key = {"Idempotency-Key": f"key {datetime.now(UTC)}".ljust(200, "k")}
    first, *repeats = [api.ask("POST", "/api/user/", {"name": "Once"}, key) for _ in range(3)]
    assert (first.status, first.headers.get("Idempotency-Replayed")) == (201, None)
    for repeat in repeats:
        assert (repeat.status, repeat.json) == (201, first.json)
        assert repeat.headers["Idempotency-Replayed"] == "true"
        assert repeat.headers["Location"] == first.headers["Location"]
    api.ask("POST", "/api/user/", {"name": "Other"}, key).refused(422, "key_reused")


def test_one_key_sent_at_once_makes_one_user(api: Api) -> None:
    key = {"Idempotency-Key": f"race {datetime.now(UTC)}"}
    with ThreadPoolExecutor(30) as threads:
        answers = list(threads.map(lambda _: api.ask("POST", "/api/user/", {"name": "Race"}, key), range(30)))
    assert {answer.status for answer in answers} == {201}
    assert len({answer.json["id"] for answer in answers}) == 1
    assert sum("Idempotency-Replayed" not in answer.headers for answer in answers) == 1


@pytest.mark.parametrize("key", ["twice", "with, a comma", "k" * 150])
def test_the_same_key_line_twice_is_that_key_once(api: Api, key: str) -> None:
    headers = HTTPHeaderDict({"Idempotency-Key": (key := f"{key} {datetime.now(UTC)}")})
    once = api.ask("POST", "/api/user/", {"name": "Ada"}, headers)
    for _ in range(3):
        headers.add("idempotency-key", key)
        again = api.ask("POST", "/api/user/", {"name": "Ada"}, headers)
        assert (again.status, again.json, again.headers["Idempotency-Replayed"]) == (201, once.json, "true")
    other = api.ask("POST", "/api/user/", {"name": "Ada"}, {"Idempotency-Key": f"{key}, and more"})
    assert other.json["id"] != once.json["id"]


def test_a_key_may_be_of_commas(api: Api) -> None:
    """A comma is also what the server puts between two lines of a header: of nothing but commas none is left out."""
    ids = {
        api.ask("POST", "/api/user/", {"name": ","}, {"Idempotency-Key": key}).json["id"] for key in (",", ",,", ",")
    }
    assert len(ids) == 2


@pytest.mark.parametrize("key", ["", " ", "k" * 201, "\u00e9", "tab\tin it", "k" * 201 + "," + "k" * 201])
def test_a_key_is_1_to_200_printable_characters(api: Api, service: Service, key: str) -> None:
    before = count_rows(service.database_url)
    headers = {"Idempotency-Key": key.encode("latin-1").decode("latin-1")}
    api.ask("POST", "/api/user/", {"name": "Ada"}, headers).refused(422, "invalid_request", "Idempotency-Key")
    assert count_rows(service.database_url) == before


@pytest.mark.parametrize("user_id", ["0", "-1", "9223372036854775807", "9223372036854775808", "9" * 40, "x", "1.0"])
@pytest.mark.parametrize("rest", ["", "/", "/balance", "/balance/", "/transactions", "/transactions/"])
def test_an_unknown_user_is_not_found(api: Api, user_id: str, rest: str) -> None:
    api.ask("GET", f"/api/user/{user_id}{rest}").refused(404, "user_not_found")


def test_the_balance_now_is_dated_now(api: Api, dated: int) -> None:
    for path in (f"/api/user/{dated}/balance/", f"/api/user/{dated}/balance"):
        answer = api.ask("GET", path)
        assert list(answer.json) == ["user_id", "balance", "date"]
        assert (answer.json["user_id"], answer.json["balance"]) == (dated, "100.00")
        assert is_recent(answer.json["date"])
    assert api.ask("GET", f"/api/user/{dated}/").json["balance"] == "100.00"


@pytest.mark.parametrize("form", FORMS)
def test_a_date_is_read_in_every_form(api: Api, dated: int, form: str) -> None:
    assert api.balance(dated, form) == "100.00"


@pytest.mark.parametrize(
    "form", ["2023-01-30", "2023-01-30T11:59:59.999999999", "2023-01-30T13:59:59+02:00", "0001-01-01", "1970-01-01"]
)
def test_before_the_first_entry_the_balance_is_0(api: Api, dated: int, form: str) -> None:
    assert api.balance(dated, form) == "0.00"


def test_the_date_answered_for_is_told(api: Api, dated: int) -> None:
    def told(form: str) -> str:
        return str(api.ask("GET", f"/api/user/{dated}/balance/?date={form}").json["date"])

    assert told("2023-01-30T14:00:00+02:00") == "2023-01-30T12:00:00.000000Z"
    assert told("2023-01-30T12:00:00.123456789") == "2023-01-30T12:00:00.123456Z"
    assert told("2023-01-30") == "2023-01-30T00:00:00.000000Z"
    assert is_recent(told("2999-01-01"))


@pytest.mark.parametrize(
    "form",
    [
        "*",
        "yesterday",
        "2023-02-30",
        "2023-13-01",
        "1675080000",
        "2023-01-30T25:00",
        "2023-01-30T24:00",
        "2023-01-30T24:00:00.000Z",
        "0000-01-01",
        "10000-01-01",
        "2023-01-30T12:00:00%2B25:00",
        "2023-W05-1",
        "%00",
        "%FF",
        "%F0%9D%9F%9A023-01-30",
        "2023-01-30T12:00:00ZZ",
        "0001-01-01T00:00%2B01:00",
    ],
)
def test_an_unreadable_date_is_refused(api: Api, dated: int, form: str) -> None:
    form = form.removeprefix("*")
    api.ask("GET", f"/api/user/{dated}/balance/?date={form}").refused(422, "invalid_request", "date")
