"""Two streams of a device, where one does its work as late as the waits between them allow.

`LateStream` is the side stream: copies given to it are done when somebody waits for a marker behind
them, which is when a missing wait of the main stream shows. Work of the main stream is done at
once, so that the side stream waits for it is told by `events` alone.
"""

from __future__ import annotations

import pytest
from torch import Tensor


class LateStream:
    """Takes over `Tensor.copy_` of what is given inside of it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.waiting: list[tuple[Tensor, Tensor]] = []  # target, source
        self.done = 0  # copies, of all that were ever given
        self.inside = False
        self._markers = 0
        self.events: list[tuple[str, str, int]] = []  # main or side, what, and which marker
        copy = Tensor.copy_

        def copy_(target: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
            if not self.inside:
                return copy(target, source)
            self.events.append(("side", "copy", -1))
            self.waiting.append((target, source))
            return target

        self._copy = copy
        monkeypatch.setattr(Tensor, "copy_", copy_)

    def __enter__(self) -> None:
        self.inside = True

    def __exit__(self, *raised: object) -> None:
        self.inside = False

    @property
    def given(self) -> int:
        return self.done + len(self.waiting)

    def come_to(self, number: int) -> None:
        """Do the first `number` of all copies."""
        while self.done < number:
            target, source = self.waiting.pop(0)
            self._copy(target, source)
            self.done += 1

    def synchronize(self) -> None:
        self.come_to(self.given)

    def marker(self) -> LateMarker:
        made = LateMarker(self, self._markers)
        self._markers += 1
        return made


class LateMarker:
    """A marker of either stream."""

    def __init__(self, stream: LateStream, number: int) -> None:
        self._stream, self._number = stream, number
        self._place: int | None = None  # copies before it; None: not of the side stream

    def record(self) -> None:
        self._note("record")
        self._place = self._stream.given if self._stream.inside else None

    def wait(self) -> None:
        self._note("wait")
        if not self._stream.inside:
            self.synchronize()

    def synchronize(self) -> None:
        if self._place is not None:
            self._stream.come_to(self._place)

    def _note(self, what: str) -> None:
        where = "side" if self._stream.inside else "main"
        self._stream.events.append((where, what, self._number))
