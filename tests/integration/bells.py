"""A broker of a test's own, for what is done to the doorbell."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis
from redis.backoff import ConstantBackoff
from redis.retry import Retry

from shared import doorbell
from shared.settings import settings


def forget() -> None:
    """Have the doorbell find its broker anew, as if it had never failed."""
    settings.cache_clear()
    doorbell._redis.cache_clear()
    doorbell._sender.cache_clear()
    doorbell._circuit_open_until = 0.0
    doorbell._sent_at = float("-inf")


@pytest.fixture
def broker_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A real broker of the test's own."""
    from local import broker  # here: not needed, nor perhaps installed, where other tests run
    from local.addresses import free_port
    from tests.integration.conftest import _start

    program = broker.server(tmp_path, free_port(), {})
    process = _start(program)
    try:
        monkeypatch.setenv("BROKER_URL", str(program.url))
        forget()
        with Redis.from_url(str(program.url), retry=Retry(ConstantBackoff(0.05), 100)) as redis:
            redis.ping()
        yield str(program.url)
    finally:
        process.terminate()
        process.wait(10)
