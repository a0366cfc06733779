"""One message to one receiver: to the very address that was checked, under the receiver's name, by its certificate."""

import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme

from shared import sending
from shared.errors import Invalid
from shared.queries.webhooks import NewWebhook
from shared.sending import Message, send
from shared.settings import settings
from shared.webhooks import register
from tests.receiver import Receiver, receiving

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


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as one:
        yield one


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


def test_a_name_is_looked_up_once_and_the_receiver_is_asked_for_by_it(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
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
    sending._context.cache_clear()
    yield receiver
    sending._context.cache_clear()


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
    sending._context.cache_clear()
    assert send(f"https://hooks.example:{port_of(secure)}/", SECRETS, MESSAGE).status is None
    assert secure.got == []


def test_no_secret_and_no_address_is_in_an_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    receipt = send(f"http://127.0.0.1:{port}/?token=abc", SECRETS, MESSAGE)
    assert receipt.error == "NewConnectionError: Connection refused"
