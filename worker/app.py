"""The Celery application of the workers: its configuration, and the pulse of its message loop.

A message is only a doorbell: a lost one costs a second, a repeated one costs nothing. So the configuration has two aims:
the worker always takes messages, and the queue shows how many wait.
"""

import logging
import warnings
from socket import gethostname
from typing import Any, Final

import celery.apps.worker
from celery import Celery, bootsteps
from celery.exceptions import CPendingDeprecationWarning
from celery.signals import celeryd_after_setup, setup_logging

from shared import logs
from shared.payments import doorbell
from shared.settings import settings
from worker.broker import transport
from worker.pulse import Pulse

PULSE_INTERVAL_SECONDS: Final = 1.0
EVENT_HEARTBEAT_INTERVAL_SECONDS: Final = (
    5  # longer than a slice: Flower shows a worker as offline after two missing ones
)
BROKER_TIMEOUT_SECONDS: Final = 5.0

transport.install()
app = Celery("payments", broker=settings().broker_url, include=["worker.tasks"])
app.conf.update(
    task_default_queue=doorbell.SETTLE_QUEUE,
    task_ignore_result=True,
    task_acks_late=True,
    worker_disable_prefetch=True,  # otherwise a busy process takes messages that idle ones could process
    worker_send_task_events=True,  # for Flower
    broker_connection_retry_on_startup=True,
    broker_connection_max_retries=None,  # the default gives up after 100
    worker_consumer="worker.broker.consumer:Consumer",
    worker_cancel_long_running_tasks_on_connection_loss=False,
    broker_transport_options={
        # Acknowledge in memory only, because over a lost connection the acknowledgement raises an error that ends the worker.
        "ack_emulation": False,
        "health_check_interval": 10,
        # Limits each wait of the loop for the broker. The response of BRPOP is read only after it has arrived.
        "socket_timeout": BROKER_TIMEOUT_SECONDS,
        "socket_connect_timeout": BROKER_TIMEOUT_SECONDS,
        "priority_steps": [0],  # one list per queue
    },
)

# Celery prints its messages about signals instead of logging them.
celery.apps.worker.safe_say = lambda message, *_: logs.write_line(message)


@setup_logging.connect
def _log_as_json(**_: Any) -> None:
    logs.configure()
    # Celery's own line per task repeats ours.
    for chatty in ("celery.worker.strategy", "celery.app.trace"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    # worker/broker/consumer.py logs lost connections.
    logging.getLogger("celery.worker.consumer.consumer").setLevel(logging.ERROR)


@celeryd_after_setup.connect
def _ignore_celery_6_warnings(**_: Any) -> None:
    """Disables warnings about Celery 6, which Celery has just enabled and repeats at each lost connection."""
    warnings.simplefilter("ignore", CPendingDeprecationWarning)


class Consuming(bootsteps.StartStopStep):
    """Records every second that the loop is ready for messages, by a timer of the loop."""

    requires = ("celery.worker.components:Timer",)

    def __init__(self, worker: Any, pulse: Pulse, **options: Any) -> None:
        super().__init__(worker, **options)
        self._pulse = pulse

    def start(self, worker: Any) -> None:
        """Starts the timer."""
        worker.timer.call_after(0, self._pulse.note_consuming)  # the loop runs it once it is ready
        self._timer = worker.timer.call_repeatedly(PULSE_INTERVAL_SECONDS, self._pulse.note_consuming)

    def stop(self, _worker: Any) -> None:
        """Stops the timer."""
        self._timer.cancel()


app.steps["worker"].add(Consuming)


def run(name: str, pulse: Pulse, **options: Any) -> int:
    """Takes messages until a signal comes. Returns the exit code. Flower shows `name` before the name of the host."""
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
