"""The engine: reads the whole feed, then follows it through webhooks, or by polling if there are no webhooks."""

import threading
from collections.abc import Mapping
from typing import Final

from examples.ad_engine.campaigns import Campaigns
from examples.ad_engine.service import Forged, Hook, NoAnswer, Service, verify

POLL_SECONDS: Final = 1.0
CHECK_SECONDS: Final = 60.0  # polling interval with webhooks, in case a delivery is lost for good


class Engine:
    def __init__(self, service: Service) -> None:
        self.service = service
        self.campaigns = Campaigns()
        self.says = ""
        self.caught_up = False  # until then the list of campaigns is not complete
        self._cursor = ""
        self._hook: Hook | None = None

    def subscribe(self, address: str) -> None:
        """Registers a webhook, if the service allows it. Call it before the feed is read.

        Then a payment that is settled in between is reported twice. In the other order it would not be reported.
        """
        registered = self.service.add_webhook(address)
        if isinstance(registered, Hook):
            self._hook = registered
            self.says = f"listens to the webhooks of {self.service.url}"
        else:
            self.says = f"polls the feed of {self.service.url} every second ({registered})"

    def unsubscribe(self) -> None:
        """Deletes the webhook, if there is one."""
        if self._hook:
            self.service.remove_webhook(self._hook)

    def catch_up(self) -> None:
        """Reads the feed to its end. Stores the cursor of a page after its events are applied."""
        while True:
            items, cursor = self.service.read_events(self._cursor)
            for item in items:
                self.campaigns.hear(
                    item["type"], item["user_id"], item["user_seq"], item["balance"], item["occurred_at"]
                )
            self._cursor = cursor
            if not items:
                self.caught_up = True
                return

    def receive(self, headers: Mapping[str, str], body: bytes) -> bool:
        """Applies a delivery and returns whether it was new. Raises Forged if its signature is not valid."""
        if not self._hook:
            raise Forged("this program has no webhook")
        content = verify(self._hook.secret, headers, body)
        data = content["data"]
        return self.campaigns.hear(
            content["type"], data["user_id"], data["user_seq"], data["balance"], content["timestamp"]
        )

    def follow(self, stop: threading.Event) -> None:
        """Polls the feed until `stop` is set."""
        while not stop.wait(CHECK_SECONDS if self._hook else POLL_SECONDS):
            try:
                self.catch_up()
            except NoAnswer as error:
                print(f"ads: {error}", flush=True)
