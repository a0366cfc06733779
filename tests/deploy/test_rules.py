"""What is asked of every container and every way in, whoever adds the next one."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import yaml

from shared.payments.model import LANES
from shared.settings import Settings, settings
from tests.deploy.manifests import OVERLAYS, ROOT, compose, containers, of_kind, our_services, overlay
from web.http.body import MAX_ARRIVING_BYTES
from web.limits.concurrency import MAX_CONCURRENT_REQUESTS

pytestmark = pytest.mark.house

PINNED = re.compile(r"[\w./-]+:[v\d][\w.-]*(@sha256:[0-9a-f]{64})?")
RECREATED_AT_ONCE = 1  # maxSurge
PROCESSES = {"web", "worker", "notify", "flower", "migrate", "verify", "operator"}


@pytest.mark.parametrize("name", OVERLAYS)
def test_every_container_is_confined_and_has_its_share(name: str) -> None:
    found = list(containers(overlay(name)))
    assert {container.process for container in found} == PROCESSES
    for container in found:
        where = f"{container.process}/{container.spec['name']}"
        confined, pod = container.spec["securityContext"], container.pod["securityContext"]
        assert confined["readOnlyRootFilesystem"], where
        assert confined["allowPrivilegeEscalation"] is False, where
        assert confined["capabilities"] == {"drop": ["ALL"]}, where
        assert pod["runAsNonRoot"], where
        assert pod["runAsUser"] == int(_image_user()), where
        assert pod["seccompProfile"] == {"type": "RuntimeDefault"}, where
        assert container.pod["automountServiceAccountToken"] is False, where
        assert container.pod["enableServiceLinks"] is False, where
        resources = container.spec["resources"]
        assert set(resources["requests"]) == {"cpu", "memory"}, where
        assert set(resources["limits"]) == {"memory"}, f"{where}: a limit of CPU stops what holds a lane"
        assert PINNED.fullmatch(container.spec["image"]), where


def _image_user() -> str:
    user = re.search(r"^USER (\d+):\d+$", (ROOT / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE)
    assert user, "the image names its user by number"
    return user[1]


def test_every_service_of_compose_is_confined() -> None:
    for name, service in compose().items():
        assert PINNED.fullmatch(service["image"]), name
        assert service["read_only"], name
        assert service["cap_drop"] == ["ALL"], name
        assert "no-new-privileges:true" in service["security_opt"], name
        assert service["mem_limit"], name
        assert service["restart"], name
        assert "container_name" not in service, name
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:"), f"{name} is open to the network"
    assert "ports" not in compose()["worker"], "two workers cannot have one port"


@pytest.mark.parametrize("name", OVERLAYS)
def test_a_rollout_takes_nothing_away_before_there_is_another(name: str) -> None:
    for deployment in of_kind(overlay(name), "Deployment").values():
        assert deployment["spec"]["strategy"] == {
            "type": "RollingUpdate",
            "rollingUpdate": {"maxUnavailable": 0, "maxSurge": RECREATED_AT_ONCE},
        }
        assert deployment["spec"]["revisionHistoryLimit"] <= 10


def test_a_pod_is_given_the_time_that_it_takes_to_end() -> None:
    """granian lets requests finish; before that the endpoints lead elsewhere. A worker's guard ends a warm stop."""
    from worker.guard import STOP_TIMEOUT_SECONDS

    source = (ROOT / "web" / "__main__.py").read_text(encoding="utf-8")
    finishing = re.search(r"workers_kill_timeout=(\d+)", source)
    assert finishing
    deployments = of_kind(overlay("production"), "Deployment")
    web = deployments["web"]["spec"]["template"]["spec"]
    drained = web["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert web["terminationGracePeriodSeconds"] >= int(finishing[1]) + drained + 5
    for name in ("worker", "notify"):
        assert deployments[name]["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] > STOP_TIMEOUT_SECONDS + 5
    assert _seconds(compose()["web"]["stop_grace_period"]) > int(finishing[1])
    assert _seconds(compose()["worker"]["stop_grace_period"]) > STOP_TIMEOUT_SECONDS


def _seconds(duration: str) -> int:
    assert duration.endswith("s")
    return int(duration[:-1])


def test_whoever_needs_the_migrations_waits_for_them() -> None:
    found = list(containers(overlay("production")))
    for process in ("web", "worker", "notify"):
        waits = [container.spec["command"] for container in found if container.process == process and container.is_init]
        assert waits == [["python", "-m", "migrations", "--wait"]]
        assert compose()[process]["depends_on"]["migrate"] == {"condition": "service_completed_successfully"}


@pytest.mark.parametrize("name", OVERLAYS)
def test_the_world_reaches_the_api_and_its_description_alone(name: str) -> None:
    ingresses = of_kind(overlay(name), "Ingress")
    ways = [way for found in ingresses.values() for rule in found["spec"]["rules"] for way in rule["http"]["paths"]]
    assert {way["path"] for way in ways} == {"/api", "/docs", "/openapi.json"}
    assert {way["backend"]["service"]["name"] for way in ways} == {"web"}
    services = of_kind(overlay(name), "Service")
    assert set(services) == {"web"}, "Flower's and the workers' numbers ask no password"
    assert services["web"]["spec"].get("type", "ClusterIP") == "ClusterIP"


@pytest.mark.parametrize("name", OVERLAYS)
def test_pods_connect_only_as_a_network_policy_allows(name: str) -> None:
    policies = of_kind(overlay(name), "NetworkPolicy")
    everything = [policy["spec"] for policy in policies.values() if policy["spec"]["podSelector"] == {}]
    assert {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]} in everything
    internet = [policy["spec"] for policy in policies.values() if "ipBlock" in str(policy)]
    assert [spec["podSelector"] for spec in internet] == [{"matchLabels": {"app.kubernetes.io/component": "notify"}}]
    assert not [policy for policy in policies.values() if {} in policy["spec"].get("ingress", [])]


CLIENT = {"payments-client": "true"}


def component(name: str) -> dict[str, str]:
    return {"app.kubernetes.io/component": name}


def is_allowed(
    objects: tuple[dict[str, Any], ...], direction: str, pod: dict[str, str], peer: dict[str, str], port: int
) -> bool:
    """Whether the policies let a pod of the namespace out to ("egress") or in from ("ingress") another pod of it."""
    field = {"egress": "to", "ingress": "from"}[direction]
    specs = [policy["spec"] for policy in of_kind(objects, "NetworkPolicy").values()]
    isolating = [
        spec for spec in specs if direction.title() in spec["policyTypes"] and selects(spec["podSelector"], pod)
    ]
    return not isolating or any(
        any(
            "podSelector" in end and len(end) == 1 and selects(end["podSelector"], peer)
            for end in rule.get(field, [{}])
        )
        and port in [{"http": settings().port}.get(allowed["port"], allowed["port"]) for allowed in rule["ports"]]
        for spec in isolating
        for rule in spec.get(direction, [])
    )


def selects(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    equal = selector.get("matchLabels", {})
    among = selector.get("matchExpressions", [])
    assert {expression["operator"] for expression in among} <= {"In"}
    return equal.items() <= labels.items() and all(labels.get(one["key"]) in one["values"] for one in among)


@pytest.mark.parametrize("name", OVERLAYS)
def test_a_client_pod_of_the_namespace_reaches_web_alone(name: str) -> None:
    """A connection needs a rule on both sides: out of the client's pod, and into web's."""
    objects, port = overlay(name), settings().port
    assert is_allowed(objects, "egress", CLIENT, component("web"), port)
    assert is_allowed(objects, "ingress", component("web"), CLIENT, port)
    for other in PROCESSES - {"web"}:
        assert not is_allowed(objects, "egress", CLIENT, component(other), port)
        assert not is_allowed(objects, "egress", component(other), component("web"), port)
        assert not is_allowed(objects, "ingress", component("web"), component(other), port)


@pytest.mark.parametrize("name", OVERLAYS)
def test_the_migration_runs_on_a_node_whose_cpu_is_reserved(name: str) -> None:
    """0 must be written: a namespace may have a default request."""
    requests = next(c.spec["resources"]["requests"] for c in containers(overlay(name)) if c.process == "migrate")
    assert requests["cpu"] == "0"


def requested(objects: tuple[dict[str, Any], ...], replicas: dict[str, int]) -> tuple[float, int]:
    """Cores and MiB that these pods request. A pod's init container runs before the others, and here it requests less."""
    cores, memory = 0.0, 0
    for container in containers(objects):
        wanted = container.spec["resources"]["requests"]
        assert wanted["memory"].endswith("Mi")
        if not container.is_init:
            count = replicas.get(container.process, 0)
            cores += count * _cores(wanted["cpu"])
            memory += count * int(wanted["memory"].removesuffix("Mi"))
    return cores, memory


def _cores(quantity: str) -> float:
    return int(quantity.removesuffix("m")) / 1000 if quantity.endswith("m") else float(quantity)


ROWS = [
    ("small", "small", min),
    ("production, with the fewest pods", "production", min),
    ("production, with the most pods", "production", max),
]


@pytest.mark.parametrize(("row", "name", "end"), ROWS, ids=[row for row, _, _ in ROWS])
def test_the_readme_says_what_the_pods_request(row: str, name: str, end: Callable[[list[int]], int]) -> None:
    objects = overlay(name)
    pods = {
        found: deployment["spec"].get("replicas", 1) for found, deployment in of_kind(objects, "Deployment").items()
    }
    for found in scalers(objects):
        spec = found["spec"]
        most, least = (spec.get(f"{end}Replicas") or spec[f"{end}ReplicaCount"] for end in ("max", "min"))
        pods[spec["scaleTargetRef"]["name"]] = end([most, least])
    rolling = {**{process: count + RECREATED_AT_ONCE for process, count in pods.items()}, "migrate": 1}
    texts = [f"{cores:.1f} cores, {memory:,} MiB" for cores, memory in (requested(objects, n) for n in (pods, rolling))]
    readme = (ROOT / "docs" / "operations" / "kubernetes.md").read_text(encoding="utf-8")
    assert f"\n| {row} | {texts[0]} | {texts[1]} |\n" in readme


def scalers(objects: tuple[dict[str, Any], ...]) -> list[dict[str, Any]]:
    return [*of_kind(objects, "HorizontalPodAutoscaler").values(), *of_kind(objects, "ScaledObject").values()]


# Not of settings(): other tests of the process may have changed it.
DEFAULT_CONNECTIONS = Settings.model_fields["web_connections"].default


def connections(objects: tuple[dict[str, Any], ...]) -> int:
    """The most that a rollout of everything at its largest can hold: pods x processes x pool."""
    scaled = scalers(objects)
    most = {
        found["spec"]["scaleTargetRef"]["name"]: found["spec"].get("maxReplicas") or found["spec"]["maxReplicaCount"]
        for found in scaled
    }
    deployments = of_kind(objects, "Deployment")
    total = 0
    for container in containers(objects):
        if container.process in deployments and not container.is_init and "DATABASE_URL" in container.environment:
            replicas = most.get(container.process) or deployments[container.process]["spec"]["replicas"]
            processes = int(container.environment.get("PAYMENTS_WORKERS", 1))
            pool = int(container.environment.get("PAYMENTS_WEB_CONNECTIONS", DEFAULT_CONNECTIONS))
            total += (replicas + RECREATED_AT_ONCE) * processes * pool
    return total


@pytest.mark.parametrize("name", OVERLAYS)
def test_the_readme_counts_the_connections_right_and_they_fit(name: str) -> None:
    readme = (ROOT / "docs" / "operations" / "kubernetes.md").read_text(encoding="utf-8")
    row = re.search(rf"^\| {name} \|.* \*\*(\d+)\*\* \| (\d+) \|$", readme, re.MULTILINE)
    assert row, f"docs/operations/kubernetes.md has no sum for {name}"
    assert int(row[1]) == connections(overlay(name))
    others = 3 + 1 + 1 + 2 + 5  # kept for superusers, migrate, verify, KEDA's two triggers, people
    assert int(row[1]) + others <= int(row[2])


@pytest.mark.parametrize("name", OVERLAYS)
def test_web_has_the_memory_that_its_requests_may_take(name: str) -> None:
    """The sum of docs/operations/capacity.md, in MiB: at rest, requests that wait, bodies on their way, threads, lists."""
    bodies, threads = MAX_ARRIVING_BYTES // 2**20, settings().web_threads
    needed = 127 + MAX_CONCURRENT_REQUESTS * 0.04 + bodies * 1.6 + threads * 0.065 + 68
    scaling = (ROOT / "docs" / "operations" / "capacity.md").read_text(encoding="utf-8")
    assert f"| {MAX_CONCURRENT_REQUESTS:,} requests x 0.04 |" in scaling
    assert f"| {bodies} MiB of bodies x 1.6 |" in scaling
    assert f"| {threads} threads x 0.065 |" in scaling
    assert f"| **together** | **{needed:.0f}** |" in scaling
    web = next(c for c in containers(overlay(name)) if c.process == "web" and not c.is_init)
    limits = (
        web.spec["resources"]["limits"]["memory"].removesuffix("Mi"),
        compose()["web"]["mem_limit"].removesuffix("m"),
    )
    assert min(map(int, limits)) > needed * 1.2


@pytest.mark.parametrize("component", ["keda", "hpa"])
def test_no_more_settling_processes_than_there_are_lanes(component: str) -> None:
    scaled = yaml.safe_load_all((ROOT / "k8s" / "components" / component / "worker.yml").read_text(encoding="utf-8"))
    spec = next(iter(scaled))["spec"]
    workers = [c for c in containers(overlay("small")) if c.process == "worker" and not c.is_init]
    processes = int(workers[0].environment["PAYMENTS_WORKERS"])
    assert (spec.get("maxReplicas") or spec["maxReplicaCount"]) * processes == LANES
    assert (spec.get("minReplicas") or spec["minReplicaCount"]) >= 1, "the sweep lives in the workers"


def test_our_images_are_this_version() -> None:
    version = re.search(r'^version = "(.*)"$', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    assert version
    for name in OVERLAYS:
        assert {c.spec["image"].rpartition(":")[2] for c in containers(overlay(name))} == {version[1]}
    assert {service["image"] for service in our_services().values()} == {f"payments:{version[1]}"}
