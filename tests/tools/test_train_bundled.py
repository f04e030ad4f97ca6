"""The training of the bundled pair: order of the data, schedule, checkpoints, template, export."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from bundled import (
    checkpoint,
    corpus,
    evaluation,
    export,
    generation,
    packing,
    training,
    vocabulary,
)
from bundled.model import Llama, Shape
from bundled.optimizer import Optimizer, Schedule, orthogonalised
from bundled.packing import Mixture, Tokens, Windows
from tokenizers import Tokenizer

SCRIPT = Path(__file__).parents[2] / "tools" / "train_bundled.py"
TINY = Shape(hidden=32, layers=2, heads=4, kv_heads=2, mlp=48, head_dim=8, vocabulary=512)


def streams(*sizes: int) -> list[Tokens]:
    return [np.arange(size, dtype=np.uint16) % 512 for size in sizes]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return vocabulary.train_tokenizer(["Once upon a time there was a fox.\nIt ran."] * 20)


class TestOrder:
    def test_every_window_comes_once_before_any_comes_twice(self) -> None:
        windows = Windows(streams(10 * 8 + 1), seed=3, tokens_per_step=16)
        mixture = Mixture(shares=(1.0,), length=8)
        epochs = [
            sorted(int(row[0]) for step in steps for row in windows.step(step, mixture))
            for steps in (range(5), range(5, 10))
        ]
        assert epochs[0] == epochs[1] == [start * 8 for start in range(10)]

    def test_a_step_depends_on_seed_and_step_alone(self) -> None:
        mixture = Mixture(shares=(0.7, 0.2, 0.1), length=8)
        used = Windows(streams(999, 888, 777), seed=3, tokens_per_step=128)
        for step in range(6):
            used.step(step, mixture)
        fresh = Windows(streams(999, 888, 777), seed=3, tokens_per_step=128)
        assert (used.step(6, mixture) == fresh.step(6, mixture)).all()

    @pytest.mark.parametrize("mixture", [training.EARLY, training.LATE])
    def test_shares_hold_in_the_long_run_and_steps_are_full(self, mixture: Mixture) -> None:
        marked = [np.full(mixture.length * 9, mark, dtype=np.uint16) for mark in range(3)]
        windows = Windows(marked, seed=1, tokens_per_step=8192)
        rows = [windows.step(step, mixture) for step in range(100)]
        assert {len(step) for step in rows} == {8192 // mixture.length}
        firsts = np.concatenate([step[:, 0] for step in rows])
        for mark, share in enumerate(mixture.shares):
            assert (firsts == mark).mean() == pytest.approx(share, abs=0.005)

    def test_a_window_brings_the_token_after_it(self) -> None:
        row = Windows(streams(33), seed=1, tokens_per_step=8).step(0, Mixture((1.0,), 8))[0]
        assert row.tolist() == list(range(row[0], row[0] + 9))


class TestSchedule:
    def test_rises_stays_and_falls_to_zero(self) -> None:
        schedule = Schedule(total_tokens=1000, warmup_tokens=100)
        assert schedule.factor(0) == pytest.approx(0.01)
        assert schedule.factor(100) == schedule.factor(600) == 1.0
        assert schedule.factor(800) == pytest.approx(0.5)
        assert schedule.factor(1000) == 0.0

    def test_muon_makes_a_matrix_nearly_orthogonal(self) -> None:
        matrix = torch.randn(16, 48, generator=torch.Generator().manual_seed(1))
        values = torch.linalg.svdvals(orthogonalised(matrix).float())
        assert values.min() > 0.5 and values.max() < 1.5


class TestRuns:
    def run(self, folder: Path, tokens: int, **changes: Any) -> dict[str, torch.Tensor]:
        settings = training.Settings(
            tokens=tokens, threads=1, tokens_per_step=256, length_limit=32, **changes
        )
        training.train(folder, TINY, streams(5000, 4000, 3000), {}, settings)
        model = Llama(TINY)
        newest = checkpoint.latest(folder)
        assert newest is not None
        checkpoint.load(newest, model)
        return dict(model.named_parameters())

    def test_a_cut_run_ends_with_the_weights_of_an_uncut_one(self, tmp_path: Path) -> None:
        threads = torch.get_num_threads()
        try:
            whole = self.run(tmp_path / "whole", 1024)
            for _ in range(4):
                cut = self.run(tmp_path / "cut", 1024, max_seconds=0.0)
        finally:
            torch.set_num_threads(threads)
        assert all(torch.equal(whole[name], cut[name]) for name in whole)

    def test_only_the_last_two_checkpoints_are_kept(self, tmp_path: Path) -> None:
        model = Llama(TINY)
        optimizer = Optimizer(model)
        for step in range(4):
            checkpoint.save(tmp_path, model, optimizer, checkpoint.Progress(step=step))
        steps = [checkpoint.progress_of(path).step for path in checkpoint.checkpoints(tmp_path)]
        assert steps == [2, 3]


class TestCorpus:
    def test_held_out_values_are_recognised(self) -> None:
        def chat(text: str) -> list[corpus.Message]:
            return [{"role": "user", "content": text}]

        assert corpus.is_held_out(chat("My name is Otto."))
        assert corpus.is_held_out(chat("What is 1 plus 4?"))  # (7 * 1 + 4) % 11 == 0
        assert not corpus.is_held_out(chat("My name is Anna. What is 1 plus 5?"))

    def test_forms_ask_for_held_out_values_only(self) -> None:
        forms = list(evaluation.rule_made_forms(Random(1)))
        copied = [form for form in forms if form.kind in ("name_recall", "tool_city", "small_sum")]
        assert copied and all(corpus.is_held_out(form.chat) for form in copied)


TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}


class TestTemplate:
    CHATS: tuple[list[corpus.Message], ...] = (
        [{"role": "user", "content": "Hello!"}],
        [
            {"role": "system", "content": "Be kind."},
            {"role": "user", "content": "Hello!"},
            {"role": "assistant", "content": "Hi."},
            {"role": "tool", "content": '{"result": 3}'},
        ],
    )

    def render(self, messages: list[corpus.Message], **values: Any) -> str:
        from transformers.utils.chat_template_utils import render_jinja_template

        rendered, _ = render_jinja_template(
            [messages],
            chat_template=vocabulary.CHAT_TEMPLATE,
            bos_token=vocabulary.BEGIN_OF_TEXT,
            **values,
        )
        return str(rendered[0])

    @pytest.mark.parametrize("chat", CHATS)
    @pytest.mark.parametrize("prompt", [False, True])
    def test_renders_what_training_saw(self, chat: list[corpus.Message], prompt: bool) -> None:
        rendered = self.render(chat, add_generation_prompt=prompt)
        assert rendered == vocabulary.chat_text(chat, prompt=prompt)

    def test_tools_and_calls_take_the_form_of_the_corpus(self) -> None:
        call = {"function": {"name": "get_weather", "arguments": {"city": "Oslo"}}}
        as_text = {"function": {"name": "get_weather", "arguments": '{"city": "Oslo"}'}}
        expected = vocabulary.chat_text(
            [
                {
                    "role": "system",
                    "content": f"{corpus.TOOL_PREAMBLE}\n"
                    '{"name": "get_weather", "parameters": {"city": "string"}}',
                },
                {"role": "user", "content": "How is Oslo?"},
                {
                    "role": "assistant",
                    "content": '<|tool_call|>{"name": "get_weather", '
                    '"arguments": {"city": "Oslo"}}<|/tool_call|>',
                },
            ]
        )
        for given in (call, as_text):
            messages: list[corpus.Message] = [
                {"role": "user", "content": "How is Oslo?"},
                {"role": "assistant", "content": None, "tool_calls": [given]},
            ]
            assert self.render(messages, tools=[TOOL]) == expected


class TestExport:
    def test_logits_equal_those_of_transformers(self, tmp_path: Path, tokenizer: Tokenizer) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        model = Llama(TINY)
        model.initialise(1)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_((parameter + 0.01 * torch.randn_like(parameter)).bfloat16().float())
        export.export(model, tokenizer, tmp_path / "model", shards=2)
        assert len(list((tmp_path / "model").glob("*.safetensors"))) == 2

        reference = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
        ids = torch.randint(0, TINY.vocabulary, (2, 40))
        with torch.no_grad():
            torch.testing.assert_close(
                model.logits(model(ids)), reference(ids).logits, rtol=0, atol=1e-6
            )
        read_back = AutoTokenizer.from_pretrained(tmp_path / "model")
        assert read_back("a fox").input_ids[0] == vocabulary.BEGIN_OF_TEXT_ID
        chat = [{"role": "user", "content": "Hello!"}]
        rendered = read_back.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        assert rendered == vocabulary.chat_text(chat, prompt=True)

    def test_any_text_survives_the_tokenizer(self, tokenizer: Tokenizer) -> None:
        text = "It's 1924,  isn't it?\n\n\té 日本 \x00"
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        assert tokenizer.decode(ids, skip_special_tokens=False) == text

    def test_cached_writing_equals_writing_anew(self) -> None:
        model = Llama(TINY)
        model.initialise(2)
        prompt = torch.randint(0, TINY.vocabulary, (2, 5))
        written = generation.generate(model, prompt, most=6)
        row = prompt
        for _ in range(6):
            chosen = model.logits(model(row)[:, -1]).argmax(dim=-1, keepdim=True)
            row = torch.cat((row, chosen), dim=1)
        assert row[:, 5:].tolist() == written.tolist()

    def test_packing_puts_documents_end_to_end(self, tmp_path: Path, tokenizer: Tokenizer) -> None:
        texts = [vocabulary.story_text("Once."), vocabulary.story_text("It ran.")]
        count = packing.pack(texts, tokenizer, tmp_path / "two.u16")
        packed = packing.open_packed(tmp_path / "two.u16")
        assert len(packed) == count
        assert tokenizer.decode(packed.tolist(), skip_special_tokens=False) == "".join(texts)


@pytest.mark.slow
def test_smoke_runs_every_stage() -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--smoke"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "smoke: fine" in done.stdout


def test_json_files_end_with_a_newline(tmp_path: Path) -> None:
    export.write_json(tmp_path / "a.json", {"a": [1]})
    text = (tmp_path / "a.json").read_text()
    assert text.endswith("\n") and json.loads(text) == {"a": [1]}
