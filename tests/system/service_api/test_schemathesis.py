"""A property-based tester of APIs compares /openapi.json with what the service does, with all of its checks."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.kit.processes import environment
from tests.kit.service import Service, payments

pytestmark = pytest.mark.system

HERE = Path(__file__).parent
EXAMPLES = 25  # per operation


@pytest.mark.timeout(600)
@pytest.mark.parametrize("asks_for_keys", [False, True])
def test_the_document_and_the_service_agree(
    service: Service, start_service: Callable[..., Service], tmp_path: Path, asks_for_keys: bool
) -> None:
    headers: tuple[str, ...] = ()
    if asks_for_keys:
        service = start_service(PAYMENTS_AUTH="required")
        made = payments("key", "create", "--name", "tester", "--scope", "admin", "--data", service.data)
        headers = ("--header", f"Authorization: Bearer {made.stdout.split()[-1]}")
    done = subprocess.run(
        [
            *(str(Path(sys.executable).with_name("schemathesis")), "run", f"{service.url}/openapi.json"),
            *(
                "--max-examples",
                str(EXAMPLES if asks_for_keys else EXAMPLES // 2),
                "--seed",
                "1",
                "--no-color",
                *headers,
            ),
            # the hooks have it in a form that knows what no schema can say
            *("--exclude-checks", "positive_data_acceptance"),
            *("--suppress-health-check", "too_slow"),  # which says nothing of the service
        ],
        cwd=tmp_path,
        env=environment(PYTHONPATH=str(HERE), SCHEMATHESIS_HOOKS="schemathesis_hooks"),
        capture_output=True,
        text=True,
        timeout=550,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-10_000:] + done.stderr[-2_000:]
    assert "passed" in done.stdout
