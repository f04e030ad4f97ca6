"""Grammars in a real engine over the bundled model: every answer is what it would be if its tokens
were sampled one by one, alone.

Asking for log-probabilities keeps forced tokens from being taken at once, which gives the answers
to compare with.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest
import torch

from octavo.engine.assembly import build_engine
from octavo.engine.bundled import TARGET
from octavo.engine.config import EngineConfig
from octavo.engine.core import Engine
from octavo.engine.params import (
    Emitted,
    FinishReason,
    GrammarKind,
    GrammarSpec,
    Request,
    SamplingParams,
)
from octavo.engine.sampling import grammar_rule
from octavo.engine.sampling.grammar import Grammar, GrammarCompiler
from octavo.engine.worker.computer import Computer, Launched
from octavo.server.text.tokenizer import Tokenizer

from .loop import Choice, request

TOKENIZER = Tokenizer.from_folder(TARGET)
SCHEMA = {
    "type": "object",
    "properties": {
        "colour": {"enum": ["red", "green", "a rather long shade of blue"]},
        "sizes": {"type": "array", "items": {"type": "integer", "maximum": 99}, "maxItems": 3},
        "note": {"type": "string", "maxLength": 12},
    },
    "required": ["colour", "sizes", "note"],
    "additionalProperties": False,
}
GRAMMAR = GrammarSpec(GrammarKind.JSON_SCHEMA, json.dumps(SCHEMA))
BOUND = SamplingParams(grammar=GRAMMAR, max_tokens=120, temperature=1.0)


CONFIG = EngineConfig(model=str(TARGET), dtype="float32", threads=1)


def started(**settings: object) -> Engine:
    config = replace(CONFIG, **settings)  # type: ignore[arg-type]
    return build_engine(config, lambda stage, done, total: None)[0]


@pytest.fixture(scope="module", params=["off", "on"])
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    engine = started(overlap=request.param)
    yield engine
    engine.stop()


def run(engine: Engine, *requests: Request) -> dict[tuple[str, int], Choice]:
    for item in requests:
        engine.add(item)
    choices: dict[tuple[str, int], Choice] = {}
    while not engine.idle:
        for delta in engine.step().deltas:
            choice = choices.setdefault((delta.request_id, delta.index), Choice())
            choice.token_ids += delta.token_ids
            choice.logprobs += delta.logprobs
            choice.finish_reason, choice.error = delta.finish_reason, delta.error
    engine.scheduler.check()
    return choices


def ids(choices: dict[tuple[str, int], Choice]) -> dict[tuple[str, int], list[int]]:
    assert not [choice.error for choice in choices.values() if choice.error]
    return {key: choice.token_ids for key, choice in choices.items()}


def prompt(text: str) -> list[int]:
    return TOKENIZER.encode(text, add_special_tokens=False)


def one_by_one(item: Request) -> Request:
    return replace(item, sampling=replace(item.sampling, logprobs=0))


def test_an_answer_is_valid_and_ends_and_forced_tokens_cost_no_step(engine: Engine) -> None:
    before = engine.stats().step
    asked = request("a", prompt("Describe it as JSON."), sampling=BOUND, seed=3)
    (choice,) = run(engine, asked).values()
    assert choice.finish_reason is FinishReason.STOP
    jsonschema.validate(json.loads(TOKENIZER.decode(choice.token_ids)), SCHEMA)
    assert engine.stats().step - before < len(choice.token_ids)  # else one step each at least


def test_a_run_taken_at_once_is_what_would_have_been_sampled(engine: Engine) -> None:
    for seed in range(2):
        asked = request("a", prompt("Describe it."), sampling=replace(BOUND, n=2), seed=seed)
        slow = run(engine, one_by_one(asked))
        assert ids(run(engine, asked)) == ids(slow)
        assert all(len(c.logprobs) == len(c.token_ids) for c in slow.values())


def test_in_a_crowd_each_keeps_its_own_grammar_and_answer(engine: Engine) -> None:
    specs = [
        GRAMMAR,
        None,
        GrammarSpec(GrammarKind.REGEX, "[a-z]{3}(-[0-9]{2}){4}"),
        GrammarSpec(GrammarKind.CHOICE, json.dumps(["yes", "no", "by no means at all"])),
    ]
    requests = [
        request(
            f"r{i}",
            prompt(f"Question {i}:" * (1 + i % 5)),
            sampling=replace(BOUND, grammar=specs[i % 4], max_tokens=40, n=1 + i % 2),
            seed=i,
            arrival=float(i),
        )
        for i in range(16)
    ]
    alone = {}
    for item in requests:
        alone |= ids(run(engine, one_by_one(item)))
    assert ids(run(engine, *requests)) == alone


@pytest.mark.parametrize("preemption", ["recompute", "swap"])
def test_a_preempted_sequence_comes_back_to_where_its_grammar_was(preemption: str) -> None:
    numbers = {"max_model_len": 160, "prefix_caching": False}
    config = replace(CONFIG, **numbers)  # type: ignore[arg-type]
    roomy, capacity = build_engine(config, lambda stage, done, total: None)
    block = capacity.kv_bytes // capacity.num_blocks
    tight = started(**numbers, kv_memory=13 * block, swap_space=40 * block, preemption=preemption)
    requests = [
        request(f"r{i}", prompt("Say it."), sampling=BOUND, seed=i, arrival=float(i))
        for i in range(6)
    ]
    expected = ids(run(roomy, *map(one_by_one, requests)))
    assert ids(run(tight, *requests)) == expected
    stats = tight.stats()
    count = stats.preemptions_swap if preemption == "swap" else stats.preemptions_recompute
    assert count > 0
    roomy.stop()
    tight.stop()


def test_a_resumed_request_goes_on_with_the_very_next_token(engine: Engine) -> None:
    asked = request("a", prompt("Say it."), sampling=BOUND, seed=5)
    whole = ids(run(engine, asked))["a", 0]
    for cut in range(1, len(whole), 3):  # also within forced runs
        resumed = replace(asked, emitted=(Emitted(token_ids=tuple(whole[:cut])),))
        assert whole[:cut] + ids(run(engine, resumed))["a", 0] == whole


def test_a_step_that_is_run_again_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = started(overlap="off")
    asked = request("a", prompt("Say it."), sampling=BOUND, seed=6)
    expected = ids(run(engine, asked))
    land = Computer.land

    def twice(computer: Computer, launched: Launched) -> object:
        with monkeypatch.context() as broken:
            broken.setattr(Computer, "_keep", _explode)
            with pytest.raises(RuntimeError, match="at the worst moment"):
                land(computer, launched)
        computer.rewind()
        return land(computer, computer.launch(launched.given))

    monkeypatch.setattr(Computer, "land", twice)
    assert ids(run(engine, asked)) == expected
    engine.stop()


def _explode(*_: object) -> None:
    raise RuntimeError("at the worst moment")


@pytest.mark.parametrize(
    "fields",
    [
        {"ignore_eos": True},
        {"min_tokens": 100},
        {"min_tokens": 100, "ignore_eos": True, "temperature": 2.0},
        {"allowed_token_ids": (40, 41)},
        {"bad_words_ids": tuple((i,) for i in range(50, 3000))},
        {"logit_bias": {1: -100.0, 3: -100.0}},
        {"presence_penalty": 2.0, "frequency_penalty": 2.0, "repetition_penalty": 9.0},
    ],
)
def test_the_grammar_wins_over_what_else_is_asked(
    engine: Engine, fields: dict[str, object]
) -> None:
    params = replace(BOUND, **fields)  # type: ignore[arg-type]
    (choice,) = run(engine, request("a", prompt("Say it."), sampling=params)).values()
    assert choice.error is None
    assert choice.finish_reason is FinishReason.STOP
    jsonschema.validate(json.loads(TOKENIZER.decode(choice.token_ids)), SCHEMA)


def test_a_grammar_that_does_not_compile_fails_its_request_alone(engine: Engine) -> None:
    """The front end lets none through; should one come nevertheless, nobody else feels it."""
    good = request("good", prompt("Say it."), sampling=BOUND)
    bad = replace(BOUND, grammar=GrammarSpec(GrammarKind.REGEX, "(?=a)b"))
    expected = ids(run(engine, good))
    choices = run(engine, good, request("bad", [5], sampling=bad))
    assert "invalid regex" in (choices["bad", 0].error or "")
    assert choices["good", 0].token_ids == expected["good", 0]


@pytest.mark.parametrize("where", ["accept", "masks", "admit"])
def test_a_grammar_that_breaks_fails_its_request_alone(
    engine: Engine, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Something that nobody thought of, in the step thread or in the one beside it."""
    short = replace(BOUND, max_tokens=24)
    good = [request(f"good {i}", prompt("Say it."), sampling=short, seed=i) for i in range(3)]
    good.append(request("free", prompt("Say it."), sampling=replace(short, grammar=None)))
    expected = ids(run(engine, *good))
    digits = GrammarSpec(GrammarKind.REGEX, "[0-9]{40}")
    bad = request("bad", [5], sampling=replace(BOUND, grammar=digits))
    cursed: list[Grammar] = []
    start, accept, fill = GrammarCompiler.start, Grammar.accept, grammar_rule.fill_masks

    def started(compiler: GrammarCompiler, spec: GrammarSpec) -> Grammar:
        grammar = start(compiler, spec)
        if spec == digits:
            cursed.append(grammar)
            if where == "admit":
                raise ZeroDivisionError("of the unexpected kind")
        return grammar

    def accepted(grammar: Grammar, token_ids: list[int]) -> None:
        accept(grammar, token_ids)
        if where == "accept" and grammar in cursed and len(grammar._runs) > 3:
            raise ZeroDivisionError("of the unexpected kind")

    def filled(grammars: list[Grammar], *more: object) -> None:
        if where == "masks" and any(g in cursed and len(g._runs) > 3 for g in grammars):
            raise ZeroDivisionError("of the unexpected kind")
        fill(grammars, *more)  # type: ignore[arg-type]

    monkeypatch.setattr(GrammarCompiler, "start", started)
    monkeypatch.setattr(Grammar, "accept", accepted)
    monkeypatch.setattr(grammar_rule, "fill_masks", filled)
    choices = run(engine, *good[:2], bad, *good[2:])
    assert cursed
    assert choices["bad", 0].error is not None
    assert "unexpected" not in choices["bad", 0].error
    del choices["bad", 0]
    assert ids(choices) == expected


def test_a_tokenizer_that_cannot_be_read_fails_only_requests_with_a_grammar(
    tmp_path: Path,
) -> None:
    torch.set_num_threads(1)
    for file in Path(TARGET).iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "tokenizer.json").write_text('{"model": {}}')
    config = EngineConfig(model=str(tmp_path), dtype="float32", threads=1)
    engine, _ = build_engine(config, lambda stage, done, total: None)
    free = request("free", prompt("Say it."), sampling=replace(BOUND, grammar=None, max_tokens=5))
    choices = run(engine, free, request("bound", [5], sampling=BOUND))
    assert "cannot be constrained" in (choices["bound", 0].error or "")
    assert choices["free", 0].error is None
    engine.stop()
