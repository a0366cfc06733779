"""`python -m worker`: one Celery worker with its pool of settling processes. `python -m worker notify`: one that tells
webhooks, with threads, because it waits for receivers and hardly computes.
"""

import sys

from shared import doorbell
from shared.settings import settings
from worker.app import app

QUIET = ("--loglevel=info", "--without-gossip", "--without-mingle")


def main(arguments: list[str]) -> None:
    if arguments == ["notify"]:
        from worker import notify  # here: a worker that settles has no need of it

        notify.start()
        slots = f"--concurrency={settings().notify_slots}"
        queue = f"--queues={doorbell.NOTIFY_QUEUE}"
        app.worker_main(["worker", *QUIET, "--pool=threads", slots, queue, "--hostname=notify@%h"])
    else:
        app.worker_main(["worker", *QUIET, "--pool=prefork", "--hostname=settle@%h"])


if __name__ == "__main__":
    main(sys.argv[1:])
