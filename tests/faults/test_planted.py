"""The suite is checked: each planted bug is found, and with the same defences off and no bug nothing is."""

import sys
from typing import NamedTuple

import pytest

from tests.faults.planted import BUGS, DEFENCES, NO_UNIQUE
from tests.faults.run import Plan, Result, run
from tests.faults.stack import Stack

pytestmark = [pytest.mark.system, pytest.mark.timeout(150)]

SEED = 20261124
RATE = 80


class Case(NamedTuple):
    """A bug, the faults that bring it to light, and a word that one of the violations must hold."""

    bug: str
    faults: tuple[str, ...]
    found_by: str
    seconds: float = 6
    users: int = 8


QUIET = ("postgres line slow",)  # it loses no ring
RINGS = ("rings doubled", "rings doubled and reordered")
CASES = [
    Case("2xx before commit", ("line cut before COMMIT (accept)", "web killed"), "accepted_transactions_exist"),
    Case("no UNIQUE on uid", RINGS, "each_happened_once_or_never"),
    Case("read-modify-write without the lock", RINGS, "no_balance_is_negative"),
    Case("no lane lock", RINGS, "each_happened_once_or_never"),
    Case("lock and read in one statement", RINGS, "each_happened_once_or_never"),
    Case("no status guard", RINGS, "final_states_never_change"),
    Case("now() for the clock", ("broker line slow",), "none_is_settled_before_it_is_accepted"),
    Case("a lost connection parks", ("backends terminated", "line cut before COMMIT (settle)"), "all_become_final"),
    Case(
        "a lost connection rejects",
        ("backends terminated", "line cut before COMMIT (settle)"),
        "each_happened_once_or_never",
    ),
    Case("settling in two transactions", ("line cut before COMMIT (settle)",), "each_happened_once_or_never"),
    Case("key deleted after the read", QUIET, "all_become_final"),
]
WITHOUT_A_BUG = [
    Case("nothing", (*RINGS, "backends terminated", "line cut before COMMIT (settle)", "broker line slow"), ""),
    Case("no sweep", QUIET, ""),
]


def run_with(case: Case) -> tuple[Result, str]:
    """The result, and what to say of it."""

    def switch_defences_off(stack: Stack) -> None:
        with stack.session() as cursor:
            for statement in (*DEFENCES, *(NO_UNIQUE if case.bug == "no UNIQUE on uid" else ())):
                cursor.execute(statement)
            cursor.connection.commit()

    said: list[str] = []
    plan = Plan(case.seconds, SEED, RATE, case.users, case.faults, stops_when_stuck=True)
    result = run(plan, said.append, switch_defences_off, hook="tests.faults.planted", FAULTS_BUG=case.bug)
    story = f"{case.bug}: seed {SEED}, {case.seconds:g} s, {result.accepted} accepted"
    return result, "\n".join([story, *said, *result.violations[:10]])


@pytest.mark.parametrize("case", CASES, ids=[case.bug for case in CASES])
def test_a_planted_bug_is_found(case: Case) -> None:
    result, story = run_with(case)
    sys.stdout.write(story)
    assert any(violation.startswith(case.found_by) for violation in result.violations), story


@pytest.mark.parametrize("case", WITHOUT_A_BUG, ids=[case.bug for case in WITHOUT_A_BUG])
def test_nothing_is_found_where_no_bug_is_planted(case: Case) -> None:
    result, story = run_with(case)
    # `verify` says that the guards are off: that is what it is for
    assert {violation.partition(":")[0] for violation in result.violations} == {"verify_agrees"}, story
    assert result.accepted > 100


def test_every_bug_has_a_case() -> None:
    assert set(BUGS) == {case.bug for case in [*CASES, *WITHOUT_A_BUG]}
