"""Query parameters: what each model reads and what it refuses, by which message."""

from datetime import UTC, datetime
from typing import Any

import pytest
from flask import Request
from werkzeug.test import create_environ

from shared.errors import Invalid
from shared.payments.feed import FeedPosition
from shared.payments.model import StatementKey, Status, Type
from shared.payments.reads import MAX_USER_ID
from shared.webhooks.model import DeadLetterKey
from web.app import create_app
from web.http.params import BalanceQuery, DeadLettersQuery, EventsQuery, Query, StatementQuery, query_model, read_query

pytestmark = pytest.mark.unit

UNKNOWN = "is not a query parameter of this address"


def read(model: type[Query], query_string: str) -> dict[str, Any]:
    return read_query(Request(create_environ(query_string=query_string)), model).model_dump(exclude_unset=True)


def test_parameters_become_values_of_the_domain() -> None:
    start = datetime(2023, 1, 30, tzinfo=UTC)
    assert read(BalanceQuery, "date=2023-01-30") == {"date": start}
    assert read(StatementQuery, "limit=5&cursor=1-2&status=PENDING&type=DEPOSIT&from=2023-01-30&to=2023-01-30") == {
        "limit": 5,
        "cursor": StatementKey(datetime(1970, 1, 1, 0, 0, 0, 1, tzinfo=UTC), 2),
        "status": Status.PENDING,
        "type": Type.DEPOSIT,
        "since": start,
        "until": start,
    }
    assert read(EventsQuery, f"after=&user_id={MAX_USER_ID}") == {"after": FeedPosition(), "user_id": MAX_USER_ID}
    assert read(DeadLettersQuery, "cursor=7-1") == {"cursor": DeadLetterKey(7, 1)}


def test_a_parameter_that_is_not_given_has_its_default() -> None:
    assert StatementQuery().model_dump() == {
        "limit": 100,
        "cursor": None,
        "status": None,
        "type": None,
        "since": None,
        "until": None,
    }
    assert EventsQuery().model_dump() == {"after": FeedPosition(), "limit": 100, "user_id": None}


@pytest.mark.parametrize(
    ("model", "query_string", "errors"),
    [
        (Query, "x=1", {"x": UNKNOWN}),
        (Query, "x=1&x=2", {"x": UNKNOWN}),
        (Query, "=1", {"": UNKNOWN}),
        (StatementQuery, "since=2023-01-30", {"since": UNKNOWN}),
        (StatementQuery, "Limit=5", {"Limit": UNKNOWN}),
        (StatementQuery, "limit=5&%6Cimit=5", {"limit": "must be given once"}),
        (StatementQuery, "from=2023-01-30&from=", {"from": "must be given once"}),
        *(
            (StatementQuery, f"limit={text}", {"limit": "must be a whole number from 1 to 1000"})
            for text in ("", "0", "1001", "-1", "+1", "%201", "1.0", "1_0", "1e2", "%EF%BC%91", "0000000001")
        ),
        (EventsQuery, f"user_id={2**63}", {"user_id": f"must be a whole number from 1 to {MAX_USER_ID}"}),
        (StatementQuery, "status=pending", {"status": "must be one of PENDING, COMPLETED, REJECTED"}),
        (StatementQuery, "cursor=1-1-1", {"cursor": "is not a cursor of this address"}),
        (EventsQuery, "after=1-0", {"after": "is none that this service gave"}),
        (DeadLettersQuery, "cursor=x", {"cursor": "is not a cursor of this address"}),
        (BalanceQuery, "date=x", {"date": "must be an ISO 8601 instant, such as 2023-01-30T12:00:00Z"}),
        (
            StatementQuery,
            "to=2023-02-30&limit=x&x=1",
            {
                "limit": "must be a whole number from 1 to 1000",
                "to": "must be an instant from year 1 to 9999 that exists",
                "x": UNKNOWN,
            },
        ),
    ],
)
def test_a_bad_parameter_is_refused_by_name(model: type[Query], query_string: str, errors: dict[str, str]) -> None:
    with pytest.raises(Invalid) as refusal:
        read(model, query_string)
    assert refusal.value.code == "invalid_request"
    assert dict(refusal.value.fields) == errors


def test_thousands_of_unknown_parameters_name_a_hundred() -> None:
    with pytest.raises(Invalid) as refusal:
        read(StatementQuery, "&".join(f"x{number}=" for number in range(5000)))
    assert len(refusal.value.fields) == 100


def test_each_view_is_known_by_the_model_of_its_parameter() -> None:
    models = {endpoint: query_model(view) for endpoint, view in create_app().view_functions.items()}
    assert {endpoint: model for endpoint, model in models.items() if model is not Query} == {
        "users.get_balance": BalanceQuery,
        "users.get_statement": StatementQuery,
        "events.get_events": EventsQuery,
        "webhooks.get_dead_letters": DeadLettersQuery,
    }
