"""One message to one receiver: resolve, check, connect to the very address that was checked, sign, send.

Whatever a receiver does, it is over after ten seconds: a timer cuts the line, because time-outs of a socket begin
anew with every byte that drips in. Redirects are answers like any other that is not 2xx.

The answer is read here and not by http.client, which takes 102 and 103 for final answers and refuses more than 100
headers: the first final status line decides, and nothing after it can take a receipt back.
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

from shared.receivers import Address, TargetUrl, is_public, parse_target_url
from shared.settings import settings

TARGET_CONNECT_TIMEOUT_SECONDS: Final = 3.0  # to one address
TOTAL_CONNECT_TIMEOUT_SECONDS: Final = 6.0  # to all addresses of a name: the rest of the time is for the answer
MIN_CONNECT_TIMEOUT_SECONDS: Final = 0.5
DELIVERY_TIMEOUT_SECONDS: Final = 10.0
MAX_RESPONSE_HEAD_BYTES: Final = 1024 * 1024  # of all interim answers and of the headers of the final one
MAX_RESPONSE_BODY_BYTES: Final = 64 * 1024
SWITCHING_PROTOCOLS: Final = 101
GONE: Final = 410

# The code is whole once a space or the end of the line follows it.
_STATUS_LINE = re.compile(rb"HTTP/1\.[01] ([1-9][0-9]{2})(?=[ \r\n])")


class NotPublic(Exception):
    """A receiver's address is not of the public internet."""


class Message(NamedTuple):
    """What is sent. The id is the same at each attempt."""

    id: str
    body: str


class Receipt(NamedTuple):
    """How an attempt went: the answer's status, or why there was none.

    `retry_after_seconds`: how long the receiver asks to be left alone; of an answer that is not 2xx.
    """

    status: int | None
    error: str | None = None
    retry_after_seconds: float | None = None

    @property
    def delivered(self) -> bool:
        return self.status is not None and 200 <= self.status < 300

    @property
    def summary(self) -> str:
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
    """Where a receiver is. Raises NotPublic if any of it may not be sent to, OSError if its name does not resolve."""
    addresses = [receiver.address] if receiver.address else _resolve(receiver.host, seconds)
    if not settings().webhook_allow_private and not all(map(is_public, addresses)):
        raise NotPublic
    return addresses


def _resolve(host: str, seconds: float) -> list[Address]:
    """As getaddrinfo, which knows no time-out."""
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
    """A connection to the first address that takes one; it is cut when the time is over.

    Raises what the last address raised. Nothing has been sent by then, so trying the next one repeats nothing.
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
    """Cut the connection when the time is over, and close it at the end of the block."""
    timer = threading.Timer(max(0.0, deadline - time.monotonic()), _cut, [connection])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        connection.close()


def _connection(receiver: TargetUrl, address: str, seconds: float) -> HTTPConnection:
    """To the address; the certificate must be the name's."""
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
    """Made once: reading the authorities' certificates takes longer than a delivery."""
    return ssl.create_default_context()


def _cut(connection: HTTPConnection) -> None:
    """Whoever reads from it or writes to it in another thread gets an error."""
    with suppress(OSError):
        if (line := connection.sock) is not None:
            socket.socket.shutdown(line, socket.SHUT_RDWR)  # TLS's own would first say goodbye


def _exchange(connection: HTTPConnection, receiver: TargetUrl, signed: Mapping[str, str], body: str) -> Receipt:
    headers = {
        "Host": receiver.header,
        "User-Agent": "payments",
        "Content-Type": "application/json",
        "Connection": "close",
        **signed,
    }
    with suppress(ConnectionError):  # a receiver may answer, and close, before it has read all of it
        connection.request("POST", receiver.target, body=body.encode(), headers=headers)
    assert connection.sock is not None
    with connection.sock.makefile("rb") as stream:
        return _read_receipt(stream)


def _read_receipt(stream: BufferedReader) -> Receipt:
    """The receipt of the first final answer. Raises HTTPException or OSError where there is none."""
    lines = _read_lines(stream)
    status = _read_status(lines)
    headers: dict[bytes, bytes] = {}
    with suppress(OSError):  # the status is the receipt; the rest is courtesy
        if _read_headers(lines, headers):
            _read_body(stream, headers)
    receipt = Receipt(status)
    if receipt.delivered:
        return receipt
    return receipt._replace(retry_after_seconds=_parse_retry_after(headers.get(b"retry-after", b"")))


def _read_lines(stream: BufferedReader) -> Iterator[bytes]:
    """The lines of the interim answers and of the final one's head, up to a total size."""
    remaining = MAX_RESPONSE_HEAD_BYTES
    while remaining > 0 and (line := stream.readline(remaining)):
        remaining -= len(line)
        yield line


def _read_status(lines: Iterator[bytes]) -> int:
    """The status of the first answer that is final: interim ones (RFC 9110, 15.2) are passed over."""
    for line in lines:
        if not (match := _STATUS_LINE.match(line)):
            raise BadStatusLine("")  # without the line: it would get into the log
        status = int(match[1])
        if status >= 200 or status == SWITCHING_PROTOCOLS:  # 101: we have not offered to
            return status
        _read_headers(lines, {})
    raise RemoteDisconnected("no final answer")


def _read_headers(lines: Iterator[bytes], headers: dict[bytes, bytes]) -> bool:
    """Add an answer's headers, by their names in lower case. Whether its head has been read to the end."""
    for line in lines:
        if not line.strip(b"\r\n"):
            return True
        name, _, value = line.partition(b":")
        headers.setdefault(name.strip().lower(), value.strip())
    return False


def _read_body(stream: BufferedReader, headers: Mapping[bytes, bytes]) -> None:
    """Read the body to its end, if that is near: closing a connection that holds unread bytes resets it."""
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
    """Seconds from now; None for a value that is neither a number of seconds nor a date (RFC 9110, 10.2.3)."""
    text = value.decode("ascii", "replace")
    if re.fullmatch("[0-9]{1,18}", text, re.ASCII):
        return float(text)
    try:
        date = parsedate_to_datetime(text[:100])
        return max(0.0, (date.replace(tzinfo=date.tzinfo or UTC) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError, OverflowError):
        return None


def _describe(error: Exception) -> str:
    """The error's kind and the system's own words: never an address, a header or a body."""
    cause: BaseException = error
    while (deeper := cause.__cause__ or cause.__context__) is not None and not getattr(cause, "strerror", None):
        cause = deeper
    return f"{type(error).__name__}: {getattr(cause, 'strerror', None) or type(cause).__name__}"[:200]
