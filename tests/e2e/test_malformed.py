"""Thousands of malformed requests on a real daemon, and everybody else is served as ever."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import httpx
import pytest

from ..hostile.drill import GAUGES, drill, gauges
from .daemon import serving

COUNT = 1500


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", [101, 102])
def test_malformed_requests_hurt_nobody(tmp_path: Path, seed: int) -> None:
    limits = ("--body-timeout", "2", "--header-timeout", "5", "--max-model-len", "256")
    with serving(tmp_path, *limits, "--dtype", "float32", "--no-log-requests") as daemon:
        port = httpx.URL(daemon.url).port
        assert port is not None
        verdict = asyncio.run(drill(port, seed=seed, count=COUNT))
        assert not verdict.faults, "\n".join(verdict.faults)
        assert not verdict.dropped_canaries
        assert verdict.canaries > 0
        deadline = time.monotonic() + 10
        while (found := asyncio.run(gauges(port))) != dict.fromkeys(GAUGES, 0.0):
            assert time.monotonic() < deadline, found
            time.sleep(0.05)  # between two looks at a condition that is awaited
        assert daemon.metric("octavo:engine_restarts_total") == 0
        assert "a bug of the server" not in daemon.log.read_text()
