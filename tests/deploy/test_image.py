"""The Dockerfile and docker-compose.yml are well-formed, and what the image holds is enough for each process."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.deploy.manifests import ROOT

pytestmark = pytest.mark.house

PROGRAMS = Path(sys.executable).parent
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")


def test_hadolint_is_content_with_the_dockerfile() -> None:
    if not (PROGRAMS / "hadolint").exists():
        pytest.skip("there is no wheel of hadolint for this machine")
    run = subprocess.run([PROGRAMS / "hadolint", "Dockerfile"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr


def test_docker_compose_yml_is_what_compose_takes() -> None:
    check = [PROGRAMS / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", "docker-compose.yml"]
    run = subprocess.run(check, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr


def copied() -> list[str]:
    """What of the repository the image is made of."""
    lines = re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, re.MULTILINE)
    return [source for line in lines for source in line.split()[:-1]]


def test_the_builder_is_sent_what_it_copies_and_nothing_else() -> None:
    let_in = re.findall(r"^!(.+)$", (ROOT / ".dockerignore").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(let_in) == sorted(copied())


@pytest.mark.parametrize(
    "modules",
    [
        "web.app, web.__main__",
        "worker.app, worker.notify, worker.metrics_exporter, worker.liveness",
        "migrations.__main__",
        "local.main",
    ],
)
def test_what_is_copied_is_enough_for_each_process(modules: str, tmp_path: Path) -> None:
    for source in copied():
        if (ROOT / source).is_dir():
            shutil.copytree(ROOT / source, tmp_path / source, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            (tmp_path / source).parent.mkdir(exist_ok=True)
            shutil.copy(ROOT / source, tmp_path / source)
    run = subprocess.run(
        [sys.executable, "-c", f"import {modules}"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1", "BROKER_URL": "redis://127.0.0.1:1/0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr


def test_the_image_has_no_server_of_its_own_and_no_secret() -> None:
    assert "requirements/local.txt" not in DOCKERFILE
    assert not re.search(r"^(ARG|ENV).*(PASSWORD|SECRET|TOKEN|_URL)", DOCKERFILE, re.MULTILINE)
