"""Sends one message to one receiver: resolves the name, checks its addresses, connects to a checked one, signs, sends.

An attempt ends after ten seconds at most. A timer shuts the connection down, because a socket time-out starts again with
every byte received. Redirects are not followed: they count as failures, like any status that is not 2xx.

The response is parsed here, because http.client takes 102 and 103 for final responses and refuses more than 100
headers. The first final status line decides the outcome. Errors after it do not change the receipt.
"""

import json
import re
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cache
from http.client import BadStatusLine, HTTPException, RemoteDisconnected
from io import BufferedReader
from ipaddress import ip_address
from typing import Any, Final, NamedTuple

from standardwebhooks import Webhook as Signer
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import HTTPError

from shared.settings import settings
from shared.webhooks.target_url import Address, TargetUrl, is_public, parse_target_url

TARGET_CONNECT_TIMEOUT_SECONDS: Final = 3.0  # to one address
TOTAL_CONNECT_TIMEOUT_SECONDS: Final = 6.0  # to all addresses of a name; the remaining time is for the response
MIN_CONNECT_TIMEOUT_SECONDS: Final = 0.5
DELIVERY_TIMEOUT_SECONDS: Final = 10.0
MAX_RESPONSE_HEAD_BYTES: Final = 1024 * 1024  # all interim responses and the headers of the final one
MAX_RESPONSE_BODY_BYTES: Final = 64 * 1024
SWITCHING_PROTOCOLS: Final = 101
GONE: Final = 410

# The status code is complete when a space or the end of the line follows it.
_STATUS_LINE = re.compile(rb"HTTP/1\.[01] ([1-9][0-9]{2})(?=[ \r\n])")


class NotPublic(Exception):
    """The address of a receiver is not on the public internet."""


class Message(NamedTuple):
    """A message to send. Its id is the same at each attempt."""

    id: str
    body: str


class Receipt(NamedTuple):
    """The result of an attempt: the status of the response, or the error that prevented one.

    `retry_after_seconds`: the value of Retry-After; only set if the status is not 2xx.
    """

    status: int | None
    error: str | None = None
    retry_after_seconds: float | None = None

    @property
    def delivered(self) -> bool:
        """Returns whether the status is 2xx."""
        return self.status is not None and 200 <= self.status < 300

    @property
    def summary(self) -> str:
        """Returns a short description without secrets and without text of the receiver."""
        return self.error or f"status {self.status}"


def write_body(type_: str, timestamp: str, data: Mapping[str, Any]) -> str:
    """Returns the body of a message as JSON text, in the envelope of Standard Webhooks. `timestamp` is UTC."""
    return json.dumps({"type": type_, "timestamp": timestamp, "data": data}, separators=(",", ":"))


def sign(message: Message, secrets: Sequence[str], moment: datetime) -> dict[str, str]:
    """Returns the headers of Standard Webhooks, with one signature for each secret."""
    return {
        "webhook-id": message.id,
        "webhook-timestamp": str(int(moment.timestamp())),
        "webhook-signature": " ".join(Signer(secret).sign(message.id, moment, message.body) for secret in secrets),
    }


def send(url: str, secrets: Sequence[str], message: Message) -> Receipt:
    """Sends a message once and returns the receipt. Network and protocol errors are in the receipt, never raised."""
    deadline = time.monotonic() + DELIVERY_TIMEOUT_SECONDS
    try:
        receiver = parse_target_url(url)
        addresses = find_addresses(receiver, TARGET_CONNECT_TIMEOUT_SECONDS)
        with _connected(receiver, addresses, deadline) as connection:
            return _exchange(connection, receiver, sign(message, secrets, datetime.now(UTC)), message.body)
    except NotPublic:
        return Receipt(None, "the address is not public")
    except (OSError, HTTPException, HTTPError, ValueError) as error:
        late = time.monotonic() >= deadline
        return Receipt(None, f"no answer within {DELIVERY_TIMEOUT_SECONDS:.0f} s" if late else _describe(error))


def find_addresses(receiver: TargetUrl, seconds: float) -> list[Address]:
    """Returns the addresses of a receiver. `seconds` is the time-out for the name.

    Raises NotPublic if one of the addresses is not allowed, OSError if the name does not resolve.
    """
    addresses = [receiver.address] if receiver.address else _resolve(receiver.host, seconds)
    if not settings().webhook_allow_private and not all(map(is_public, addresses)):
        raise NotPublic
    return addresses


def _resolve(host: str, seconds: float) -> list[Address]:
    """Returns the addresses of a name. Uses a thread, because getaddrinfo has no time-out."""
    addresses: list[Address] = []
    failures: list[OSError] = []

    def look_up() -> None:
        try:
            answers = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
            addresses.extend(ip_address(str(answer[4][0]).partition("%")[0]) for answer in answers)
        except (OSError, ValueError) as error:
            failures.append(OSError(f"the name does not resolve: {error}"))

    thread = threading.Thread(target=look_up, name="resolve", daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise TimeoutError("the name does not resolve in time")
    if failures or not addresses:
        raise failures[0] if failures else OSError("the name has no address")
    return list(dict.fromkeys(addresses))


@contextmanager
def _connected(receiver: TargetUrl, addresses: Sequence[Address], deadline: float) -> Iterator[HTTPConnection]:
    """Yields a connection to the first address that accepts one, and shuts it down at the deadline.

    Raises the error of the last address. Nothing is sent before a connection is open, so trying the next one is safe.
    """
    connect_deadline = min(deadline, time.monotonic() + TOTAL_CONNECT_TIMEOUT_SECONDS)
    for untried in range(len(addresses), 0, -1):
        seconds = max(MIN_CONNECT_TIMEOUT_SECONDS, (connect_deadline - time.monotonic()) / untried)
        connection = _connection(receiver, str(addresses[-untried]), min(TARGET_CONNECT_TIMEOUT_SECONDS, seconds))
        with _cut_at(connection, deadline):
            try:
                connection.connect()
            except (OSError, HTTPException, HTTPError):
                if untried > 1 and time.monotonic() < connect_deadline:
                    continue
                raise
            connection.timeout = DELIVERY_TIMEOUT_SECONDS
            yield connection
            return


@contextmanager
def _cut_at(connection: HTTPConnection, deadline: float) -> Iterator[None]:
    """Shuts the connection down at the deadline, and closes it at the end of the block."""
    timer = threading.Timer(max(0.0, deadline - time.monotonic()), _cut, [connection])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        connection.close()


def _connection(receiver: TargetUrl, address: str, seconds: float) -> HTTPConnection:
    """Returns a connection to the address. The certificate must match the name of the host."""
    if receiver.scheme == "http":
        return HTTPConnection(address, receiver.port, timeout=seconds)
    return HTTPSConnection(
        address,
        receiver.port,
        timeout=seconds,
        server_hostname=receiver.host,
        assert_hostname=receiver.host,
        ssl_context=_context(),
    )


@cache
def _context() -> ssl.SSLContext:
    """Returns the cached TLS context: loading the CA certificates takes longer than a delivery."""
    return ssl.create_default_context()


def _cut(connection: HTTPConnection) -> None:
    """Shuts a connection down, so that a read or write in another thread fails."""
    with suppress(OSError):
        if (connected_socket := connection.sock) is not None:
            # Not the method of a TLS socket, which would send a closing message first.
            socket.socket.shutdown(connected_socket, socket.SHUT_RDWR)


def _exchange(connection: HTTPConnection, receiver: TargetUrl, signed: Mapping[str, str], body: str) -> Receipt:
    headers = {
        "Host": receiver.header,
        "User-Agent": "payments",
        "Content-Type": "application/json",
        "Connection": "close",
        **signed,
    }
    with suppress(ConnectionError):  # a receiver may respond and close before it has read the whole body
        connection.request("POST", receiver.target, body=body.encode(), headers=headers)
    assert connection.sock is not None
    with connection.sock.makefile("rb") as stream:
        return _read_receipt(stream)


def _read_receipt(stream: BufferedReader) -> Receipt:
    """Returns the receipt of the first final response. Raises HTTPException or OSError if there is none."""
    lines = _read_lines(stream)
    status = _read_status(lines)
    headers: dict[bytes, bytes] = {}
    with suppress(OSError):  # the status decides; headers and body are optional
        if _read_headers(lines, headers):
            _read_body(stream, headers)
    receipt = Receipt(status)
    if receipt.delivered:
        return receipt
    return receipt._replace(retry_after_seconds=_parse_retry_after(headers.get(b"retry-after", b"")))


def _read_lines(stream: BufferedReader) -> Iterator[bytes]:
    """Yields the lines of the interim responses and of the final headers, up to MAX_RESPONSE_HEAD_BYTES."""
    remaining = MAX_RESPONSE_HEAD_BYTES
    while remaining > 0 and (line := stream.readline(remaining)):
        remaining -= len(line)
        yield line


def _read_status(lines: Iterator[bytes]) -> int:
    """Returns the status of the first final response, and skips interim ones (RFC 9110, 15.2)."""
    for line in lines:
        if not (match := _STATUS_LINE.match(line)):
            raise BadStatusLine("")  # without the line, because the error is logged
        status = int(match[1])
        if status >= 200 or status == SWITCHING_PROTOCOLS:  # 101 is final here: we never offer an upgrade
            return status
        _read_headers(lines, {})
    raise RemoteDisconnected("no final answer")


def _read_headers(lines: Iterator[bytes], headers: dict[bytes, bytes]) -> bool:
    """Adds the headers of a response, with names in lower case. Returns whether the end of the headers was reached."""
    for line in lines:
        if not line.strip(b"\r\n"):
            return True
        name, _, value = line.partition(b":")
        headers.setdefault(name.strip().lower(), value.strip())
    return False


def _read_body(stream: BufferedReader, headers: Mapping[bytes, bytes]) -> None:
    """Reads up to MAX_RESPONSE_BODY_BYTES of the body, because closing a connection with unread bytes resets it."""
    length = headers.get(b"content-length", b"")
    if re.fullmatch(rb"[0-9]{1,15}", length):
        stream.read(min(int(length), MAX_RESPONSE_BODY_BYTES))
        return
    chunked = b"chunked" in headers.get(b"transfer-encoding", b"").lower()
    body = b"\r\n"
    while len(body) < MAX_RESPONSE_BODY_BYTES and not (chunked and b"\r\n0\r\n" in body and body.endswith(b"\r\n\r\n")):
        if not (chunk := stream.read1(MAX_RESPONSE_BODY_BYTES)):
            return
        body += chunk


def _parse_retry_after(value: bytes) -> float | None:
    """Returns seconds from now, or None if the value is neither a number nor a date (RFC 9110, 10.2.3)."""
    text = value.decode("ascii", "replace")
    if re.fullmatch("[0-9]{1,18}", text, re.ASCII):
        return float(text)
    try:
        date = parsedate_to_datetime(text[:100])
        return max(0.0, (date.replace(tzinfo=date.tzinfo or UTC) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError, OverflowError):
        return None


def _describe(error: Exception) -> str:
    """Returns the type of an error and the message of the operating system: never an address, a header or a body."""
    cause: BaseException = error
    while (deeper := cause.__cause__ or cause.__context__) is not None and not getattr(cause, "strerror", None):
        cause = deeper
    return f"{type(error).__name__}: {getattr(cause, 'strerror', None) or type(cause).__name__}"[:200]
