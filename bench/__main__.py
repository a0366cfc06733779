"""`./payments bench`: the service and its floors, measured in the same run on the same Postgres.

Starts its own stack in a temporary folder, prints a line per step on standard error and the table of medians on
standard output. Ratios are what to quote. It wants the machine to itself, and Linux.
"""

import argparse
import json
import math
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import psycopg2  # type: ignore[import-untyped]

from bench import chart, report
from bench.figures import STEPS, choose
from bench.plan import Plan, Run, Skipped, Step, Values
from bench.report import Results
from bench.stack import BenchError, Stack
from local.tables import table

_FAILURES = (BenchError, OSError, psycopg2.Error)


def main(arguments: Sequence[str] | None = None) -> int:
    options = _read(arguments)
    if options.list:
        print(_steps())
        return 0
    if sys.platform != "linux":
        raise BenchError("bench reads /proc: it runs on Linux only")
    folder = Path(tempfile.mkdtemp(prefix="payments-bench-"))
    results = Results(_plan(options), filesystem=report.filesystem_of(folder))
    _say(f"works in {folder} ({results.filesystem})")
    interrupted = False
    try:
        measure(results, choose(options.only), folder, options.keep)
    except KeyboardInterrupt:  # what was measured until then is told
        interrupted = True
    finally:
        if not options.keep:
            shutil.rmtree(folder)
    _print_report(results, options)
    return 130 if interrupted else int(results.failed)


def _print_report(results: Results, options: argparse.Namespace) -> None:
    print(report.as_text(results))
    if options.json:
        options.json.write_text(json.dumps(report.as_json(results), indent=1, default=str) + "\n", encoding="utf-8")
    if options.chart:
        title = f"Payments, commit {report.commit() or 'unknown'}: ratios to floors of the same run"
        options.chart.write_text(chart.draw(report.lines_of(results), title), encoding="utf-8")


def _read(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="payments bench",
        description=__doc__,
        epilog=f"What is measured:\n\n{_steps()}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--runs", type=_at_least_one, help="of everything; medians are told (default: 5)")
    parser.add_argument("--seconds", type=_positive, help="of each load (default: 8)")
    parser.add_argument(
        "--only", type=_names, default=[], metavar="NAMES", help="these, and what they are compared with"
    )
    parser.add_argument("--list", action="store_true", help="say what there is to measure, and end")
    parser.add_argument("--quick", action="store_true", help="small numbers, one run: whether it works, not how fast")
    parser.add_argument("--entries", type=_at_least_one, metavar="N", help="of the long history (default: 10,000,000)")
    parser.add_argument("--list-rows", type=_at_least_one, metavar="N", help="of the long list (default: 100,000)")
    parser.add_argument("--list-puts", type=_at_least_one, metavar="N", help="a second beside it (default: 100)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all that was measured there")
    parser.add_argument("--chart", type=Path, metavar="FILE", help="draw the ratios there, as SVG")
    parser.add_argument("--keep", action="store_true", help="keep the folder with the logs and the data")
    return parser.parse_args(arguments)


def _steps() -> str:
    return table(("name", "what it is"), [(step.name, step.about) for step in STEPS])


def _positive(text: str) -> float:
    if not 0 < (number := float(text)) < math.inf:
        raise ValueError
    return number


def _at_least_one(text: str) -> int:
    if (number := int(text)) < 1:
        raise ValueError
    return number


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if unknown := set(names) - {step.name for step in STEPS}:
        raise argparse.ArgumentTypeError(f"unknown: {', '.join(sorted(unknown))} (--list says what there is)")
    return names


def _plan(options: argparse.Namespace) -> Plan:
    plan = Plan.quick() if options.quick else Plan()
    given = {name: value for name in ("runs", "seconds") if (value := getattr(options, name)) is not None}
    if options.entries:
        given["entries"] = (plan.entries[0], options.entries)
    if options.list_rows:
        given["list_rows"] = options.list_rows
    if options.list_puts:
        given["list_puts_per_s"] = options.list_puts
    return replace(plan, **given)


def measure(results: Results, steps: Sequence[Step], folder: Path, keep: bool) -> None:
    """Run after run, each on a new folder, so that every run starts with empty books; then what is done once."""
    plan = results.plan
    each = [step for step in steps if not step.once]
    parts = [(f"run {n} of {plan.runs}", each, True) for n in range(1, plan.runs + 1)] if each else []
    parts += [("once", [step], False) for step in steps if step.once]
    for number, (label, chosen, of_a_run) in enumerate(parts):
        values: Values = {} if of_a_run else results.once
        if of_a_run:
            results.runs.append(values)
        part = folder / str(number)
        _measure_on_stacks(results, chosen, Run(plan, part, partial(_say_of, label), values), label)
        if not keep:
            shutil.rmtree(part)


def _measure_on_stacks(results: Results, steps: Sequence[Step], run: Run, label: str) -> None:
    """The steps in order, on one `up` as long as they want the same number of workers; always on the same data."""
    run.folder.mkdir()
    results.notes.append({"what": label, "notes": run.notes})
    for workers in sorted({step.workers for step in steps}, reverse=True):
        with Stack(run.folder / "data", workers) as run.stack:
            results.postgres = report.read_postgres(run.stack.database_url)
            for step in steps:
                if step.workers == workers:
                    _measure_step(results, step, run)


def _measure_step(results: Results, step: Step, run: Run) -> None:
    """A step that fails is told and passed over: hours of others are not lost with it."""
    began = time.monotonic()
    try:
        measured = step.measure(run)
    except Skipped as reason:
        results.not_done[step.name] = str(reason)
        run.say(f"{step.name}: skipped: {reason}")
        return
    except _FAILURES as error:
        results.failed = True
        results.not_done[step.name] = f"failed: {error}"
        run.say(f"{step.name}: FAILED: {error}")
        return
    run.values.update(measured)
    shown = ", ".join(f"{key.removeprefix(step.name + '_')} {value:,.2f}" for key, value in measured.items())
    run.say(f"{step.name} ({time.monotonic() - began:.0f} s): {shown}")


def _say_of(label: str, line: str) -> None:
    _say(f"{label}: {line}")


def _say(line: str) -> None:
    print(f"bench: {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except BenchError as problem:
        sys.exit(f"payments: {problem}")
    except KeyboardInterrupt:
        sys.exit(130)
