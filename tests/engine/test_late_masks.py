"""Masks of a grammar come late, and hold up the draw alone: the model of a step is given to the
device before it is known what the step may say.

The device is one that takes a set time for a pass of the model, on a clock of its own: what the
host does in that time costs nothing, and what it does longer is seen as the device's idleness.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from torch import Tensor

from octavo.engine.assembly import build_engine
from octavo.engine.bundled import TARGET
from octavo.engine.config import EngineConfig
from octavo.engine.params import GrammarKind, GrammarSpec, SamplingParams
from octavo.engine.sampling import grammar_rule
from octavo.engine.sampling.sampler import Sampler
from octavo.engine.transfer import Array, Shared
from octavo.engine.worker.graphs import Eager

from .loop import request

PASS = 10.0  # of the clock, for the model of one step
FREE = SamplingParams(max_tokens=20, temperature=1.0, ignore_eos=True)
# There is always a choice: nothing is forced.
BOUND = replace(FREE, grammar=GrammarSpec(GrammarKind.REGEX, "[a-z ]{600}"))
WORDS = replace(FREE, bad_words_ids=((260, 261), (300, 301, 302)))
STEPS = 20


class Device(Shared):
    """Its clock and the host's, and what happened in which order."""

    def __init__(self, masking: float) -> None:
        self.masking = masking  # what the masks of a step take the host
        self.begin()

    def begin(self) -> None:
        self.host = self.busy_until = 0.0
        self.idle: list[float] = []  # of the device, before each draw
        self.events: list[tuple[str, int]] = []

    def note(self, what: str, of: str = "") -> None:
        """With the number of the step: so many have had theirs (or what it comes before)."""
        self.events.append((what, sum(event == (of or what) for event, _ in self.events)))

    def model(self) -> None:
        self.note("model")
        self.busy_until = max(self.busy_until, self.host) + PASS

    def masks(self) -> None:
        self.note("masks", of="draw")
        self.host += self.masking

    def draw(self) -> None:
        self.note("draw")
        self.idle.append(max(0.0, self.host - self.busy_until))
        self.busy_until = max(self.busy_until, self.host)

    def receive(self, *tensors: Tensor) -> Callable[[], list[Array]]:
        kept = [tensor.numpy(force=True).copy() for tensor in tensors]
        done = self.busy_until

        def arrived() -> list[Array]:
            self.note("tokens")
            self.host = max(self.host, done)
            return kept

        return arrived


def answers(
    patch: pytest.MonkeyPatch, device: Device, overlap: str, *kinds: SamplingParams
) -> dict[str, list[int]]:
    """What requests of these kinds, which come together, are answered."""

    def before(owner: Any, name: str, what: Callable[[], None]) -> None:
        inner = getattr(owner, name)

        def outer(*given: Any, **more: Any) -> Any:
            what()
            return inner(*given, **more)

        patch.setattr(owner, name, outer)

    def after(owner: Any, name: str, what: Callable[[], None]) -> None:
        inner = getattr(owner, name)

        def outer(*given: Any, **more: Any) -> Any:
            made = inner(*given, **more)
            what()
            return made

        patch.setattr(owner, name, outer)

    patch.setattr("octavo.engine.executor.inline.has_streams", lambda device: True)
    patch.setattr("octavo.engine.worker.launch.has_streams", lambda device: True)
    patch.setattr("octavo.engine.worker.launch.transfer_to", lambda _: device)
    config = EngineConfig(
        model=str(TARGET), dtype="float32", threads=1, overlap=overlap, enforce_eager=True
    )
    engine, _ = build_engine(config, lambda *_: None)
    device.begin()
    before(Eager, "__call__", device.model)
    before(grammar_rule, "fill_masks", device.masks)
    after(Sampler, "draw", device.draw)
    got: dict[str, list[int]] = {}
    for i, kind in enumerate(kinds):
        engine.add(request(f"r{i}", [300 + i, 5, 6, 7], seed=i, sampling=kind))
    while not engine.idle:
        for delta in engine.step().deltas:
            assert delta.error is None
            got.setdefault(delta.request_id, []).extend(delta.token_ids)
    engine.stop()
    return got


@pytest.mark.parametrize("masking", [4.0, 13.0])
def test_a_model_is_given_before_its_masks_are_made_and_only_the_draw_waits(
    masking: float,
) -> None:
    seen = []
    for overlap in ("off", "on"):
        device = Device(masking)
        with pytest.MonkeyPatch.context() as patch:
            seen.append(answers(patch, device, overlap, BOUND, FREE, WORDS))
    alone, ahead = seen
    assert alone == ahead, "the same as without overlap"
    assert [len(tokens) for tokens in ahead.values()] == [STEPS] * 3
    at = {event: place for place, event in enumerate(device.events)}
    masked = [number for what, number in device.events if what == "masks"]
    # The first comes with a prompt: all that was said is known. None is planned ahead of that.
    first, late = masked[0], masked[1:]
    assert len(late) == STEPS - 1 and late[0] > first + 1
    for k in late:
        assert at["model", k] < at["tokens", k - 1], "nobody has waited for what was said before"
        assert at["tokens", k - 1] < at["masks", k], "which the masks depend on"
        assert at["masks", k] < at["draw", k] < at["tokens", k]
    # Masks that take no longer than a pass are free; of longer ones the rest is waited for.
    assert {device.idle[k] for k in late} == {max(0.0, masking - PASS)}


def test_without_masks_and_words_no_draw_waits() -> None:
    device = Device(0.0)
    with pytest.MonkeyPatch.context() as patch:
        answers(patch, device, "on", FREE, replace(FREE, bad_words_ids=((5,),)))
    at = {event: place for place, event in enumerate(device.events)}
    for k in range(1, STEPS):
        assert at["model", k] < at["draw", k] < at["tokens", k - 1]
