"""`python -m worker`: the settling processes and their parent. `python -m worker notify`: one process that tells
webhooks, with threads, because it waits for receivers and hardly computes. Each starts `python -m worker metrics`
beside it where it is to serve its metrics. `python -m worker flower` shows what they do.
"""

import sys

from shared import logs
from shared.settings import settings


def main(arguments: list[str]) -> int:
    """Run what the arguments name. Returns the exit code."""
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
        from worker import notify

        return notify.run()
    else:
        from worker.parent import Parent

        return Parent().run()
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except SystemExit as refusal:
        if isinstance(refusal.code, str):
            logs.write_line(refusal.code, "critical", descriptor=2)
            sys.exit(1)
        raise
