"""One broken service for the tests of a module: `stack`. After each test it is healed, and its books must balance."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.stack import Stack
from tests.kit.http import Http

IN_PLAIN_RUNS = ("test_checker.py", "test_short_run.py")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What breaks things on purpose takes minutes: but for one, it runs when it is asked for, with `-m faults`."""
    for item in items:
        if item.path.parent == Path(__file__).parent and item.path.name not in IN_PLAIN_RUNS:
            item.add_marker("faults")


@pytest.fixture(scope="module")
def whole_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    started = Stack(tmp_path_factory.mktemp("stack"))
    try:
        yield started.wait_ready()
    finally:
        started.stop()


@pytest.fixture
def stack(whole_stack: Stack) -> Iterator[Stack]:
    yield whole_stack
    whole_stack.heal_and_verify()


@pytest.fixture
def http(stack: Stack) -> Http:
    return Http(stack.url)
