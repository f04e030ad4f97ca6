"""The drills of `make drills`, a little of each: what they try must hold in small, too.

How long something takes is for the drills to judge; here it must only come to an end.
"""

from __future__ import annotations

import math

import pytest

from octavo.loadtest.drills.command import DRILLS
from octavo.loadtest.drills.effort import QUICK
from octavo.loadtest.drills.soak import soak
from octavo.loadtest.drills.verdict import Outcome

# Overload is a matter of rates, which a busy test machine does not keep.
STEADY = sorted(DRILLS.keys() - {"overload"})


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", STEADY)
async def test_a_little_of_each_drill(name: str) -> None:
    outcome = await DRILLS[name](QUICK)
    assert holds(outcome), f"{outcome.line(name)} {dict(outcome.figures)}"


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_a_minute_of_soak() -> None:
    outcome = await soak(QUICK)
    assert outcome.passed, f"{outcome.line('soak')} {dict(outcome.figures)}"


def holds(outcome: Outcome) -> bool:
    return all(
        math.isfinite(check.value) if check.name.endswith((", s", ", ms")) else check.holds
        for check in outcome.checks
    )
