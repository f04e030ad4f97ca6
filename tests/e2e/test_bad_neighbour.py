"""One bad request costs nobody else anything: its 64 neighbours get, token for token in float32,
what they get without it. The bundled model, the real executor."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from octavo.engine.assembly import build_engine
from octavo.engine.bundled import TARGET
from octavo.engine.config import EngineConfig
from octavo.engine.core import Engine
from octavo.engine.params import (
    GrammarKind,
    GrammarSpec,
    PoolingKind,
    PoolingParams,
    Request,
    SamplingParams,
)
from octavo.engine.step import Delta, Slice, StepStats, TokenLogprobs
from octavo.engine.worker.computer import Computer, Launched
from octavo.engine.worker.gathering import Work

from .daemon import serving
from .prompts import mixed_prompts

POISON = 777  # a token that only the bad request's prompt has
SCHEMA = {
    "type": "object",
    "properties": {
        "colour": {"enum": ["red", "a rather long shade of blue"]},
        "size": {"type": "integer", "maximum": 99},
    },
    "required": ["colour", "size"],
    "additionalProperties": False,
}
GRAMMAR = GrammarSpec(GrammarKind.JSON_SCHEMA, json.dumps(SCHEMA))
CONFIG = EngineConfig(
    model=str(TARGET),
    dtype="float32",
    threads=1,
    max_model_len=512,
    max_num_batched_tokens=512,  # prompts come in chunks, beside decodes
    max_num_seqs=128,
)
VARIETY: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {"temperature": 1.0},
    {"temperature": 1.0, "presence_penalty": 0.8, "frequency_penalty": 0.4},
    {"temperature": 0.0, "repetition_penalty": 1.3, "logprobs": 2},
    {"temperature": 1.0, "grammar": GRAMMAR, "ignore_eos": False},
    {"temperature": 0.8, "top_p": 0.9, "n": 2},
    {"temperature": 1.2, "top_k": 40, "min_p": 0.02, "min_tokens": 4, "logprobs": 0},
    {"temperature": 0.0, "prompt_logprobs": 1},
    {"temperature": 0.0, "beam_width": 3, "n": 2},
]


def request(name: str, prompt: Sequence[int], **params: Any) -> Request:
    pooling = params.pop("pooling", None)
    sampling = SamplingParams(**{"max_tokens": 12, "ignore_eos": True, **params})
    return Request(
        id=name,
        prompt_token_ids=tuple(prompt),
        sampling=sampling,
        pooling=pooling,
        seed=len(name) * 1000 + sum(map(ord, name)),
        arrival=0.0,
    )


def good_requests(count: int) -> list[Request]:
    prompts = mixed_prompts(TARGET, count=count, longest=60, seed=8)
    clean = [[token if token != POISON else 5 for token in prompt] for prompt in prompts]
    return [
        request(f"good {i}", prompt, **VARIETY[i % len(VARIETY)]) for i, prompt in enumerate(clean)
    ]


@dataclass(slots=True)
class Answer:
    """All that one choice's client would see."""

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list)
    embedding: tuple[float, ...] | None = None
    score: float | None = None
    reason: str | None = None
    error: str | None = None

    def take(self, delta: Delta) -> None:
        self.token_ids += delta.token_ids
        self.logprobs += delta.logprobs
        self.prompt_logprobs += delta.prompt_logprobs
        self.embedding, self.score, self.error = delta.embedding, delta.score, delta.error
        self.reason = None if delta.finish_reason is None else delta.finish_reason.value


Answers = dict[tuple[str, int], Answer]


def assert_same(answers: Answers, expected: Answers) -> None:
    """All bits of it, but for the sums of mean embeddings: they depend on how a prompt was cut."""
    means = [{key: answer.embedding for key, answer in a.items()} for a in (answers, expected)]
    assert means[0].keys() == means[1].keys()
    for key, embedding in means[1].items():
        assert means[0][key] == (embedding and pytest.approx(embedding, abs=1e-6)), key
    bare = [
        {key: replace(answer, embedding=None) for key, answer in a.items()}
        for a in (answers, expected)
    ]
    assert bare[0] == bare[1]


def run(engine: Engine, requests: Sequence[Request]) -> Answers:
    for item in requests:
        engine.add(item)
    answers: Answers = {}
    while not engine.idle:
        for delta in engine.step().deltas:
            answers.setdefault((delta.request_id, delta.index), Answer()).take(delta)
        engine.scheduler.check()
    return answers


def served(requests: Sequence[Request], **settings: Any) -> tuple[Answers, StepStats]:
    engine, _ = build_engine(replace(CONFIG, **settings), lambda *_: None)
    try:
        return run(engine, requests), engine.stats()
    finally:
        engine.stop()


GOOD = good_requests(64)


@pytest.fixture(scope="module")
def undisturbed() -> Answers:
    answers, _ = served(GOOD)
    assert all(answer.error is None for answer in answers.values())
    assert len(answers) == 64 + sum(item.sampling.n - 1 for item in GOOD)
    return answers


@pytest.mark.parametrize("overlap", [pytest.param("off", marks=pytest.mark.slow), "on"])
@pytest.mark.parametrize("action", ["raise", "oom"])
def test_64_good_requests_do_not_feel_a_bad_one(
    undisturbed: Answers, action: str, overlap: str, caplog: pytest.LogCaptureFixture
) -> None:
    bad = request("the bad one", [*range(300, 340), POISON, 5], n=2)
    answers, stats = served(
        [*GOOD[:20], bad, *GOOD[20:]], overlap=overlap, test_fault=(f"{action}@token={POISON}",)
    )
    failed = {key: answers.pop(key) for key in list(answers) if key[0] == bad.id}
    assert answers == undisturbed
    assert failed.keys() == {(bad.id, 0), (bad.id, 1)}
    for answer in failed.values():
        assert answer.error is not None
        assert answer.error.startswith(
            "The server's memory is not enough" if action == "oom" else "This request could not be"
        )
        assert "Traceback" not in answer.error and "/" not in answer.error
    assert (stats.running, stats.waiting, stats.blocks_used, stats.audit_failures) == (0, 0, 0, 0)
    told = [r for r in caplog.records if "the bad one cannot be computed" in r.getMessage()]
    assert len(told) == 1, "the culprit is named once"


# --- whatever fails, and wherever: a second attempt gives the same -----------------------------

PLACES = (
    ("_gather", "after"),  # the sampler has met the newcomers
    ("_forward", "before"),
    ("_forward", "after"),  # it has written its cells
    ("_settle", "after"),  # grammars have read on
    ("_draw", "after"),  # penalties are counted
    ("_search", "after"),
    ("_score", "after"),
    ("_keep", "before"),  # with overlap the next step has been launched
)


class Mischief:
    """Raises at every fifth visit of each place, but never when a sequence is computed alone: then
    it would fail."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._visits = Counter(dict(zip(PLACES, range(len(PLACES)), strict=True)))
        self.raised: Counter[tuple[str, str]] = Counter()
        for name, when in PLACES:
            monkeypatch.setattr(Computer, name, self._around(name, when))

    def _around(self, name: str, when: str) -> Callable[..., object]:
        inner = getattr(Computer, name)

        def outer(computer: Computer, step: Any, *more: object) -> object:
            if when == "before":
                self._maybe(name, when, step)
            result = inner(computer, step, *more)
            if when == "after":
                self._maybe(name, when, step)
            return result

        return outer

    def _maybe(self, name: str, when: str, step: Sequence[Slice] | Work | Launched) -> None:
        self._visits[name, when] += 1
        slices = step.slices if isinstance(step, Work) else getattr(step, "given", step)
        if len(slices) > 1 and self._visits[name, when] % 5 == 0:
            self.raised[name, when] += 1
            raise (RuntimeError, MemoryError)[self.raised[name, when] % 2]("mischief")


def everything() -> list[Request]:
    """All kinds of requests, also embeddings, and prompts that take several chunks."""
    prompts = mixed_prompts(TARGET, count=6, longest=150, seed=12)
    kinds = [
        {"pooling": PoolingParams(kind=PoolingKind.MEAN)},
        {"pooling": PoolingParams(kind=PoolingKind.LAST)},
        {"temperature": 1.0, "n": 3, "prompt_logprobs": 2, "logprobs": 1},
    ]
    more = [request(f"more {i}", prompt, **kinds[i % 3]) for i, prompt in enumerate(prompts)]
    return [*GOOD[:18], *more]


TIGHT = {"kv_memory": 45 * 16 * 6144, "swap_space": 32 << 20}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overlap", "settings"),
    [
        ("off", {"max_num_batched_tokens": 64}),
        # Without a pace to keep, what is in the cache at a time does not depend on the clock.
        ("on", {"max_num_batched_tokens": 96, "itl_target": 0.0, **TIGHT}),
    ],
    ids=["chunks", "chunks, overlap and a tight cache"],
)
def test_a_second_attempt_gives_the_same_wherever_the_first_one_failed(
    overlap: str, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = everything()
    expected, before = served(requests)
    mischief = Mischief(monkeypatch)
    answers, stats = served(requests, overlap=overlap, **settings)
    assert_same(answers, expected)
    assert mischief.raised.keys() == set(PLACES), "not everything was tried"
    assert (stats.blocks_used, stats.audit_failures) == (0, 0)
    if "kv_memory" in settings:
        assert stats.preemptions_recompute + stats.preemptions_swap > 0
    assert before.blocks_used == 0


def test_an_allocation_that_really_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's own out-of-memory error, whenever more than 40 tokens are computed at a time."""
    requests = everything()[:12]
    expected, _ = served(requests)
    forward = Computer._forward
    failed = []

    def greedy(computer: Computer, work: Work, *rest: Any) -> Any:
        count = int(work.counts.sum())
        if count > 40 and work.slices[0].sequence >= 0:  # below: measuring at the start
            failed.append(count)
            torch.empty(1 << 50)
        return forward(computer, work, *rest)

    monkeypatch.setattr(Computer, "_forward", greedy)
    answers, _ = served(requests)
    assert_same(answers, expected)
    assert failed


@pytest.mark.slow
@pytest.mark.parametrize("overlap", ["off", "on"])
def test_answers_outlive_books_that_are_wrong(overlap: str) -> None:
    """Every few steps a block that somebody uses is freed behind his back, in a tight cache."""
    requests = everything()
    expected, _ = served(requests)
    engine, _ = build_engine(
        replace(CONFIG, overlap=overlap, kv_memory=60 * 16 * 6144, max_num_batched_tokens=96),
        lambda *_: None,
    )
    draw = random.Random(3)
    blocks, roster = engine.scheduler._blocks, engine.scheduler._roster
    for item in requests:
        engine.add(item)
    answers: Answers = {}
    freed = 0
    while not engine.idle:
        held = sorted({block for s in roster.running for block in s.block_table})
        if held and freed < 40 and draw.random() < 0.6:
            blocks._pool.release(blocks._pool.blocks[draw.choice(held)], None)
            freed += 1
        for delta in engine.step().deltas:
            answers.setdefault((delta.request_id, delta.index), Answer()).take(delta)
    engine.scheduler.check()
    stats = engine.stats()
    engine.stop()
    assert_same(answers, expected)
    assert freed > 10
    assert 0 < stats.audit_failures <= freed
    assert stats.blocks_used == 0


# --- over HTTP ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    faults = ("--test-fault", f"raise@token={POISON}", "--test-fault", f"oom@token={POISON + 1}")
    folder = tmp_path_factory.mktemp("bad")
    with serving(folder, "--dtype", "float32", "--threads", "1", *faults) as daemon:
        yield daemon.url, daemon.log
        daemon.wait_until_idle()
        assert daemon.metric("octavo:engine_restarts_total") == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("token", "sentence"),
    [(POISON, "This request could not be computed"), (POISON + 1, "The server's memory is not")],
)
def test_a_client_of_a_bad_request_reads_a_sentence(
    url: tuple[str, Path], token: int, sentence: str
) -> None:
    base, log = url
    answer = httpx.post(f"{base}/v1/completions", json={"prompt": [5, token], "max_tokens": 4})
    assert answer.status_code == 500
    error = answer.json()["error"]
    assert error["message"].startswith(sentence)
    assert (error["type"], error["code"]) == ("server_error", "internal_error")
    body = {"prompt": [5, token], "max_tokens": 4, "stream": True}
    streamed = httpx.post(f"{base}/v1/completions", json=body).text
    assert sentence in streamed
    assert "Traceback" not in answer.text + streamed
    good = httpx.post(f"{base}/v1/completions", json={"prompt": [5, 6], "max_tokens": 4})
    assert good.status_code == 200
    assert "FAULTS ON PURPOSE" in log.read_text()
    assert "cannot be computed, and fails; the others go on" in log.read_text()
