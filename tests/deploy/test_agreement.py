"""Code, image, compose, Kubernetes and monitoring speak of the same processes, commands, settings, ports and jobs."""

import re
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

from shared.database import SESSION_SETTINGS, TRANSACTION_TIMEOUT
from shared.payments import doorbell
from shared.settings import SECRET_VARIABLES, Settings, settings
from tests.deploy.manifests import ROOT, compose, containers, of_kind, our_services, overlay
from worker.flower import FLOWER_OPTIONS

pytestmark = pytest.mark.house

PROCESSES = {"web", "worker", "notify", "flower", "migrate"}
OURS = re.compile(r"(?:PAYMENTS|WEBHOOK|PROMETHEUS|DATABASE|BROKER)_[A-Z_]+[A-Z]")
OTHERS = {"FLOWER_BASIC_AUTH"}  # Flower's own
FILES = [
    *("Dockerfile", "docker-compose.yml", ".env.example", "docs/operations/kubernetes.md"),
    *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "k8s").rglob("*.yml")),
]
NOT_SETTINGS = {"BROKER_PASSWORD", "PROMETHEUS_PORT"}  # of docker-compose.yml alone
OF_FILES = {f"{name}_FILE" for name in SECRET_VARIABLES}


def test_compose_and_kubernetes_run_the_same_commands() -> None:
    rendered = {c.process: c.spec["command"] for c in containers(overlay("production")) if not c.is_init}
    assert set(our_services()) == PROCESSES | {"verify"}
    assert set(rendered) == PROCESSES | {"verify", "operator"}
    in_compose = {name: service.get("command", _command_of_the_image()) for name, service in our_services().items()}
    shell, option, loop = in_compose.pop("verify")
    assert (shell, option) == ("sh", "-c")
    assert f" {' '.join(rendered['verify'])} && " in loop
    assert in_compose == {name: rendered[name] for name in PROCESSES}


def test_compose_verifies_once_a_day_and_an_hour_after_a_failure(tmp_path: Path) -> None:
    """The loop as it is written, with programs of our own in place of `python` and `sleep`. The third sleep ends it."""
    calls = tmp_path / "calls"
    # the first verification succeeds, the second fails
    write_program(tmp_path / "python", f'echo "$*" >> "{calls}"; [ "$(grep -c verify "{calls}")" != 2 ]')
    write_program(
        tmp_path / "sleep", f'echo "sleep $*" >> "{calls}"; [ "$(grep -c sleep "{calls}")" != 3 ] || kill $PPID'
    )
    command = our_services()["verify"]["command"]
    ran = subprocess.run(command, env={"PATH": f"{tmp_path}:/usr/bin:/bin"}, check=False, timeout=60)
    assert ran.returncode == -signal.SIGTERM
    verified = "-m local verify --record --since"
    expected = [verified, "sleep 86400", verified, "sleep 3600", verified, "sleep 86400"]
    assert calls.read_text(encoding="utf-8").splitlines() == expected


def write_program(path: Path, script: str) -> None:
    path.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    path.chmod(0o755)


def test_the_runbook_upgrade_replaces_all_but_migrate() -> None:
    """Each service that needs the migration would wait for it again where `--no-deps` is not given."""
    runbook = (ROOT / "docs" / "operations" / "runbook.md").read_text(encoding="utf-8")
    steps = re.findall(r"^docker compose (build|run --rm migrate|up --detach --no-deps .*)", runbook, re.MULTILINE)
    assert steps[:2] == ["build", "run --rm migrate"]
    assert set(steps[2].split()[4:]) == {"worker=2", *our_services()} - {"migrate"}


def test_the_readme_gives_pgbouncer_our_session_settings() -> None:
    readme = (ROOT / "docs" / "operations" / "kubernetes.md").read_text(encoding="utf-8")
    found = dict(re.findall(r"ALTER ROLE payments_app SET (\w+) = '([^']+)';", readme))
    expected = {name: value.replace("\\", "") for name, value in SESSION_SETTINGS.items()}
    assert found == {**expected, "transaction_timeout": TRANSACTION_TIMEOUT}


def _command_of_the_image() -> list[str]:
    command = re.search(r"^CMD \[(.*)\]$", (ROOT / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE)
    assert command
    return re.findall(r'"([^"]+)"', command[1])


def test_each_command_is_a_module_that_there_is() -> None:
    for container in containers(overlay("production")):
        python, option, module, *_ = (
            container.spec["command"] if container.process != "operator" else _of_the_operator()
        )
        assert (python, option) == ("python", "-m")
        assert find_spec(f"{module}.__main__"), module


def _of_the_operator() -> list[str]:
    """Its container sleeps; this is what a person runs in it."""
    readme = (ROOT / "docs" / "operations" / "kubernetes.md").read_text(encoding="utf-8")
    told = re.findall(r"exec -it job/operator -- (.*?)(?:  |$)", readme, re.MULTILINE)
    assert told
    return str(told[0]).split()


@pytest.mark.parametrize(("process", "words"), [("web", 3), ("verify", 4)])
def test_the_options_that_are_given_are_known(process: str, words: int) -> None:
    ran = subprocess.run(
        [sys.executable, *command_of(process)[1:words], "--help"],
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert not [option for option in command_of(process)[words:] if f"{option} " not in ran.stdout]


def test_flower_knows_the_options_that_it_is_given() -> None:
    """As it will read them: it ignores in silence a variable that it does not know."""
    import flower.options  # noqa: F401 - which defines them
    from tornado.options import options

    asked = [*FLOWER_OPTIONS, *command_of("flower")[4:]]
    given = [option.removeprefix("--").partition("=")[0] for option in asked]
    assert {"max_tasks", "address", "port"} <= set(given)
    assert not [option for option in (*given, "basic_auth") if option not in options]


def command_of(process: str) -> list[str]:
    commands = {c.process: c.spec["command"] for c in containers(overlay("production")) if not c.is_init}
    return list(commands[process])


def test_each_process_says_who_it_is_in_the_logs() -> None:
    for container in containers(overlay("production")):
        assert container.environment["PAYMENTS_PROCESS"] == ("wait" if container.is_init else container.process)
    for name, service in our_services().items():
        assert service["environment"]["PAYMENTS_PROCESS"] == name


@pytest.mark.parametrize("file", FILES)
def test_each_setting_that_a_file_names_is_one(file: str) -> None:
    known = {field.alias for field in Settings.model_fields.values()} | NOT_SETTINGS | OF_FILES
    assert not set(OURS.findall((ROOT / file).read_text(encoding="utf-8"))) - known


def test_each_variable_that_a_container_gets_is_read_by_it() -> None:
    known = {field.alias for field in Settings.model_fields.values()} | OTHERS
    for container in containers(overlay("production")):
        assert not set(container.environment) - known, container.process
    for name, service in our_services().items():
        assert not set(service["environment"]) - known, name
    for found in of_kind(overlay("production"), "ConfigMap").values():
        if found["metadata"]["name"].startswith("payments-settings"):
            assert not set(found["data"]) - known
            Settings(**found["data"])  # each has a value that the setting takes


def test_compose_asks_for_what_the_example_of_its_variables_has() -> None:
    text = "\n".join(
        line for line in (ROOT / "docker-compose.yml").read_text(encoding="utf-8").splitlines() if "${" in line
    )
    asked = dict(re.findall(r"(?<!\$)\$\{(\w+)(:[?-][^}]*)?\}", text))
    example = dict(re.findall(r"^(\w+)=(.*)$", (ROOT / ".env.example").read_text(encoding="utf-8"), re.MULTILINE))
    assert set(asked) == set(example)
    for name, default in asked.items():
        assert default, f"{name} has neither a default nor a complaint"
        assert example[name] == ("" if default.startswith(":?") else default[2:])


def test_git_takes_no_file_of_secrets() -> None:
    assert ".env" in (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()


def ports(process: str) -> list[int]:
    return [
        port["containerPort"]
        for container in containers(overlay("production"))
        if container.process == process
        for port in container.spec.get("ports", [])
    ]


def test_ports_are_the_same_everywhere() -> None:
    assert ports("web") == [settings().port]
    assert ports("flower") == [settings().flower_port]
    assert f"EXPOSE {settings().port}\n" in (ROOT / "Dockerfile").read_text(encoding="utf-8")
    for process in ("worker", "notify"):
        assert ports(process) == [int(compose()[process]["environment"]["PAYMENTS_METRICS_PORT"])]
        container = next(c for c in containers(overlay("production")) if c.process == process and not c.is_init)
        assert container.environment["PAYMENTS_METRICS_PORT"] == str(ports(process)[0])
    assert dict(_targets()) == {f"payments-{name}": ports(name) for name in ("web", "worker", "notify", "flower")}


def _targets() -> list[tuple[str, list[int]]]:
    jobs = yaml.safe_load((ROOT / "compose" / "prometheus.yml").read_text(encoding="utf-8"))["scrape_configs"]
    return [
        (
            job["job_name"],
            [found["port"] for found in job.get("dns_sd_configs", [])]
            + [
                int(target.rpartition(":")[2]) for found in job.get("static_configs", []) for target in found["targets"]
            ],
        )
        for job in jobs
    ]


def test_the_alerts_know_the_jobs_by_their_names() -> None:
    folder = ROOT / "k8s" / "components" / "monitoring"
    relabelled = set()
    for found in yaml.safe_load_all((folder / "monitors.yml").read_text(encoding="utf-8")):
        spec: dict[str, Any] = found["spec"]
        for endpoint in spec.get("endpoints") or spec["podMetricsEndpoints"]:
            relabelled |= {rule["replacement"] for rule in endpoint["relabelings"] if rule["targetLabel"] == "job"}
    scraped = {job for job, _ in _targets()}
    asked = set(re.findall(r"\(\.\*/\)\?(payments-[a-z]+)\"", (folder / "alerts.yml").read_text(encoding="utf-8")))
    assert asked == scraped == relabelled == {f"payments-{name}" for name in ("web", "worker", "notify", "flower")}


def test_each_worker_takes_the_queue_that_is_rung() -> None:
    """The commands name no queue: who settles takes the default one, and `notify` its own."""
    from worker.app import app

    assert app.conf.task_default_queue == doorbell.SETTLE_QUEUE == "settle"
    assert doorbell.NOTIFY_QUEUE == "notify"
    source = (ROOT / "worker" / "notify.py").read_text(encoding="utf-8")
    assert "queues=[doorbell.NOTIFY_QUEUE]" in source
    commands = {c.process: c.spec["command"] for c in containers(overlay("production")) if not c.is_init}
    assert commands["worker"] == ["python", "-m", "worker"]
    assert commands["notify"] == ["python", "-m", "worker", doorbell.NOTIFY_QUEUE]


def test_the_monitors_and_the_policies_find_their_pods() -> None:
    deployments = of_kind(overlay("production"), "Deployment").values()
    labels = [found["spec"]["template"]["metadata"]["labels"] for found in deployments]
    components = {pod["app.kubernetes.io/component"] for pod in labels} | {"migrate", "verify", "operator"}
    named: set[str] = set()
    for file in ("base/network.yml", "base/disruption.yml", "components/monitoring/monitors.yml"):
        text = Path(ROOT / "k8s" / file).read_text(encoding="utf-8")
        named |= set(re.findall(r"app\.kubernetes\.io/component: (\w+)", text))
        named |= {word for words in re.findall(r"values: \[(.*)\]", text) for word in words.split(", ")}
    assert named == components
