"""The views for probes and monitoring: liveness, readiness and metrics."""

from flask import Blueprint, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from shared import health, metrics
from web.gauges import BacklogCollector, ProcessCollector, QueuesCollector, WatchedCollector
from web.http.responses import JsonResponse
from web.openapi.operation import TEXT, ApiResponse, documented
from web.schemas import State
from web.serving.loop import for_probes, on_loop

blueprint = Blueprint("health", __name__)


@blueprint.get("/livez")
@on_loop
@documented({200: ApiResponse(State, "The process is alive.")}, common_problems=("invalid_request",))
def get_liveness() -> Response:
    """Returns 200 while the process is alive."""
    return JsonResponse({"status": "alive"})


@blueprint.get("/readyz")
@for_probes
@documented({200: ApiResponse(State, "The service is ready.")}, problems=("not_ready",))
def get_readiness() -> Response:
    """Returns 200 if the service is ready: the database answers and is migrated."""
    health.check_server()
    return JsonResponse({"status": "ready"})


@blueprint.get("/metrics")
@for_probes
@documented(
    {200: ApiResponse(None, "Prometheus text.", other_media={"text/plain": TEXT})},
    common_problems=("invalid_request", "internal_error"),
)
def get_metrics() -> Response:
    """Returns the metrics in the Prometheus text format."""
    registry = metrics.registry(BacklogCollector(), WatchedCollector(), QueuesCollector(), ProcessCollector())
    return Response(generate_latest(registry), content_type=CONTENT_TYPE_LATEST)
