"""What the engine does: begin with the whole feed, then go on by webhooks, or by asking every second without them."""

import threading
from collections.abc import Mapping
from typing import Final

from examples.ad_engine.campaigns import Campaigns
from examples.ad_engine.service import Forged, Hook, NoAnswer, Service, verify

POLL_SECONDS: Final = 1.0
CHECK_SECONDS: Final = 60.0  # with webhooks: should one be lost for good, the feed still has what it told


class Engine:
    def __init__(self, service: Service) -> None:
        self.service = service
        self.campaigns = Campaigns()
        self.says = ""
        self.caught_up = False  # once: until then the list is not whole
        self._cursor = ""
        self._hook: Hook | None = None

    def subscribe(self, address: str) -> None:
        """Before the feed is read: what is settled between the two comes by both, and by neither if it were after."""
        found = self.service.add_webhook(address)
        if isinstance(found, Hook):
            self._hook = found
            self.says = f"listens to the webhooks of {self.service.url}"
        else:
            self.says = f"follows the feed of {self.service.url}, asking every second ({found})"

    def unsubscribe(self) -> None:
        if self._hook:
            self.service.remove_webhook(self._hook)

    def catch_up(self) -> None:
        """Read the feed to its end. The cursor moves on once its page has been taken in."""
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
        """Take in a delivery; whether it was news. Raises Forged."""
        if not self._hook:
            raise Forged("no webhook of ours")
        content = verify(self._hook.secret, headers, body)
        data = content["data"]
        return self.campaigns.hear(
            content["type"], data["user_id"], data["user_seq"], data["balance"], content["timestamp"]
        )

    def follow(self, stop: threading.Event) -> None:
        while not stop.wait(CHECK_SECONDS if self._hook else POLL_SECONDS):
            try:
                self.catch_up()
            except NoAnswer as error:
                print(f"ads: {error}", flush=True)
