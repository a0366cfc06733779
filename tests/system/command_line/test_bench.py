"""`./payments bench` runs to its end and writes what it says, with small numbers: this measures nothing."""

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.kit.service import payments

pytestmark = pytest.mark.system


@pytest.mark.timeout(600)
def test_a_quick_run_writes_its_reports_and_cleans_up(tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    written, drawn = tmp_path / "bench.json", tmp_path / "bench.svg"
    only = ("--only", "spread,lone_put,waiting,crowd,balance,memory")
    done = payments("bench", "--quick", *only, "--json", written, "--chart", drawn, seconds=550, TMPDIR=str(work))
    assert done.returncode == 0, done.stderr
    assert list(work.iterdir()) == []

    said = json.loads(written.read_text())
    assert {"when", "commit", "machine", "postgres", "plan", "figures", "medians", "runs", "notes"} <= said.keys()
    assert said["postgres"]["fsync"] == said["postgres"]["synchronous_commit"] == "on"
    assert said["not_done"] == {}
    assert len(said["runs"]) == said["plan"]["runs"] == 1
    figures = {figure["name"]: figure for figure in reversed(said["figures"])}  # the first of each name
    spread = figures["end to end, spread"]
    assert spread["ratio"] == pytest.approx(spread["value"] / spread["floor"])
    assert spread["value"] == said["medians"]["spread_settled_per_s"] > 0
    assert spread["reached"] in ("stretch", "reached", "missed")
    assert "balance at a date, long" in figures
    check_medians(said["medians"])

    assert "end to end, spread" in done.stdout
    assert "clients that wait  ours/s" in done.stdout
    assert "CPU per payment, alone" in done.stdout
    assert "bench: run 1 of 1: spread" in done.stderr
    assert ElementTree.parse(drawn).getroot().tag.endswith("svg")


def check_medians(medians: dict[str, float]) -> None:
    """That a figure is of what its name says, as far as sums and orders show it."""
    roles = ("web", "worker", "notify", "flower", "broker", "postgres", "up")
    for load in ("spread", "one_user", "lone_put"):
        if f"{load}_cpu_total_ms" in medians:
            by_role = [medians[f"{load}_cpu_{role}_ms"] for role in roles]
            assert sum(by_role) == pytest.approx(medians[f"{load}_cpu_total_ms"]), load
            assert min(medians[f"{load}_cpu_{role}_ms"] for role in ("web", "worker", "postgres")) > 0, load
    assert medians["lone_put_cpu_total_ms"] > medians["spread_cpu_total_ms"]
    assert medians["spread_web_switches_per_request"] > 0.1
    memory = [medians[f"memory_{role}_pss_mb"] for role in roles if role != "postgres"]
    assert sum(memory) == pytest.approx(medians["memory_total_pss_mb"])
    assert medians["memory_worker_pss_mb"] > 10
    for clients in (1, 4, 8, 16, 64):
        for name in (f"waiting_{clients}", f"waiting_{clients}_fastapi"):
            # with one client after the other a rate is what the latency leaves: nobody was answered before it was final
            assert medians[f"{name}_per_s"] * medians[f"{name}_p50_ms"] / 1000 < 1.5 * clients, name
    assert 30 < medians["crowd_waited_percent"] <= 100  # at least 64 of the quick plan's 200
    assert medians["crowd_others_p50_ms"] > 0


def test_a_name_that_is_none_is_refused_at_once() -> None:
    done = payments("bench", "--only", "spread,nonsense")
    assert done.returncode == 2
    assert "unknown: nonsense" in done.stderr


def test_help_says_what_each_figure_is() -> None:
    done = payments("bench", "--help")
    assert done.returncode == 0
    assert "settling a backlog with two processes" in done.stdout
