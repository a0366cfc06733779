"""Which tests may run beside which, where several processes share the work: files with processes of their own to wait for
are passed around one by one; all others stay together and in order, as they share a database and a process's settings.
"""

import pytest
from hypothesis import HealthCheck, settings

# How long an example takes says something of the machine and of what else it does, nothing of the code.
settings.register_profile("payments", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("payments")

PASSED_AROUND = ("system", "faults")  # folders


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        around = item.path.parent.name in PASSED_AROUND
        item.add_marker(pytest.mark.xdist_group(item.path.name if around else "together"))
