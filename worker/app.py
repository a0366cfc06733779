"""The Celery application of the workers: how messages are taken, and what a pool process does at birth.

A message is only a doorbell: losing one costs a second and receiving it twice costs nothing. So the settings
aim at two things, never to go deaf and to show the queue as it is.
"""

import logging
import os
import threading
import time
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

import billiard.pool
import celery.apps.worker
from celery import Celery, bootsteps
from celery.exceptions import CPendingDeprecationWarning
from celery.signals import celeryd_after_setup, setup_logging, worker_init, worker_process_init, worker_ready
from celery.worker import state

from shared import database, doorbell, logs
from shared.processes import die_with_parent, has_ended
from shared.settings import settings
from worker import broker, stacks
from worker.exporter import Exporter

HEARTBEAT_SECONDS = 5.0
UNMENDED_SECONDS = 4.0
STOP_SECONDS = 20.0  # a slice is 2 s, and what a longer batch has done is rolled back and settled by others

broker.install()
app = Celery("payments", broker=settings().broker_url, include=["worker.tasks"])
app.conf.update(
    task_default_queue=doorbell.QUEUE,
    task_ignore_result=True,
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    worker_lost_wait=2,
    task_time_limit=60,  # a slice is 2 s
    worker_disable_prefetch=True,  # or prefetching drifts up and hides the queue
    worker_concurrency=settings().workers,
    worker_send_task_events=True,  # for Flower
    task_send_sent_event=True,
    broker_connection_retry_on_startup=True,
    broker_connection_max_retries=None,  # the default gives up after 100
    worker_consumer="worker.consumer:Consumer",
    worker_cancel_long_running_tasks_on_connection_loss=False,
    broker_transport_options={
        # A ring is acknowledged in memory only: through a connection that is gone it raises what ends the worker.
        "ack_emulation": False,
        "health_check_interval": 10,
        "priority_steps": [0],  # one list per queue
    },
)

# A pool process that ends waits until its last result has been read, for thirty seconds; and in a warm stop nobody may
# read any more: the reader stops when no task is known to it, which may be before the result of the last one is counted.
# Two seconds, in tenths: what is lost is the receipt of a ring.
billiard.pool.GUARANTEE_MESSAGE_CONSUMPTION_RETRY_LIMIT = 20

# Celery prints what it does about signals past the logs.
celery.apps.worker.safe_say = lambda message, *_: logs.write_line(message)


@setup_logging.connect
def _log_as_json(**_: Any) -> None:
    logs.configure()
    # Celery's own line per task says nothing that ours does not.
    for chatty in ("celery.worker.strategy", "celery.app.trace"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    # Lost connections are in the lines of ours (worker/consumer.py).
    logging.getLogger("celery.worker.consumer.consumer").setLevel(logging.ERROR)


@celeryd_after_setup.connect
def _ignore_what_celery_6_will_do(**_: Any) -> None:
    """Celery would warn at each lost connection, and has just switched all such warnings on."""
    warnings.simplefilter("ignore", CPendingDeprecationWarning)


@worker_init.connect
def _prepare_to_fork(**_: Any) -> None:
    stacks.open_file()


@worker_process_init.connect
def _begin_process(**_: Any) -> None:
    """In each pool process: connections of its own, a sweep of its own, and no life after its parent."""
    from worker import sweep  # here: the process that forks must not have it

    die_with_parent()
    stacks.listen()
    database.engine().dispose(close=False)  # plain dispose() would close the parent's
    sweep.start()


@worker_ready.connect
def _first_heartbeat(**_: Any) -> None:
    _beat()


class Heartbeat(bootsteps.StartStopStep):
    """Touches the heartbeat file from the consumer's timer: a liveness probe that loads nothing."""

    requires = ("celery.worker.components:Timer",)

    def start(self, worker: Any) -> None:
        self._timer = worker.timer.call_repeatedly(HEARTBEAT_SECONDS, _beat_again)

    def stop(self, _worker: Any) -> None:
        self._timer.cancel()


class Guard(bootsteps.StartStopStep):
    """Ends a worker that is neither alive nor dead, so that its supervisor starts another.

    Its pool is not mended: Celery replaces a dead process only while it hears the broker. The sweeps live in the
    pool, so without this a dead pool and a broker that is down would settle nothing. Or it lingers in its warm stop.
    And it keeps the exporter of metrics running.
    """

    requires = ("celery.worker.components:Pool",)

    def start(self, worker: Any) -> None:
        threading.Thread(target=_guard, args=[worker.pool], name="guard", daemon=True).start()


def _guard(pool: Any) -> None:
    """Holds no lock and no connection: the process that it runs in forks."""
    exporter = Exporter()
    dead_since: dict[int, float] = {}
    stops_since = None
    while True:
        with suppress(OSError):  # no process to be had: the next look may have more luck, and this thread must live
            exporter.tend()
        time.sleep(1)
        now = time.monotonic()
        if _is_told_to_stop():  # its processes end one by one
            stops_since = stops_since or now
            if now - stops_since > STOP_SECONDS:
                stacks.log([process.pid for process in _processes(pool)])
                _end("the warm stop takes too long")
            continue
        dead = {process.pid for process in _processes(pool) if has_ended(process.pid)}
        dead_since = {pid: dead_since.get(pid, now) for pid in dead}
        if any(now - since > UNMENDED_SECONDS for since in dead_since.values()):
            _end("a pool process has ended and was not replaced")


def _processes(pool: Any) -> list[Any]:
    """Of a pool of threads there are none."""
    return list(pool._pool._pool) if hasattr(pool, "_pool") and hasattr(pool._pool, "_pool") else []


def _is_told_to_stop() -> bool:
    return any(told is not None and told is not False for told in (state.should_stop, state.should_terminate))


def _end(why: str) -> None:
    logs.write_line("the worker ends itself", "critical", reason=why)
    os._exit(1)


app.steps["worker"].update([Heartbeat, Guard])


def _beat() -> None:
    if settings().heartbeat_file:
        Path(settings().heartbeat_file).touch()


def _beat_again() -> None:
    """Only once the worker has been ready: until then the file must not exist."""
    if settings().heartbeat_file and Path(settings().heartbeat_file).exists():
        _beat()
