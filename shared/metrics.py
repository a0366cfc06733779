"""Counters and histograms of events in this process. Processes share them through a folder.

Gauges of the state in the database are elsewhere: web reads them at each scrape (web/gauges).
"""

from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.registry import Collector

from shared.metrics_folder import FolderCollector
from shared.settings import settings

if settings().metrics_dir:
    Path(settings().metrics_dir).mkdir(parents=True, exist_ok=True)  # each metric below opens a file in it

SETTLED = Counter(
    "payments_settled", "Transactions settled, by final status", ["status"]
)  # exposed as payments_settled_total
ACCEPTED = Counter("payments_accepted", "New transactions accepted, counted after the commit")
REJECTED = Counter("payments_rejected", "Transactions rejected, by reason", ["reason"])
BATCH_SIZE = Histogram(
    "payments_batch_size",
    "Transactions settled per commit",
    buckets=(1, 2, 5, 10, 20, 50, 100, 200, 500),
)
TIME_TO_FINAL = Histogram(
    "payments_time_to_final_seconds",
    "Time from acceptance to the final state",
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300),
)
HTTP_DURATION = Histogram(
    "http_request_duration_seconds",
    "Time to respond to a request",
    ["method", "route", "status"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
)
PARKED = Counter("payments_parked", "Transactions parked because our code failed to settle them")
BATCH_FAILURES = Counter(
    "payments_batch_failures", "Batches rolled back, by cause: own (our code) or machinery (infrastructure)", ["cause"]
)
RING_FAILURES = Counter("payments_ring_failures", "Rings that the broker did not accept")
RINGS_WITHHELD = Counter(
    "payments_rings_withheld", "Rings not sent, because too many messages wait in the queue and no worker takes them"
)
MESSAGES_DROPPED = Counter(
    "payments_messages_dropped", "Messages dropped because they are not valid messages of this service"
)
SETTLED_BY = Counter("payments_settled_by", "Transactions settled, by trigger: ring or sweep", ["by"])

WEBHOOK_DELIVERIES = Counter(
    "payments_webhook_deliveries", "Delivery attempts, by outcome: delivered, failed (retried) or dead", ["outcome"]
)
DUTY_FAILURES = Counter("payments_duty_failures", "Failures of periodic work, by duty", ["duty"])
DUTIES = (
    *("watchdog", "settle_overdue", "retry_parked"),  # of a worker
    *(
        "expand",
        "expand_webhook",
        "deliver",
        "prune_deleted",
        "prune_delivered",
        "prune_events",
        "prune_secrets",
    ),  # of notify
    *("read_backlog", "read_keys", "read_webhooks", "read_snapshot", "read_verification", "read_queues"),  # of web
)
# Rare series start at 0, because a rate needs a first sample.
for cause in ("own", "machinery"):
    BATCH_FAILURES.labels(cause)
for outcome in ("delivered", "failed", "dead"):
    WEBHOOK_DELIVERIES.labels(outcome)
for by in ("ring", "sweep"):
    SETTLED_BY.labels(by)
for duty in DUTIES:
    DUTY_FAILURES.labels(duty)

_COUNTED_HERE = (
    *(ACCEPTED, SETTLED, REJECTED, BATCH_SIZE, TIME_TO_FINAL, HTTP_DURATION, SETTLED_BY),
    *(PARKED, BATCH_FAILURES, RING_FAILURES, RINGS_WITHHELD, MESSAGES_DROPPED, WEBHOOK_DELIVERIES, DUTY_FAILURES),
)


def registry(*extra: Collector) -> CollectorRegistry:
    """Returns a registry of the metrics of all processes that share the folder, plus the given collectors.

    Without a folder it holds the metrics of this process only.
    """
    gathered = CollectorRegistry()
    if settings().metrics_dir and Path(settings().metrics_dir).is_dir():
        FolderCollector(gathered)
    else:
        extra = (*_COUNTED_HERE, *extra)
    for collector in extra:
        gathered.register(collector)
    return gathered
