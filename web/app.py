"""The Flask application: its routes, and what every request gets whatever it asks: an id, a log line, a metric."""

import random
import re
import time
from collections.abc import Callable
from typing import Any, Final

from flask import Flask, Request, Response, g, request
from structlog.contextvars import bind_contextvars, clear_contextvars

from shared import metrics
from shared.logs import get_logger
from shared.registering import NO_OWNER
from web import (
    access,
    bodies,
    bulk,
    docs,
    events,
    gate,
    health,
    openapi,
    problems,
    stopping,
    transactions,
    users,
    webhooks,
)
from web.loop import place
from web.requests import check_names

# What may stand in a log line and a header without harm.
SANE_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}", re.ASCII)
METHODS: Final = ("DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT")

log = get_logger("web")


class _App(Flask):
    def ensure_sync(self, func: Callable[..., Any]) -> Callable[..., Any]:
        """No view of ours is async; asking at each call costs more than routing does."""
        return func

    def make_default_options_response(self) -> Response:
        response = Response()
        response.allow.update(problems.allowed_methods())
        return response


def create_app() -> Flask:
    """The application. Touches neither database nor broker until the first request."""
    app = _App("web", static_folder=None)
    app.config.update(PROPAGATE_EXCEPTIONS=False)
    app.json.sort_keys = False  # type: ignore[attr-defined]
    app.url_map.strict_slashes = False  # each path is answered with and without the trailing slash
    app.url_map.merge_slashes = False
    app.before_request(_begin)
    app.after_request(_finish)
    app.teardown_request(gate.leave)
    for module in (users, transactions, bulk, events, webhooks, health, openapi, docs):
        app.register_blueprint(module.blueprint)
    problems.register(app)
    for endpoint, view in app.view_functions.items():
        app.view_functions[endpoint] = place(view)
    return app


def _begin() -> None:
    given = request.environ.get("HTTP_X_REQUEST_ID", "")
    request_id = given if SANE_REQUEST_ID.fullmatch(given) else f"{random.getrandbits(128):032x}"  # no secret
    g.arrived, g.request_id = time.monotonic(), request_id
    clear_contextvars()
    bind_contextvars(request_id=request_id)
    http: Request = request._get_current_object()  # type: ignore[attr-defined] # each use of a proxy costs
    gate.enter(http)
    g.key = key = access.admit(http)
    g.key_id = key.id if key else NO_OWNER
    if key:
        bind_contextvars(key=key.id)
    if http.query_string and http.url_rule and http.method != "OPTIONS":
        method = "GET" if http.method == "HEAD" else http.method
        check_names(http, openapi.QUERY_NAMES.get((method, http.url_rule.rule), ()))


def _finish(response: Response) -> Response:
    http: Request = request._get_current_object()  # type: ignore[attr-defined]
    seconds = time.monotonic() - g.arrived
    route = http.url_rule.rule if http.url_rule else "unknown"
    status = response.status_code
    response.headers["X-Request-ID"] = g.request_id
    response.headers["X-Content-Type-Options"] = "nosniff"
    if route.startswith("/api/"):
        response.headers.setdefault("Cache-Control", "private, no-cache")  # balances move
    if stopping.has_begun() or gate.turned_away():
        response.headers["Connection"] = "close"
    if http.method in ("POST", "PUT") and not gate.turned_away():
        bodies.read_away(http)
    # A method of the client's own invention must not become a series of its own.
    method = http.method if http.method in METHODS else "other"
    metrics.HTTP_DURATION.labels(method, route, status).observe(seconds)
    log.info(
        "answered",
        method=http.method[:20],
        path=http.path[:500],
        status=status,
        milliseconds=round(seconds * 1000, 2),
    )
    return response
