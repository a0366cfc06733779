"""The OpenAPI document is derived: from routes, from views' docstrings, and from the models of query parameters."""

import inspect
from typing import Annotated

import pytest
from pydantic import PlainValidator, WithJsonSchema

from web.app import create_app
from web.http.params import Query
from web.openapi.document import document
from web.openapi.operation import documented

pytestmark = pytest.mark.unit


def test_each_summary_is_the_first_line_of_the_views_docstring() -> None:
    app = create_app()
    views = {view.__name__: view for view in app.view_functions.values()}
    operations = [operation for item in document(app)["paths"].values() for operation in item.values()]
    assert len(operations) > 20
    for operation in operations:
        summary = (inspect.getdoc(views[operation["operationId"]]) or "").split("\n")[0]
        assert operation["summary"] == summary
        assert summary.split()[0].endswith("s"), summary
        assert summary.endswith("."), summary


def test_a_query_parameter_is_described_by_its_model() -> None:
    parameters = document(create_app())["components"]["parameters"]
    assert parameters["limit"] == {
        "name": "limit",
        "in": "query",
        "required": False,
        "schema": {"type": "integer", "minimum": 1, "maximum": 1000, "default": 100},
        "description": "The maximum number of items on the page.",
    }
    assert parameters["from"]["schema"] == {"type": "string", "format": "date-time"}
    assert {parameters[name]["in"] for name in ("user_id", "user_id.filter")} == {"path", "query"}


class OtherQuery(Query):
    limit: Annotated[str, PlainValidator(str), WithJsonSchema({"type": "string"})] = "x"


def test_two_parameters_of_one_name_need_a_component_each() -> None:
    @documented({})
    def get_other(query: OtherQuery) -> str:
        """Returns nothing."""
        return ""

    app = create_app()
    app.add_url_rule("/api/other/", view_func=get_other)
    with pytest.raises(ValueError, match="two parameters are named limit"):
        document(app)
