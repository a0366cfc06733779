"""What the benchmark reads of processes: none is left out, none counts twice, and what has ended still counts."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable

import pytest

from bench.processes import SwitchCounter, cpu_per_payment, cpu_seconds_of, switches_in, total_memory
from bench.stack import group_by_role

pytestmark = pytest.mark.unit

UP, WEB, WEB_CHILD, WORKER, SECOND_WORKER, STRAY = 10, 20, 21, 30, 40, 50
PARENTS = {UP: 1, WEB: UP, WEB_CHILD: WEB, WORKER: UP, SECOND_WORKER: UP, STRAY: UP, 99: 1}
HAND_OVERS = 300


def test_each_process_belongs_to_exactly_one_role() -> None:
    mains = [("up", UP), ("web", WEB), ("worker", WORKER), ("worker", SECOND_WORKER)]
    groups = group_by_role(mains, PARENTS)
    assert groups == {"up": [UP, STRAY], "web": [WEB, WEB_CHILD], "worker": [WORKER, SECOND_WORKER]}


def test_the_cpu_of_a_child_that_has_ended_still_counts() -> None:
    before = cpu_seconds_of(os.getpid())
    own_before = sum(os.times()[:2])
    burn = "import time\nwhile time.process_time() < 0.5: pass"
    subprocess.run([sys.executable, "-c", burn], check=True)
    own = sum(os.times()[:2]) - own_before
    assert cpu_seconds_of(os.getpid()) - before >= 0.45 + own


def test_the_total_cpu_leaves_out_the_generator() -> None:
    before = {"web": 1.0, "up": 1.0, "generator": 5.0}
    after = {"web": 3.0, "up": 1.5, "generator": 9.0}
    assert cpu_per_payment("spread", before, after, 1000) == {
        "spread_cpu_web_ms": 2.0,
        "spread_cpu_up_ms": 0.5,
        "spread_cpu_generator_ms": 4.0,
        "spread_cpu_total_ms": 2.5,
    }


def test_total_memory_leaves_out_postgres_and_resident_sizes() -> None:
    sizes = {"memory_web_pss_mb": 100.0, "memory_web_largest_rss_mb": 150.0, "memory_up_pss_mb": 20.0}
    assert total_memory(sizes | {"memory_postgres_pss_mb": 500.0}) == 120.0


def hand_over(sample: Callable[[], None]) -> None:
    """Two threads wait for each other in turn, so each switches as often; then a sample; then they end."""
    semaphores = threading.Semaphore(1), threading.Semaphore(0)
    sampled, barrier = threading.Event(), threading.Barrier(3)

    def take_turns(mine: threading.Semaphore, other: threading.Semaphore) -> None:
        for _ in range(HAND_OVERS):
            mine.acquire()
            other.release()
        barrier.wait()
        sampled.wait()

    threads = [threading.Thread(target=take_turns, args=order) for order in (semaphores, semaphores[::-1])]
    for thread in threads:
        thread.start()
    barrier.wait()
    sample()
    sampled.set()
    for thread in threads:
        thread.join()


def test_both_kinds_of_switches_count() -> None:
    assert switches_in("Threads:\t9\nvoluntary_ctxt_switches:\t5000\nnonvoluntary_ctxt_switches:\t40\n") == 5040


def test_switches_of_a_thread_that_has_ended_still_count() -> None:
    with SwitchCounter([os.getpid()]) as counter:
        hand_over(counter.sample)
    assert counter.count >= HAND_OVERS


def test_switches_before_the_block_do_not_count() -> None:
    counts = []

    def count_an_empty_block() -> None:
        with SwitchCounter([os.getpid()]) as counter:
            pass
        counts.append(counter.count)

    hand_over(count_an_empty_block)
    assert counts[0] < HAND_OVERS
