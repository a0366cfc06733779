"""API.md, what is refused: a problem document for every bad input, never a 500, and no trace in the database."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.kit.database import count_rows, query
from tests.kit.http import Api, Response, transaction
from tests.kit.service import Service

pytestmark = pytest.mark.system

UID = "0193e7a5-5bb2-7b3c-8f0a-3f2d6f1f2a10"  # the same in every process that collects these tests
LARGEST_BODY = 64 * 1024


@pytest.fixture(scope="module")
def user_id(api: Api) -> int:
    return api.add_user()


@pytest.fixture(autouse=True)
def no_row_is_written(api: Api, service: Service, user_id: int) -> Any:
    before = count_rows(service.database_url)
    yield
    assert count_rows(service.database_url) == before
    assert api.look_up(UID).status == 404


AMOUNTS = [
    *(
        '"NaN"',
        '"nan"',
        "NaN",
        '"Infinity"',
        "Infinity",
        "-Infinity",
        '"inf"',
        "1e2",
        "1E+2",
        "100e-2",
        '"1e2"',
        '"1E2"',
    ),
    *(
        '" 5"',
        '"5 "',
        '"\\n5"',
        '"+5"',
        '"-5"',
        "-5",
        "-0.01",
        '"-0"',
        "0",
        "0.0",
        "0.00",
        '"0"',
        '"0.00"',
        '"00"',
        "-0",
    ),
    *(
        "1.001",
        '"1.001"',
        "1.000",
        '"1.000"',
        "0.001",
        "0.1000000000000000055511151231257827",
        '"1."',
        '".5"',
        '""',
        '"."',
    ),
    *("10000000000", '"10000000000.00"', "9999999999.991", "1" + "0" * 40, '"' + "9" * 300 + '"', "9" * 5000),
    *("1e400", "1e-400", "1e99999999999999999999", '"1e99999999999999999999"', '"0x10"', '"1_000"', '"1,000.00"'),
    *('"\uff11\uff10"', '"\u0661"', '"\u00b2"', '"1\\u0000"', '"\\ud800"', "true", "false", "null", "[]", "{}", "[1]"),
    *('{"amount": 1}', '"one"', '"100.00 EUR"', '"$5"', '"' + "0" * 60 + '1"'),
]


@pytest.mark.parametrize("amount", AMOUNTS, ids=range(len(AMOUNTS)))
def test_an_amount_is_a_positive_decimal_of_at_most_two_digits(api: Api, user_id: int, amount: str) -> None:
    body = '{"uid": "%s", "user_id": %d, "type": "DEPOSIT", "amount": %s}' % (UID, user_id, amount)  # noqa: UP031
    api.ask("PUT", "/api/transaction/", body.encode()).refused(422, "invalid_request", "amount")


UIDS = [
    *("", "x", UID[:-1], f"{UID}0", UID.replace("-", ""), f"{{{UID}}}", f"urn:uuid:{UID}", f" {UID}", f"{UID}\n"),
    *(
        UID.replace("-", "\u2010"),
        f"{UID[:-1]}g",
        f"{UID[:-1]}\uff11",
        f"{UID[:-1]}\0",
        "00000000-0000-0000-0000-000000000000",
        "ffffffff-ffff-ffff-ffff-ffffffffffff",
        "FFFFffff-FFFF-ffff-FFFF-ffffFFFFffff",
        None,
        5,
        True,
        [UID],
        {"uid": UID},
    ),
]
USER_IDS = [0, -1, 2**63, 10**30, 10**400, "1", "", 1.0, 1.5, True, None, [1], {"id": 1}, "\u0661"]
TYPES = ["", "deposit", "Deposit", "DEPOSIT ", "TRANSFER", None, 1, True, ["DEPOSIT"], {}, "DEPOSIT\0"]
TIMESTAMPS = [
    *(
        "",
        "now",
        "2023-02-30",
        "2023-01-04T25:00",
        "2023-01-04T24:00",
        "2023-01-04T24:00:00Z",
        "20230104T24",
        "2023-01-04T00:00:60Z",
        "10000-01-01",
        "0000-01-01",
        "-0001-01-01",
    ),
    *(
        "0001-01-01T00:00:00+01:00",
        "9999-12-31T23:59:59-01:00",
        "2023-01-04T00:00:00+24:00",
        "2023-01-04Z",
        "20230104T",
    ),
    *(
        1672790400,
        1672790400.5,
        True,
        [],
        {},
        "1672790400",
        "\uff12\uff10\uff12\uff13-01-04",
        "2023-01-04\0",
        "9" * 1000,
    ),
]
BAD = [(name, value) for name, values in {
    "uid": UIDS, "user_id": USER_IDS, "type": TYPES, "timestamp": TIMESTAMPS,
}.items() for value in values]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), BAD, ids=range(len(BAD)))
def test_each_field_is_what_it_must_be(api: Api, user_id: int, name: str, value: Any) -> None:
    content = {**transaction(user_id, uid=UID), name: value}
    api.put(content).refused(422, "invalid_request", name)


@pytest.mark.parametrize("name", ["uid", "user_id", "type", "amount"])
def test_a_field_that_is_missing_is_named(api: Api, user_id: int, name: str) -> None:
    content = transaction(user_id, uid=UID)
    del content[name]
    api.put(content).refused(422, "invalid_request", name)


@pytest.mark.parametrize("name", ["balance", "Amount", "", "uid ", "\u00e9", "\0", "x" * 5000, "a.b"])
def test_an_unknown_field_is_refused_by_name(api: Api, user_id: int, name: str) -> None:
    api.put({**transaction(user_id, uid=UID), name: 1}).refused(422, "invalid_request", name[:200])
    api.ask("POST", "/api/user/", {"name": "Ada", name: 1}).refused(422, "invalid_request", name[:200])


def test_all_bad_fields_are_named_at_once(api: Api, user_id: int) -> None:
    answer = api.put({"uid": "x", "user_id": "1", "type": "", "amount": 0, "timestamp": "", "more": 1})
    answer.refused(422, "invalid_request", "uid", "user_id", "type", "amount", "timestamp", "more")


def test_a_timestamp_over_60_seconds_ahead_is_refused(api: Api, service: Service, user_id: int) -> None:
    ((now,),) = query(service.database_url, "SELECT clock_timestamp()")
    for ahead in (now + timedelta(seconds=61), datetime.max.replace(tzinfo=UTC)):
        content = transaction(user_id, uid=UID, timestamp=ahead.isoformat())
        api.put(content).refused(422, "invalid_request", "timestamp")


NAMES = ["", " ", "\t\n", "\u3000\u00a0", "x" * 201, "a\0", "\0", None, 5, True, ["Ada"], {"name": "Ada"}]
RAW_NAMES = [rb'"\ud800"', rb'"a\udfff"', b"NaN", rb'"\u0000"']


@pytest.mark.parametrize("name", [*(json.dumps(name).encode() for name in NAMES), *RAW_NAMES])
def test_a_name_is_a_text_that_can_be_seen_and_stored(api: Api, name: bytes) -> None:
    api.ask("POST", "/api/user/", b'{"name": %s}' % name).refused(422, "invalid_request", "name")


GOOD = json.dumps(transaction(1, uid=UID)).encode()
NOT_JSON = [
    *(b"", b" ", b"x", b"{", GOOD[:-1], GOOD + b"}", GOOD + GOOD, b"'" + GOOD, b"\xff", b"\xef\xbb\xbf" + GOOD, b"\0"),
    *(GOOD.decode().encode("utf-16"), GOOD.replace(b"DEPOSIT", b"\xff"), GOOD.replace(b"DEPOSIT", b"a\nb")),
    *(
        GOOD[:-1] + b', "type": "WITHDRAW"}',
        b'{"a":' * 9000 + b"1" + b"}" * 9000,
        b"[" * 60000,
        b'{"a": 01}',
        b"{'a': 1}",
    ),
    *(b"uid=1&amount=5", b"<a/>", b"--x", b'{"name": "Ada",}', b'{"name": "Ada", "name": "Ada"}', b'"' + b"\\" * 999),
]


@pytest.mark.parametrize("body", NOT_JSON, ids=range(len(NOT_JSON)))
@pytest.mark.parametrize(("method", "path"), [("PUT", "/api/transaction/"), ("POST", "/api/user/")])
def test_what_is_not_json_is_told_so(api: Api, method: str, path: str, body: bytes) -> None:
    api.ask(method, path, body).refused(400, "not_json")


@pytest.mark.parametrize("body", [b"[]", b'"text"', b"5", b"null", b"true", b"NaN", b"[" + GOOD + b"]"])
@pytest.mark.parametrize(("method", "path"), [("PUT", "/api/transaction/"), ("POST", "/api/user/")])
def test_json_that_is_no_object_is_refused(api: Api, method: str, path: str, body: bytes) -> None:
    api.ask(method, path, body).refused(422, "invalid_request", "")


MEDIA = [
    *("text/plain", "text/json", "application/x-www-form-urlencoded", "application/xml", "multipart/form-data"),
    *("application/jsonx", "application", "", ";", "application/x-ndjson", "\u00e9", "application/vnd.api+json"),
]


@pytest.mark.parametrize("media", MEDIA)
def test_another_content_type_is_told_so(api: Api, media: str) -> None:
    for method, path in (("PUT", "/api/transaction/"), ("POST", "/api/user/")):
        api.ask(method, path, GOOD, {"Content-Type": media}).refused(415, "unsupported_media_type")


def test_no_content_type_is_told_so(api: Api) -> None:
    api.ask("PUT", "/api/transaction/").refused(415, "unsupported_media_type")


@pytest.mark.parametrize("media", ["application/json", "Application/JSON; charset=utf-8", "application/json;x=y"])
def test_json_is_json_in_every_spelling(api: Api, media: str) -> None:
    api.ask("PUT", "/api/transaction/", b"{", {"Content-Type": media}).refused(400, "not_json")


CODINGS = ["gzip", "br", "deflate", "GZIP", "identity, gzip", "x", "identity;q=1"]


@pytest.mark.parametrize("coding", CODINGS)
def test_a_compressed_body_is_refused(api: Api, coding: str) -> None:
    headers = {"Content-Encoding": coding}
    for method, path in (("PUT", "/api/transaction/"), ("POST", "/api/user/"), ("POST", "/api/webhook/")):
        api.ask(method, path, GOOD, headers).refused(415, "unsupported_media_type")
    for media in ("application/json", "application/x-ndjson"):
        answer = api.ask("PUT", "/api/transactions/", GOOD, {**headers, "Content-Type": media})
        answer.refused(415, "unsupported_media_type")


@pytest.mark.parametrize("coding", ["identity", "Identity", "IDENTITY", "", "identity, identity"])
def test_a_body_as_it_is_may_say_so(api: Api, coding: str) -> None:
    api.ask("PUT", "/api/transaction/", b"{", {"Content-Encoding": coding}).refused(400, "not_json")


ADDRESSES = [  # the method, the address, and a parameter that it has
    *[("POST", "/api/user/", None), ("GET", "/api/user/1/", None), ("GET", "/api/user/1/balance/", "date=2023-01-01")],
    *[
        ("GET", "/api/user/1/transactions/", "limit=5"),
        ("PUT", "/api/transaction/", None),
        ("HEAD", "/api/user/1", None),
    ],
    *[("GET", f"/api/transaction/{UID}", None), ("POST", f"/api/transaction/{UID}", None)],
    *[("PUT", "/api/transactions/", None), ("GET", "/api/events/", "limit=5"), ("GET", "/api/webhook/", None)],
    *[("POST", "/api/webhook/", None), ("GET", "/api/webhook/1/", None), ("DELETE", "/api/webhook/1/", None)],
    *[("POST", "/api/webhook/1/test", None), ("POST", "/api/webhook/1/rotate-secret", None)],
    *[("POST", "/api/webhook/1/replay", None), ("GET", "/api/webhook/1/dead-letters", "limit=5")],
    *[
        (method, path, None)
        for path in ("/livez", "/readyz", "/metrics", "/openapi.json")
        for method in ("GET", "HEAD")
    ],
    *[("GET", path, None) for path in ("/", "/docs", "/docs/start.js")],
]


@pytest.mark.parametrize(("method", "path", "known"), ADDRESSES)
def test_a_query_parameter_is_known_and_given_once(api: Api, method: str, path: str, known: str | None) -> None:
    for query_ in ("x=1", "x", "x=", "=1", "Limit=5", "x=1&x=1", *([f"{known}&x=1"] if known else [])):
        answer = api.ask(method, f"{path}?{query_}")
        assert answer.status == 422, answer
        if method != "HEAD":
            answer.refused(422, "invalid_request", "Limit" if query_[0] == "L" else "x" if "x" in query_ else "")
    if known:
        name = known.partition("=")[0]
        for query_ in (f"{known}&{known}", f"{known}&{name}=", f"{known}&%{ord(name[0]):x}{name[1:]}=7"):
            api.ask(method, f"{path}?{query_}").refused(422, "invalid_request", name)
    assert api.ask(method, f"{path}?&").status != 422 or method in ("PUT", "POST")


def padded(size: int) -> bytes:
    return GOOD[:-1].replace(b'"user_id": 1', b'"user_id": 0') + b" " * (size - len(GOOD)) + b"}"


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize(("size", "status"), [(LARGEST_BODY, 422), (LARGEST_BODY + 1, 413), (5_000_000, 413)])
def test_a_body_over_64_kib_is_413_also_when_chunked(api: Api, size: int, status: int, chunked: bool) -> None:
    answer = send(api, padded(size), chunked=chunked)
    answer.refused(status, "body_too_large" if status == 413 else "invalid_request", *["user_id"] * (status == 422))


def send(api: Api, body: bytes, *, chunked: bool) -> Response:
    if not chunked:
        return api.ask("PUT", "/api/transaction/", body)
    pieces = (body[start : start + 10_000] for start in range(0, len(body), 10_000))
    return api.ask("PUT", "/api/transaction/", pieces)
