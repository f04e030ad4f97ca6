"""Some hundred malformed requests over a scripted engine; `tests/e2e` has thousands over a real
one."""

from __future__ import annotations

import httpx
import pytest

from ..hostile.attacks import attacks
from ..hostile.drill import GAUGES, drill, gauges
from .serving import listening, serve


def test_attacks_are_determined_by_their_seed_and_of_many_kinds() -> None:
    first, again = list(attacks(seed=3, count=200)), list(attacks(seed=3, count=200))
    assert first == again
    assert first != list(attacks(seed=4, count=200))
    assert len({attack.data for attack in first}) > 190
    assert len({word for attack in first for word in attack.note.split()[2:]}) > 25


@pytest.mark.parametrize("seed", [1, 2])
async def test_no_malformed_request_makes_a_5xx_or_hurts_another(seed: int) -> None:
    server = serve(body_timeout=1.0, header_timeout=1.0, max_header_size=16384)
    async with listening(server) as url:
        port = httpx.URL(url).port
        assert port is not None
        verdict = await drill(port, seed=seed, count=150)
        assert not verdict.faults, "\n".join(verdict.faults)
        assert not verdict.dropped_canaries
        assert verdict.canaries > 0
        assert verdict.statuses[400] > 40  # most are refused
        assert verdict.statuses[200] > 3  # and some damage is harmless
        assert await gauges(port) == dict.fromkeys(GAUGES, 0.0)
    assert server.app.state.admission.live == 0
    await server.close()
