"""What the benchmark makes of its numbers: ratios, verdicts, the order of steps, the chart."""

import re
from xml.etree import ElementTree

import pytest

from bench import chart, report
from bench.crowd import until_final
from bench.figures import RATIOS, STEPS, Ratio, choose
from bench.generator import Sample
from bench.plan import Plan
from bench.report import Line, Results
from bench.waiting import CLIENTS

pytestmark = pytest.mark.unit

FASTER = Ratio("a", "a_per_s", {"floor_per_s": 1}, "floor", bar=2, stretch=4)
SHORTER = Ratio("b", "b_ms", {"x_ms": 1, "y_ms": 2}, "x and two y", bar=15, stretch=8, upper_bound=True)


def results(*runs: dict[str, float]) -> Results:
    return Results(Plan(), runs=list(runs))


def line(ratio: Ratio, median: float) -> Line:
    return Line(ratio, 1, 1, median, [median])


def test_a_floor_is_the_sum_of_its_parts() -> None:
    assert SHORTER.of({"b_ms": 30, "x_ms": 1, "y_ms": 2}) == 6


def test_a_ratio_needs_both_sides() -> None:
    assert FASTER.of({"a_per_s": 3}) is None
    assert FASTER.of({"floor_per_s": 3}) is None


@pytest.mark.parametrize(
    ("ratio", "median", "verdict"),
    [
        (FASTER, 1.99, "missed"),
        (FASTER, 2.0, "reached"),
        (FASTER, 4.0, "stretch"),
        (SHORTER, 15.1, "missed"),
        (SHORTER, 15.0, "reached"),
        (SHORTER, 8.0, "stretch"),
        (Ratio("c", "c_ms", {}, "no bar"), 1.0, ""),
    ],
)
def test_a_bar_is_reached_from_its_own_side(ratio: Ratio, median: float, verdict: str) -> None:
    assert line(ratio, median).verdict == verdict


def test_the_ratio_quoted_is_the_median_of_the_runs_own_ratios() -> None:
    """Not that of the medians: in a run the machine's mood is the same for both sides."""
    slow, usual, odd = (
        {"spread_settled_per_s": 10.0, "pgbench_spread_per_s": 20.0},
        {"spread_settled_per_s": 40.0, "pgbench_spread_per_s": 100.0},
        {"spread_settled_per_s": 90.0, "pgbench_spread_per_s": 90.0},
    )
    (found,) = report.lines_of(results(slow, usual, odd))
    assert (found.median, sorted(found.of_runs)) == (0.5, [0.4, 0.5, 1.0])
    assert (found.value, found.floor) == (40, 90)


def test_single_and_repeated_measurements_share_one_table() -> None:
    measured = results({"pgbench_spread_per_s": 1.0})
    measured.once = {"balance_at_large_ms": 3.0, "balance_at_small_ms": 2.0}
    (found,) = report.lines_of(measured)
    assert (found.ratio.name, found.median, found.verdict) == ("balance at a date, long", 1.5, "reached")


def test_the_table_says_how_many_waits_were_declined() -> None:
    told = report.as_text(results({"final_at_50_not_waited_percent": 72.4, "final_at_10_not_waited_percent": 0.0}))
    assert "final_at_50: 72 % of the PUTs" in told
    assert "final_at_10:" not in told


def cells(text: str, first: str) -> list[list[str]]:
    """The rows of tables whose first cell is this one."""
    return [row for row in (re.split(r"\s{2,}", line.strip()) for line in text.splitlines()) if row[0] == first]


def test_waiting_clients_stand_beside_fastapi_with_as_many() -> None:
    values = {"waiting_4_per_s": 170.0, "waiting_4_p50_ms": 21.0, "waiting_4_p99_ms": 44.0}
    floor = {"waiting_4_fastapi_per_s": 200.0, "waiting_4_fastapi_p50_ms": 7.0, "waiting_4_fastapi_p99_ms": 9.0}
    told = report.as_text(results(values | floor))
    assert ["4", "170.00", "21.00", "44.00", "200.00", "7.00", "9.00", "0.85", ">= 0.8", "reached"] in cells(told, "4")
    assert not cells(told, "16")


def test_cpu_is_told_by_process_and_judged_in_total() -> None:
    run = {"lone_put_cpu_web_ms": 2.0, "lone_put_cpu_up_ms": 0.5, "lone_put_cpu_total_ms": 6.5}
    told = report.as_text(results(run | {"lone_put_cpu_generator_ms": 0.25}))
    assert ["web", "2.000"] in cells(told, "web")
    assert ["total", "6.500", "<= 6", "missed"] in cells(told, "total")
    rows = [line.split("  ")[0] for line in told.splitlines()]
    names = ["web", "up: supervisor and log relay", "total", "(load generator, not in the total)"]
    assert [row for row in rows if row in names] == names
    assert "CPU per payment, 64 connections" not in told


def test_the_bars_of_waiting_clients_are_those_of_each_number() -> None:
    bars = {ratio.value: ratio.bar for ratio in RATIOS if ratio.value.startswith("waiting_")}
    assert bars == {
        f"waiting_{clients}_per_s": bar for clients, bar in zip(CLIENTS, (0.6, 0.8, 1, 1.5, 4), strict=True)
    }


def test_a_declined_wait_counts_as_one_second() -> None:
    values = until_final(Sample({200: [0.01] * 50, 202: [0.002] * 50}))
    assert values["crowd_others_p50_ms"] == pytest.approx(1002)
    assert values["crowd_others_declined_percent"] == 50
    assert until_final(Sample({200: [0.01] * 50}))["crowd_others_p99_ms"] == pytest.approx(10)


def test_a_step_includes_the_floors_that_it_needs() -> None:
    assert [step.name for step in choose(["latency"])] == ["pgbench_spread", "spread", "latency"]
    chosen = [step.name for step in choose(["drain_1", "one_user"])]
    assert chosen == [step.name for step in STEPS if step.name in chosen]
    assert {"sql_loop_1", "pgbench_spread", "pgbench_one_user", "spread"} <= set(chosen)


def test_the_long_steps_are_measured_only_when_asked_for() -> None:
    assert [step.name for step in STEPS if step not in choose([])] == ["skew", "fronts", "growth"]


def test_every_ratio_with_a_bar_has_a_stretch_beyond_it() -> None:
    for ratio in RATIOS:
        if ratio.bar is not None and ratio.stretch is not None:
            assert ratio.stretch < ratio.bar if ratio.upper_bound else ratio.stretch > ratio.bar, ratio


def test_the_chart_is_svg_with_a_bar_for_each_ratio_that_has_one() -> None:
    drawn = ElementTree.fromstring(
        chart.draw([line(FASTER, 1.0), line(SHORTER, 5.0), line(Ratio("c", "c", {}, "d"), 1.0)], "a < b & c")
    )
    kinds = [rect.get("class") for rect in drawn.iter("{http://www.w3.org/2000/svg}rect")]
    assert kinds == ["track", "missed", "track", "reached"]
    missed, reached = (float(r.get("width", "")) for r in drawn.iter() if r.get("class") in ("missed", "reached"))
    assert reached > 3 * missed  # half of its bar against three times: longer is better, whichever way the bar is
