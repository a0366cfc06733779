"""The example's receiver: it believes what is signed, takes each event in once, and lets no older one undo a newer."""

import base64
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from standardwebhooks import Webhook

from examples.ad_engine.campaigns import Campaigns
from examples.ad_engine.engine import Engine
from examples.ad_engine.page import page
from examples.ad_engine.service import Forged, Service, verify

pytestmark = pytest.mark.unit

SECRET = "whsec_" + base64.b64encode(bytes(range(24))).decode()
OTHER = "whsec_" + base64.b64encode(bytes(24)).decode()
CONTENT = {
    "type": "account.funded",
    "timestamp": "2026-11-23T10:00:00.000000Z",
    "data": {"event_id": 3, "user_id": 7, "user_seq": 1, "balance": "5.00", "threshold": "0.00"},
}
BODY = json.dumps(CONTENT).encode()


def headers(secret: str = SECRET, age: timedelta = timedelta(), **others: str) -> dict[str, str]:
    at = datetime.now(UTC) - age
    made = {
        "Webhook-Id": "msg_3",
        "Webhook-Timestamp": str(int(at.timestamp())),
        "Webhook-Signature": Webhook(secret).sign("msg_3", at, BODY.decode()),
    }
    return {name: value for name, value in {**made, **others}.items() if value}


def test_what_the_service_has_signed_is_believed() -> None:
    assert verify(SECRET, headers(), BODY) == CONTENT
    both = f"{headers(OTHER)['Webhook-Signature']} {headers()['Webhook-Signature']}"
    assert verify(SECRET, headers(**{"Webhook-Signature": both}), BODY) == CONTENT, "while the secret is being rotated"


@pytest.mark.parametrize(
    ("sent", "body"),
    [
        ({}, BODY.replace(b"5.00", b"9.00")),
        ({"secret": OTHER}, BODY),
        ({"age": timedelta(minutes=6)}, BODY),
        ({"age": -timedelta(minutes=6)}, BODY),
        ({"Webhook-Id": "msg_4"}, BODY),
        ({"Webhook-Id": ""}, BODY),
        ({"Webhook-Timestamp": "now"}, BODY),
        ({"Webhook-Signature": ""}, BODY),
        ({"Webhook-Signature": "v1"}, BODY),
        ({"Webhook-Signature": "v1,%"}, BODY),
        ({"Webhook-Signature": "v1,a,b"}, BODY),
        ({}, b"\xff"),
    ],
)
def test_nothing_else_is(sent: dict[str, Any], body: bytes) -> None:
    with pytest.raises(Forged):
        verify(SECRET, headers(**sent), body)


def heard(*events: tuple[str, int, str]) -> tuple[list[bool], bool, str]:
    """Which of one user's events were news; whether the campaign is on at last, and the balance it goes by."""
    campaigns = Campaigns()
    news = [campaigns.hear(kind, 7, seq, balance, f"2026-{seq}") for kind, seq, balance in events]
    (campaign,) = campaigns.listed()
    return news, bool(campaign["on"]), str(campaign["balance"])


def test_a_campaign_runs_while_there_is_money() -> None:
    paid, funded, depleted = "transaction.completed", "account.funded", "account.depleted"
    assert heard((paid, 1, "0.01"), (funded, 1, "0.01")) == ([True, True], True, "0.01")
    assert heard((funded, 1, "5.00"), (depleted, 2, "0.00")) == ([True, True], False, "0.00")
    assert heard(("transaction.rejected", 1, "0.00")) == ([True], False, "0.00")


def test_what_comes_twice_or_late_changes_nothing() -> None:
    funded, depleted = "account.funded", "account.depleted"
    assert heard((funded, 1, "5.00"), (depleted, 2, "0.00"), (funded, 1, "5.00")) == (
        [True, True, False],
        False,
        "0.00",
    )
    assert heard((funded, 3, "5.00"), (depleted, 2, "0.00")) == ([True, True], True, "5.00"), (
        "news of its type, but old"
    )
    assert heard((funded, 3, "5.00"), (funded, 2, "4.00")) == ([True, False], True, "5.00")


def test_since_when_is_told_of_the_last_switch() -> None:
    campaigns = Campaigns()
    for seq, balance in ((1, "5.00"), (2, "4.00"), (3, "0.00"), (4, "0.00")):
        campaigns.hear("transaction.completed", 7, seq, balance, f"instant {seq}")
    assert [c["changed_at"] for c in campaigns.listed()] == ["instant 3"]
    campaigns.hear("transaction.completed", 2, 1, "1.00", "later")
    assert [c["user_id"] for c in campaigns.listed()] == [2, 7]


def test_the_page_lists_the_last_switch_first() -> None:
    engine = Engine(Service("http://127.0.0.1:1"))
    assert "There is no deposit yet" in page(engine)
    for user_id, balance, at in ((1, "1250.50", "2026-11-23T10:00:00.1Z"), (2, "0.00", "2026-11-23T10:00:01.2Z")):
        engine.campaigns.hear("transaction.completed", user_id, 1, balance, at)
    shown = page(engine)
    assert shown.index("<td>2</td>") < shown.index("<td>1</td>")
    assert '<td class="money">1,250.50</td><td>2026-11-23 10:00:00</td>' in shown
    assert "the list is not complete yet" in shown
    engine.caught_up = True
    assert "the list is not complete yet" not in page(engine)
