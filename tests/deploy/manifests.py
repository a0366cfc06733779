"""The deployment files as data: Kubernetes as kustomize renders it, docker compose as written."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

ROOT = Path(__file__).parents[2]
OVERLAYS = ("small", "production")
COMPONENTS = ("hpa", "hpa-web", "keda", "monitoring")


class Container(NamedTuple):
    """A container of a rendered manifest, with the pod that it is in."""

    process: str
    spec: dict[str, Any]
    pod: dict[str, Any]
    is_init: bool

    @property
    def environment(self) -> dict[str, Any]:
        return {variable["name"]: variable.get("value") for variable in self.spec.get("env", [])}


@cache
def render(folder: Path) -> tuple[dict[str, Any], ...]:
    """The objects of a kustomization. Skips the test where there is nothing to render with."""
    if not shutil.which("kubectl"):
        pytest.skip("kubectl is not on the PATH")
    run = subprocess.run(["kubectl", "kustomize", folder], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return tuple(yaml.safe_load_all(run.stdout))


def overlay(name: str) -> tuple[dict[str, Any], ...]:
    return render(ROOT / "k8s" / "overlays" / name)


def combine(folder: Path, components: tuple[str, ...]) -> tuple[dict[str, Any], ...]:
    """The base with components of one's own choice, as an operator may put them together."""
    k8s = os.path.relpath((ROOT / "k8s").resolve(), folder.resolve())  # kustomize takes no absolute path
    content = {"resources": [f"{k8s}/base"], "components": [f"{k8s}/components/{name}" for name in components]}
    (folder / "kustomization.yml").write_text(yaml.safe_dump(content))
    return render(folder)


def of_kind(objects: tuple[dict[str, Any], ...], kind: str) -> dict[str, dict[str, Any]]:
    return {found["metadata"]["name"]: found for found in objects if found["kind"] == kind}


def containers(objects: tuple[dict[str, Any], ...]) -> Iterator[Container]:
    for found in objects:
        spec = found.get("spec", {})
        template = spec.get("template") or spec.get("jobTemplate", {}).get("spec", {}).get("template")
        if found["kind"] in ("Deployment", "Job", "CronJob"):
            pod, name = template["spec"], found["metadata"]["name"]
            yield from (Container(name, container, pod, True) for container in pod.get("initContainers", []))
            yield from (Container(name, container, pod, False) for container in pod["containers"])


@cache
def compose() -> dict[str, dict[str, Any]]:
    content = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
    return dict(content["services"])


def our_services() -> dict[str, dict[str, Any]]:
    """The services of compose that run our image."""
    return {name: service for name, service in compose().items() if service["image"].startswith("payments:")}
