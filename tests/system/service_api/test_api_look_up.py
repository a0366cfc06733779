"""API.md, GET and POST of a transaction: found in every spelling, and conditional requests."""

import pytest

from tests.kit.database import held_lane
from tests.kit.http import MEMBERS, Api, transaction
from tests.kit.service import Service

pytestmark = pytest.mark.system

UNKNOWN = "01a217ba-1bdd-7b8b-8eb6-0ec9a24e7416"  # fixed: two processes that collect tests must name them alike


def test_look_up_by_get_and_post_with_and_without_a_slash(api: Api, user_id: int) -> None:
    uid = api.deposit(user_id).json["uid"]
    expected = api.look_up(uid)
    assert (expected.status, list(expected.json)) == (200, MEMBERS)
    for method in ("GET", "POST"):
        for path in (uid, f"{uid}/", uid.upper()):
            answer = api.ask(method, f"/api/transaction/{path}")
            assert (answer.status, answer.body) == (200, expected.body)
    assert api.ask("POST", f"/api/transaction/{uid}", {"any": "body"}).body == expected.body


@pytest.mark.parametrize("uid", [UNKNOWN, "x", "0", UNKNOWN.replace("-", ""), f"{{{UNKNOWN}}}", "%00", "%FF"])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_an_unknown_uid_is_not_found(api: Api, method: str, uid: str) -> None:
    api.ask(method, f"/api/transaction/{uid}", headers={"Prefer": "wait=5"}).refused(404, "transaction_not_found")


def test_its_etag_changes_with_its_state(api: Api, service: Service, user_id: int) -> None:
    content = transaction(user_id)
    with held_lane(service.database_url, user_id):
        api.put(content)
        pending = api.look_up(content["uid"]).headers["ETag"]
        assert api.look_up(content["uid"], **{"If-None-Match": pending}).status == 304
    api.wait_final(content["uid"])
    answer = api.look_up(content["uid"], **{"If-None-Match": pending})
    assert (answer.status, answer.json["status"]) == (200, "COMPLETED")
    assert answer.headers["ETag"] != pending


@pytest.mark.parametrize(
    ("form", "status"),
    [
        ("{}", 304),
        ("W/{}", 304),
        ("*", 304),
        ('"x", {}', 304),
        ('"x" , W/{},"y"', 304),
        ('"x"', 200),
        ("", 200),
        ('W/"x", "y"', 200),
        ("{}x", 200),
        ('"{}', 200),
    ],
)
def test_if_none_match_gets_304_while_it_is_still_that(api: Api, user_id: int, form: str, status: int) -> None:
    uid = api.deposit(user_id).json["uid"]
    tag = api.look_up(uid).headers["ETag"]
    headers = {"If-None-Match": form.replace("{}", tag if form != "{}x" else tag[:-1] + 'x"')}
    answer = api.look_up(uid, **headers)
    assert (answer.status, answer.headers["ETag"]) == (status, tag)
    assert bool(answer.body) == (status == 200)
    assert api.ask("POST", f"/api/transaction/{uid}", headers=headers).status == 200
