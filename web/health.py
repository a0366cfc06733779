"""Is the process alive, can it serve, and what do its numbers say."""

from collections.abc import Iterator

from flask import Blueprint, Response, request
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from shared import history, metrics, webhooks
from shared.database import is_machinery
from shared.errors import Unavailable
from web.answers import JsonAnswer
from web.backlog import reader
from web.requests import check_names

blueprint = Blueprint("health", __name__)


@blueprint.get("/livez")
def livez() -> Response:
    check_names(request, ())
    return JsonAnswer({"status": "alive"})


@blueprint.get("/readyz")
def readyz() -> Response:
    check_names(request, ())
    history.check_server()
    return JsonAnswer({"status": "ready"})


@blueprint.get("/metrics")
def get_metrics() -> Response:
    return Response(
        generate_latest(metrics.registry(BacklogCollector(), WebhookCollector())), content_type=CONTENT_TYPE_LATEST
    )


class BacklogCollector(Collector):
    """Gauges of what waits in the database, read when somebody asks. Missing while it does not answer."""

    def collect(self) -> Iterator[GaugeMetricFamily]:
        try:
            backlog = reader.read()
        except Unavailable:
            return
        yield GaugeMetricFamily(
            "payments_pending_transactions", "Accepted, not final, not parked", value=backlog.pending
        )
        yield GaugeMetricFamily(
            "payments_oldest_pending_seconds", "Age of the oldest of them", value=backlog.oldest_seconds
        )
        yield GaugeMetricFamily(
            "payments_parked_transactions",
            "What our code cannot settle, and what waits behind it",
            value=backlog.parked,
        )


class WebhookCollector(Collector):
    """Gauges of what webhooks are still to be told. Missing while the database does not answer."""

    def collect(self) -> Iterator[GaugeMetricFamily]:
        try:
            waiting = webhooks.get_waiting()
        except Exception as error:
            if is_machinery(error):
                return
            raise
        yield GaugeMetricFamily(
            "payments_webhook_overdue_seconds",
            "For how long the next delivery has been due",
            value=waiting.overdue_seconds,
        )
        yield GaugeMetricFamily("payments_webhook_dead_letters", "Deliveries that were given up", value=waiting.dead)
        yield GaugeMetricFamily("payments_webhooks_off", "Webhooks that were switched off", value=waiting.off)
