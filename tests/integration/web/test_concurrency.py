"""However many requests are at work, a few threads are left for those who look after the process."""

import pytest
from flask.testing import FlaskClient

from web.app import create_app
from web.limits import concurrency

pytestmark = pytest.mark.integration


@pytest.fixture
def client() -> FlaskClient:
    return create_app().test_client()


def test_over_capacity_is_503_and_livez_answers(client: FlaskClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(concurrency, "_requests_inside", concurrency.max_concurrent_requests())
    answer = client.get("/api/user/0/")
    assert (answer.status_code, answer.json["code"]) == (503, "overloaded")
    assert answer.headers["Retry-After"]
    assert answer.headers["Connection"] == "close", "its body is not waited for"
    for path in ("/livez", "/livez/", "/readyz", "/metrics"):
        assert client.get(path).status_code == 200
    assert client.post("/livez").status_code == 503, "with a body it is one of the others"
    monkeypatch.setattr(concurrency, "_requests_inside", concurrency.max_concurrent_requests() - 1)
    assert client.get("/api/user/0/").status_code == 404


def test_whoever_came_in_is_counted_out_whatever_became_of_it(
    client: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = concurrency._requests_inside
    client.get("/api/user/0/")
    client.put("/api/transaction/", data="no json", content_type="application/json")
    client.delete("/api/user/")
    client.get("/api/nowhere")
    monkeypatch.setattr("shared.payments.reads.get_user", lambda _: 1 / 0)
    assert client.get("/api/user/1/").status_code == 500
    assert concurrency._requests_inside == before
