"""A minute of the fault run, as `./payments test faults --seconds 60 --seed 20261123` does it."""

import pytest

from tests.faults.run import Plan, run

SECONDS, SEED, MIN_FAULTS, MIN_ACCEPTED = 60, 20261123, 6, 300


@pytest.mark.system
@pytest.mark.timeout(240)
def test_nothing_is_lost_in_a_minute_of_faults() -> None:
    said: list[str] = []
    result = run(Plan(SECONDS, SEED, rate=40), said.append)
    assert not result.violations, "\n".join([f"seed {SEED}", *said, *result.violations[:20]])
    # or else it would have proved nothing
    assert len(result.seconds) >= MIN_FAULTS, result.seconds
    assert result.accepted >= MIN_ACCEPTED
