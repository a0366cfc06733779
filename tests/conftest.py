"""How property-based tests run, and fixtures of several folders.

Where several processes share the suite, each file stays in one of them (local/commands/test.py).
"""

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from tests.kit.receiver import Receiver, receiving

# How long an example takes says something of the machine and of what else it does, nothing of the code.
settings.register_profile("payments", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("payments")


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """A receiver of webhooks on a port of its own."""
    with receiving() as started:
        yield started
