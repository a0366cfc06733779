"""The gauges: how things stand now, read when /metrics is asked for.

What the database or the broker says is the same from every process, and missing while it does not answer. The others
are of the process that answers.
"""

from collections.abc import Iterator, Mapping

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from shared import database, doorbell
from shared.errors import Unavailable
from shared.settings import settings
from shared.watching import get_watched
from web.backlog import FRESH_SECONDS, reader
from web.readings import Reading

queues = Reading("how many rings wait", doorbell.queue_lengths, FRESH_SECONDS)
watched = Reading("how webhooks, snapshots and the last verification stand", get_watched, FRESH_SECONDS)


class BacklogCollector(Collector):
    """What waits in the database to be settled."""

    def collect(self) -> Iterator[GaugeMetricFamily]:
        try:
            backlog = reader.read()
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
    """Webhooks, the last verification that was recorded, what holds back vacuum."""

    def collect(self) -> Iterator[GaugeMetricFamily]:
        try:
            waiting, oldest_snapshot_seconds, verification = watched.get(FRESH_SECONDS)
        except Unavailable:
            return
        yield _gauge(
            "payments_webhook_overdue_seconds", "For how long the next delivery has been due", waiting.overdue_seconds
        )
        yield _gauge(
            "payments_webhook_pending_deliveries",
            "Deliveries still to be made; of each webhook 10,000 at most are counted",
            waiting.pending,
        )
        yield _gauge("payments_webhook_dead_letters", "Deliveries that were given up", waiting.dead)
        yield _gauge("payments_webhooks_off", "Webhooks that were switched off", waiting.off)
        yield _gauge(
            "payments_oldest_snapshot_seconds",
            "Age of the oldest transaction that holds back vacuum",
            oldest_snapshot_seconds,
        )
        if verification:
            yield _gauge("payments_verify_differences", "Found by the last verify --record", verification.differences)
            yield _gauge("payments_verify_age_seconds", "Since it ended", verification.age_seconds)


class QueuesCollector(Collector):
    """What waits in the broker to be taken."""

    def collect(self) -> Iterator[GaugeMetricFamily]:
        try:
            lengths = queues.get(FRESH_SECONDS)
        except Unavailable:
            return
        yield _gauge_by("payments_queue_messages", "Rings that no worker has taken yet", "queue", lengths)


class ProcessCollector(Collector):
    """Of the process asked."""

    def collect(self) -> Iterator[GaugeMetricFamily]:
        connections = database.count_connections()
        yield _gauge("payments_bell_rests", "1 while the broker is left alone after a failure", doorbell.rests())
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
