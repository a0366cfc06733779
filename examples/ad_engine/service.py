"""A client of the payment service: its event feed, its webhooks, and the check of a delivery's signature."""

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
    """The service cannot be reached, or its response is not as expected."""


class Hook(NamedTuple):
    """A webhook of this program, and the secret with which its deliveries are signed."""

    id: str
    secret: str


class Forged(Exception):
    """A delivery is not from the service, or too old."""


class Service:
    def __init__(self, url: str, key: str = "") -> None:
        self.url = url.rstrip("/")
        self._headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def read_events(self, after: str) -> tuple[list[dict[str, Any]], str]:
        """Returns the events after the cursor, and the cursor of the next page. Raises NoAnswer."""
        status, page = self._send("GET", f"/api/events/?limit=1000&after={quote(after)}")
        if status != 200:
            raise NoAnswer(f"the feed answered {status}: {page.get('detail', '')}")
        return page["items"], page["next"]

    def add_webhook(self, address: str) -> Hook | str:
        """Registers a webhook for this address. Returns it, or the reason for which the service refused it."""
        status, document = self._send("POST", "/api/webhook/", {"url": address, "events": TYPES})
        if status == 201:
            return Hook(str(document["id"]), document["secret"])
        if status in (404, 405):
            return "it has no webhooks"
        return str(document.get("detail", f"it answered {status} to the webhook"))

    def remove_webhook(self, hook: Hook) -> None:
        """Deletes the webhook. Raises NoAnswer."""
        self._send("DELETE", f"/api/webhook/{quote(hook.id)}/")

    def _send(self, method: str, path: str, body: object = None) -> tuple[int, dict[str, Any]]:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, self._headers, method=method)  # noqa: S310 - our own url
        try:
            with self._opener.open(request, timeout=SECONDS) as response:
                return response.status, json.loads(response.read() or b"{}")
        except urllib.error.HTTPError as error_response:
            with error_response:
                return error_response.code, _document(error_response.read())
        except (OSError, ValueError) as error:
            raise NoAnswer(f"{self.url} does not answer: {error}") from error


def verify(secret: str, headers: Mapping[str, str], body: bytes) -> dict[str, Any]:
    """Returns the delivery's content. Raises Forged if the signature is not valid or too old."""
    try:
        content: dict[str, Any] = Webhook(secret).verify(body, dict(headers))
    except (WebhookVerificationError, ValueError) as error:  # ValueError: the signature is malformed
        raise Forged(str(error)) from None
    return content


def _document(data: bytes) -> dict[str, Any]:
    try:
        document = json.loads(data)
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}
