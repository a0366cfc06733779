"""Is the process alive, can it serve, and what do its numbers say."""

from flask import Blueprint, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from shared import history, metrics
from web.answers import JsonAnswer
from web.gauges import BacklogCollector, ProcessCollector, QueuesCollector, WatchedCollector
from web.loop import for_probes, on_loop

blueprint = Blueprint("health", __name__)


@blueprint.get("/livez")
@on_loop
def livez() -> Response:
    return JsonAnswer({"status": "alive"})


@blueprint.get("/readyz")
@for_probes
def readyz() -> Response:
    history.check_server()
    return JsonAnswer({"status": "ready"})


@blueprint.get("/metrics")
@for_probes
def get_metrics() -> Response:
    registry = metrics.registry(BacklogCollector(), WatchedCollector(), QueuesCollector(), ProcessCollector())
    return Response(generate_latest(registry), content_type=CONTENT_TYPE_LATEST)
