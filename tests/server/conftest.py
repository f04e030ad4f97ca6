"""For tests that say where log lines go."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest


@pytest.fixture
def logging_as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    ours = logging.getLogger("octavo").level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.getLogger("octavo").setLevel(ours)
    logging.getLogger("uvicorn.access").disabled = False
