"""Grammars: what they allow, what they force, and that an answer cannot leave them."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator

import jsonschema
import numpy as np
import pytest
import torch

from octavo.engine.bundled import TARGET
from octavo.engine.errors import InvalidParameter, SequenceFailed
from octavo.engine.params import GrammarKind, GrammarSpec, SamplingParams
from octavo.engine.sampling.grammar import Grammar, GrammarCompiler
from octavo.engine.sampling.grammar_rule import GrammarRule
from octavo.engine.sampling.logits import Rows
from octavo.engine.sampling.rules import standard_rules
from octavo.engine.sampling.sampler import Sampler
from octavo.kernels.reference import REFERENCE
from octavo.kernels.reference.bitmask import allow_only
from octavo.server.text.json_schema import enforceable
from octavo.server.text.structural_tag import Tag, tagged_text
from octavo.server.text.tokenizer import Tokenizer

from ..schemas import random_schema
from .histories import sample_now

VOCAB = 4096
EOS = (1, 3)
TOKENIZER = Tokenizer.from_folder(TARGET)


@pytest.fixture(scope="module")
def compiler() -> Iterator[GrammarCompiler]:
    compiler = GrammarCompiler.from_folder(TARGET, vocab_size=VOCAB, stop_ids=EOS)
    yield compiler
    compiler.close()


def schema(value: object) -> GrammarSpec:
    return GrammarSpec(GrammarKind.JSON_SCHEMA, json.dumps(value))


def allowed(grammar: Grammar) -> set[int]:
    bits = np.unpackbits(grammar.mask(VOCAB).view(np.uint8), bitorder="little")
    return set(np.flatnonzero(bits).tolist())


def text_of(ids: list[int]) -> str:
    return TOKENIZER.decode(ids)


def encode(text: str) -> list[int]:
    return TOKENIZER.encode(text, add_special_tokens=False, parse_special=True)


def accepts(grammar: Grammar, text: str) -> bool:
    """Whether `text` is a whole answer."""
    try:
        grammar.accept(encode(text))
    except SequenceFailed:
        return False
    return bool(allowed(grammar) & set(EOS))


def walk(grammar: Grammar, rng: random.Random, *, most: int) -> tuple[list[int], bool]:
    """A model that knows nothing: any allowed token. (ids without the end, whether it ended)."""
    ids: list[int] = []
    while len(ids) < most:
        token = rng.choice(sorted(allowed(grammar)))
        grammar.accept([token])
        if token in EOS:
            return ids, True
        ids.append(token)
    return ids, False


@pytest.mark.parametrize(
    ("spec", "answers", "others"),
    [
        (schema({"type": "object"}), ["{}", '{"a": [1, null]}', '{\n  "a": {}\n}'], ["[]", "{} x"]),
        (schema(True), ["1", '"x"', "[]"], ["", "x"]),
        (
            schema({"type": "object", "properties": {"b": {}, "a": {}}, "required": ["a", "b"]}),
            ['{"b": 1, "a": 2}'],
            ['{"a": 2, "b": 1}', '{"b": 1}'],
        ),
        (
            GrammarSpec(GrammarKind.REGEX, "a/b\\/c\n\\d+|[/x]"),
            ["a/b/c\n12", "/", "x"],
            ["a/b/c\n", "y"],
        ),
        (
            GrammarSpec(GrammarKind.CHOICE, json.dumps(["a\n\"é'", "", "😀\x7f\u2028", "/"])),
            ["a\n\"é'", "", "😀\x7f\u2028", "/"],
            ["a", "b"],
        ),
        (GrammarSpec(GrammarKind.LARK, 'start: "x"* <[5]> "y"'), ["xx<|tool_call|>y"], ["xy"]),
    ],
)
def test_a_grammar_accepts_its_answers_and_no_others(
    compiler: GrammarCompiler, spec: GrammarSpec, answers: list[str], others: list[str]
) -> None:
    for text in answers:
        assert accepts(compiler.start(spec), text), text
    for text in others:
        assert not accepts(compiler.start(spec), text), text


def test_white_space_is_bounded(compiler: GrammarCompiler) -> None:
    spec = schema({"type": "array", "items": {"type": "integer"}})
    assert accepts(compiler.start(spec), "[ 1, \n 2 ]") is False
    assert accepts(compiler.start(spec), "[\n" + " " * 33 + "1]") is False
    assert accepts(compiler.start(spec), "[\n" + " " * 32 + "1\n]") is True


def test_a_structural_tag_leaves_text_free_and_binds_what_follows_a_trigger(
    compiler: GrammarCompiler,
) -> None:
    number = '{"type":"integer"}'
    tags = [
        Tag(trigger="<f", begin="<f=a>", schema=number, end="</f>"),
        Tag(trigger="<f", begin="<f=b>", schema='{"type":"null"}', end="</f>"),
        Tag(trigger="<|tool_call|>", begin="<|tool_call|>", schema=number, end=""),
    ]
    text = tagged_text(tags, {"<|tool_call|>": 5}.get)
    spec = GrammarSpec(GrammarKind.LARK, text)
    for answer in ("", "a < b", "x <f=a>1</f> y <f=b>null</f>", "so <|tool_call|>12 and"):
        assert accepts(compiler.start(spec), answer), answer
    for answer in ("<f=c>", "x <f=a>null</f>", "<f=b>null", "<|tool_call|>x"):
        assert not accepts(compiler.start(spec), answer), answer


@pytest.mark.parametrize(("low", "high"), [(0, 0.01), (0, 0.5), (0, 7), (-0.5, 0), (-7, 0)])
def test_exclusive_bounds_at_zero_keep_zero_out(
    compiler: GrammarCompiler, low: float, high: float
) -> None:
    text = enforceable({"type": "number", "exclusiveMinimum": low, "exclusiveMaximum": high}, "s")
    spec = GrammarSpec(GrammarKind.JSON_SCHEMA, text)
    for zero in ("0", "-0", "0.0", "0.00"):
        assert not accepts(compiler.start(spec), zero)
    assert accepts(compiler.start(spec), str((low + high) / 2))


def test_when_the_root_is_closed_only_the_end_is_allowed_and_it_is_forced(
    compiler: GrammarCompiler,
) -> None:
    grammar = compiler.start(schema({"type": "object", "additionalProperties": False}))
    grammar.accept(encode("{}"))
    assert grammar.done
    assert allowed(grammar) == {EOS[0]}
    assert grammar.forced() == (EOS[0],)


def test_both_ends_are_allowed_where_the_answer_may_go_on(compiler: GrammarCompiler) -> None:
    grammar = compiler.start(schema({"type": "integer"}))
    grammar.accept(encode("1"))
    assert not grammar.done
    assert set(EOS) < allowed(grammar)


def test_within_a_forced_run_the_mask_leaves_its_next_token(compiler: GrammarCompiler) -> None:
    grammar = compiler.start(GrammarSpec(GrammarKind.CHOICE, '["one long answer"]'))
    run = grammar.forced()
    assert len(run) > 1
    assert text_of(list(run)) == "one long answer"
    for at, token in enumerate(run):
        assert grammar.forced() == run[at:]
        assert allowed(grammar) == {token}
        grammar.accept([token])
    assert grammar.forced() == (EOS[0],)


def test_rollback_returns_to_where_the_walk_was(compiler: GrammarCompiler) -> None:
    spec = schema({"type": "object", "properties": {"name": {"type": "string"}}})
    rng = random.Random(5)
    for count in range(1, 12):
        grammar, same = compiler.start(spec), compiler.start(spec)
        ids, _ = walk(grammar, rng, most=12)
        back = min(count, len(ids))
        kept = ids[: len(ids) - back]
        same.accept(kept)
        replayed = compiler.start(spec)
        replayed.accept(ids)
        replayed.rollback(back)
        assert allowed(replayed) == allowed(same)
        assert replayed.forced() == same.forced()


def test_a_token_that_is_not_allowed_fails_the_sequence(compiler: GrammarCompiler) -> None:
    grammar = compiler.start(schema({"type": "integer"}))
    with pytest.raises(SequenceFailed):
        grammar.accept(encode("x"))


@pytest.mark.parametrize(
    "spec",
    [
        schema({"$ref": "#/$defs/none"}),
        GrammarSpec(GrammarKind.REGEX, "(?=a)b"),
        GrammarSpec(GrammarKind.LARK, "start: missing"),
        GrammarSpec(GrammarKind.JSON_SCHEMA, "{"),
        GrammarSpec(GrammarKind.JSON_SCHEMA, "[]"),
        GrammarSpec(GrammarKind.JSON_SCHEMA, '{"items":' * 5000 + "{}" + "}" * 5000),
        GrammarSpec(GrammarKind.CHOICE, "7"),
        GrammarSpec(GrammarKind.GBNF, 'root ::= "x"'),
    ],
)
def test_what_is_no_grammar_fails_the_sequence(
    compiler: GrammarCompiler, spec: GrammarSpec
) -> None:
    with pytest.raises(SequenceFailed):
        compiler.start(spec)


def test_the_compiler_keeps_what_was_used_last() -> None:
    compiler = GrammarCompiler.from_folder(TARGET, vocab_size=VOCAB, stop_ids=EOS)
    small = GrammarCompiler(compiler._tokenizer.result, capacity=2)
    first, second, third = (GrammarSpec(GrammarKind.REGEX, word) for word in ("a", "b", "c"))
    small.start(first)
    assert small.ready(first)
    small.start(second)
    small.start(first)
    small.start(third)
    assert set(small._compiled) == {first, third}
    by_size = GrammarCompiler(compiler._tokenizer.result, text_capacity=3)
    for word in ("aa", "bb", "cccc"):
        by_size.start(GrammarSpec(GrammarKind.REGEX, word))
    assert [spec.text for spec in by_size._compiled] == ["cccc"]
    for each in (compiler, small, by_size):
        each.close()


def test_beam_search_and_a_grammar_exclude_each_other() -> None:
    with pytest.raises(InvalidParameter):
        SamplingParams(grammar=schema(True), beam_width=2)


def test_random_walks_through_200_schemas_end_in_valid_json(compiler: GrammarCompiler) -> None:
    """Temperature 1 over logits that know nothing: what ends is valid, what is cut is a prefix."""
    rng = random.Random(2)
    ended = cut = 0
    for size in range(200):
        value = random_schema(rng, nastiness=size / 200)
        validator = jsonschema.Draft202012Validator(value)
        for most in (400, 12):
            ids, complete = walk(compiler.start(schema(value)), rng, most=most)
            text = text_of(ids)
            if complete:
                ended += 1
                validator.validate(json.loads(text))
            else:
                cut += 1
                replay = compiler.start(schema(value))
                replay.accept(ids)
                assert allowed(replay), f"{text!r} cannot be continued under {value}"
    assert ended >= 200
    assert cut > 20


def mask(
    rule: GrammarRule, logits: torch.Tensor, at: Rows, rows: Rows, histories: Histories
) -> None:
    """Do to logits what the rule does."""
    shaping = rule.shaping(at, rows, histories)
    shaping.apply(logits, [torch.from_numpy(array) for array in shaping.arrays])


class TestRule:
    """The rule among others, over the sequences of a worker."""

    @pytest.fixture
    def rule(self, compiler: GrammarCompiler) -> GrammarRule:
        return GrammarRule(VOCAB, compiler, allow_only)

    def histories(self, *rows: tuple[list[int], list[int]]) -> Histories:
        return Histories(rows)

    def test_it_masks_the_rows_that_need_it(self, rule: GrammarRule) -> None:
        free, bound = SamplingParams(), SamplingParams(grammar=schema({"type": "boolean"}))
        assert not rule.needs(free)
        assert rule.needs(bound)
        rule.admit(1, bound)
        logits = torch.randn(3, VOCAB)
        before = logits.clone()
        histories = Histories(([7], []), ([7, 8], []))
        mask(rule, logits, np.array([2]), np.array([1]), histories)
        assert torch.equal(logits[:2], before[:2])
        left = torch.isfinite(logits[2]).nonzero()[:, 0].tolist()
        assert {text_of([i])[0] for i in left} == {"t", "f"}
        assert torch.equal(logits[2, left], before[2, left])

    def test_masks_computed_beside_the_model_are_the_same(self, rule: GrammarRule) -> None:
        specs = [schema({"type": "string"}), schema({"type": "array"}), schema(True)]
        histories = Histories(*[([9], []) for _ in specs])
        rows = np.arange(3)
        for row, spec in enumerate(specs):
            rule.admit(row, SamplingParams(grammar=spec))
        ahead, now = torch.zeros(3, VOCAB), torch.zeros(3, VOCAB)
        earlier = rule.shaping(rows, rows, histories)
        mask(rule, now, rows, rows, histories)
        earlier.apply(ahead, [torch.from_numpy(rows)])
        assert torch.equal(ahead, now)

    def test_it_follows_a_history_that_grows_shrinks_and_is_brought_again(
        self, rule: GrammarRule, compiler: GrammarCompiler
    ) -> None:
        params = SamplingParams(grammar=schema({"type": "array", "items": {"enum": [10, 20]}}))
        said = encode("[10, 20, 10]")
        rule.admit(0, params)
        for length in (0, 1, 2, 3, len(said), 2, 4, 1):
            histories = Histories(([5, 6], said[:length]))
            logits = torch.zeros(1, VOCAB)
            mask(rule, logits, np.array([0]), np.array([0]), histories)
            expected = compiler.start(params.grammar)
            expected.accept(said[:length])
            assert set(torch.isfinite(logits[0]).nonzero()[:, 0].tolist()) == allowed(expected)
            assert rule.forced(0, histories) == expected.forced()
            if length == 3:
                rule.admit(0, params)  # preempted and back

    def test_a_forced_token_wins_over_other_rules(self, rule: GrammarRule) -> None:
        rule.admit(0, SamplingParams(grammar=GrammarSpec(GrammarKind.CHOICE, '["yes"]')))
        histories = Histories(([5], encode("yes")))
        logits = torch.full((1, VOCAB), float("-inf"))  # min_tokens forbids the end
        mask(rule, logits, np.array([0]), np.array([0]), histories)
        assert logits[0].argmax() == EOS[0]
        assert logits[0, EOS[0]] == 0

    def test_a_sampler_with_the_rule_gives_valid_answers_whatever_else_is_asked(
        self, rule: GrammarRule
    ) -> None:
        """Rows of one batch, at temperature 2, with a minimum length that outlasts the answer."""
        value = {"type": "array", "items": {"enum": ["red", "green", None]}, "maxItems": 3}
        bound = SamplingParams(grammar=schema(value), temperature=2.0, min_tokens=16)
        rules = (*standard_rules(VOCAB, EOS, REFERENCE), rule)
        sampler = Sampler(VOCAB, rules, REFERENCE)
        count = 6
        for row in range(count):
            sampler.admit(row, bound if row % 2 else SamplingParams(), seed=row)
        said: list[list[int]] = [[] for _ in range(count)]
        generator = torch.Generator().manual_seed(0)
        for _ in range(30):
            rows = [row for row in range(count) if not said[row] or said[row][-1] not in EOS]
            histories = Histories(*(([5], output) for output in said))
            logits = torch.randn(len(rows), VOCAB, generator=generator)
            sampled = sample_now(sampler, logits, np.array(rows), histories)
            assert not sampled.errors
            for row, token in zip(rows, sampled.token_ids, strict=True):
                said[row].append(token)
        for row in range(1, count, 2):
            assert said[row][-1] == EOS[0]
            jsonschema.validate(json.loads(text_of(said[row][:-1])), value)

    def test_a_forced_run_taken_at_once_changes_nothing(self, rule: GrammarRule) -> None:
        """With it or token by token: the same sequence of tokens (only fewer steps)."""
        value = {"type": "object", "properties": {"first": {}, "b": {"const": "long enough"}}}
        params = SamplingParams(
            grammar=schema({**value, "required": ["first", "b"], "additionalProperties": False})
        )
        answers = []
        for at_once in (False, True):
            sampler = Sampler(VOCAB, (rule,), REFERENCE)
            sampler.admit(0, params, seed=11)
            said: list[int] = []
            steps = 0
            while not (said and said[-1] in EOS) and len(said) < 400:
                logits = torch.zeros(1, VOCAB)
                logits[0, [TOKENIZER.encode(c)[-1] for c in '"1,}']] = 8.0
                said += sample_now(sampler, logits, np.array([0]), Histories(([5], said))).token_ids
                said += rule.forced(0, Histories(([5], said))) if at_once else ()
                steps += 1
            answers.append((said, steps))
        (slow, many), (fast, few) = answers
        assert slow == fast
        assert slow[-1] == EOS[0]
        assert few < many

    def test_a_walk_that_fails_leaves_no_token(self, rule: GrammarRule) -> None:
        bad = SamplingParams(grammar=GrammarSpec(GrammarKind.REGEX, "(?=a)b"))
        good = SamplingParams(grammar=schema(True))
        rule.admit(0, bad)
        rule.admit(1, good)
        histories = Histories(([5], []), ([5], []))
        logits = torch.zeros(2, VOCAB)
        mask(rule, logits, np.arange(2), np.arange(2), histories)
        assert not torch.isfinite(logits[0]).any()
        assert torch.isfinite(logits[1]).any()
        assert rule.forced(0, histories) == ()


class Histories:
    """Rows of (prompt, output)."""

    def __init__(self, *rows: tuple[list[int], list[int]]) -> None:
        width = max(len(prompt) + len(output) for prompt, output in rows)
        self.token_ids = np.zeros((len(rows), width), dtype=np.int32)
        self.lengths = np.array([len(p) + len(o) for p, o in rows], dtype=np.int64)
        self.prompt_lengths = np.array([len(p) for p, _ in rows], dtype=np.int64)
        for row, (prompt, output) in enumerate(rows):
            self.token_ids[row, : self.lengths[row]] = [*prompt, *output]
