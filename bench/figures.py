"""What is measured, in which order, and which ratios are quoted, each with the bar to reach.

Ratios are what is quoted: numbers are this machine's, a ratio to a floor from the same run on the same Postgres
says something of the code.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bench import backlog, balances, crowd, growth, lists, loads, processes, skew, telling, waiting
from bench.floors import empty_route, fastapi_service, fronts, one_message, pgbench, sql_loop
from bench.plan import Step, Values

# Floors beside their figures, so that the machine's moods fall on both.
STEPS: tuple[Step, ...] = (
    Step("pgbench_spread", "floor: pgbench, a commit per payment, same rows, 16 clients", pgbench.spread),
    Step("spread", "end to end, single PUTs on 64 connections over all users", loads.spread, ("pgbench_spread",)),
    Step("pgbench_one_user", "floor: the same pgbench, all payments on one user", pgbench.one_user),
    Step(
        "one_user",
        "end to end, single PUTs on 64 connections, all on one user",
        loads.one_user,
        ("pgbench_one_user", "spread"),
    ),
    Step("bulk", "PUT /api/transactions/, arrays of 1,000 on 4 connections", loads.bulk, ("pgbench_spread",)),
    Step("one_message", "floor: one Celery message per payment, over all users", one_message.measure, ("spread",)),
    Step(
        "fastapi_spread",
        "floor: FastAPI and SQLAlchemy, settled in the request, over all users",
        fastapi_service.spread,
        ("spread",),
    ),
    Step("fastapi_one_user", "floor: the same FastAPI service, one user", fastapi_service.one_user, ("one_user",)),
    Step("empty_route", "floor: an empty Flask route on the server of web", empty_route.measure),
    Step("pgbench_lone", "floor: pgbench with one client, the latency of a commit", pgbench.lone),
    Step(
        "lone_put",
        "a PUT with Prefer: wait on an idle service, until final",
        loads.lone_put,
        ("empty_route", "pgbench_lone"),
    ),
    Step(
        "latency",
        "open loop at 10, 50 and 80 % of the spread rate settled: until accepted, until final",
        loads.latency,
        ("spread",),
    ),
    Step(
        "waiting",
        "1 to 64 clients that each wait until a payment is final, beside FastAPI with as many, by turns",
        waiting.measure,
    ),
    Step(
        "telling",
        "single PUTs settled without a webhook, with one that is told, with one that hangs, by turns",
        telling.settling,
    ),
    Step(
        "told",
        "100 events/s: from PUT until a healthy receiver has it, beside one that hangs",
        telling.beside_an_ill_one,
    ),
    Step(
        "skew",
        "30 webhooks, 3 million events nearly all of one user, then 20,000 more: from PUT until all receivers have it",
        skew.measure,
        once=True,
        asked_for=True,
    ),
    Step(
        "fronts",
        "the accept path alone, on granian and on gunicorn's threads",
        fronts.measure,
        asked_for=True,
    ),
    Step("memory", "memory of each process after the load", processes.memory, ("spread",)),
    Step("crowd", "1,000 clients wait for a held lane, while other users pay 50 times a second", crowd.measure),
    Step("sql_loop_2", "floor: a bare set-based SQL settle loop, two processes", sql_loop.with_two),
    Step("drain_2", "settling a backlog with two processes", backlog.drain_with_two, ("pgbench_spread", "sql_loop_2")),
    Step("sql_loop_1", "floor: a bare set-based SQL settle loop, one process", sql_loop.with_one, workers=1),
    Step(
        "drain_1",
        "settling a backlog with one process",
        backlog.drain_with_one,
        ("pgbench_spread", "sql_loop_1"),
        workers=1,
    ),
    Step("list_alone", "settling lists, 100,000 rows", lists.alone),
    Step(
        "beside_list",
        "the same while others pay 100 times a second: until their payments are final",
        lists.beside_payments,
        ("list_alone",),
    ),
    Step("balance", "balance now and at a date, short and long history", balances.measure, once=True),
    Step(
        "growth", "cost at 1, 10, 100 times the rows and users, with plans", growth.measure, once=True, asked_for=True
    ),
)


@dataclass(frozen=True)
class Ratio:
    """A value over its floor: the sum of the floor's values, each times its factor; without any, the value itself."""

    name: str
    value: str
    floor: Mapping[str, float]
    floor_name: str
    bar: float | None = None
    stretch: float | None = None
    upper_bound: bool = False  # the bar is the most it may be, not the least it must

    @property
    def title(self) -> str:
        return f"{self.name} / {self.floor_name}" if self.floor else self.name

    def of(self, values: Values) -> float | None:
        """None where something of it was not measured."""
        if {self.value, *self.floor} - values.keys():
            return None
        return values[self.value] / self.floor_of(values)

    def floor_of(self, values: Values) -> float:
        return sum(factor * values[key] for key, factor in self.floor.items()) if self.floor else 1.0

    def reached(self, ratio: float, bar: float | None) -> bool | None:
        if bar is None:
            return None
        return ratio <= bar if self.upper_bound else ratio >= bar


_PGBENCH = {"pgbench_spread_per_s": 1.0}
_WAITING_BARS: dict[int, tuple[float, float | None]] = {
    1: (0.6, 1),
    4: (0.8, 1),
    8: (1, None),
    16: (1.5, None),
    64: (4, 6),
}


def _waiting(clients: int) -> Ratio:
    name = "one client that waits" if clients == 1 else f"{clients} clients that wait"
    floor = {f"waiting_{clients}_fastapi_per_s": 1.0}
    return Ratio(name, f"waiting_{clients}_per_s", floor, "FastAPI", *_WAITING_BARS[clients])


RATIOS: tuple[Ratio, ...] = (
    Ratio("end to end, spread", "spread_settled_per_s", _PGBENCH, "pgbench, spread", 0.33, 0.45),
    Ratio(
        "end to end, spread",
        "spread_settled_per_s",
        {"one_message_settled_per_s": 1},
        "one message per payment",
        3,
        5,
    ),
    Ratio("end to end, one user", "one_user_settled_per_s", {"pgbench_one_user_per_s": 1}, "pgbench, one user", 1.6, 2),
    Ratio("end to end, spread", "spread_settled_per_s", {"fastapi_spread_settled_per_s": 1}, "FastAPI, spread", 8, 10),
    Ratio(
        "end to end, one user",
        "one_user_settled_per_s",
        {"fastapi_one_user_settled_per_s": 1},
        "FastAPI, one user",
        13,
        16,
    ),
    Ratio(
        "end to end, one user",
        "one_user_settled_per_s",
        {"spread_settled_per_s": 1},
        "end to end, spread",
        0.9,
        1,
    ),
    Ratio("bulk, settled", "bulk_settled_per_s", _PGBENCH, "pgbench, spread", 2, 3),
    Ratio("drain, one process", "drain_1_per_s", _PGBENCH, "pgbench, spread", 2.5, 3),
    Ratio("drain, two processes", "drain_2_per_s", _PGBENCH, "pgbench, spread", 4, 5),
    Ratio(
        "lone PUT until final, p50",
        "lone_put_p50_ms",
        {"empty_route_lone_p50_ms": 1, "pgbench_lone_commit_ms": 2},
        "empty route + two commits",
        15,
        8,
        upper_bound=True,
    ),
    Ratio("lone PUT until final, p50, in ms", "lone_put_p50_ms", {}, "", 5, 3.5, upper_bound=True),
    Ratio("until final at 50 % load, p99, in ms", "final_at_50_p99_ms", {}, "", 60, 30, upper_bound=True),
    Ratio("until final at 80 % load, p99, in ms", "final_at_80_p99_ms", {}, "", 150, 80, upper_bound=True),
    *(_waiting(clients) for clients in waiting.CLIENTS),
    Ratio(
        "others beside a waiting crowd until final, p99, in ms",
        "crowd_others_p99_ms",
        {},
        "",
        100,
        50,
        upper_bound=True,
    ),
    Ratio("share of the crowd that may wait, in %", "crowd_waited_percent", {}, ""),
    Ratio("CPU of a payment, spread, in ms", "spread_cpu_total_ms", {}, "", 0.4, 0.32, upper_bound=True),
    Ratio("CPU of a lone payment, in ms", "lone_put_cpu_total_ms", {}, "", 6, 4, upper_bound=True),
    Ratio("context switches of web per request, spread", "spread_web_switches_per_request", {}, ""),
    Ratio("memory without Postgres, PSS, in MB", "memory_total_pss_mb", {}, "", 400, 300, upper_bound=True),
    Ratio(
        "balance at a date, long",
        "balance_at_large_ms",
        {"balance_at_small_ms": 1},
        "short",
        1.5,
        1.1,
        upper_bound=True,
    ),
    Ratio("settled, a receiver hangs", "told_hanging_per_s", {"told_none_per_s": 1}, "without webhooks", 0.9, 1),
    Ratio("settled, a receiver hangs", "told_hanging_per_s", {"told_well_per_s": 1}, "a receiver is well"),
    Ratio("told beside one that hangs, p99, in ms", "told_p99_ms", {}, "", 1000, 200, upper_bound=True),
    Ratio("a list beside payments", "list_beside_per_s", {"list_alone_per_s": 1}, "the list alone", 0.8, 0.95),
    Ratio("payments beside a list until final, p99, in ms", "beside_list_p99_ms", {}, "", 1000, 200, upper_bound=True),
    Ratio("drain, one process", "drain_1_per_s", {"sql_loop_1_per_s": 1}, "SQL loop, one process"),
    Ratio("drain, two processes", "drain_2_per_s", {"sql_loop_2_per_s": 1}, "SQL loop, two processes"),
    Ratio("accepted, spread", "spread_accepted_per_s", {"empty_route_per_s": 1}, "empty route"),
    Ratio("accepting on granian", "accepting_on_granian_per_s", {"accepting_on_gunicorn_per_s": 1}, "on gunicorn"),
    Ratio("balance now, long", "balance_now_large_ms", {"balance_now_small_ms": 1}, "short"),
)


def choose(names: Sequence[str]) -> list[Step]:
    """The steps of these names and all that they need, in order; without names, all that need not be asked for."""
    by_name = {step.name: step for step in STEPS}
    wanted = list(names) if names else [step.name for step in STEPS if not step.asked_for]
    for name in wanted:  # it grows meanwhile
        wanted += [needed for needed in by_name[name].needs if needed not in wanted]
    return [step for step in STEPS if step.name in wanted]
