"""A fault run: load, and one fault after the other by a schedule that the seed fixes; then everything is checked."""

import random
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import quantiles
from tempfile import TemporaryDirectory

from tests.faults.catalogue import FAULTS
from tests.faults.checker import RECOVERY_SECONDS, check
from tests.faults.final_snapshot import gather
from tests.faults.history import Recovery
from tests.faults.load import Load
from tests.faults.stack import Stack
from tests.kit.receiver import Receiver, receiving

Say = Callable[[str], None]
Prepare = Callable[[Stack], None]


@dataclass(frozen=True)
class Plan:
    """What fixes a run. `seconds` of load and faults; starting, ending and checking come on top."""

    seconds: float
    seed: int
    rate: float = 60.0
    users: int = 12
    faults: tuple[str, ...] = tuple(FAULTS)
    stops_when_stuck: bool = False  # there is a violation then: the rest of the run is not needed

    def schedule(self) -> Iterator[tuple[str, float]]:
        """Faults without end, each with the pause before it: shuffled rounds, so that all have their turn."""
        draw = random.Random(self.seed)
        while True:
            for name in draw.sample(self.faults, len(self.faults)):
                yield name, draw.uniform(0.2, 1.0)


@dataclass
class Result:
    """How a run came out. `seconds` are, per fault, from its end to all accepted so far being final."""

    accepted: int = 0
    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    violations: list[str] = field(default_factory=list)

    def table(self) -> list[str]:
        """As markdown."""
        lines = ["| fault | times | recovery p50 | recovery p99 |", "|---|---:|---:|---:|"]
        for name, seconds in sorted(self.seconds.items()):
            lines.append(f"| {name} | {len(seconds)} | {_percentile(seconds, 50)} | {_percentile(seconds, 99)} |")
        return lines


def run(
    plan: Plan, say: Say, prepare: Prepare = lambda _: None, hook: str = "", log: Path | None = None, **changes: str
) -> Result:
    """Run a plan on a service of its own; `hook` and variables for its processes as of Stack.

    What the service wrote is kept in `log`.
    """
    changes["WEBHOOK_ALLOW_PRIVATE"] = "1"
    with TemporaryDirectory(prefix="payments-faults-") as folder, receiving() as receiver:
        stack = Stack(Path(folder), hook=hook, changes=changes)
        try:
            prepare(stack.wait_ready())
            return _run_on(stack, plan, receiver, say)
        finally:
            stack.stop()
            if log:
                log.write_bytes(stack.service.output.read_bytes())


def _run_on(stack: Stack, plan: Plan, receiver: Receiver, say: Say) -> Result:
    result = Result()
    load = Load(stack.url, plan.users, plan.rate, plan.seed)
    asked = {"url": receiver.url, "events": ["transaction.completed", "transaction.rejected"]}
    answer = load.http.try_send("POST", "/api/webhook/", asked)
    assert answer, "the webhook was not added"
    assert answer.status == 201, answer
    load.start()
    try:
        _break_things(stack, plan, load, result, say)
        load.stop()
        stack.await_ready()
    except AssertionError as error:  # something does not come back: that is found, and no more can be asked
        result.violations.append(f"did not come back: {error}")
        return result
    finally:
        load.stop()
        result.accepted = len(load.accepted())
    if not any(recovery.stuck for recovery in load.history.recoveries):
        load.history.recoveries.append(_await_final(load, "the end"))
    books = gather(stack, load.http, load.users, receiver)
    result.violations += [*check(load.history, books), *load.surprises]
    return result


def _break_things(stack: Stack, plan: Plan, load: Load, result: Result, say: Say) -> None:
    draw = random.Random(f"{plan.seed} faults")
    began = time.monotonic()
    for number, (name, pause) in enumerate(plan.schedule(), 1):
        time.sleep(pause)
        if time.monotonic() - began > plan.seconds:
            return
        try:
            FAULTS[name](stack, random.Random(draw.random()))
            over = time.monotonic()
            stack.await_ready()
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from error
        ready = time.monotonic()
        recovery = _await_final(load, name)
        load.history.recoveries.append(recovery)
        result.seconds[name].append(time.monotonic() - over)
        say(
            f"{time.monotonic() - began:6.1f} s  {number:3}  {name:32} ready {ready - over:5.2f} s,"
            f" all final {time.monotonic() - over:5.2f} s, accepted {len(load.accepted())}"
            + (f", STUCK {len(recovery.stuck)}" if recovery.stuck else "")
        )
        if recovery.stuck and plan.stops_when_stuck:
            return


def _await_final(load: Load, fault: str) -> Recovery:
    """Ask for all that has been accepted so far and is not known to be final, until it is."""
    began = time.monotonic()
    left = load.accepted() - load.final
    while left and time.monotonic() - began <= RECOVERY_SECONDS:
        for uid in left:
            load.look_up(uid)
        left -= load.final
        time.sleep(0.02)
    return Recovery(fault, time.monotonic() - began if not left else RECOVERY_SECONDS, tuple(sorted(left)))


def _percentile(values: Sequence[float], percent: int) -> str:
    found = quantiles(values, n=100, method="inclusive")[percent - 1] if len(values) > 1 else values[0]
    return f"{found:.2f} s"
