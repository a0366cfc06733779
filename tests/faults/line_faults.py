"""Faults of the lines to Postgres and the broker, by way of the proxies."""

import random
import time
from collections.abc import Callable

from tests.faults.proxy import Line
from tests.faults.stack import Stack

Fault = Callable[[Stack, random.Random], None]


def break_line(server: str, break_it: str) -> Fault:
    """The line to postgres or broker, through the proxy."""

    def fault(stack: Stack, draw: random.Random) -> None:
        proxy = stack.postgres if server == "postgres" else stack.broker
        try:
            if break_it == "delay":
                proxy.delay_seconds = draw.uniform(0.02, 0.1)
            elif break_it == "refuse":
                proxy.refuses = True
                proxy.reset()
            else:
                getattr(proxy, break_it)()
            time.sleep(0.1 if break_it == "reset" else draw.uniform(1.5, 3))
        finally:
            proxy.heal()

    return fault


def accepts(line: Line) -> bool:
    """Whether the line's transaction takes payments in."""
    return any("INSERT INTO transactions" in statement for statement in line.statements)


def settles(line: Line) -> bool:
    """Whether the line's transaction settles."""
    return any("INSERT INTO events" in statement for statement in line.statements)


def cut_commits(matches: Callable[[Line], bool], *, after: bool) -> Fault:
    """The ambiguous commit: the line ends at the COMMIT, a few times over."""

    def fault(stack: Stack, draw: random.Random) -> None:
        cut = stack.postgres.cut_commits(matches, draw.randint(1, 3), after=after)
        try:
            cut.done.wait(5)
        finally:
            stack.postgres.heal()

    return fault
