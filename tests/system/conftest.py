"""The running service, one for all tests that only use it; `start_service` for those that break it."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from running_service import Service


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    started = Service(tmp_path_factory.mktemp("service") / "data").wait_ready()
    yield started
    started.stop()


@pytest.fixture
def start_service(tmp_path: Path) -> Iterator[Callable[..., Service]]:
    """A factory: start_service() waits for `ready`; options and variables as of `up`."""
    started: list[Service] = []

    def start(*options: str, data: Path = tmp_path / "data", wait: bool = True, **changes: str) -> Service:
        started.append(Service(data, options, changes))
        return started[-1].wait_ready() if wait else started[-1]

    yield start
    for one in reversed(started):
        one.stop()
