"""Who may do what: web asks for keys, and only what migrates or makes keys has the password of the database's owner."""

import os
import re
from typing import Any

import pytest

from local.stack.postgres import APP_ROLE, OWNER_ROLE
from shared.settings import Settings
from tests.deploy.manifests import OVERLAYS, ROOT, compose, containers, of_kind, our_services, overlay

pytestmark = pytest.mark.house

OF_THE_OWNER = {"migrate", "operator"}


def image_environment() -> dict[str, str]:
    return dict(re.findall(r"^ +(PAYMENTS_\w+)=(\S+)", (ROOT / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE))


def test_the_image_asks_for_keys_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("PAYMENTS_")]:
        monkeypatch.delenv(name)
    assert Settings(**image_environment()).requires_keys


@pytest.mark.parametrize("name", OVERLAYS)
def test_no_manifest_opens_web(name: str) -> None:
    maps = of_kind(overlay(name), "ConfigMap").values()
    settings = next(found["data"] for found in maps if found["metadata"]["name"].startswith("payments-settings"))
    assert Settings(**{**image_environment(), **settings}).requires_keys
    assert not [c.process for c in containers(overlay(name)) if {"PAYMENTS_AUTH", "PAYMENTS_HOST"} & {*c.environment}]
    assert compose()["web"]["environment"]["PAYMENTS_AUTH"] == "${PAYMENTS_AUTH:-required}"


def keys_of_the_secret(container: dict[str, Any]) -> set[str]:
    return {entry["valueFrom"]["secretKeyRef"]["key"] for entry in container.get("env", []) if "valueFrom" in entry}


@pytest.mark.parametrize("name", OVERLAYS)
def test_a_pod_is_given_the_password_of_one_role(name: str) -> None:
    for container in containers(overlay(name)):
        asked = keys_of_the_secret(container.spec) & {"DATABASE_URL", "OWNER_DATABASE_URL"}
        owners = container.process in OF_THE_OWNER
        expected = set() if container.process == "flower" else {"OWNER_DATABASE_URL" if owners else "DATABASE_URL"}
        assert asked == expected, container.process
        assert not [source for source in container.spec.get("envFrom", []) if "secretRef" in source], container.process
        assert not [volume for volume in container.pod.get("volumes", []) if "secret" in volume], container.process


def test_a_compose_container_gets_the_password_of_one_role() -> None:
    for name, service in our_services().items():
        text = str(service["environment"])
        owners = name in OF_THE_OWNER
        assert ("POSTGRES_PASSWORD" in text) is owners, name
        assert ("APP_PASSWORD" in text) is (not owners and name != "flower"), name
        if "DATABASE_URL" in text:
            assert service["environment"]["DATABASE_URL"].startswith(
                f"postgresql://{OWNER_ROLE if owners else APP_ROLE}:"
            ), name


def test_the_role_that_is_granted_to_is_the_role_that_runs() -> None:
    migrate = next(c for c in containers(overlay("production")) if c.process == "migrate")
    assert (
        migrate.environment["PAYMENTS_APP_ROLE"] == compose()["migrate"]["environment"]["PAYMENTS_APP_ROLE"] == APP_ROLE
    )
    example = (ROOT / "k8s" / "base" / "secret.example.yml").read_text(encoding="utf-8")
    assert f" DATABASE_URL: postgresql://{APP_ROLE}:" in example
    assert f" OWNER_DATABASE_URL: postgresql://{OWNER_ROLE}:" in example
    assert f"CREATE ROLE {APP_ROLE}" in (ROOT / "docs" / "operations" / "kubernetes.md").read_text(encoding="utf-8")


def test_the_operator_pod_runs_on_demand_for_a_short_time() -> None:
    spec = of_kind(overlay("production"), "CronJob")["operator"]["spec"]
    assert spec["suspend"] is True
    assert spec["jobTemplate"]["spec"]["activeDeadlineSeconds"] <= 3600
