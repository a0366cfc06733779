"""`./payments example ads` beside a real service: campaigns go on and off with the balance."""

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from examples.ad_engine.engine import Engine
from examples.ad_engine.page import HOOK_PATH, serve
from examples.ad_engine.service import Hook
from examples.ad_engine.service import Service as PaymentService
from payments_client import Payments
from tests.kit.http import Api, Http, get
from tests.kit.processes import ROOT, environment
from tests.kit.service import Service
from tests.kit.service import payments as run
from tests.kit.waiting import wait_until
from tests.unit.test_ad_engine import BODY, OTHER, SECRET, headers

pytestmark = pytest.mark.system


def fetched(url: str) -> str:
    answer = get(url)
    assert answer, "no whole answer"
    assert answer.status == 200, answer
    return answer.body.decode()


@contextmanager
def ads(*options: str) -> Iterator[str]:
    """The line it says when it has read the feed to its end."""
    command = [sys.executable, "-m", "local", "example", "ads", *options]
    with subprocess.Popen(command, cwd=ROOT, env=environment(PAYMENTS_ADS_PORT="0"), stdout=subprocess.PIPE) as engine:
        try:
            assert engine.stdout
            yield engine.stdout.readline().decode()
        finally:
            engine.send_signal(signal.SIGTERM)
            assert engine.wait(10) == 0


def test_a_campaign_goes_on_and_off_with_its_users_balance(start_service: Callable[..., Service]) -> None:
    service = start_service(WEBHOOK_ALLOW_PRIVATE="1")
    assert_campaigns_follow(service, f"listens to the webhooks of {service.url}")
    assert Api(service.url).ask("GET", "/api/webhook/").json == {"items": []}, "it has taken its webhook away"


def test_where_the_service_may_not_call_it_the_feed_is_followed(service: Service) -> None:
    assert_campaigns_follow(service, f"polls the feed of {service.url} every second (")


def assert_campaigns_follow(service: Service, says: str) -> None:
    payments = Payments(service.url)
    before, user = payments.add_user("Ada").id, payments.add_user("Bob").id
    payments.deposit(before, "1.00")
    with ads("--data", str(service.data)) as said:
        name, address, how = said.split(maxsplit=2)
        assert name == "ads"
        assert how.startswith(says)

        def campaign(user_id: int) -> dict[str, Any]:
            listed = json.loads(fetched(f"{address}/campaigns.json"))
            return next((one for one in listed if one["user_id"] == user_id), {"on": None})

        assert campaign(before)["on"] is True, "what was before is known from the feed's beginning"
        assert campaign(user)["on"] is None
        for pay, amount, on in (
            (payments.deposit, "5.00", True),
            (payments.withdraw, "5.00", False),
            (payments.deposit, "0.01", True),
        ):
            pay(user, amount)
            wait_until(lambda: campaign(user)["on"] is on, f"the campaign is {'on' if on else 'off'}")  # noqa: B023
        page = fetched(address)
        assert f'<tr><td>{user}</td><td class="on">on</td><td class="money">0.01</td>' in page


def test_what_it_cannot_do_is_one_clear_line(service: Service, tmp_path: Path) -> None:
    taken = service.url.rpartition(":")[2]
    for done, word in (
        (run("example", "ads", "--data", tmp_path), "no service runs"),
        (run("example", "ads", "--url", "http://127.0.0.1:1"), "does not answer"),
        (run("example", "ads", "--data", service.data, "--ads-port", taken), taken),
        (run("example", "nothing"), "nothing"),
    ):
        assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (1, "", 1), done
        assert word in done.stderr


@pytest.fixture
def deliver() -> Iterator[Callable[..., int]]:
    """Sends a delivery to an engine whose webhook is registered; the status of its answer."""
    engine = Engine(PaymentService("http://127.0.0.1:1"))
    engine._hook = Hook("1", SECRET)
    server = serve(engine, 0)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()

    def send(sent: dict[str, str], path: str = HOOK_PATH) -> int:
        return Http(f"http://127.0.0.1:{server.server_port}").send("POST", path, BODY, sent).status

    send.campaigns = engine.campaigns.listed  # type: ignore[attr-defined]
    yield send
    server.shutdown()
    server.server_close()
    thread.join()


def test_only_a_signed_delivery_switches_a_campaign_on(deliver: Any) -> None:
    assert deliver(headers(OTHER)) == 401
    assert deliver(headers(), "/elsewhere") == 404
    assert deliver.campaigns() == []
    assert [deliver(headers()) for _ in range(2)] == [204, 204]
    assert [(one["user_id"], one["on"], one["balance"]) for one in deliver.campaigns()] == [(7, True, "5.00")]
