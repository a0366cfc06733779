"""A property-based tester of APIs compares /openapi.json with what the service does, with all of its checks."""

import subprocess
import sys
from pathlib import Path

import pytest
from running_service import Service, environment

pytestmark = pytest.mark.system

HERE = Path(__file__).parent
EXAMPLES = 50  # per operation


@pytest.mark.parametrize("seed", [1])
def test_the_document_and_the_service_agree(service: Service, tmp_path: Path, seed: int) -> None:
    done = subprocess.run(
        [
            *(str(Path(sys.executable).with_name("schemathesis")), "run", f"{service.url}/openapi.json"),
            *("--max-examples", str(EXAMPLES), "--seed", str(seed), "--no-color"),
            # the hooks have it in a form that knows what no schema can say
            *("--exclude-checks", "positive_data_acceptance"),
        ],
        cwd=tmp_path,
        env=environment(PYTHONPATH=str(HERE), SCHEMATHESIS_HOOKS="schemathesis_hooks"),
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-10_000:] + done.stderr[-2_000:]
    assert "passed" in done.stdout
