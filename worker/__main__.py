"""`python -m worker`: one Celery worker with its pool of settling processes. `python -m worker notify`: one that tells
webhooks, with threads, because it waits for receivers and hardly computes. Each starts `python -m worker metrics`
beside it where it is to serve its metrics. `python -m worker flower` shows what they do.
"""

import sys

from shared import logs
from shared.settings import settings

QUIET = ("--quiet", "worker", "--loglevel=info", "--without-gossip", "--without-mingle")


def main(arguments: list[str]) -> None:
    if settings().metrics_port and not settings().metrics_dir:
        sys.exit("PAYMENTS_METRICS_PORT needs PROMETHEUS_MULTIPROC_DIR, a folder for the worker's metrics")
    logs.configure()
    logs.capture_warnings_and_crashes()
    # Each imports what it needs when it needs it: the exporter is to be small, and a worker that settles tells nobody.
    if arguments == ["metrics"]:
        from worker import exporter

        exporter.serve()
    elif arguments[:1] == ["flower"]:
        from worker import flower

        flower.run(arguments[1:])
    elif arguments == ["notify"]:
        _notify()
    else:
        _clear_remains()
        from worker.app import app

        app.worker_main([*QUIET, "--pool=prefork", "--hostname=settle@%h"])


def _notify() -> None:
    _clear_remains()
    from shared import delivering, doorbell
    from worker import notify
    from worker.app import STOP_SECONDS, app

    notify.start()
    slots = f"--concurrency={settings().notify_slots}"
    queue = f"--queues={doorbell.NOTIFY_QUEUE}"
    try:
        app.worker_main([*QUIET, "--pool=threads", slots, queue, "--hostname=notify@%h"])
    finally:  # the tasks are over; deliveries that take long have left them behind
        delivering.slots().close()
        delivering.slots().wait_until_idle(STOP_SECONDS)


def _clear_remains() -> None:
    from worker import remains

    remains.clear()


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except SystemExit as refusal:
        if isinstance(refusal.code, str):
            logs.write_line(refusal.code, "critical", descriptor=2)
            sys.exit(1)
        raise
