"""The payment service as this program sees it: its feed, and its webhooks where it has them."""

import json
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any, Final, NamedTuple
from urllib.parse import quote

from standardwebhooks import Webhook, WebhookVerificationError

SECONDS: Final = 10
TYPES: Final = ("account.funded", "account.depleted", "transaction.completed")


class NoAnswer(Exception):
    """The service cannot be reached, or does not answer as it should."""


class Hook(NamedTuple):
    """A webhook of ours, and the secret that its deliveries are signed with."""

    id: str
    secret: str


class Forged(Exception):
    """A delivery that is not from the service, or too old."""


class Service:
    def __init__(self, url: str, key: str = "") -> None:
        self.url = url.rstrip("/")
        self._headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def read_events(self, after: str) -> tuple[list[dict[str, Any]], str]:
        """The events behind the cursor, and the cursor behind them."""
        status, page = self._ask("GET", f"/api/events/?limit=1000&after={quote(after)}")
        if status != 200:
            raise NoAnswer(f"the feed answered {status}: {page.get('detail', '')}")
        return page["items"], page["next"]

    def add_webhook(self, address: str) -> Hook | str:
        """Have events sent to this address; or why the service does not."""
        status, made = self._ask("POST", "/api/webhook/", {"url": address, "events": TYPES})
        if status == 201:
            return Hook(str(made["id"]), made["secret"])
        if status in (404, 405):
            return "it has no webhooks"
        return str(made.get("detail", f"it answered {status} to the webhook"))

    def remove_webhook(self, hook: Hook) -> None:
        self._ask("DELETE", f"/api/webhook/{quote(hook.id)}/")

    def _ask(self, method: str, path: str, body: object = None) -> tuple[int, dict[str, Any]]:
        sent = None if body is None else json.dumps(body).encode()
        asked = urllib.request.Request(self.url + path, sent, self._headers, method=method)  # noqa: S310 - our own url
        try:
            with self._opener.open(asked, timeout=SECONDS) as answer:
                return answer.status, json.loads(answer.read() or b"{}")
        except urllib.error.HTTPError as refusal:
            with refusal:
                return refusal.code, _document(refusal.read())
        except (OSError, ValueError) as error:
            raise NoAnswer(f"{self.url} does not answer: {error}") from error


def verify(secret: str, headers: Mapping[str, str], body: bytes) -> dict[str, Any]:
    """The delivery's content. Raises Forged: nothing of what it says may be believed."""
    try:
        content: dict[str, Any] = Webhook(secret).verify(body, dict(headers))
    except (WebhookVerificationError, ValueError) as error:  # ValueError: the library meets a signature that is none
        raise Forged(str(error)) from None
    return content


def _document(data: bytes) -> dict[str, Any]:
    try:
        document = json.loads(data)
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}
