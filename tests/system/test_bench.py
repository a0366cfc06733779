"""`./payments bench` runs to its end and writes what it says, with small numbers: this measures nothing."""

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
from running_service import payments

pytestmark = pytest.mark.system


@pytest.mark.timeout(600)
def test_a_quick_run_writes_a_table_json_and_a_chart_and_leaves_nothing(tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    written, drawn = tmp_path / "bench.json", tmp_path / "bench.svg"
    only = ("--only", "spread,balance,memory")
    done = payments("bench", "--quick", *only, "--json", written, "--chart", drawn, seconds=550, TMPDIR=str(work))
    assert done.returncode == 0, done.stderr
    assert list(work.iterdir()) == []

    said = json.loads(written.read_text())
    assert {"when", "commit", "machine", "postgres", "plan", "figures", "medians", "runs", "notes"} <= said.keys()
    assert said["postgres"]["fsync"] == said["postgres"]["synchronous_commit"] == "on"
    assert said["not_done"] == {}
    assert len(said["runs"]) == said["plan"]["runs"] == 1
    spread, long_history, *_ = said["figures"]
    assert spread["name"] == "end to end, spread"
    assert spread["ratio"] == pytest.approx(spread["value"] / spread["floor"])
    assert spread["value"] == said["medians"]["spread_settled_per_s"] > 0
    assert spread["reached"] in ("stretch", "reached", "missed")
    assert long_history["name"] == "balance at a date, long"
    assert said["medians"]["memory_worker_pss_mb"] > 10

    assert "end to end, spread" in done.stdout
    assert "bench: run 1 of 1: spread" in done.stderr
    assert ElementTree.parse(drawn).getroot().tag.endswith("svg")


def test_a_name_that_is_none_is_refused_at_once() -> None:
    done = payments("bench", "--only", "spread,nonsense")
    assert done.returncode == 2
    assert "unknown: nonsense" in done.stderr


def test_help_says_what_each_figure_is() -> None:
    done = payments("bench", "--help")
    assert done.returncode == 0
    assert "settling a backlog with two processes" in done.stdout
