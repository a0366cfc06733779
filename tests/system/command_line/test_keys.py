"""`./payments key`, and a service that asks for keys: who has none is kept out, and no key is seen anywhere."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kit.database import query
from tests.kit.http import Api, Response
from tests.kit.service import Service, payments
from tests.kit.waiting import wait_until

pytestmark = pytest.mark.system

KEY = re.compile(r"pay_[0-9]+_[A-Za-z0-9_-]{43}")


def create(data: Path, name: str, scope: str) -> str:
    """The key: the last word that is printed."""
    done = payments("key", "create", "--name", name, "--scope", scope, "--data", data)
    assert done.returncode == 0, done.stderr
    key = done.stdout.split()[-1]
    assert KEY.fullmatch(key), done.stdout
    return key


def listed(data: Path) -> list[list[str]]:
    done = payments("key", "list", "--data", data)
    assert done.returncode == 0, done.stderr
    return [line.split() for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    started = Service(tmp_path_factory.mktemp("guarded") / "data", (), {"PAYMENTS_AUTH": "required"}).wait_ready()
    yield started
    started.stop()


def status(service: Service, key: str, method: str = "GET", path: str = "/api/user/0/") -> int:
    return Api(service.url).ask(method, path, headers={"Authorization": f"Bearer {key}"}).status


def test_keys_are_made_while_nothing_runs_and_kept_by_the_data(tmp_path: Path) -> None:
    data = tmp_path / "data"
    missing = payments("key", "list", "--data", data)
    assert (missing.returncode, len(missing.stderr.splitlines())) == (1, 1)
    assert not data.exists()
    create(data, "shop", "write")
    create(data, "books", "read")
    assert [line[:3] for line in listed(data)] == [["1", "shop", "write"], ["2", "books", "read"]]
    assert payments("key", "revoke", "1", "--data", data).returncode == 0
    assert [line[4] for line in listed(data)] == ["revoked", "valid"]
    assert payments("ps", "--data", data).returncode == 1, "nothing is left running"


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["create", "--name", "shop"], "--scope"),
        (["create", "--name", "my shop", "--scope", "read"], "--name"),
        (["create", "--name", "shop", "--scope", "all"], "--scope"),
        (["revoke"], "ID"),
        (["revoke", "shop"], "shop"),
        (["revoke", "999"], "no key 999"),
        (["list", "1"], "unexpected"),
        (["list", "--scope", "read"], "--scope"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_line(guarded: Service, arguments: list[str], word: str) -> None:
    done = payments("key", *arguments, "--data", guarded.data)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert word in done.stderr


def test_a_key_opens_at_once_and_a_revoked_one_no_more(guarded: Service) -> None:
    first, second = create(guarded.data, "till", "write"), create(guarded.data, "till", "write")
    assert (status(guarded, first), status(guarded, second)) == (404, 404)
    assert payments("key", "revoke", first.split("_")[1], "--data", guarded.data).returncode == 0
    wait_until(lambda: status(guarded, first) == 401, "it is out", 20)
    assert status(guarded, second) == 404


def test_an_idempotency_key_belongs_to_the_key_that_sent_it(guarded: Service) -> None:
    api = Api(guarded.url)
    first, second = create(guarded.data, "shop", "write"), create(guarded.data, "till", "admin")

    def add(key: str, name: str = "Ada") -> Response:
        return api.ask(
            "POST", "/api/user/", {"name": name}, {"Authorization": f"Bearer {key}", "Idempotency-Key": "order 1"}
        )

    made = [add(first), add(second)]
    assert [answer.status for answer in made] == [201, 201]
    assert made[0].json["id"] != made[1].json["id"]
    for key, answer in zip((first, second), made, strict=True):
        assert (add(key).json, add(key).headers["Idempotency-Replayed"]) == (answer.json, "true")
        add(key, "Bob").refused(422, "key_reused")


def test_an_idempotency_key_belongs_to_its_api_key(guarded: Service) -> None:
    api, content = Api(guarded.url), {"url": "https://8.8.8.8/hook", "events": ["account.funded"]}
    keys = [create(guarded.data, name, "admin") for name in ("ads", "mail")]

    def add(key: str) -> Response:
        headers = {"Authorization": f"Bearer {key}", "Idempotency-Key": "hook 1"}
        return api.ask("POST", "/api/webhook/", content, headers, 201)

    made = [add(key).json for key in keys]
    assert made[0]["id"] != made[1]["id"]
    assert [add(key).json for key in keys] == made


def test_options_needs_no_key_and_tells_what_is_allowed(guarded: Service) -> None:
    api = Api(guarded.url)
    for path in ("/api/user/", "/api/user/1/balance", "/api/transaction/", "/api/webhook/1/", "/api/events/?after="):
        answer = api.ask("OPTIONS", path)
        assert (answer.status, answer.body) == (200, b"")
        assert "OPTIONS" in answer.headers["Allow"].split(", ")
    api.ask("OPTIONS", "/nowhere").refused(404, "not_found")
    for method in ("GET", "POST", "PUT", "DELETE"):
        api.ask(method, "/api/user/1/").refused(401, "unauthorized")


def test_the_commands_use_the_key_of_the_environment(guarded: Service) -> None:
    key = create(guarded.data, "demo", "write")
    assert payments("demo", "--data", guarded.data, PAYMENTS_KEY=key).returncode == 0
    refused = payments("demo", "--data", guarded.data)
    assert refused.returncode == 1
    assert len(refused.stderr.splitlines()) == 1
    assert "key" in refused.stderr.lower()


def test_no_key_is_in_logs_in_errors_in_ps_or_in_metrics(guarded: Service) -> None:
    key = create(guarded.data, "quiet", "read")
    wrong = key[:-3] + "AAA"
    api = Api(guarded.url)
    seen = [
        api.ask("GET", "/api/user/0/", headers={"Authorization": f"Bearer {shown}"}).body.decode()
        for shown in (key, wrong, f"{key} ", key * 2)
    ]
    seen += [api.ask("GET", "/metrics").body.decode(), payments("ps", "--json", "--data", guarded.data).stdout]
    wait_until(lambda: any(line.get("key") == int(key.split("_")[1]) for line in guarded.log_lines()), "the log line")
    seen += [*guarded.lines(), guarded.errors()]
    assert not [text for text in seen if KEY.search(text)]
    assert not [text for text in seen if key.split("_", 2)[2] in text]


def test_it_listens_only_on_loopback_before_there_is_a_key(tmp_path: Path) -> None:
    data = tmp_path / "data"
    create(data, "old", "admin")
    assert payments("key", "revoke", "1", "--data", data).returncode == 0
    done = payments("up", "--host", "0.0.0.0", "--port", "0", "--flower-port", "0", "--data", data)
    assert done.returncode == 1
    assert "there is no API key yet" in done.stderr.splitlines()[-1]


def test_on_loopback_it_says_that_it_asks_for_none(service: Service) -> None:
    assert "no API key is needed" in service.errors()
    assert Api(service.url).ask("GET", "/api/user/0/").status == 404


def test_web_and_workers_have_a_database_role_that_owns_nothing(service: Service) -> None:
    def sessions() -> dict[str, str]:
        statement = "SELECT application_name, usename FROM pg_stat_activity WHERE application_name LIKE 'payments-%%'"
        return dict(query(service.database_url, statement))

    ours = {"payments-web", "payments-worker", "payments-notify"}
    found = wait_until(lambda: ours <= sessions().keys() and sessions(), "all are connected")
    assert {found[name] for name in ours} == {"payments_app"}
    assert query(service.database_url, "SELECT count(*) FROM pg_tables WHERE tableowner = 'payments_app'") == [(0,)]


def test_secrets_may_come_from_files(service: Service, tmp_path: Path) -> None:
    for name, url in (("database", service.database_url), ("broker", service.broker_url)):
        (tmp_path / name).write_text(f"{url}\n")
    files = {"DATABASE_URL_FILE": str(tmp_path / "database"), "BROKER_URL_FILE": str(tmp_path / "broker")}
    assert payments("verify", "--data", tmp_path / "none", **files).returncode == 0
    missing = payments("verify", "--data", tmp_path / "none", DATABASE_URL_FILE=str(tmp_path / "nowhere"))
    assert missing.returncode == 1
    assert "DATABASE_URL_FILE" in missing.stderr
