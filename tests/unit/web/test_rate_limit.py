"""The bucket of tokens that each caller has."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from shared.auth.scopes import Scope
from shared.settings import Settings, is_loopback
from web.limits import rate_limit
from web.limits.rate_limit import RateLimiter

pytestmark = pytest.mark.unit


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(rate_limit.time, "monotonic", lambda: now[0])
    return now


def test_a_second_brings_what_a_second_may_take(clock: list[float]) -> None:
    limiter = RateLimiter()
    assert [limiter.take("a", 3) for _ in range(5)] == [0, 0, 0, 1, 1]
    clock[0] += 0.5
    assert [limiter.take("a", 3) for _ in range(2)] == [0, 1]
    clock[0] += 1000
    assert [limiter.take("a", 3) for _ in range(4)] == [0, 0, 0, 1], "no more is saved up"


def test_less_than_one_a_second_is_one_every_so_often(clock: list[float]) -> None:
    limiter = RateLimiter()
    assert [limiter.take("a", 0.1), limiter.take("a", 0.1)] == [0, 10]
    clock[0] += 4
    assert limiter.take("a", 0.1) == 6
    clock[0] += 6.1
    assert limiter.take("a", 0.1) == 0


def test_each_caller_has_a_bucket_of_its_own(clock: list[float]) -> None:
    limiter = RateLimiter()
    assert [limiter.take("a", 1), limiter.take("a", 1), limiter.take("b", 1)] == [0, 1, 0]
    for number in range(rate_limit.MAX_CALLERS):
        limiter.take(number, 1)
    assert len(limiter._buckets) == rate_limit.MAX_CALLERS
    assert limiter.take("a", 1) == 0


@pytest.mark.parametrize(
    ("host", "auth", "asked"),
    [
        ("127.0.0.1", "", False),
        ("::1", "", False),
        ("localhost", "", False),
        ("0.0.0.0", "", True),
        ("::", "", True),
        ("10.1.2.3", "", True),
        ("pay.example", "", True),
        ("127.0.0.1", "required", True),
        ("0.0.0.0", "off", False),
    ],
)
def test_a_key_is_asked_for_wherever_others_can_reach_it(host: str, auth: str, asked: bool) -> None:
    assert Settings(host=host, auth=auth).requires_keys == asked
    assert is_loopback(host) == (host in ("127.0.0.1", "::1", "localhost"))


def test_a_secret_comes_from_its_file_and_stands_in_no_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "url").write_text("redis://:secret@host/0\n")
    monkeypatch.delenv("DATABASE_URL", raising=False)
    monkeypatch.setenv("BROKER_URL", "")
    monkeypatch.setenv("BROKER_URL_FILE", str(tmp_path / "url"))
    assert Settings().broker_url == "redis://:secret@host/0"
    monkeypatch.setenv("DATABASE_URL_FILE", str(tmp_path / "nowhere"))
    with pytest.raises(ValidationError) as raised:
        Settings()
    assert "DATABASE_URL_FILE" in str(raised.value)
    assert "secret" not in str(raised.value)


def test_a_scope_allows_what_those_before_it_do() -> None:
    allowed = {scope: [needed for needed in Scope if scope.allows(needed)] for scope in Scope}
    assert allowed == {
        Scope.READ: [Scope.READ],
        Scope.WRITE: [Scope.READ, Scope.WRITE],
        Scope.ADMIN: [Scope.READ, Scope.WRITE, Scope.ADMIN],
    }
