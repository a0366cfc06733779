"""Users: add one, look one up, the balance, the statement."""

from typing import Final

from flask import Blueprint, Response, request

from shared import history
from shared.errors import user_not_found
from shared.instants import format_instant
from shared.money import format_amount
from shared.queries.statement import Filter
from shared.registering import register
from shared.showing import show_transaction
from shared.status import Status, Type
from web.answers import JsonAnswer
from web.bodies import read_json
from web.loop import in_thread, on_loop
from web.requests import read_cursor, read_id, read_idempotency_key, read_instant, read_limit, read_word, write_cursor
from web.schemas import NewUser, show_user
from web.statement_csv import csv_page, csv_stream

blueprint = Blueprint("users", __name__, url_prefix="/api/user")

DEFAULT_PAGE: Final = 100
LONGEST_PAGE: Final = 1000


@blueprint.post("/")
@on_loop
def post_user() -> Response:
    key = read_idempotency_key(request)
    user, replayed = in_thread(register, read_json(request, NewUser).name, key)
    response = JsonAnswer(show_user(user), 201)
    response.headers["Location"] = f"/api/user/{user.id}/"
    if replayed:
        response.headers["Idempotency-Replayed"] = "true"
    return response


@blueprint.get("/<user_id>/")
def get_user(user_id: str) -> Response:
    user = history.get_user(read_id(user_id, user_not_found))
    return JsonAnswer({**show_user(user), "balance": format_amount(user.balance)})


@blueprint.get("/<user_id>/balance/")
def get_balance(user_id: str) -> Response:
    found = history.get_balance(read_id(user_id, user_not_found), read_instant(request, "date"))
    return JsonAnswer(
        {
            "user_id": found.user_id,
            "balance": format_amount(found.balance),
            "date": format_instant(found.instant),
        }
    )


@blueprint.get("/<user_id>/transactions/")
def get_statement(user_id: str) -> Response:
    wanted = Filter(
        read_word(request, "status", Status),
        read_word(request, "type", Type),
        read_instant(request, "from"),
        read_instant(request, "to"),
    )
    known, after, limit = (
        read_id(user_id, user_not_found),
        read_cursor(request),
        read_limit(request, DEFAULT_PAGE, LONGEST_PAGE),
    )
    forms = ["application/json", "text/csv"]
    as_csv = request.accept_mimetypes.best_match(forms, forms[0]) == "text/csv"
    if as_csv and "limit" not in request.args:
        response = csv_stream(known, lambda key: history.get_statement(known, wanted, key, LONGEST_PAGE), after)
    else:
        page = history.get_statement(known, wanted, after, limit)
        response = csv_page(known, page) if as_csv else _json_page(page)
    response.headers["Vary"] = "Accept"
    return response


def _json_page(page: history.Page) -> Response:
    return JsonAnswer({"items": [show_transaction(t) for t in page.items], "next": write_cursor(page.after)})
