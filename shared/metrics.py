"""The metrics, by the names that dashboards and alerts use. Processes share them through a folder.

Gauges of the database's state are read by whoever is asked (see web/health); these count what happened here.
"""

from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Histogram, multiprocess
from prometheus_client.registry import Collector

from shared.settings import settings

if settings().metrics_dir:
    Path(settings().metrics_dir).mkdir(parents=True, exist_ok=True)  # each metric opens a file there as it is made

SETTLED = Counter(
    "payments_settled", "Transactions made final, by status", ["status"]
)  # exposed as payments_settled_total
ACCEPTED = Counter("payments_accepted", "New transactions accepted, counted once they are committed")
REJECTED = Counter("payments_rejected", "Transactions made final by a rejection, by reason", ["reason"])
BATCH_SIZE = Histogram(
    "payments_batch_size",
    "Transactions made final by one commit",
    buckets=(1, 2, 5, 10, 20, 50, 100, 200, 500),
)
TIME_TO_FINAL = Histogram(
    "payments_time_to_final_seconds",
    "From acceptance to the final state",
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300),
)
HTTP_DURATION = Histogram(
    "http_request_duration_seconds",
    "Time to answer a request",
    ["method", "route", "status"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
)
PARKED = Counter("payments_parked", "Transactions parked because our code could not settle them")
BATCH_FAILURES = Counter("payments_batch_failures", "Batches rolled back, by kind of cause", ["cause"])
RING_FAILURES = Counter("payments_ring_failures", "Rings that the broker did not take")
RINGS_WITHHELD = Counter(
    "payments_rings_withheld", "Rings that were not sent, because too many wait in the queue and nobody takes them"
)
MESSAGES_DROPPED = Counter("payments_messages_dropped", "Messages in our queues that were none of ours")
SETTLED_BY = Counter("payments_settled_by", "Transactions made final, by what led to it: a ring or the sweep", ["by"])

WEBHOOK_DELIVERIES = Counter(
    "payments_webhook_deliveries", "Attempts to deliver, by outcome: delivered, failed (tried again), dead", ["outcome"]
)
DUTY_FAILURES = Counter("payments_duty_failures", "Failures of work that is done again and again, by duty", ["duty"])
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
# What may never happen is 0 from the beginning: a rate needs one.
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
    """All processes' metrics where they share a folder, else this one's, plus the given collectors."""
    gathered = CollectorRegistry()
    if settings().metrics_dir and Path(settings().metrics_dir).is_dir():
        multiprocess.MultiProcessCollector(gathered)
    else:
        extra = (*_COUNTED_HERE, *extra)
    for collector in extra:
        gathered.register(collector)
    return gathered
