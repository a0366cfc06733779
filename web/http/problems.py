"""Errors as RFC 9457 problem documents. Only this module knows the HTTP status of an error."""

from http import HTTPStatus
from typing import Any, Final

from flask import Flask, Response, current_app, request
from structlog.contextvars import get_contextvars
from werkzeug.exceptions import HTTPException, MethodNotAllowed, NotFound

from shared import errors
from shared.database import first_line, is_infrastructure_error
from shared.errors import Conflict, Invalid, PaymentsError, Refused, Unavailable
from shared.logs import get_logger
from web.http.responses import JsonResponse

MEDIA_TYPE: Final = "application/problem+json"
CHALLENGE: Final = 'Bearer realm="payments"'
RETRY_STATUSES: Final = (429, 503)

log = get_logger("web")

STATUS_OF_CODE: Final = {
    "not_json": 400,
    "unauthorized": 401,
    "insufficient_scope": 403,
    "user_not_found": 404,
    "transaction_not_found": 404,
    "webhook_not_found": 404,
    "cursor_ahead": 409,
    "body_too_large": 413,
    "unsupported_media_type": 415,
    "invalid_request": 422,
    "uid_reused": 422,
    "key_reused": 422,
    "backlog_full": 429,
    "too_many_secrets": 429,
    "rate_limited": 429,
    "internal_error": 500,
    "database_unavailable": 503,
    "not_ready": 503,
    "overloaded": 503,
}
# For a code that is not in STATUS_OF_CODE.
_STATUS_OF_KIND: Final = ((Invalid, 422), (Conflict, 422), (errors.NotFound, 404), (Refused, 403), (Unavailable, 503))
_UNKNOWN_OUTCOME: Final = (
    "The database did not answer. It is not known whether the request was carried out: send it again unchanged."
)


def status_of(error: PaymentsError) -> int:
    """Returns the HTTP status of an error."""
    return STATUS_OF_CODE.get(error.code) or next(status for kind, status in _STATUS_OF_KIND if isinstance(error, kind))


def problem(status: int, code: str, detail: str, retry_seconds: int = 1, **members: Any) -> Response:
    """Returns a problem document. 429 and 503 have a Retry-After header, 401 has WWW-Authenticate."""
    document = {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
        "code": code,
        "request_id": get_contextvars().get("request_id"),
        **members,
    }
    response = JsonResponse(document, status, MEDIA_TYPE)
    if status in RETRY_STATUSES:
        response.headers["Retry-After"] = str(retry_seconds)
    if status == 401:
        response.headers["WWW-Authenticate"] = CHALLENGE
    return response


def problem_of(error: PaymentsError) -> Response:
    """Returns the problem document of an error."""
    members = {"errors": [field._asdict() for field in error.fields]} if error.fields else {}
    return problem(status_of(error), error.code, error.detail, error.retry_seconds, **members)


def register(app: Flask) -> None:
    """Registers error handlers with the app, so that every exception becomes a problem document."""
    app.register_error_handler(PaymentsError, problem_of)
    app.register_error_handler(HTTPException, _framework_problem)
    app.register_error_handler(Exception, _unexpected_problem)


def allowed_methods() -> list[str]:
    """Returns the methods of the request's address; an empty list if there is no such address.

    Without its trailing slash the framework finds an address only by an allowed method, so the slash is added here.
    """
    adapter = current_app.create_url_adapter(request)
    return sorted(adapter.allowed_methods(f"{request.path.rstrip('/')}/")) if adapter else []


def _framework_problem(error: HTTPException) -> Response:
    if error is request.routing_exception and isinstance(error, NotFound) and (methods := allowed_methods()):
        error = MethodNotAllowed(methods)
    status = error.code or 500
    code = HTTPStatus(status).name.lower()  # not_found, method_not_allowed: spelt like our own codes
    response = problem(status, code, error.description or HTTPStatus(status).description)
    for name, value in error.get_headers(request.environ):
        if name.lower() == "allow":
            response.headers[name] = value
    return response


def _unexpected_problem(error: Exception) -> Response:
    if is_infrastructure_error(error):
        log.warning("database did not answer", error=first_line(error))
        return problem(503, "database_unavailable", _UNKNOWN_OUTCOME)
    log.error("unexpected error", exc_info=error)
    return problem(500, "internal_error", "The service failed. You may send the request again unchanged.")
