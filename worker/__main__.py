"""Starts a worker.

- `python -m worker`: the settling processes and their parent.
- `python -m worker notify`: one process that delivers to webhooks, with threads, because it mostly waits for receivers.
- `python -m worker metrics`: the exporter, which the two above start if they have to serve metrics.
- `python -m worker flower`: Flower, which shows the tasks of the workers.
"""

import sys

from shared import logs
from shared.settings import settings


def main(arguments: list[str]) -> int:
    """Runs the process that the arguments name. Returns the exit code."""
    if settings().metrics_port and not settings().metrics_dir:
        sys.exit("PAYMENTS_METRICS_PORT needs PROMETHEUS_MULTIPROC_DIR, a folder for the worker's metrics")
    logs.configure()
    logs.capture_warnings_and_crashes()
    # Imports are local to keep processes small: the exporter and the settling processes need few modules.
    if arguments == ["metrics"]:
        from worker import metrics_exporter

        metrics_exporter.serve()
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
