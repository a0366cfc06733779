"""One message to one receiver: to the very address that was checked, under the receiver's name, by its certificate."""

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
import trustme

from shared.errors import Invalid
from shared.settings import settings
from shared.webhooks import transport
from shared.webhooks.manage import register
from shared.webhooks.model import NewWebhook
from shared.webhooks.transport import Message, send
from tests.kit.receiver import Receiver, speaking

pytestmark = pytest.mark.integration

SECRETS = ["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"]
MESSAGE = Message("evt_1_1", "{}")


@pytest.fixture(autouse=True)
def private_addresses(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    allow(monkeypatch, "1")
    yield
    settings.cache_clear()


def allow(monkeypatch: pytest.MonkeyPatch, private: str) -> None:
    monkeypatch.setenv("WEBHOOK_ALLOW_PRIVATE", private)
    settings.cache_clear()


def port_of(receiver: Receiver) -> str:
    return receiver.url.partition("127.0.0.1:")[2].partition("/")[0]


def names(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> list[str]:
    """Every name leads to these; fills the list with the names that were looked up."""
    asked: list[str] = []
    real = socket.getaddrinfo

    def look_up(host: str, *others: Any, **named: Any) -> Any:
        if host.endswith(".example"):
            asked.append(host)
            return [answer for address in addresses for answer in real(address, None, type=socket.SOCK_STREAM)]
        return real(host, *others, **named)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    return asked


def test_a_name_is_resolved_once_and_sent_as_the_host(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    """Looked up again to connect, it could lead elsewhere than where it was checked."""
    asked = names(monkeypatch, "127.0.0.1")
    receipt = send(f"http://hooks.example:{port_of(receiver)}/a?b=c", SECRETS, MESSAGE)
    assert receipt.delivered, receipt
    assert asked == ["hooks.example"]
    (got,) = receiver.got
    assert (got.path, got.headers["host"]) == ("/a?b=c", f"hooks.example:{port_of(receiver)}")
    assert got.verified_by(SECRETS[0])


@pytest.mark.parametrize("addresses", [["127.0.0.1"], ["8.8.8.8", "10.0.0.1"], ["8.8.8.8", "::1"], ["::ffff:10.0.0.1"]])
def test_a_name_with_any_private_address_is_refused(addresses: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    allow(monkeypatch, "0")
    names(monkeypatch, *addresses)
    with pytest.raises(Invalid):
        register(NewWebhook("http://hooks.example/", ["account.funded"], 0))
    assert send("http://hooks.example/", SECRETS, MESSAGE).error == "the address is not public"


def test_a_name_that_does_not_resolve_is_no_receipt(monkeypatch: pytest.MonkeyPatch) -> None:
    receipt = send("http://hooks.invalid/", SECRETS, MESSAGE)
    assert (receipt.delivered, receipt.status) == (False, None)
    assert receipt.error


@pytest.fixture
def secure(receiver: Receiver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    """The same receiver behind TLS. The authority of its certificate is one of those trusted."""
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("hooks.example").configure_cert(context)
    receiver.server.socket = context.wrap_socket(receiver.server.socket, server_side=True)
    authority.cert_pem.write_to_path(str(tmp_path / "authority.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "authority.pem"))
    transport._context.cache_clear()
    yield receiver
    transport._context.cache_clear()


def test_tls_is_by_the_receivers_name(secure: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    names(monkeypatch, "127.0.0.1")
    assert send(f"https://hooks.example:{port_of(secure)}/", SECRETS, MESSAGE).delivered
    other = send(f"https://other.example:{port_of(secure)}/", SECRETS, MESSAGE)
    assert other.status is None
    assert "SSL" in str(other.error) or "Certificate" in str(other.error)
    assert len(secure.got) == 1


def test_a_certificate_that_nobody_trusts_is_refused(secure: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    names(monkeypatch, "127.0.0.1")
    monkeypatch.delenv("SSL_CERT_FILE")
    transport._context.cache_clear()
    assert send(f"https://hooks.example:{port_of(secure)}/", SECRETS, MESSAGE).status is None
    assert secure.got == []


def test_no_secret_and_no_address_is_in_an_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    receipt = send(f"http://127.0.0.1:{port}/?token=abc", SECRETS, MESSAGE)
    assert receipt.error == "NewConnectionError: Connection refused"


OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def written(answer: bytes) -> transport.Receipt:
    """The receipt for an answer of these bytes."""
    with speaking(lambda line: line.sendall(answer)) as port:
        return send(f"http://127.0.0.1:{port}/", SECRETS, MESSAGE)


@pytest.mark.parametrize(
    "interim",
    [
        b"HTTP/1.1 100 Continue\r\n\r\n",
        b"HTTP/1.1 102 Processing\r\n\r\n",
        b"HTTP/1.1 103 Early Hints\r\nLink: </style.css>; rel=preload\r\n\r\n",
        b"HTTP/1.1 102 Processing\r\n\r\n" * 300,
        b"HTTP/1.1 103 Early Hints\r\n" + b"Link: </a>\r\n" * 200 + b"\r\n",
        b"HTTP/1.1 103 Early Hints\r\nLink: " + b"a" * 100_000 + b"\r\n\r\n",
    ],
    ids=["100", "102", "103", "many", "many headers", "a long header"],
)
def test_interim_answers_are_passed_over(interim: bytes) -> None:
    assert written(interim + OK).delivered
    assert written(interim + OK.replace(b"200", b"503")).status == 503
    assert not written(interim).delivered


def test_an_answer_that_switches_protocols_is_final() -> None:
    assert written(b"HTTP/1.1 101 Switching Protocols\r\n\r\n" + OK).status == 101


@pytest.mark.parametrize(
    "rest",
    [
        b"X-A: b\r\n" * 150 + b"Content-Length: 2\r\n\r\nok",
        b"X-A: " + b"a" * 70_000 + b"\r\nContent-Length: 2\r\n\r\nok",
        b"X-A: " + b"a" * 3_000_000 + b"\r\n\r\n",
        b"no header at all\r\n: neither\r\n\xff\x00\r\n\r\n",
        b"Content-Length: none\r\n\r\n",
        b"Content-Length: " + b"9" * 5000 + b"\r\n\r\nok",
        b"Content-Length: 5000000000\r\n\r\nok",
        b"Transfer-Encoding: chunked\r\n\r\nnonsense",
        b"X-A",
        b"",
    ],
    ids=["many", "long", "too long", "broken", "no length", "huge length", "cut", "chunks", "in the middle", "none"],
)
def test_a_final_2xx_is_a_receipt_whatever_its_headers(rest: bytes) -> None:
    for status in (b"200 OK", b"204", b"299 "):
        assert written(b"HTTP/1.1 " + status + b"\r\n" + rest).delivered
    assert written(b"HTTP/1.1 500 Oh\r\n" + rest).status == 500


def test_a_reset_after_the_status_line_is_a_receipt() -> None:
    def reset(line: socket.socket) -> None:
        line.sendall(b"HTTP/1.1 200 OK\r\nContent-")
        line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")

    with speaking(reset) as port:
        assert send(f"http://127.0.0.1:{port}/", SECRETS, MESSAGE).delivered


@pytest.mark.parametrize(
    "answer",
    [
        *(b"", b"\r\n", b"HTTP/1.1 200", b"HTTP/1.1 2", b"HTTP/1.1 20\r\n\r\n", b"HTTP/1.1 2000 OK\r\n\r\n"),
        *(b"HTTP/2 200\r\n\r\n", b"200 OK\r\n\r\n", b"SSH-2.0-OpenSSH_9.6\r\n"),
        *(b"x" * 100_000, b"x" * 3_000_000, b"\x16\x03\x01\x00"),
    ],
)
def test_what_is_no_status_line_is_no_receipt(answer: bytes) -> None:
    receipt = written(answer)
    assert (receipt.delivered, receipt.status) == (False, None)
    assert receipt.error


def test_an_endless_row_of_interim_answers_is_no_receipt() -> None:
    def speak(line: socket.socket) -> None:
        while True:
            line.sendall(b"HTTP/1.1 102 Processing\r\n\r\n" * 1000)

    with speaking(speak) as port:
        receipt = send(f"http://127.0.0.1:{port}/", SECRETS, MESSAGE)
    assert (receipt.delivered, receipt.status) == (False, None)
    assert "within" not in str(receipt.error), "by its size, before its time is over"


def test_a_body_that_does_not_end_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A receiver that keeps the connection open says where its body ends: nothing more is waited for."""
    monkeypatch.setattr(transport, "DELIVERY_TIMEOUT_SECONDS", 3600.0)
    ended = threading.Event()

    def answer(head: bytes, body: bytes) -> Callable[[socket.socket], None]:
        def speak(line: socket.socket) -> None:
            line.sendall(b"HTTP/1.1 200 OK\r\n" + head + b"\r\n\r\n" + body)
            ended.wait(100)

        return speak

    try:
        for head, body in (
            (b"Content-Length: 2", b"ok"),
            (b"content-length:0", b""),
            (b"Transfer-Encoding: chunked", b"2\r\nok\r\n0\r\n\r\n"),
            (b"Content-Length: 1000000", b"x" * 100_000),
        ):
            with speaking(answer(head, body)) as port:
                assert send(f"http://127.0.0.1:{port}/", SECRETS, MESSAGE).delivered
    finally:
        ended.set()


@pytest.mark.parametrize("status", [b"429", b"503", b"500", b"400", b"301"])
def test_retry_after_is_read_of_every_answer_that_is_no_receipt(status: bytes) -> None:
    def read(value: str) -> float | None:
        return written(
            b"HTTP/1.1 " + status + b" No\r\nretry-AFTER: " + value.encode() + b"\r\n\r\n"
        ).retry_after_seconds

    assert read("120") == 120
    assert read("0") == 0
    at = datetime.now(UTC) + timedelta(seconds=300)
    assert 290 < (read(format_datetime(at, usegmt=True)) or 0) <= 300
    assert read("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    assert (read("9" * 18) or 0) >= 10**9
    for bad in (
        "",
        "-1",
        "1.5",
        "soon",
        "9" * 5000,
        "Fri, 99 Foo 9999999999999 25:61:61",
        "Wed, 21 Oct",
        "\xff",
        ",",
        "(",
        '"',
    ):
        assert read(bad) is None, bad


def test_a_receipt_has_no_retry_after() -> None:
    assert written(b"HTTP/1.1 200 OK\r\nRetry-After: 5\r\n\r\n").retry_after_seconds is None


def test_all_addresses_of_a_name_are_tried_in_turn(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing listens on the first ones, as where a name leads to ::1 and to 127.0.0.1."""
    names(monkeypatch, "::1", "127.0.0.2", "127.0.0.1")
    assert send(f"http://hooks.example:{port_of(receiver)}/", SECRETS, MESSAGE).delivered
    assert len(receiver.got) == 1


def test_a_silent_address_leaves_time_for_the_next(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first one's queue of new connections is full, so that it answers no more of them."""
    with socket.create_server(("127.0.0.2", int(port_of(receiver))), backlog=0) as full:
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(full.getsockname())
        names(monkeypatch, "127.0.0.2", "127.0.0.1")
        monkeypatch.setattr(transport, "TARGET_CONNECT_TIMEOUT_SECONDS", 0.5)
        try:
            assert send(f"http://hooks.example:{port_of(receiver)}/", SECRETS, MESSAGE).delivered
        finally:
            for filler in fillers:
                filler.close()


def test_a_request_that_may_have_arrived_is_not_resent(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    with speaking(lambda _: None, "127.0.0.2", int(port_of(receiver))):
        names(monkeypatch, "127.0.0.2", "127.0.0.1")
        assert not send(f"http://hooks.example:{port_of(receiver)}/", SECRETS, MESSAGE).delivered
    assert receiver.got == []


def test_where_no_address_answers_the_error_says_why(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    names(monkeypatch, "127.0.0.2", "127.0.0.3")
    receipt = send(f"http://hooks.example:{port_of(receiver)}/", SECRETS, MESSAGE)
    assert receipt.error == "NewConnectionError: Connection refused"


def test_an_address_with_the_wrong_certificate_is_passed_over(
    secure: Receiver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing has been sent there yet."""
    with socket.create_server(("127.0.0.2", int(port_of(secure)))) as listener:
        names(monkeypatch, "127.0.0.2", "127.0.0.1")

        def close() -> None:
            listener.accept()[0].close()

        closing = threading.Thread(target=close)
        closing.start()
        assert send(f"https://hooks.example:{port_of(secure)}/", SECRETS, MESSAGE).delivered
        closing.join()
    assert len(secure.got) == 1
