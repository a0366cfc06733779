"""The Flask application: its routes, and the request id, log line and metric that every request gets."""

import random
import re
import time
from collections.abc import Callable
from functools import cache
from typing import Any, Final

from flask import Flask, Request, Response, current_app, g, request
from flask.sessions import NullSession, SessionInterface
from prometheus_client import Histogram
from structlog.contextvars import bind_contextvars, clear_contextvars
from werkzeug.routing import MapAdapter

from shared import metrics
from shared.logs import get_logger
from shared.payments.users import NO_OWNER
from web import shutdown
from web.http import body, problems
from web.http.params import query_model, read_query, with_query
from web.limits import auth, concurrency
from web.openapi import document, swagger_page
from web.serving import routing
from web.serving.loop import place_view
from web.views import bulk, events, health, transactions, users, webhooks

# The characters that are safe in a log line and a header.
REQUEST_ID_PATTERN = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}", re.ASCII)
HTTP_METHODS: Final = ("DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT")

log = get_logger("web")


class _NoSessions(SessionInterface):
    """Replaces Flask's sessions: no view uses one, and the default costs as much as an empty view."""

    _session = NullSession()

    def open_session(self, app: Flask, request: Request) -> NullSession:  # noqa: ARG002
        return self._session

    def is_null_session(self, obj: object) -> bool:  # noqa: ARG002
        return True


class _App(Flask):
    """Flask with one handler before and one after a request, because its general hooks cost time at each request."""

    session_interface = _NoSessions()

    def ensure_sync(self, func: Callable[..., Any]) -> Callable[..., Any]:
        """Returns the view itself: no view is async, and the check at each call costs more than routing."""
        return func

    def create_url_adapter(self, request: Request | None) -> MapAdapter | None:
        """Returns the URL adapter of a request. The parts that depend on the host are computed once per host."""
        host = request.environ.get("HTTP_HOST") if request else None
        if not request or not host or "HTTP_UPGRADE" in request.environ:
            return super().create_url_adapter(request)
        return routing.adapt(self.url_map, host, request.environ)

    def preprocess_request(self) -> None:
        _begin()

    def process_response(self, response: Response) -> Response:
        return _finish(response)

    def do_teardown_request(self, exc: BaseException | None = None) -> None:  # noqa: ARG002
        concurrency.leave(g._get_current_object())

    def make_default_options_response(self) -> Response:
        response = Response()
        response.allow.update(problems.allowed_methods())
        return response


def create_app() -> Flask:
    """Returns the application. It connects to neither database nor broker before the first request."""
    app = _App("web", static_folder=None)
    app.config.update(PROPAGATE_EXCEPTIONS=False)
    app.json.sort_keys = False  # type: ignore[attr-defined]
    app.url_map.strict_slashes = False  # each path works with and without its trailing slash
    app.url_map.merge_slashes = False
    for module in (users, transactions, bulk, events, webhooks, health, document, swagger_page):
        app.register_blueprint(module.blueprint)
    problems.register(app)
    for endpoint, view in app.view_functions.items():
        app.view_functions[endpoint] = with_query(place_view(view))
    return app


def _begin() -> None:
    http: Request = request._get_current_object()  # type: ignore[attr-defined] # each use of a proxy costs time
    state: Any = g._get_current_object()
    sent_id = http.environ.get("HTTP_X_REQUEST_ID", "")
    # An id is not a secret, so `random` is good enough.
    request_id = sent_id if REQUEST_ID_PATTERN.fullmatch(sent_id) else f"{random.getrandbits(128):032x}"
    state.arrived, state.request_id = time.monotonic(), request_id
    clear_contextvars()
    bind_contextvars(request_id=request_id)
    concurrency.enter(http, state)
    state.key = key = auth.admit(http)
    state.key_id = key.id if key else NO_OWNER
    if key:
        bind_contextvars(key=key.id)
    if http.query_string and http.url_rule and http.method != "OPTIONS":
        state.query = read_query(http, query_model(current_app.view_functions[http.url_rule.endpoint]))


def _finish(response: Response) -> Response:
    http: Request = request._get_current_object()  # type: ignore[attr-defined]
    state: Any = g._get_current_object()
    seconds = time.monotonic() - state.arrived
    route = http.url_rule.rule if http.url_rule else "unknown"
    status, over_capacity = response.status_code, concurrency.is_over_capacity(state)
    response.headers.add("X-Request-ID", state.request_id)  # it is not set yet, and `add` is cheaper than `set`
    response.headers.add("X-Content-Type-Options", "nosniff")
    if route.startswith("/api/"):
        response.headers.setdefault("Cache-Control", "private, no-cache")  # balances change
    if shutdown.is_stopping() or over_capacity:
        response.headers["Connection"] = "close"
    if http.method in ("POST", "PUT") and not over_capacity:
        body.discard_body(http)
    # A method that a client invents must not create a new series of the metric.
    _duration(http.method if http.method in HTTP_METHODS else "other", route, status).observe(seconds)
    log.info(
        "answered",
        method=http.method[:20],
        path=http.path[:500],
        status=status,
        milliseconds=round(seconds * 1000, 2),
    )
    return response


@cache  # one entry per series of the metric
def _duration(method: str, route: str, status: int) -> Histogram:
    return metrics.HTTP_DURATION.labels(method, route, status)
