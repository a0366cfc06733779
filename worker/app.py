"""The Celery application of the workers: how messages are taken, and what a worker's process tells of itself.

A message is only a doorbell: losing one costs a second and receiving it twice costs nothing. So the settings
aim at two things, never to go deaf and to show the queue as it is.
"""

import logging
import warnings
from socket import gethostname
from typing import Any, Final

import celery.apps.worker
from celery import Celery, bootsteps
from celery.exceptions import CPendingDeprecationWarning
from celery.signals import celeryd_after_setup, setup_logging

from shared import doorbell, logs
from shared.settings import settings
from worker import broker
from worker.pulse import Pulse

PULSE_INTERVAL_SECONDS: Final = 1.0
EVENT_HEARTBEAT_INTERVAL_SECONDS: Final = (
    5  # Flower calls offline who misses two; a slice of 2 s must not make it miss them
)
BROKER_TIMEOUT_SECONDS: Final = 5.0

broker.install()
app = Celery("payments", broker=settings().broker_url, include=["worker.tasks"])
app.conf.update(
    task_default_queue=doorbell.SETTLE_QUEUE,
    task_ignore_result=True,
    task_acks_late=True,
    worker_disable_prefetch=True,  # or a busy process takes messages that others could work on
    worker_send_task_events=True,  # for Flower
    broker_connection_retry_on_startup=True,
    broker_connection_max_retries=None,  # the default gives up after 100
    worker_consumer="worker.consumer:Consumer",
    worker_cancel_long_running_tasks_on_connection_loss=False,
    broker_transport_options={
        # A ring is acknowledged in memory only: through a connection that is gone it raises what ends the worker.
        "ack_emulation": False,
        "health_check_interval": 10,
        # The loop waits for the broker only here: BRPOP is not read before its answer has come.
        "socket_timeout": BROKER_TIMEOUT_SECONDS,
        "socket_connect_timeout": BROKER_TIMEOUT_SECONDS,
        "priority_steps": [0],  # one list per queue
    },
)

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
def _ignore_celery_6_warnings(**_: Any) -> None:
    """Celery would warn at each lost connection, and has just switched all such warnings on."""
    warnings.simplefilter("ignore", CPendingDeprecationWarning)


class Consuming(bootsteps.StartStopStep):
    """Notes every second that the loop is ready for messages, by the loop's own timer."""

    requires = ("celery.worker.components:Timer",)

    def __init__(self, worker: Any, pulse: Pulse, **options: Any) -> None:
        super().__init__(worker, **options)
        self._pulse = pulse

    def start(self, worker: Any) -> None:
        worker.timer.call_after(0, self._pulse.note_consuming)  # the loop runs it once it is ready
        self._timer = worker.timer.call_repeatedly(PULSE_INTERVAL_SECONDS, self._pulse.note_consuming)

    def stop(self, _worker: Any) -> None:
        self._timer.cancel()


app.steps["worker"].add(Consuming)


def run(name: str, pulse: Pulse, **options: Any) -> int:
    """Take messages until a signal comes. Returns the exit code. `name` is shown before the host's name in Flower."""
    worker = app.Worker(
        hostname=f"{name}@{gethostname()}",
        pulse=pulse,
        loglevel="info",
        quiet=True,
        heartbeat_interval=EVENT_HEARTBEAT_INTERVAL_SECONDS,
        without_gossip=True,
        without_mingle=True,
        **options,
    )
    worker.start()
    return int(worker.exitcode or 0)
