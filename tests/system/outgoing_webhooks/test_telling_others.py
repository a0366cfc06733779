"""docs/webhooks-and-events.md: its pump into a Redis Stream does what the page says, as it stands there."""

import json
import re
from typing import Any

import pytest
import redis

from payments_client import Payments
from tests.kit.http import Api, transaction
from tests.kit.processes import ROOT
from tests.kit.service import Service

pytestmark = pytest.mark.system


class Cut(Exception):
    """The line to Redis is gone."""


class _CutsAtTheEnd:
    """A Redis whose line is cut before a transaction is sent to its end."""

    def __init__(self, real: "redis.Redis[str]") -> None:
        self.get = real.get
        self._real = real

    def pipeline(self, **options: Any) -> Any:
        pipe = self._real.pipeline(**options)

        def cut() -> None:
            raise Cut

        pipe.execute = cut
        return pipe


def test_the_documented_loop_reads_every_event_in_order(service: Service) -> None:
    page = (ROOT / "docs" / "webhooks-and-events.md").read_text(encoding="utf-8")
    (source,) = [code for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "xadd" in code]
    program: dict[str, Any] = {}
    exec(source, program)
    api, payments = Api(service.url), Payments(service.url)
    users = [api.add_user() for _ in range(3)]

    def pay() -> None:
        contents = [transaction(user, amount="1.00") for _ in range(20) for user in users]
        api.ask("PUT", "/api/transactions/", contents, expected=202)
        for content in contents:
            api.wait_final(content["uid"])

    with redis.Redis.from_url(service.broker_url, db=2, decode_responses=True) as server:
        pay()
        program["pump"](payments, server)
        pay()
        with pytest.raises(Cut):
            program["pump"](payments, _CutsAtTheEnd(server))
        for _ in range(2):
            program["pump"](payments, server)
        told = [fields for _, fields in server.xrange("payments")]
        server.flushdb()
    assert len({event["event"] for event in told}) == len(told), "none twice"
    for user in users:
        of_user = [event for event in told if event["user"] == str(user)]
        assert [int(event["seq"]) for event in of_user] == list(range(1, 41))
        assert [json.loads(event["event"])["balance"] for event in of_user] == [f"{n}.00" for n in range(1, 41)]
