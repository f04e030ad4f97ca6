"""What the engine process tells besides its reports."""

from __future__ import annotations

import logging
import socket

import pytest

from octavo.engine.assembly import _LogOverChannel
from octavo.engine.channel import Channel, Notice


def test_a_line_of_its_log_arrives_under_its_own_name_and_unadorned(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(logging.root, "handlers", [])
    monkeypatch.setattr(logging.root, "level", logging.root.level)
    near, far = socket.socketpair()
    with near, far:
        handler = _LogOverChannel(Channel(near, epoch=0))
        logging.basicConfig(level=logging.INFO, handlers=[handler])
        logging.getLogger("octavo.kernels").info("compiled in %d s", 3)
        assert list(Channel(far, epoch=0).receive(wait=True)) == [
            Notice(logging.INFO, "octavo.kernels", "compiled in 3 s")
        ]
