"""`./payments test faults`: break the service on purpose for a while, and say whether anything was lost."""

import argparse
import random
import sys
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from tests.faults.catalogue import FAULTS
from tests.faults.run import Plan, run

SHOWN = 20
BEGINS, ENDS = "<!-- faults: begin -->", "<!-- faults: end -->"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="payments test faults", description=__doc__)
    parser.add_argument("--seconds", type=float, default=600, help="of load and faults (default: %(default)s)")
    parser.add_argument("--seed", type=int, help="fixes the schedule and the load (default: a new one, printed)")
    parser.add_argument("--rate", type=float, default=60, help="new transactions a second (default: %(default)s)")
    parser.add_argument("--faults", help="only these, separated by commas", metavar="NAMES")
    parser.add_argument(
        "--table",
        type=Path,
        metavar="FILE",
        help="write the table of recoveries there, between its marks if it has them (docs/fault-tests.md)",
    )
    parser.add_argument("--log", type=Path, metavar="FILE", help="keep there what the service wrote")
    options = parser.parse_args(arguments)
    names = tuple(name.strip() for name in options.faults.split(",")) if options.faults else tuple(FAULTS)
    if unknown := set(names) - set(FAULTS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; there are: {', '.join(FAULTS)}")
    seed = options.seed if options.seed is not None else random.randrange(2**31)
    plan = Plan(options.seconds, seed, options.rate, faults=names)
    _say(f"faults: --seconds {plan.seconds:g} --seed {plan.seed} --rate {plan.rate:g}; the schedule begins:")
    for number, (name, pause) in enumerate(islice(plan.schedule(), len(names)), 1):
        _say(f"  {number:3}  {pause:.2f} s, then {name}")
    result = run(plan, _say, log=options.log)
    _say("\n".join(["", *result.table(), ""]))
    for violation in result.violations[:SHOWN]:
        _say(f"VIOLATION {violation}")
    verdict = (
        f"{len(result.violations)} violations" if result.violations else "nothing lost, doubled, negative or stuck"
    )
    faults = sum(map(len, result.seconds.values()))
    summary = f"{result.accepted} accepted, {faults} faults in {plan.seconds:g} s, seed {seed}: {verdict}"
    _say(summary)
    if options.table:
        _write(options.table, "\n".join([f"{summary}.", "", *result.table()]))
    return 1 if result.violations else 0


def _write(file: Path, table: str) -> None:
    known = file.read_text(encoding="utf-8") if file.exists() else ""
    before, begins, rest = known.partition(BEGINS)
    _, ends, after = rest.partition(ENDS)
    if begins and ends:
        file.write_text(f"{before}{BEGINS}\n{table}\n{ENDS}{after}", encoding="utf-8")
    else:
        file.write_text(f"{table}\n", encoding="utf-8")


def _say(line: str) -> None:
    print(line, flush=True)  # noqa: T201 - the command's output


if __name__ == "__main__":
    sys.exit(main())
