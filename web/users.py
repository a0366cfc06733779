"""Users: add one, look one up, the balance, the statement."""

from flask import Blueprint, Response, request

from shared import history
from shared.errors import user_not_found
from shared.instants import format_instant
from shared.model import Filter
from shared.money import format_amount
from shared.registering import register
from shared.showing import show_transaction
from web.answers import JsonAnswer
from web.bodies import read_json
from web.loop import in_thread, on_loop
from web.operation import TEXT, ApiResponse, documented
from web.query_models import MAX_PAGE_ITEMS, BalanceQuery, StatementQuery
from web.requests import read_id, read_idempotency_key, write_cursor
from web.schemas import BalanceOut, NewUser, StatementOut, UserOut, UserWithBalanceOut, show_user
from web.statement_csv import csv_page, csv_stream

blueprint = Blueprint("users", __name__, url_prefix="/api/user")


@blueprint.post("/")
@on_loop
@documented(
    {201: ApiResponse(UserOut, "The user.", headers=("Location",), optional_headers=("Idempotency-Replayed",))},
    body=NewUser,
    headers=("Idempotency-Key",),
)
def post_user() -> Response:
    """Adds a user and returns it."""
    key = read_idempotency_key(request)
    user, replayed = in_thread(register, read_json(request, NewUser).name, key)
    response = JsonAnswer(show_user(user), 201)
    response.headers["Location"] = f"/api/user/{user.id}/"
    if replayed:
        response.headers["Idempotency-Replayed"] = "true"
    return response


@blueprint.get("/<user_id>/")
@documented({200: ApiResponse(UserWithBalanceOut, "The user.")})
def get_user(user_id: str) -> Response:
    """Returns a user with the current balance."""
    user = history.get_user(read_id(user_id, user_not_found))
    return JsonAnswer({**show_user(user), "balance": format_amount(user.balance)})


@blueprint.get("/<user_id>/balance/")
@documented({200: ApiResponse(BalanceOut, "The balance.")})
def get_balance(user_id: str, query: BalanceQuery) -> Response:
    """Returns a user's balance, now or at an instant."""
    found = history.get_balance(read_id(user_id, user_not_found), query.date)
    return JsonAnswer(
        {
            "user_id": found.user_id,
            "balance": format_amount(found.balance),
            "date": format_instant(found.instant),
        }
    )


@blueprint.get("/<user_id>/transactions/")
@documented(
    {
        200: ApiResponse(
            StatementOut,
            "A page as JSON. As CSV: a page if there is a `limit`, otherwise all rows as a stream. A stream that could "
            "not be sent whole ends in a quoted cell that is not closed.",
            optional_headers=("Link", "Content-Disposition"),
            other_media={"text/csv": TEXT},
        )
    }
)
def get_statement(user_id: str, query: StatementQuery) -> Response:
    """Returns a page of a user's transactions, newest accepted first."""
    wanted = Filter(query.status, query.type, query.since, query.until)
    known = read_id(user_id, user_not_found)
    forms = ["application/json", "text/csv"]
    as_csv = request.accept_mimetypes.best_match(forms, forms[0]) == "text/csv"
    if as_csv and "limit" not in query.model_fields_set:
        response = csv_stream(
            known, lambda key: history.get_statement(known, wanted, key, MAX_PAGE_ITEMS), query.cursor
        )
    else:
        page = history.get_statement(known, wanted, query.cursor, query.limit)
        response = csv_page(known, page) if as_csv else _json_page(page)
    response.headers["Vary"] = "Accept"
    return response


def _json_page(page: history.Page) -> Response:
    return JsonAnswer({"items": [show_transaction(t) for t in page.items], "next": write_cursor(page.after)})
