"""The OpenAPI 3.1 document, made of the pydantic models and the table of operations, and served."""

from collections.abc import Mapping
from functools import cache
from typing import Final, Literal

from flask import Blueprint, Response, json
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from shared.scopes import Scope
from shared.settings import settings
from web import gate, schemas
from web.access import scope_needed
from web.operations import HEADERS, JSON, OPERATIONS, PARAMETERS, Answer, Operation, Schema
from web.problems import MEDIA_TYPE, RETRY_STATUSES, STATUS_OF_CODE
from web.webhook_operations import WEBHOOK_OPERATIONS


def _published_name(name: str) -> str:
    """Names of parameters that are described in two ways are told apart in the table only."""
    return name.removesuffix(".filter").removeprefix("letter_")


def _route(operation: Operation) -> str:
    return operation.path.replace("{", "<").replace("}", ">")


TAGS: Final = {
    "/api/user/": "Users",
    "/api/transaction": "Transactions",
    "/api/events/": "Events",
    "/api/webhook/": "Webhooks",
    "/": "Service",
}
HEADERS_OF_STATUS: Final = {401: "WWW-Authenticate", **dict.fromkeys(RETRY_STATUSES, "Retry-After")}
ALL: Final = (*OPERATIONS, *WEBHOOK_OPERATIONS)
# By method and route; what is described here is what `web.app` lets through.
QUERY_NAMES: Final[Mapping[tuple[str, str], frozenset[str]]] = {
    (operation.method.upper(), _route(operation)): frozenset(
        _published_name(name) for name in operation.parameters.split() if PARAMETERS[name][0] == "query"
    )
    for operation in ALL
}

blueprint = Blueprint("openapi", __name__)


@blueprint.get("/openapi.json")
def get_document() -> Response:
    return Response(_written(), mimetype=JSON)


@cache
def _written() -> str:
    return json.dumps(document())


def document() -> Schema:
    """The whole of it."""
    paths: dict[str, Schema] = {}
    for operation in ALL:
        paths.setdefault(operation.path, {})[operation.method] = _operation(operation)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Payments",
            "version": "1",
            "description": "Keeps users' balances. Every path is answered with and without its trailing slash.",
        },
        "paths": paths,
        "components": {
            "schemas": _schemas(),
            "parameters": {name: _parameter(name) for name in PARAMETERS},
            **({"securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}} if settings().asks_for_keys else {}),
            "headers": {name: {"schema": schema, "description": says} for name, (schema, says) in HEADERS.items()},
        },
    }


def _schemas() -> Schema:
    models: dict[tuple[type[BaseModel], Literal["validation", "serialization"]], None] = {}  # in order, each once
    for operation in ALL:
        if operation.body:
            models[operation.body, "validation"] = None
        for answer in operation.answers.values():
            models[answer.model or schemas.Problem, "serialization"] = None
    _, definitions = models_json_schema([*models], ref_template="#/components/schemas/{model}")
    return dict(definitions["$defs"])


def _parameter(name: str) -> Schema:
    place, schema, says = PARAMETERS[name]
    return {
        "name": _published_name(name),
        "in": place,
        "required": place == "path",
        "schema": schema,
        "description": says,
    }


def _operation(operation: Operation) -> Schema:
    names = [*operation.parameters.split(), "X-Request-ID"]
    described: Schema = {
        "summary": operation.summary,
        "operationId": operation.name,
        "tags": [next(tag for start, tag in TAGS.items() if operation.path.startswith(start))],
        "parameters": [{"$ref": f"#/components/parameters/{name}"} for name in names],
        "responses": {str(status): _answer(answer) for status, answer in operation.answers.items()},
    }
    for code in [*operation.codes.split(), *_admission(operation, described)]:
        _add_problem(described["responses"], code)
    bodies = {JSON: _reference(operation.body)} if operation.body else operation.bodies
    if bodies:
        content = {media: {"schema": schema} for media, schema in bodies.items()}
        described["requestBody"] = {"required": True, "content": content}
    return described


def _admission(operation: Operation, described: Schema) -> list[str]:
    """The codes of who is not let in. Where this process asks for no key, the document speaks of none."""
    known = operation.codes.split()
    codes = ["overloaded"] if operation.path not in gate.LOOKED_AT and "overloaded" not in known else []
    needed = scope_needed(operation.method.upper(), _route(operation))
    if needed is None:
        return codes
    codes.append("rate_limited")
    if settings().asks_for_keys:
        described["security"] = [{"key": [str(needed)]}]
        codes += ["unauthorized", *(["insufficient_scope"] if needed != Scope.READ else [])]
    return codes


def _answer(answer: Answer) -> Schema:
    content: Schema = {media: {"schema": schema} for media, schema in answer.others.items()}
    if answer.model:
        media = MEDIA_TYPE if issubclass(answer.model, schemas.Problem) else JSON
        content = {media: {"schema": _reference(answer.model)}, **content}
    described: Schema = {"description": answer.says, "headers": _headers(answer.headers)}
    return {**described, "content": content} if content else described


def _add_problem(responses: Schema, code: str) -> None:
    status = STATUS_OF_CODE[code]
    new = {
        "description": "Refused",
        "headers": _headers(HEADERS_OF_STATUS.get(status, "")),
        "content": {
            MEDIA_TYPE: {"schema": {"allOf": [_reference(schemas.Problem), {"properties": {"code": {"enum": []}}}]}}
        },
    }
    described = responses.setdefault(str(status), new)
    described["content"][MEDIA_TYPE]["schema"]["allOf"][1]["properties"]["code"]["enum"].append(code)


def _headers(names: str) -> Schema:
    named = ["X-Request-ID", *names.split()]
    return {
        name.rstrip("?"): {"$ref": f"#/components/headers/{name[:-1]}"} if name.endswith("?") else _required(name)
        for name in named
    }


def _required(name: str) -> Schema:
    schema, says = HEADERS[name]
    return {"schema": schema, "description": says, "required": True}


def _reference(model: type[BaseModel]) -> Schema:
    return {"$ref": f"#/components/schemas/{model.__name__}"}
