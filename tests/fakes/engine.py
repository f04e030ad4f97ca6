"""`ScriptedEngine`: stands in for `AsyncEngine` and plays given deltas, for tests of the server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence

from octavo.engine.async_engine import EngineStatus
from octavo.engine.errors import EngineDead, SequenceFailed
from octavo.engine.executor.base import Capacity
from octavo.engine.params import FinishReason, Request
from octavo.engine.step import Delta, StepStats, TokenLogprobs

Script = Callable[[Request], Sequence[Delta | None]]
"""The deltas of a request, in order; None stands for silence until the client leaves."""


class ScriptedEngine:
    """Remembers what was asked of it. `hold` keeps requests from beginning until it is set."""

    def __init__(self, script: Script, *, max_model_len: int = 512) -> None:
        self.script = script
        self.status = EngineStatus("ready")
        self.restarts = 0
        self.resumed_requests = 0
        self.heartbeat_age = 0.0
        self.stats = StepStats()
        self.requests: list[Request] = []
        self.aborted: list[str] = []
        self.ended_choices: list[tuple[str, int]] = []
        self.hold: asyncio.Event | None = None
        self.observers: list[Callable[[StepStats], None]] = []
        self.capacity = Capacity(
            num_blocks=64,
            block_size=16,
            num_host_blocks=0,
            max_model_len=max_model_len,
            vocab_size=1024,
            eos_token_ids=(1,),
            recompute_seconds_per_token=1e-3,
            swap_seconds_per_block=1e-3,
            dtype="float32",
            device="fake",
            kv_bytes=0,
            weight_bytes=0,
            parameters=0,
        )

    def on_step(self, observer: Callable[[StepStats], None]) -> None:
        self.observers.append(observer)

    async def generate(self, request: Request) -> AsyncGenerator[Delta, None]:
        if not self.status.accepting:
            raise EngineDead(f"The engine is {self.status.stage}.")
        self.requests.append(request)
        live = set(range(request.sampling.n))
        try:
            if self.hold is not None:
                await self.hold.wait()
            for delta in self.script(request):
                await asyncio.sleep(0)  # as if each came in a step of its own
                if delta is None:
                    await asyncio.Event().wait()
                    continue
                live -= {index for name, index in self.ended_choices if name == request.id}
                if delta.error is not None:
                    raise SequenceFailed(delta.error)
                if delta.last:
                    live.discard(delta.index)
                yield delta._replace(request_id=request.id)
                live -= {index for name, index in self.ended_choices if name == request.id}
                if not live:
                    break
        finally:
            if live:
                self.aborted.append(request.id)

    def finish_choice(self, request_id: str, index: int) -> None:
        self.ended_choices.append((request_id, index))


def told(
    ids: Sequence[int],
    *,
    index: int = 0,
    reason: FinishReason | None = FinishReason.LENGTH,
    at_once: int = 1,
    logprobs: Callable[[int, int], TokenLogprobs] | None = None,
    prompt_logprobs: Sequence[TokenLogprobs] = (),
    stop_token_id: int | None = None,
    cached_tokens: int = 0,
) -> list[Delta]:
    """One choice's tokens as deltas of `at_once` tokens; `logprobs(place, id)` scores each."""
    deltas = []
    for start in range(0, len(ids), at_once) or (0,):
        piece = tuple(ids[start : start + at_once])
        last = start + at_once >= len(ids)
        deltas.append(
            Delta(
                request_id="",
                index=index,
                token_ids=piece,
                logprobs=tuple(logprobs(place, token) for place, token in enumerate(piece, start))
                if logprobs
                else (),
                prompt_logprobs=tuple(prompt_logprobs) if start == 0 else (),
                cached_tokens=cached_tokens if start == 0 else None,
                finish_reason=reason if last else None,
                stop_token_id=stop_token_id if last else None,
            )
        )
    return deltas
