"""Who is let in: every address by every kind of key, against the web application and its database."""

import time
from collections.abc import Iterator
from threading import Event

import pytest
from flask.testing import FlaskClient
from sqlalchemy import text

from shared.auth import api_keys
from shared.auth.scopes import Scope
from shared.errors import Unavailable
from shared.settings import settings
from tests.integration.factories import new_user, outsider
from web.app import create_app
from web.limits import auth, cached_read
from web.limits.cached_read import CachedRead
from web.limits.rate_limit import RateLimiter

pytestmark = pytest.mark.integration

UID = "0193e7a5-5bb2-7b3c-8f0a-3f2d6f1f2a10"
OPEN = ("/livez", "/readyz", "/metrics", "/docs", "/docs/swagger-ui.css", "/openapi.json")
# As API.md has it: what each address needs.
NEEDS = {
    ("GET", "/"): Scope.READ,
    ("POST", "/api/user/"): Scope.WRITE,
    ("GET", "/api/user/7/"): Scope.READ,
    ("GET", "/api/user/7/balance/"): Scope.READ,
    ("GET", "/api/user/7/transactions/"): Scope.READ,
    ("PUT", "/api/transaction/"): Scope.WRITE,
    ("GET", f"/api/transaction/{UID}"): Scope.READ,
    ("POST", f"/api/transaction/{UID}"): Scope.READ,
    ("PUT", "/api/transactions/"): Scope.WRITE,
    ("GET", "/api/events/"): Scope.READ,
    ("POST", "/api/webhook/"): Scope.ADMIN,
    ("GET", "/api/webhook/"): Scope.ADMIN,
    ("GET", "/api/webhook/7/"): Scope.ADMIN,
    ("DELETE", "/api/webhook/7/"): Scope.ADMIN,
    ("POST", "/api/webhook/7/test"): Scope.ADMIN,
    ("POST", "/api/webhook/7/rotate-secret"): Scope.ADMIN,
    ("POST", "/api/webhook/7/replay"): Scope.ADMIN,
    ("GET", "/api/webhook/7/dead-letters"): Scope.ADMIN,
    ("GET", "/nowhere"): Scope.READ,
    ("PUT", "/nowhere"): Scope.READ,
}


@pytest.fixture(autouse=True)
def keys_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    ask_for(monkeypatch, PAYMENTS_AUTH="required")
    yield
    settings.cache_clear()


def ask_for(monkeypatch: pytest.MonkeyPatch, **variables: str) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    settings.cache_clear()
    monkeypatch.setattr(
        auth, "_keys", CachedRead("the keys", api_keys.read_valid, auth.KEYS_MAX_AGE_SECONDS, "read_keys")
    )
    monkeypatch.setattr(auth, "_limiter", RateLimiter())


@pytest.fixture
def client() -> FlaskClient:
    return create_app().test_client()


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@pytest.fixture(scope="module")
def key_of() -> dict[Scope, str]:
    return {scope: api_keys.create(f"test-{scope}", scope)[1] for scope in Scope}


@pytest.mark.parametrize("shown", [None, *Scope])
@pytest.mark.parametrize(("asked", "needed"), NEEDS.items(), ids=[" ".join(asked) for asked in NEEDS])
def test_each_address_lets_in_its_scope_and_those_above(
    client: FlaskClient, key_of: dict[Scope, str], asked: tuple[str, str], needed: Scope, shown: Scope | None
) -> None:
    method, path = asked
    answer = client.open(path, method=method, headers=bearer(key_of[shown]) if shown else {})
    order = list(Scope)
    if shown is None:
        assert (answer.status_code, answer.json["code"]) == (401, "unauthorized")
        assert answer.headers["WWW-Authenticate"].startswith("Bearer ")
    elif order.index(shown) < order.index(needed):
        assert (answer.status_code, answer.json["code"]) == (403, "insufficient_scope")
    else:
        assert answer.status_code not in (401, 403)
    assert answer.headers["X-Request-ID"]


def test_the_table_names_every_route() -> None:
    adapter = create_app().url_map.bind("")
    named = {adapter.match(path, method)[0] for method, path in NEEDS if path != "/nowhere"}
    named |= {adapter.match(path, "GET")[0] for path in OPEN}
    routes = {rule.endpoint for rule in create_app().url_map.iter_rules()}
    assert named == routes


@pytest.mark.parametrize("path", OPEN)
def test_some_addresses_are_open(client: FlaskClient, path: str) -> None:
    for headers in ({}, bearer("nonsense")):
        assert client.get(path, headers=headers).status_code == 200


def test_a_new_address_is_closed_to_all_but_the_widest_scope() -> None:
    assert auth.scope_needed("POST", "/api/new/") == Scope.ADMIN
    assert auth.scope_needed("DELETE", "/api/user/") == Scope.WRITE


@pytest.mark.parametrize(
    "header",
    [
        *("", "Bearer", "Bearer ", "Basic dTpw", "Bearer x", "Bearer pay_1_", f"Bearer pay_1_{'A' * 43}"),
        *(f"Bearer pay_{'9' * 18}_{'A' * 43}", f"Bearer pay_{'9' * 400}_{'A' * 43}", "Bearer " + "x" * 60_000),
        *("Bearer pay_1_" + "\u00e9" * 43, "Bearer pay_-1_" + "A" * 43, "Bearer \u0661"),
    ],
)
def test_what_is_no_key_lets_nobody_in(client: FlaskClient, header: str) -> None:
    assert client.get("/api/user/0/", headers={"Authorization": header}).status_code == 401


def test_another_keys_secret_opens_nothing(client: FlaskClient, key_of: dict[Scope, str]) -> None:
    _, number, secret = key_of[Scope.READ].split("_", 2)
    _, other, _ = key_of[Scope.ADMIN].split("_", 2)
    assert client.get("/api/user/0/", headers=bearer(f"pay_{number}_{secret}")).status_code == 404
    assert client.get("/api/user/0/", headers=bearer(f"pay_{other}_{secret}")).status_code == 401
    assert client.get("/api/user/0/", headers=bearer(f"pay_{number}_{secret[:-1]}_")).status_code == 401


def test_a_new_key_is_valid_at_once(client: FlaskClient) -> None:
    for _ in range(3):
        (number, key) = api_keys.create("new", Scope.READ)
        assert client.get("/api/user/0/", headers=bearer(key)).status_code == 404
        assert client.get("/api/user/0/", headers=bearer(f"pay_{number + 1}_{'A' * 43}")).status_code == 401


def test_a_revoked_key_is_refused_after_the_next_read(client: FlaskClient, monkeypatch: pytest.MonkeyPatch) -> None:
    (number, key), (_, other) = api_keys.create("old", Scope.READ), api_keys.create("new", Scope.READ)
    assert client.get("/api/user/0/", headers=bearer(key)).status_code == 404
    assert client.get("/api/user/0/", headers=bearer(other)).status_code == 404, "both are valid"
    assert api_keys.revoke(number)
    monkeypatch.setattr(auth, "STALE_KEYS_MAX_AGE_SECONDS", 0.0)
    assert client.get("/api/user/0/", headers=bearer(key)).status_code == 401
    assert client.get("/api/user/0/", headers=bearer(other)).status_code == 404
    assert auth.STALE_KEYS_MAX_AGE_SECONDS + 2 <= 10


def test_auth_is_503_when_keys_cannot_be_read(
    client: FlaskClient, key_of: dict[Scope, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    never = Event()
    monkeypatch.setattr(auth, "_keys", CachedRead("the keys", lambda: never.wait(20) and {}, 3, "read_keys"))
    answer = client.get("/api/user/0/", headers=bearer(key_of[Scope.READ]))
    never.set()
    assert (answer.status_code, answer.json["code"]) == (503, "database_unavailable")
    assert answer.headers["Retry-After"]


def test_of_a_key_only_a_hash_is_stored() -> None:
    number, key = api_keys.create("hashed", Scope.READ)
    secret = key.split("_", 2)[2]
    with outsider() as connection:
        row = connection.scalar(text(f"SELECT to_jsonb(api_keys)::text FROM api_keys WHERE id = {number}"))
    assert '"scope": "read"' in row
    assert secret not in row
    assert len(secret) == 43, "256 bits"


def test_a_caller_who_asks_too_often_is_told_when_to_come_back(
    client: FlaskClient, key_of: dict[Scope, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ask_for(monkeypatch, PAYMENTS_AUTH="required", PAYMENTS_RATE_LIMIT="0.01")
    user = new_user()

    def ask(scope: Scope, path: str = f"/api/user/{user}/") -> int:
        answer = client.get(path, headers=bearer(key_of[scope]))
        if answer.status_code == 429:
            assert answer.json["code"] == "rate_limited"
            assert 1 <= int(answer.headers["Retry-After"]) <= 100
        return answer.status_code

    assert [ask(Scope.READ) for _ in range(3)] == [200, 429, 429]
    assert ask(Scope.WRITE) == 200, "each key has its own"
    assert ask(Scope.READ, "/livez") == 200


def test_the_document_speaks_of_keys_where_they_are_asked_for(
    client: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    from web.openapi.document import document

    put = document(create_app())["paths"]["/api/transaction/"]["put"]
    assert put["security"] == [{"key": ["write"]}]
    assert {"401", "403", "429"} <= put["responses"].keys()
    assert "security" not in document(create_app())["paths"]["/livez"]["get"]
    assert document(create_app())["components"]["securitySchemes"]["key"] == {"type": "http", "scheme": "bearer"}
    ask_for(monkeypatch, PAYMENTS_AUTH="off")
    put = document(create_app())["paths"]["/api/transaction/"]["put"]
    assert "security" not in put
    assert "401" not in put["responses"]


def test_a_read_without_a_thread_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    reading = CachedRead("something", lambda: 1, 60, "read_keys")
    with monkeypatch.context() as patch:
        patch.setattr(cached_read.threading.Thread, "start", lambda _: _raise(RuntimeError("can't start new thread")))
        with pytest.raises(Unavailable):
            reading.get(60)
    assert reading.get(60) == 1


def _raise(error: Exception) -> None:
    raise error


def test_a_reading_is_shared_by_all_who_ask_at_once() -> None:
    read: list[float] = []
    reading = CachedRead("something", lambda: read.append(time.monotonic()) or len(read), 60, "read_keys")
    assert reading.latest() == (None, float("inf"))
    assert reading.get(60) == 1
    assert [reading.get(60) for _ in range(5)] == [1] * 5
    assert reading.get(0) == 2
    assert read[1] - read[0] >= 0.09, "whoever asks and however often"
