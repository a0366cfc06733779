"""The faults: each breaks something, holds it for a moment, and undoes it. What dies is started again by `up`."""

import os
import random
import signal
import time
from contextlib import ExitStack, closing, suppress
from typing import Final

import psycopg2  # type: ignore[import-untyped]
from celery import Celery

from tests.faults.line_faults import Fault, accepts, break_line, cut_commits, settles
from tests.faults.refusals import REFUSING
from tests.faults.stack import Stack
from tests.kit.waiting import wait_until

LANES = 16
MAX_RINGS = 100


def _kill(role: str, number: signal.Signals = signal.SIGKILL) -> Fault:
    """The main process with all it has started; SIGTERM and SIGQUIT go to the main one alone."""

    def fault(stack: Stack, _draw: random.Random) -> None:
        if number == signal.SIGKILL and role != "postgres":  # a lone SIGKILL of the postmaster is the worse one
            old = stack.signal(role, number)
        else:
            old = stack.pid_of(role)
            os.kill(old, number)
        stack.await_restart(role, old)

    return fault


def _freeze(role: str, shortest: float, longest: float) -> Fault:
    def fault(stack: Stack, draw: random.Random) -> None:
        stack.signal(role, signal.SIGSTOP)
        try:
            time.sleep(draw.uniform(shortest, longest))
        finally:
            stack.signal(role, signal.SIGCONT)

    return fault


def _pool_child(number: signal.Signals) -> Fault:
    """One settling process of the worker; frozen ones go on after longer than Postgres lets them hold a lane."""

    def fault(stack: Stack, draw: random.Random) -> None:
        main = stack.pid_of("worker")
        child = draw.choice([pid for pid in stack.family_of("worker") if pid != main])
        with suppress(ProcessLookupError):
            os.kill(child, number)
            if number == signal.SIGSTOP:
                time.sleep(6)
                os.kill(child, signal.SIGCONT)

    return fault


def rolling_restart(stack: Stack, _draw: random.Random) -> None:
    """Every worker is replaced while another one works."""
    extra = stack.start_worker()
    try:
        old = stack.pid_of("worker")
        os.kill(old, signal.SIGTERM)
        stack.await_restart("worker", old)
        wait_until(stack.is_ready, "the new worker consumes", 30)
    finally:
        extra.terminate()
        try:
            extra.wait(20)
        finally:
            extra.kill()


def broker_emptied(stack: Stack, draw: random.Random) -> None:
    with stack.redis() as broker:
        for _ in range(5):
            broker.flushall()
            time.sleep(draw.uniform(0.05, 0.3))


def broker_paused(stack: Stack, draw: random.Random) -> None:
    milliseconds = draw.randint(1500, 3000)
    with stack.redis() as broker:
        broker.client_pause(milliseconds)
        time.sleep(milliseconds / 1000)


def rings_duplicated(stack: Stack, draw: random.Random) -> None:
    """The same ring many times, and rings for lanes without work, all at once."""
    with Celery("faults", broker=stack.broker_url, set_as_current=False) as sender:
        for lane in [*range(LANES), *[draw.randrange(LANES)] * 30]:
            sender.send_task("settle", args=[lane], task_id=f"extra-{lane}", queue="settle", retry=False)


def rings_reordered(stack: Stack, draw: random.Random) -> None:
    """What waits in the queue is taken out, doubled while it is not too much, shuffled and put back, some times."""
    rings_duplicated(stack, draw)
    with stack.redis() as broker:
        for _ in range(5):
            rings = list(broker.lpop("settle", 1000) or [])
            rings *= 2 if len(rings) < MAX_RINGS else 1
            draw.shuffle(rings)
            if rings:
                broker.rpush("settle", *rings)
            time.sleep(0.05)


def backends_terminated(stack: Stack, draw: random.Random) -> None:
    for _ in range(5):
        with stack.session() as cursor:
            cursor.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE application_name LIKE 'payments-%' AND pid <> pg_backend_pid()"
            )
        time.sleep(draw.uniform(0.05, 0.3))


def backend_killed(stack: Stack, _draw: random.Random) -> None:
    """SIGKILL of one backend: Postgres ends all of them and recovers."""
    with stack.session() as cursor:
        cursor.execute("SELECT pid FROM pg_stat_activity WHERE application_name LIKE 'payments-%'")
        pids = [pid for (pid,) in cursor.fetchall()]
    if pids:
        with suppress(ProcessLookupError):
            os.kill(pids[0], signal.SIGKILL)


def connections_exhausted(stack: Stack, draw: random.Random) -> None:
    """The service's connections are ended and no other is to be had."""
    with ExitStack() as held:
        ours = held.enter_context(closing(psycopg2.connect(stack.database_url, connect_timeout=5)))

        def take_all() -> None:
            with suppress(psycopg2.OperationalError):
                while True:
                    held.enter_context(closing(psycopg2.connect(stack.database_url, connect_timeout=5)))

        take_all()
        ours.cursor().execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'payments-%'"
        )
        ends = time.monotonic() + draw.uniform(1.5, 3)
        while time.monotonic() < ends:
            take_all()
            time.sleep(0.02)


def user_rows_locked(stack: Stack, draw: random.Random) -> None:
    """For longer than anybody waits for a lock."""
    with stack.session() as cursor:
        cursor.execute("SELECT FROM users WHERE id % 2 = 0 ORDER BY id FOR UPDATE")
        time.sleep(draw.uniform(2.5, 4))


def transactions_locked(stack: Stack, draw: random.Random) -> None:
    """The whole table, against reading too."""
    with stack.session() as cursor:
        cursor.execute("LOCK TABLE transactions IN ACCESS EXCLUSIVE MODE")
        time.sleep(draw.uniform(1, 2.5))


FAULTS: Final[dict[str, Fault]] = {
    "web killed": _kill("web"),
    "web frozen": _freeze("web", 1, 3),
    "web stopped (SIGTERM)": _kill("web", signal.SIGTERM),
    "worker killed": _kill("worker"),
    "worker frozen": _freeze("worker", 1, 7),
    "worker stopped (SIGTERM)": _kill("worker", signal.SIGTERM),
    "settling process killed": _pool_child(signal.SIGKILL),
    "settling process frozen 6 s": _pool_child(signal.SIGSTOP),
    "workers replaced one by one": rolling_restart,
    "notifier killed": _kill("notify"),
    "notifier frozen": _freeze("notify", 1, 7),
    "notifier stopped (SIGTERM)": _kill("notify", signal.SIGTERM),
    "broker killed": _kill("broker"),
    "broker frozen": _freeze("broker", 1, 3),
    "broker emptied": broker_emptied,
    "broker paused": broker_paused,
    "rings doubled": rings_duplicated,
    "rings doubled and reordered": rings_reordered,
    "postgres killed": _kill("postgres"),
    "postgres stopped (immediate)": _kill("postgres", signal.SIGQUIT),
    "postgres frozen": _freeze("postgres", 1, 3),
    "one backend killed": backend_killed,
    "backends terminated": backends_terminated,
    "connections exhausted": connections_exhausted,
    "user rows locked": user_rows_locked,
    "transactions locked": transactions_locked,
    "postgres line slow": break_line("postgres", "delay"),
    "postgres line reset": break_line("postgres", "reset"),
    "postgres line refused": break_line("postgres", "refuse"),
    "postgres line held": break_line("postgres", "hold"),
    "postgres line swallows": break_line("postgres", "swallow"),
    "postgres line half open": break_line("postgres", "half_open"),
    "line cut after COMMIT (accept)": cut_commits(accepts, after=True),
    "line cut before COMMIT (accept)": cut_commits(accepts, after=False),
    "line cut after COMMIT (settle)": cut_commits(settles, after=True),
    "line cut before COMMIT (settle)": cut_commits(settles, after=False),
    "broker line slow": break_line("broker", "delay"),
    "broker line reset": break_line("broker", "reset"),
    "broker line refused": break_line("broker", "refuse"),
    "broker line held": break_line("broker", "hold"),
    "broker line swallows": break_line("broker", "swallow"),
    "broker line half open": break_line("broker", "half_open"),
    **REFUSING,
}
