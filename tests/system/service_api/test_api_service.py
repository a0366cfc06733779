"""API.md, Service: health, numbers, the document and its page, request ids, and what no route answers."""

import re
import uuid
from collections import Counter
from typing import Any

import pytest

from tests.kit.http import JSON, Api, transaction
from tests.kit.service import Service
from tests.kit.waiting import wait_until
from web.app import create_app
from web.openapi.document import document

pytestmark = pytest.mark.system

FOR_PEOPLE = {"/", "/docs", "/docs/<name>"}  # pages, no part of the contract of machines
METRICS = {
    "payments_pending_transactions",
    "payments_oldest_pending_seconds",
    "payments_parked_transactions",
    "payments_settled_total",
    "payments_time_to_final_seconds_bucket",
    "payments_accepted_total",
    "payments_rejected_total",
    "payments_batch_size_bucket",
    "payments_lane_pending_transactions",
    "payments_backlog_limit",
    "payments_bell_rests",
    "payments_ring_failures_total",
    "payments_rings_withheld_total",
    "payments_messages_dropped_total",
    "payments_settled_by_total",
    "payments_queue_messages",
    "payments_database_connections_in_use",
    "payments_database_connections_limit",
    "payments_oldest_snapshot_seconds",
    "payments_webhook_overdue_seconds",
    "payments_webhook_pending_deliveries",
    "payments_webhook_dead_letters",
    "payments_webhooks_off",
    "http_request_duration_seconds_bucket",
}


@pytest.mark.parametrize(
    ("path", "media"),
    [
        ("/livez", JSON),
        ("/readyz", JSON),
        ("/metrics", "text/plain"),
        ("/openapi.json", JSON),
        ("/docs", "text/html"),
        ("/", JSON),
    ],
)
def test_it_answers_with_and_without_a_slash_and_to_head(api: Api, path: str, media: str) -> None:
    for spelt in {path, path.rstrip("/") + "/"}:
        answer = api.ask("GET", spelt)
        assert (answer.status, answer.media) == (200, media)
        assert answer.body
        head = api.ask("HEAD", spelt)
        assert (head.status, head.media, head.body) == (200, media, b"")


def test_head_is_get_without_the_body_everywhere(api: Api) -> None:
    user_id = api.add_user()
    uid = api.deposit(user_id).json["uid"]
    rest = ("", "/balance?date=2023-01-01", "/transactions")
    for path in (
        *(f"/api/user/{user_id}{r}" for r in rest),
        f"/api/transaction/{uid}",
        "/api/events",
        "/api/user/0",
        "/nowhere",
    ):
        get, head = api.ask("GET", path), api.ask("HEAD", path)
        assert (head.status, head.body) == (get.status, b"")
        assert head.headers["Content-Length"] == str(len(get.body))
        assert head.headers.get("ETag") == get.headers.get("ETag")
        assert get.headers["X-Content-Type-Options"] == "nosniff"


def numbers(api: Api) -> dict[str, float]:
    lines = api.ask("GET", "/metrics").body.decode().splitlines()
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if line[0] != "#")}


def test_metrics_have_their_published_names(api: Api) -> None:
    user_id = api.add_user()
    settled = 'payments_settled_total{status="COMPLETED"}'
    before = numbers(api).get(settled, 0.0)
    api.deposit(user_id)
    wait_until(lambda: numbers(api).get(settled, 0.0) > before, "the worker's count")
    names = Counter(name.partition("{")[0] for name in numbers(api))
    assert names.keys() >= METRICS


def test_what_clients_invent_makes_no_new_series(api: Api) -> None:
    api.ask("GET", f"/api/transaction/{uuid.uuid4()}")
    api.ask("GET", "/invented/path")
    api.ask("INVENTED", "/livez").refused(405, "method_not_allowed")
    text = api.ask("GET", "/metrics").body.decode()
    labels = {label for line in text.splitlines() for label in re.findall(r'(?:route|method)="([^"]*)"', line)}
    assert {"/api/transaction/<uid>", "unknown", "other"} <= labels
    assert not {label for label in labels if re.search(r"[0-9a-f]{8}-|invented", label, re.IGNORECASE)}


@pytest.mark.parametrize(
    "path", ["/nowhere", "/api", "/api/", "/api/users/", "/api/transaction/a/b", "/docs/../x", "/%00"]
)
@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_an_unknown_route_is_a_problem_document(api: Api, method: str, path: str) -> None:
    api.ask(method, path).refused(404, "not_found")


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/api/user/", {"POST", "OPTIONS"}),
        ("/api/user/1/", {"GET", "HEAD", "OPTIONS"}),
        ("/api/user/1/balance/", {"GET", "HEAD", "OPTIONS"}),
        ("/api/user/1/transactions/", {"GET", "HEAD", "OPTIONS"}),
        ("/api/transaction/", {"PUT", "OPTIONS"}),
        ("/api/transactions/", {"PUT", "OPTIONS"}),
        ("/api/transaction/01a217ba-1bdd-7b8b-8eb6-0ec9a24e7416", {"GET", "HEAD", "POST", "OPTIONS"}),
        ("/api/events/", {"GET", "HEAD", "OPTIONS"}),
        ("/livez", {"GET", "HEAD", "OPTIONS"}),
        ("/api/webhook/", {"GET", "HEAD", "POST", "OPTIONS"}),
        ("/api/webhook/1/", {"GET", "HEAD", "DELETE", "OPTIONS"}),
        ("/api/webhook/1/replay", {"POST", "OPTIONS"}),
        ("/docs", {"GET", "HEAD", "OPTIONS"}),
    ],
)
def test_another_method_is_told_what_is_allowed(api: Api, path: str, allowed: set[str]) -> None:
    for spelt in (path.rstrip("/"), path.rstrip("/") + "/"):
        for method in {"GET", "POST", "PUT", "DELETE", "PATCH", "TRACE"} - allowed:
            answer = api.ask(method, spelt).refused(405, "method_not_allowed")
            assert set(answer.headers["Allow"].split(", ")) == allowed
        answer = api.ask("OPTIONS", f"{spelt}?whatever=1")
        assert (answer.status, answer.body) == (200, b"")
        assert set(answer.headers["Allow"].split(", ")) == allowed


@pytest.mark.parametrize("given", ["a", "x" * 128, "7f0c-A.b_c:d/e+f=g@h", "62af9bac355e49229322b426756f1656"])
def test_a_sane_request_id_comes_back_and_stands_in_the_log(api: Api, service: Service, given: str) -> None:
    unique = f"{given[:90]}-{uuid.uuid4().hex}"
    for request_id in (given, unique):
        assert api.ask("GET", "/api/user/0", headers={"X-Request-ID": request_id}).headers["X-Request-ID"] == request_id
    lines = wait_until(lambda: [line for line in service.log_lines() if line.get("request_id") == unique], "the line")
    assert [(line["event"], line["path"], line["status"]) for line in lines] == [("answered", "/api/user/0", 404)]


@pytest.mark.parametrize(
    "given", ["", " ", "a b", "x" * 129, "a,b", "a;b", '"a"', "\u00e9", "a\tb", "{}", "<x>", "a'b"]
)
def test_an_odd_request_id_is_replaced(api: Api, given: str) -> None:
    answers = [api.ask("GET", "/livez", headers={"X-Request-ID": given}) for _ in range(2)]
    made = [answer.headers["X-Request-ID"] for answer in answers]
    assert all(re.fullmatch("[0-9a-f]{32}", request_id) for request_id in made)
    assert len(set(made)) == 2


def test_the_request_id_is_in_the_workers_log(api: Api, service: Service) -> None:
    request_id = uuid.uuid4().hex
    content = transaction(api.add_user())
    assert api.put(content, **{"X-Request-ID": request_id, "Prefer": "wait=15"}).status == 200

    def settled() -> list[Any]:
        lines = [line for line in service.log_lines() if line["process"] == "worker" and line["event"] == "settled"]
        return [line for line in lines if [content["uid"], "COMPLETED", request_id] in line["transactions"]]

    assert len(wait_until(settled, "the worker's line")) == 1


@pytest.mark.parametrize(
    "path",
    [
        "/api/user/1%0d%0aX-Evil:1/",
        "/api/transaction/%0d%0aX-Evil:%201",
        "/api/user/1/transactions/?cursor=%0d%0aX-Evil:1",
        "/api/user/1/balance/?date=2023-01-01%0d%0aX-Evil:1",
        "/%0d%0aX-Evil:1",
    ],
)
def test_no_header_can_be_injected(api: Api, path: str) -> None:
    for headers in ({}, {"Accept": "text/csv"}):
        answer = api.ask("GET", path, headers=headers)
        assert answer.status in (404, 422)
        assert "X-Evil" not in answer.headers


def test_the_document_describes_every_route_and_no_other() -> None:
    routes = {
        (rule.rule.replace("<", "{").replace(">", "}"), method.lower())
        for rule in create_app().url_map.iter_rules()
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
        if rule.rule not in FOR_PEOPLE
    }
    described = {(path, method) for path, item in document(create_app())["paths"].items() for method in item}
    assert described == routes


def test_no_number_in_the_document_is_a_multiple_of_a_fraction(api: Api) -> None:
    """To a validator with binary fractions 19.99 is no multiple of 0.01."""
    written = api.ask("GET", "/openapi.json").body.decode()
    assert "multipleOf" not in written
    numbers = [s for s in re.findall(r'\{[^{}]*"type": "number"[^{}]*\}', written) if '"maximum": 9999999999.99' in s]
    assert len(numbers) == 2


def test_every_reference_in_the_document_leads_somewhere(api: Api) -> None:
    made = api.ask("GET", "/openapi.json").json
    assert made["openapi"].startswith("3.1")
    references = set(re.findall(r'"\$ref": "#/([^"]*)"', api.ask("GET", "/openapi.json").body.decode()))
    assert references
    for reference in references:
        found = made
        for part in reference.split("/"):
            found = found[part]
    names = [operation["operationId"] for item in made["paths"].values() for operation in item.values()]
    assert len(set(names)) == len(names)


def test_the_page_loads_nothing_from_elsewhere(api: Api) -> None:
    page = api.ask("GET", "/docs")
    assert page.headers["Content-Security-Policy"].startswith("default-src 'self';")
    loaded = re.findall(r'(?:src|href)="([^"]*)"', page.body.decode())
    assert len(loaded) == 4
    for path in loaded:
        assert path.startswith("/docs/")
        assert api.ask("GET", path).status == 200
    script = api.ask("GET", "/docs/start.js").body.decode()
    assert "validatorUrl: null" in script
    assert 'url: "/openapi.json"' in script
