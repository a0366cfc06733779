"""One message to one receiver: resolve, check, connect to the very address that was checked, sign, send.

Whatever a receiver does, it is over after ten seconds: a timer cuts the line, because time-outs of a socket begin
anew with every byte that drips in. Redirects are answers like any other that is not 2xx.
"""

import json
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import cache
from http.client import HTTPException
from ipaddress import ip_address
from typing import Any, Final, NamedTuple

from standardwebhooks import Webhook as Signer
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import HTTPError

from shared.receivers import Address, Receiver, is_public, read_url
from shared.settings import settings

CONNECT_SECONDS: Final = 3.0
TOTAL_SECONDS: Final = 10.0
MOST_ANSWER_BYTES: Final = 64 * 1024
GONE: Final = 410


class NotPublic(Exception):
    """A receiver's address is not of the public internet."""


class Message(NamedTuple):
    """What is sent. The id is the same at each attempt."""

    id: str
    body: str


class Receipt(NamedTuple):
    """How an attempt went: the answer's status, or why there was none."""

    status: int | None
    error: str | None = None

    @property
    def delivered(self) -> bool:
        return self.status is not None and 200 <= self.status < 300

    @property
    def told(self) -> str:
        """In a few words, of which none is the receiver's or a secret."""
        return self.error or f"status {self.status}"


def write_body(type_: str, timestamp: str, data: Mapping[str, Any]) -> str:
    return json.dumps({"type": type_, "timestamp": timestamp, "data": data}, separators=(",", ":"))


def sign(message: Message, secrets: Sequence[str], moment: datetime) -> dict[str, str]:
    """The headers of Standard Webhooks, with a signature by each secret."""
    return {
        "webhook-id": message.id,
        "webhook-timestamp": str(int(moment.timestamp())),
        "webhook-signature": " ".join(Signer(secret).sign(message.id, moment, message.body) for secret in secrets),
    }


def send(url: str, secrets: Sequence[str], message: Message) -> Receipt:
    """Send once. Whatever goes wrong is in the receipt."""
    ends = time.monotonic() + TOTAL_SECONDS
    try:
        receiver = read_url(url)
        address = find_addresses(receiver, CONNECT_SECONDS)[0]
        with _connected(receiver, address, ends) as connection:
            return _exchange(connection, receiver, sign(message, secrets, datetime.now(UTC)), message.body)
    except NotPublic:
        return Receipt(None, "the address is not public")
    except (OSError, HTTPException, HTTPError, ValueError) as error:
        late = time.monotonic() >= ends
        return Receipt(None, f"no answer within {TOTAL_SECONDS:.0f} s" if late else _describe(error))


def find_addresses(receiver: Receiver, seconds: float) -> list[Address]:
    """Where a receiver is. Raises NotPublic if any of it may not be sent to, OSError if its name does not resolve."""
    addresses = [receiver.address] if receiver.address else _resolve(receiver.host, seconds)
    if not settings().webhook_allow_private and not all(map(is_public, addresses)):
        raise NotPublic
    return addresses


def _resolve(host: str, seconds: float) -> list[Address]:
    """As getaddrinfo, which knows no time-out."""
    found: list[Address] = []
    failed: list[OSError] = []

    def ask() -> None:
        try:
            answers = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
            found.extend(ip_address(str(answer[4][0]).partition("%")[0]) for answer in answers)
        except (OSError, ValueError) as error:
            failed.append(OSError(f"the name does not resolve: {error}"))

    asking = threading.Thread(target=ask, name="resolve", daemon=True)
    asking.start()
    asking.join(seconds)
    if asking.is_alive():
        raise TimeoutError("the name does not resolve in time")
    if failed or not found:
        raise failed[0] if failed else OSError("the name has no address")
    return found


@contextmanager
def _connected(receiver: Receiver, address: Address, ends: float) -> Iterator[HTTPConnection]:
    """A connection that is cut when the time is over."""
    connection = _connection(receiver, str(address))
    timer = threading.Timer(max(0.0, ends - time.monotonic()), _cut, [connection])
    timer.daemon = True
    timer.start()
    try:
        connection.connect()
        connection.timeout = TOTAL_SECONDS
        yield connection
    finally:
        timer.cancel()
        connection.close()


def _connection(receiver: Receiver, address: str) -> HTTPConnection:
    """To the address; the certificate must be the name's."""
    if receiver.scheme == "http":
        return HTTPConnection(address, receiver.port, timeout=CONNECT_SECONDS)
    return HTTPSConnection(
        address,
        receiver.port,
        timeout=CONNECT_SECONDS,
        server_hostname=receiver.host,
        assert_hostname=receiver.host,
        ssl_context=_context(),
    )


@cache
def _context() -> ssl.SSLContext:
    """Made once: reading the authorities' certificates takes longer than a delivery."""
    return ssl.create_default_context()


def _cut(connection: HTTPConnection) -> None:
    """Whoever reads from it or writes to it in another thread gets an error."""
    with suppress(OSError):
        if (line := connection.sock) is not None:
            socket.socket.shutdown(line, socket.SHUT_RDWR)  # TLS's own would first say goodbye


def _exchange(connection: HTTPConnection, receiver: Receiver, signed: Mapping[str, str], body: str) -> Receipt:
    headers = {
        "Host": receiver.header,
        "User-Agent": "payments",
        "Content-Type": "application/json",
        "Connection": "close",
        **signed,
    }
    whole = {"preload_content": False, "decode_content": False}  # as it comes: what is packed may be a bomb
    connection.request("POST", receiver.target, body=body.encode(), headers=headers, **whole)
    response = connection.getresponse()
    with suppress(OSError, HTTPException, HTTPError):  # the status is the receipt; the rest is courtesy
        response.read(MOST_ANSWER_BYTES)
    return Receipt(response.status)


def _describe(error: Exception) -> str:
    """The error's kind and the system's own words: never an address, a header or a body."""
    cause: BaseException = error
    while (deeper := cause.__cause__ or cause.__context__) is not None and not getattr(cause, "strerror", None):
        cause = deeper
    return f"{type(error).__name__}: {getattr(cause, 'strerror', None) or type(cause).__name__}"[:200]
