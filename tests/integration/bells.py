"""A broker of a test's own, for what is done to the doorbell."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from shared.payments import doorbell
from shared.settings import settings
from tests.kit.servers import running_broker


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
    with running_broker(tmp_path) as broker:
        monkeypatch.setenv("BROKER_URL", broker.url)
        forget()
        yield broker.url
