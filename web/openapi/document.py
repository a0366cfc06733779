"""The view /openapi.json. It derives the OpenAPI 3.1 document from routes, docstrings of views and pydantic models."""

import re
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, Final, Literal, NamedTuple

from flask import Blueprint, Flask, Response, current_app, json
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from shared.auth.scopes import Scope
from shared.settings import settings
from web.http.params import Component, query_model
from web.http.problems import MEDIA_TYPE, RETRY_STATUSES, STATUS_OF_CODE
from web.limits import concurrency
from web.limits.auth import scope_needed
from web.openapi.operation import (
    BODY_PROBLEMS,
    JSON,
    PARAMETERS,
    RESPONSE_HEADERS,
    ApiResponse,
    Operation,
    Schema,
    documented,
)
from web.schemas import Problem

TAGS: Final = {
    "/api/user/": "Users",
    "/api/transaction": "Transactions",
    "/api/events/": "Events",
    "/api/webhook/": "Webhooks",
    "/": "Service",
}
HEADERS_OF_STATUS: Final = {401: ("WWW-Authenticate",), **dict.fromkeys(RETRY_STATUSES, ("Retry-After",))}

blueprint = Blueprint("openapi", __name__)


@blueprint.get("/openapi.json")
@documented({200: ApiResponse(None, "OpenAPI 3.1", other_media={JSON: {}})}, common_problems=("invalid_request",))
def get_document() -> Response:
    """Returns this OpenAPI document."""
    return Response(_written(current_app._get_current_object()), mimetype=JSON)  # type: ignore[attr-defined]


@cache
def _written(app: Flask) -> str:
    return json.dumps(document(app))


class _Route(NamedTuple):
    """A method of an address, and its view. `rule` is the path as declared."""

    method: str
    rule: str
    view: Callable[..., Any]
    operation: Operation


def document(app: Flask) -> Schema:
    """Returns the OpenAPI document of all views that are decorated with `documented`."""
    routes = list(_routes(app))
    paths: dict[str, Schema] = {}
    parameters: dict[str, Schema] = {}
    for route in routes:
        for name, parameter in _parameters(route).items():
            if parameters.setdefault(name, parameter) != parameter:
                raise ValueError(f"two parameters are named {name}: give one of them a Component")
        paths.setdefault(_path(route), {})[route.method.lower()] = _operation(route)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Payments",
            "version": "1",
            "description": "Keeps users' balances. Every path works with and without its trailing slash.",
        },
        "paths": paths,
        "components": {
            "schemas": _schemas(routes),
            "parameters": parameters,
            **({"securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}} if settings().requires_keys else {}),
            "headers": {name: header._asdict() for name, header in RESPONSE_HEADERS.items()},
        },
    }


def _routes(app: Flask) -> Iterator[_Route]:
    for rule in app.url_map.iter_rules():
        view = app.view_functions[rule.endpoint]
        if operation := getattr(view, "operation", None):
            for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}:
                yield _Route(method, rule.rule, view, operation)


def _path(route: _Route) -> str:
    return route.rule.replace("<", "{").replace(">", "}")


def _path_parameters(route: _Route) -> list[str]:
    return re.findall(r"<(\w+)>", route.rule)


def _schemas(routes: list[_Route]) -> Schema:
    models: dict[tuple[type[BaseModel], Literal["validation", "serialization"]], None] = {}  # an ordered set
    for _, _, _, operation in routes:
        if isinstance(operation.body, type):
            models[operation.body, "validation"] = None
        for response in operation.responses.values():
            models[response.model or Problem, "serialization"] = None
    _, definitions = models_json_schema([*models], ref_template="#/components/schemas/{model}")
    return dict(definitions["$defs"])


def _parameters(route: _Route) -> dict[str, Schema]:
    """Returns the parameters of a route's path, query and headers, by their component names."""
    return {
        **{name: _listed_parameter(name) for name in _path_parameters(route)},
        **dict(_query_parameters(route)),
        **{name: _listed_parameter(name) for name in (*route.operation.headers, "X-Request-ID")},
    }


def _listed_parameter(name: str) -> Schema:
    place, schema, description, _ = PARAMETERS[name]
    return {
        "name": name,
        "in": place,
        "required": place == "path",
        "schema": schema,
        "description": description,
    }


def _query_parameters(route: _Route) -> Iterator[tuple[str, Schema]]:
    model = query_model(route.view)
    properties = model.model_json_schema().get("properties", {})
    for attribute, field in model.model_fields.items():
        name = field.alias or attribute
        schema = {key: value for key, value in properties[name].items() if key not in ("title", "description")}
        if schema.get("default") is None:  # without the parameter there is no filter
            schema.pop("default", None)
        component = next((mark.name for mark in field.metadata if isinstance(mark, Component)), name)
        yield (
            component,
            {
                "name": name,
                "in": "query",
                "required": False,
                "schema": schema,
                "description": field.description,
            },
        )


def _operation(route: _Route) -> Schema:
    _, rule, view, operation = route
    described: Schema = {
        "summary": (view.__doc__ or "").partition("\n")[0],
        "operationId": view.__name__,
        "tags": [next(tag for start, tag in TAGS.items() if rule.startswith(start))],
        "parameters": [{"$ref": f"#/components/parameters/{name}"} for name in _parameters(route)],
        "responses": {str(status): _response(response) for status, response in operation.responses.items()},
    }
    scope = scope_needed(route.method, rule)
    if scope and settings().requires_keys:
        described["security"] = [{"key": [str(scope)]}]
    for code in dict.fromkeys([*_problems(route), *_admission_problems(route)]):
        _add_problem(described["responses"], code)
    if operation.body:
        bodies = {JSON: _reference(operation.body)} if isinstance(operation.body, type) else operation.body
        content = {media: {"schema": schema} for media, schema in bodies.items()}
        described["requestBody"] = {"required": True, "content": content}
    return described


def _problems(route: _Route) -> list[str]:
    """Returns the codes of the problems that the view itself can return."""
    operation = route.operation
    listed = [*_path_parameters(route), *operation.headers]
    return [
        *operation.problems,
        *(code for name in listed for code in PARAMETERS[name].problems),
        *(BODY_PROBLEMS if operation.body else ()),
        *operation.common_problems,
    ]


def _admission_problems(route: _Route) -> list[str]:
    """Returns the codes of the problems that occur before the view. Without keys there is no code for them."""
    codes = [] if route.rule in concurrency.PROBE_ROUTES else ["overloaded"]
    scope = scope_needed(route.method, route.rule)
    if scope is None:
        return codes
    codes.append("rate_limited")
    if settings().requires_keys:
        codes += ["unauthorized", *(["insufficient_scope"] if scope != Scope.READ else [])]
    return codes


def _response(response: ApiResponse) -> Schema:
    content: Schema = {media: {"schema": schema} for media, schema in response.other_media.items()}
    if response.model:
        media = MEDIA_TYPE if issubclass(response.model, Problem) else JSON
        content = {media: {"schema": _reference(response.model)}, **content}
    headers = {
        **_required_headers(response.headers),
        **{name: {"$ref": f"#/components/headers/{name}"} for name in response.optional_headers},
    }
    described: Schema = {"description": response.description, "headers": headers}
    return {**described, "content": content} if content else described


def _add_problem(responses: Schema, code: str) -> None:
    status = STATUS_OF_CODE[code]
    new = {
        "description": "A problem. `code` tells which one.",
        "headers": _required_headers(HEADERS_OF_STATUS.get(status, ())),
        "content": {MEDIA_TYPE: {"schema": {"allOf": [_reference(Problem), {"properties": {"code": {"enum": []}}}]}}},
    }
    described = responses.setdefault(str(status), new)
    described["content"][MEDIA_TYPE]["schema"]["allOf"][1]["properties"]["code"]["enum"].append(code)


def _required_headers(names: tuple[str, ...]) -> Schema:
    return {name: {**RESPONSE_HEADERS[name]._asdict(), "required": True} for name in ("X-Request-ID", *names)}


def _reference(model: type[BaseModel]) -> Schema:
    return {"$ref": f"#/components/schemas/{model.__name__}"}
