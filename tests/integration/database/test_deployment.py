"""What the deployment asks of the database: how much waits, and whether the migrations are there."""

import json
import os
import subprocess
import sys
from typing import Any

import pytest
import yaml
from sqlalchemy import text

from shared.database import transaction
from shared.payments.reads import get_backlog
from tests.integration.conftest import empty_database, migrate
from tests.integration.factories import accepted, deposit, new_users, run_sql
from tests.kit.processes import ROOT

pytestmark = pytest.mark.integration


def triggers() -> dict[str, dict[str, Any]]:
    """What KEDA asks, as the manifest has it."""
    manifest = (ROOT / "k8s" / "components" / "keda" / "worker.yml").read_text(encoding="utf-8")
    scaled = next(iter(yaml.safe_load_all(manifest)))
    return {found["name"]: found["metadata"] for found in scaled["spec"]["triggers"]}


def ask(name: str) -> float:
    with transaction() as connection:
        return float(connection.execute(text(triggers()[name]["query"].replace(":", "\\:"))).scalar_one())


def test_the_autoscaler_reads_what_the_metrics_say() -> None:
    assert (ask("pending"), ask("oldest")) == (0, 0)
    users = new_users(40)
    accepted(*(deposit(user, 100) for user in users))
    run_sql("UPDATE transactions SET parked_at = clock_timestamp() WHERE user_id = :user", user=users[0])
    backlog = get_backlog()
    assert ask("pending") == backlog.pending == 39
    assert 0 <= ask("oldest") - backlog.oldest_seconds < 5
    assert ask("oldest") > 0


def test_the_autoscaler_reads_only_the_index_of_pending_rows() -> None:
    """The statements are planned as for a table that is too large to read."""
    for trigger in triggers().values():
        with transaction() as connection:
            connection.execute(text("SET LOCAL enable_seqscan = off"))
            query = trigger["query"].replace(":", "\\:")
            plan = json.dumps(connection.execute(text(f"EXPLAIN (FORMAT JSON) {query}")).scalar_one())
        assert "transactions_pending_" in plan
        assert "transactions_statement" not in plan
        assert "Seq Scan" not in plan


def test_a_long_backlog_asks_for_all_workers() -> None:
    pending = triggers()["pending"]
    assert f"LIMIT {8 * int(pending['targetQueryValue'])})" in pending["query"]


def test_a_process_waits_for_the_migrations_that_it_needs(server_url: str) -> None:
    with empty_database(server_url) as url:
        waiting = subprocess.Popen(
            [sys.executable, "-m", "migrations", "--wait"],
            cwd=ROOT,
            env={**os.environ, "DATABASE_URL": url},
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert waiting.stdout
            assert "waiting for the database" in waiting.stdout.readline()
            assert waiting.poll() is None
            migrate(url)
            assert waiting.wait(20) == 0
        finally:
            waiting.kill()
            waiting.communicate()


def test_a_migration_is_given_no_option_that_it_does_not_know() -> None:
    """`--wiat` must not migrate."""
    ran = subprocess.run(
        [sys.executable, "-m", "migrations", "--wiat"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 1
    assert "one option" in ran.stdout
