"""How much is measured, and what a step of the measurement gets and gives."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.stack import Stack

Values = dict[str, float]


@dataclass(frozen=True)
class Plan:
    """The sizes. `seconds` are those of each load."""

    runs: int = 5
    seconds: float = 8.0
    users: int = 1_000
    backlog: int = 200_000
    list_rows: int = 100_000
    list_puts_per_s: int = 100  # payments of others beside the long list
    entries: tuple[int, int] = (10_000, 10_000_000)
    stored: tuple[int, ...] = (20_000, 200_000, 2_000_000)
    user_counts: tuple[int, ...] = (1_000, 10_000, 100_000)
    look_ups: int = 300
    crowd: int = 1_000  # clients that wait at once

    @property
    def side_seconds(self) -> float:
        """Of the loads whose rates no bar is about: five runs of everything are to end within 35 minutes."""
        return self.seconds / 2

    @classmethod
    def quick(cls) -> "Plan":
        """Whether it works, not how fast the service is: one to two minutes."""
        return cls(
            runs=1,
            seconds=1.0,
            backlog=5_000,
            list_rows=20_000,
            entries=(1_000, 10_000),
            stored=(1_000, 10_000),
            user_counts=(100, 1_000),
            look_ups=50,
            crowd=200,
        )


@dataclass
class Run:
    """What a step works with. `values` holds what the earlier steps of this run have measured."""

    plan: Plan
    folder: Path
    say: Callable[[str], None]
    values: Values
    notes: dict[str, Any] = field(default_factory=dict)
    stack: Stack = field(init=False)

    def log(self, name: str) -> Path:
        return self.folder / f"{name}.log"


class Skipped(Exception):
    """The step cannot be done here. Its text says why, in a line."""


@dataclass(frozen=True)
class Step:
    """One measurement. `needs` names the steps whose values it, or the ratio that it is for, stands on."""

    name: str
    about: str
    measure: Callable[[Run], Values]
    needs: tuple[str, ...] = ()
    asked_for: bool = False  # only with --only: it is long
    workers: int = 2
    once: bool = False  # has a stack of its own, and is its own floor
