"""Every overlay, and every sensible choice of components, is something that a cluster would take."""

from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from tests.deploy.manifests import COMPONENTS, OVERLAYS, ROOT, combine, compose, of_kind, overlay

pytestmark = pytest.mark.house

VERSIONS = ("1.30", "1.37")  # the oldest that the manifests ask for, and a new one
CUSTOM = {
    ("keda.sh/v1alpha1", "ScaledObject"): ("scaleTargetRef", "triggers"),
    ("keda.sh/v1alpha1", "TriggerAuthentication"): ("secretTargetRef",),
    ("monitoring.coreos.com/v1", "ServiceMonitor"): ("selector", "endpoints"),
    ("monitoring.coreos.com/v1", "PodMonitor"): ("selector", "podMetricsEndpoints"),
    ("monitoring.coreos.com/v1", "PrometheusRule"): ("groups",),
}


def assert_valid(objects: tuple[dict[str, Any], ...]) -> None:
    assert objects
    for found in objects:
        kind = (found["apiVersion"], found["kind"])
        if kind in CUSTOM:  # no schema of them is at hand: what they cannot do without must be there
            assert [name for name in CUSTOM[kind] if not found["spec"].get(name)] == [], found
            continue
        for version in VERSIONS:
            kubernetes_validate.validate(found, version, strict=True)


@pytest.mark.parametrize("name", OVERLAYS)
def test_an_overlay_is_valid(name: str) -> None:
    assert_valid(overlay(name))


@pytest.mark.parametrize(
    "components", [(), *((name,) for name in COMPONENTS), ("hpa", "monitoring"), ("keda", "monitoring")], ids="-".join
)
def test_a_choice_of_components_is_valid(components: tuple[str, ...], tmp_path: Path) -> None:
    assert_valid(combine(tmp_path, components))


@pytest.mark.parametrize("component", ["hpa", "keda"])
def test_an_autoscaled_deployment_sets_no_replicas(component: str, tmp_path: Path) -> None:
    objects = combine(tmp_path, (component,))
    deployments = of_kind(objects, "Deployment")
    scaled = {**of_kind(objects, "HorizontalPodAutoscaler"), **of_kind(objects, "ScaledObject")}
    assert set(scaled) == {"web", "worker"}
    for found in scaled.values():
        assert "replicas" not in deployments[found["spec"]["scaleTargetRef"]["name"]]["spec"]


def test_no_secret_is_rendered() -> None:
    assert not [found for name in OVERLAYS for found in overlay(name) if found["kind"] == "Secret"]


def test_the_only_secret_in_the_repository_is_an_example() -> None:
    for path in sorted((ROOT / "k8s").rglob("*.yml")):
        for found in yaml.safe_load_all(path.read_text(encoding="utf-8")):
            if isinstance(found, dict) and found.get("kind") == "Secret":
                assert path.name == "secret.example.yml"
                assert all("CHANGE-ME" in value for value in found["stringData"].values())


def test_the_example_secret_has_every_key() -> None:
    example = yaml.safe_load((ROOT / "k8s" / "base" / "secret.example.yml").read_text(encoding="utf-8"))
    asked = set()
    for path in sorted((ROOT / "k8s").rglob("*.yml")):
        asked |= set(_keys_of_secrets(list(yaml.safe_load_all(path.read_text(encoding="utf-8")))))
    assert asked == set(example["stringData"])


def _keys_of_secrets(node: Any) -> list[str]:
    """Of env.valueFrom.secretKeyRef and of KEDA's secretTargetRef."""
    if isinstance(node, list):
        return [key for item in node for key in _keys_of_secrets(item)]
    if not isinstance(node, dict):
        return []
    own = [node["key"]] if node.get("name") == "payments" and "key" in node else []
    return own + [key for item in node.values() for key in _keys_of_secrets(item)]


def test_the_operators_rules_are_those_that_compose_uses() -> None:
    """`python -m tests.deploy.prometheus_rule` writes them anew."""
    folder = ROOT / "k8s" / "components" / "monitoring"
    rule = yaml.safe_load((folder / "prometheus-rule.yml").read_text(encoding="utf-8"))
    assert rule["spec"] == yaml.safe_load((folder / "alerts.yml").read_text(encoding="utf-8"))
    mounted = [volume for service in compose().values() for volume in service.get("volumes", [])]
    assert any(str(volume).startswith("./k8s/components/monitoring/alerts.yml:") for volume in mounted)
