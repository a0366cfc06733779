"""The gauges: current values that are read when /metrics is requested.

Values from the database or the broker are the same in every process, and absent while that server does not answer.
The other values belong to the process that answers.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from shared import database
from shared.errors import Unavailable
from shared.health import get_oldest_snapshot_seconds
from shared.payments import doorbell
from shared.payments.model import Verification
from shared.payments.verify import list_last_verification
from shared.settings import settings
from shared.webhooks.manage import get_webhook_backlog
from shared.webhooks.model import WebhookBacklog
from web.limits.backlog import BACKLOG_MAX_AGE_SECONDS, backlog_reader
from web.limits.cached_read import READ_TIMEOUT_SECONDS, CachedRead

queues: Final = CachedRead("how many rings wait", doorbell.queue_lengths, BACKLOG_MAX_AGE_SECONDS, "read_queues")
webhooks: Final = CachedRead("how webhooks stand", get_webhook_backlog, BACKLOG_MAX_AGE_SECONDS, "read_webhooks")
snapshot: Final = CachedRead(
    "what holds back vacuum", get_oldest_snapshot_seconds, BACKLOG_MAX_AGE_SECONDS, "read_snapshot"
)
verification: Final = CachedRead(
    "when the books were proved", list_last_verification, BACKLOG_MAX_AGE_SECONDS, "read_verification"
)


class BacklogCollector(Collector):
    """The gauges of transactions in the database that wait to be settled."""

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Returns the gauges; none while the database does not answer."""
        try:
            backlog = backlog_reader.read()
        except Unavailable:
            return
        yield _gauge("payments_pending_transactions", "Accepted, not final, not parked", backlog.pending)
        yield _gauge("payments_oldest_pending_seconds", "Age of the oldest of them", backlog.oldest_seconds)
        yield _gauge(
            "payments_parked_transactions", "What our code cannot settle, and what waits behind it", backlog.parked
        )
        lanes = {str(lane): pending for lane, pending in enumerate(backlog.of_lanes)}
        yield _gauge_by("payments_lane_pending_transactions", "Of the pending ones, those of a lane", "lane", lanes)


class WatchedCollector(Collector):
    """The gauges of webhooks, the last recorded verification and the oldest snapshot. One failure affects no other."""

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Returns the gauges that can be read."""
        cached_reads: list[tuple[CachedRead[Any], Callable[[Any], Iterator[GaugeMetricFamily]]]] = [
            (webhooks, _of_webhooks),
            (snapshot, _of_snapshot),
            (verification, _of_verification),
        ]
        for cached_read, _ in cached_reads:
            cached_read.latest()  # starts all reads at once
        deadline = time.monotonic() + READ_TIMEOUT_SECONDS
        for cached_read, families in cached_reads:
            try:
                value = cached_read.get(BACKLOG_MAX_AGE_SECONDS, max(0.0, deadline - time.monotonic()))
            except Unavailable:
                continue
            yield from families(value)


def _of_webhooks(waiting: WebhookBacklog) -> Iterator[GaugeMetricFamily]:
    yield _gauge(
        "payments_webhook_overdue_seconds",
        "For how long the next delivery has been due, or the next event has not become one",
        waiting.overdue_seconds,
    )
    yield _gauge(
        "payments_webhook_pending_deliveries",
        "Deliveries still to be made; of each webhook 1,000 at most are counted",
        waiting.pending,
    )
    yield _gauge(
        "payments_webhook_dead_letters",
        "Deliveries that were given up; of each webhook 1,000 at most are counted",
        waiting.dead,
    )
    yield _gauge("payments_webhooks_off", "Webhooks that were switched off", waiting.off)


def _of_snapshot(age_seconds: float) -> Iterator[GaugeMetricFamily]:
    yield _gauge(
        "payments_oldest_snapshot_seconds", "Age of the oldest transaction that holds back vacuum", age_seconds
    )


def _of_verification(last: list[Verification]) -> Iterator[GaugeMetricFamily]:
    for verification in last:
        yield _gauge("payments_verify_differences", "Found by the last verify --record", verification.differences)
        yield _gauge("payments_verify_age_seconds", "Since it ended", verification.age_seconds)


class QueuesCollector(Collector):
    """The gauge of messages in the broker's queues."""

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Returns the gauge; none while the broker does not answer."""
        try:
            lengths = queues.get(BACKLOG_MAX_AGE_SECONDS)
        except Unavailable:
            return
        yield _gauge_by("payments_queue_messages", "Rings that no worker has taken yet", "queue", lengths)


class ProcessCollector(Collector):
    """The gauges of the process that answers."""

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Returns the gauges."""
        connections = database.count_connections()
        yield _gauge(
            "payments_bell_rests", "1 while the broker is left alone after a failure", doorbell.circuit_is_open()
        )
        yield _gauge("payments_database_connections_in_use", "Of this process", connections.in_use)
        yield _gauge("payments_database_connections_limit", "Of this process", connections.limit)
        yield _gauge("payments_backlog_limit", "Pending ones above which new ones get 429", settings().backlog_limit)


def _gauge(name: str, documentation: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, documentation, value=value)


def _gauge_by(name: str, documentation: str, label: str, values: Mapping[str, float]) -> GaugeMetricFamily:
    gauge = GaugeMetricFamily(name, documentation, labels=[label])
    for value_of_label, value in values.items():
        gauge.add_metric([value_of_label], value)
    return gauge
