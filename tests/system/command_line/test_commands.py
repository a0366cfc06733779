"""demo, verify, tx and parked, run as an operator runs them against a running service."""

import json
import os
import re
import signal
import subprocess
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from uuid import uuid4

import psycopg2  # type: ignore[import-untyped]
import pytest

from payments_client import Payment, Payments, Transaction
from shared.processes import operator_name
from tests.kit.database import held_lane, query
from tests.kit.http import Api
from tests.kit.service import Service
from tests.kit.service import payments as run
from tests.kit.waiting import wait_until

pytestmark = pytest.mark.system

UNKNOWN = "01a217ba-1bdd-7b8b-8eb6-0ec9a24e7416"  # fixed: two processes that collect tests must name them alike

COMMANDS = [
    ["demo"],
    ["verify"],
    ["tx", UNKNOWN],
    ["parked", "list"],
    ["parked", "release", UNKNOWN],
    ["parked", "release", "--all"],
    ["audit", "log"],
]


@pytest.fixture(scope="module")
def client(service: Service) -> Payments:
    return Payments(service.url)


def told(service: Service, *arguments: str) -> str:
    """What a command prints when all is well."""
    done = run(*arguments, "--data", service.data)
    assert (done.returncode, done.stderr) == (0, ""), done
    return done.stdout


def refused(done: "subprocess.CompletedProcess[str]", *words: str) -> None:
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (1, "", 1), done
    assert all(word in done.stderr for word in words), done.stderr


def park(service: Service, client: Payments, head: Payment, *followers: Payment) -> None:
    """Send a user's payments, and have the first as it is when our own code has failed on it three times."""
    with held_lane(service.database_url, head.user_id):
        for payment in (head, *followers):
            client.submit(payment)
        parked = "parked_at = now(), attempts = 3, last_error = E'ValueError(one\\ntwo)'"
        execute(service, f"UPDATE transactions SET {parked} WHERE uid = '{head.uid}'")


def execute(service: Service, statement: str) -> None:
    with closing(psycopg2.connect(service.database_url)) as connection, connection, connection.cursor() as cursor:
        cursor.execute(statement)


def test_demo_makes_the_first_payments_and_ends_in_a_statement(service: Service) -> None:
    lines = told(service, "demo").splitlines()
    outcomes = [line.split(".. ")[1].rpartition(" (")[0] for line in lines if ".. " in line][1:]
    assert outcomes == [
        "COMPLETED, balance 100.00",
        "COMPLETED, balance 70.00",
        "COMPLETED, balance 70.00, recognised: the same answer",
        "REJECTED: insufficient_funds",
        "70.00",
        "0.00",
        "100.00",
    ]
    assert [line.split()[-2] for line in lines[-3:]] == ["insufficient_funds", "COMPLETED", "COMPLETED"]
    assert told(service, "demo", "--url", service.url).endswith("\n")


def test_demo_says_so_where_nobody_answers(tmp_path: Path) -> None:
    refused(run("demo", "--url", "http://127.0.0.1:1", "--data", tmp_path), "No answer", "127.0.0.1:1")
    refused(run("demo", "--url", "nowhere", "--data", tmp_path), "nowhere")


def test_verify_proves_the_books_of_the_running_service(service: Service, client: Payments) -> None:
    client.deposit(client.add_user("Ada").id, "1")
    assert "the books balance" in told(service, "verify")
    found = json.loads(told(service, "verify", "--json"))
    assert (found["differences"], found["first"]) == (0, [])
    assert found["entries"] == found["completed"] > 0


def test_verify_writes_one_row_and_only_with_record(service: Service) -> None:
    def recorded() -> list[tuple[int, int, int]]:
        return query(service.database_url, "SELECT users, entries, differences FROM verifications ORDER BY id")

    before = recorded()
    told(service, "verify")
    assert recorded() == before
    found = json.loads(told(service, "verify", "--json", "--record"))
    assert recorded() == [*before, (found["users"], found["entries"], 0)]
    metrics = Api(service.url).ask("GET", "/metrics").body.decode()
    assert "payments_verify_differences 0.0" in metrics
    assert "payments_verify_age_seconds" in metrics


def test_verify_ends_with_1_and_names_what_is_wrong(service: Service, client: Payments) -> None:
    user_id = client.add_user("Eve").id
    execute(service, f"UPDATE users SET balance = 5 WHERE id = {user_id}")
    try:
        done = run("verify", "--data", service.data)
        found = json.loads(run("verify", "--json", "--data", service.data).stdout)
    finally:
        execute(service, f"UPDATE users SET balance = 0 WHERE id = {user_id}")
    assert (done.returncode, done.stderr) == (1, "")
    assert f"user {user_id} user: balance: the sum of the ledger: expected 0, found 5" in done.stdout
    assert (found["differences"], found["first"][0]["user_id"]) == (2, user_id)


def test_tx_tells_of_a_completed_one(service: Service, client: Payments) -> None:
    paid = client.deposit(client.add_user("Ada").id, "12.30")
    story = told(service, "tx", str(paid.uid))
    assert story.startswith(f"COMPLETED DEPOSIT of 12.30 for user {paid.user_id}, uid {paid.uid}\n")
    for word in ("number 1: +12.30, balance 0.00 -> 12.30", "not late", "number 1 of the user's", "PUT again: 200"):
        assert word in story
    shown = json.loads(told(service, "tx", str(paid.uid).upper(), "--json"))
    assert Transaction.of(shown) == paid
    assert (shown["seq"], shown["user_seq"], shown["user_name"], shown["late"]) == (1, 1, "Ada", False)


def test_tx_tells_of_a_rejected_one(service: Service, client: Payments) -> None:
    payment = Payment("WITHDRAW", client.add_user("Ada").id, "1")
    client.submit(payment)
    assert client.wait_until_final(payment.uid).status == "REJECTED"
    story = told(service, "tx", str(payment.uid))
    assert "REJECTED: insufficient_funds" in story
    assert "PUT again: 409 insufficient_funds" in story
    assert "\nentry" not in story


def test_tx_tells_of_a_pending_one_what_it_waits_for(service: Service, client: Payments) -> None:
    user_id = client.add_user("Ada").id
    first, second = (Payment("DEPOSIT", user_id, "1") for _ in range(2))
    with held_lane(service.database_url, user_id):
        client.submit(first)
        client.submit(second)
        assert "for a worker; 0 before it in its lane" in told(service, "tx", str(first.uid))
        assert "for a worker; 1 before it in its lane" in told(service, "tx", str(second.uid))
        assert "PUT again: 202" in told(service, "tx", str(second.uid))


def test_what_is_parked_is_listed_told_of_and_released_in_order(service: Service, client: Payments) -> None:
    user_id = client.add_user("Ada").id
    head, follower = Payment("DEPOSIT", user_id, "5"), Payment("WITHDRAW", user_id, "5")
    park(service, client, head, follower)
    wait_until(lambda: str(follower.uid) in told(service, "parked", "list"), "the follower is parked, too")
    listed = told(service, "parked", "list").splitlines()
    assert [line.split()[0] for line in listed[2:4]] == [str(head.uid), str(follower.uid)]
    assert listed[2].endswith("3  ValueError(one two)")
    assert listed[-1].startswith("2 parked, of 1 user")
    as_json = json.loads(told(service, "parked", "list", "--json"))
    assert [(row["uid"], row["attempts"]) for row in as_json] == [(str(head.uid), 3), (str(follower.uid), 0)]
    assert "failed 3 times, last with: ValueError(one two)" in told(service, "tx", str(head.uid))
    assert f"behind {head.uid}" in told(service, "tx", str(follower.uid))
    assert told(service, "parked", "release", str(head.uid)).startswith("released 2 of the user's transactions")
    assert client.wait_until_final(follower.uid).status == "COMPLETED"  # so the deposit came first
    assert told(service, "parked", "list") == "nothing is parked\n"


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["tx", "nonsense"], "nonsense"),
        (["tx", str(uuid4())], "no transaction"),
        (["parked", "release", "nonsense"], "nonsense"),
        (["parked", "release", str(uuid4())], "no parked transaction"),
        (["parked", "release"], "UID"),
        (["parked", "list", UNKNOWN], UNKNOWN),
        (["parked", "release", UNKNOWN, "--all"], "one of"),
        (["parked", "release", "--all", "--error", "x"], "one of"),
        (["parked", "list", "--all"], "--all"),
        (["parked", "release", "--error", ""], "--all"),
        (["parked"], "command"),
        (["audit", "log", "--limit", "0"], "--limit"),
        (["audit", "sbom", "--limit", "5"], "--limit"),
    ],
)
def test_what_cannot_be_done_is_one_clear_line(service: Service, arguments: list[str], word: str) -> None:
    refused(run(*arguments, "--data", service.data), word)


def test_all_parked_are_released_by_one_command(service: Service, client: Payments) -> None:
    users = [client.add_user("Ada").id for _ in range(2)]
    heads = [Payment("DEPOSIT", user_id, "5") for user_id in users]
    for head in heads:
        park(service, client, head)
    listed = told(service, "parked", "list").splitlines()
    assert [line.split() for line in listed if "  ValueError" in line][-1] == ["2", "2", "ValueError(one", "two)"]
    assert told(service, "parked", "release", "--error", "another").startswith("released 0 transactions")
    assert told(service, "parked", "release", "--error", "valueerror").startswith("released 2 transactions")
    assert [client.wait_until_final(head.uid).status for head in heads] == ["COMPLETED"] * 2
    assert told(service, "parked", "release", "--all").startswith("released 0 transactions")


def test_the_audit_log_shows_who_did_what_newest_first(service: Service, client: Payments) -> None:
    head = Payment("DEPOSIT", client.add_user("Ada").id, "5")
    park(service, client, head)
    told(service, "parked", "release", str(head.uid))
    key = told(service, "key", "create", "--name", "audited", "--scope", "read").split()[-1]
    header, _, first, second, *_ = told(service, "audit", "log").splitlines()
    assert header.split() == ["id", "at", "actor", "action", "target", "details"]
    assert first.split()[2:5] == [operator_name(), "key.create", key.split("_")[1]]
    assert second.split()[2:5] == [operator_name(), "parked.release", str(head.uid)]
    newest = json.loads(told(service, "audit", "log", "--limit", "1", "--json"))
    assert [(row["actor"], row["details"]) for row in newest] == [
        (operator_name(), {"name": "audited", "scope": "read"})
    ]
    everything = told(service, "audit", "log", "--limit", "100000")
    assert re.search(rf"{re.escape(operator_name())} +migration\.apply", everything)
    assert key not in everything


def test_verify_since_checks_what_is_new_after_a_recorded_proof(service: Service, client: Payments) -> None:
    told(service, "verify", "--record")
    client.deposit(client.add_user("Ada").id, "1", wait=10)
    found = json.loads(told(service, "verify", "--since", "--json", "--record"))
    assert (found["whole"], found["differences"], found["entries"]) == (False, 0, 1)
    assert "what is new since the last proof" in told(service, "verify", "--since")
    assert query(service.database_url, "SELECT whole FROM verifications ORDER BY id DESC LIMIT 2") == [
        (False,),
        (True,),
    ]


ON_A_DOWN_DATABASE = [["verify"], ["psql", "-c", "SELECT 1"], ["migrate"], ["audit", "log"], *COMMANDS[2:]]


def test_commands_say_that_postgres_is_down_while_up_runs(start_service: Callable[..., Service]) -> None:
    service = start_service()
    folder = service.data / "postgres"
    hidden = folder.rename(folder.with_name("hidden"))  # so that it does not come back
    os.kill(service.pid_of("postgres"), signal.SIGKILL)
    try:
        wait_until(lambda: run("psql", "-c", "SELECT 1", "--data", service.data).returncode, "it is down")
        for command in ON_A_DOWN_DATABASE:
            done = run(*command, "--data", service.data)
            refused(done)
            assert "postgres is down or still starting" in done.stderr or "does not serve" in done.stderr, done
            assert "no service runs" not in done.stderr
    finally:
        hidden.rename(folder)
    wait_until(lambda: run("verify", "--data", service.data).returncode == 0, "it is back", 30)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_without_a_running_service_a_command_says_so(tmp_path: Path, command: list[str]) -> None:
    refused(run(*command, "--data", tmp_path), "no service runs", str(tmp_path))


@pytest.mark.parametrize("command", [*COMMANDS[1:], ["psql"], ["migrate"]], ids=" ".join)
def test_a_database_that_is_away_is_one_clear_line(tmp_path: Path, command: list[str]) -> None:
    nowhere = {"DATABASE_URL": "postgresql://payments:secret@127.0.0.1:1/payments"}
    done = run(*command, "--data", tmp_path, **nowhere)
    refused(done, "the database does not serve")
    assert "secret" not in done.stderr


@pytest.mark.parametrize("command", ["demo", "verify", "tx", "parked"])
def test_help_explains_by_examples(command: str) -> None:
    assert f"./payments {command}" in run(command, "--help").stdout
