#!/usr/bin/env python3
"""Trains, exports and measures the bundled model pair.

    python tools/train_bundled.py --corpus CORPUS              # every stage that is not done yet
    python tools/train_bundled.py --config target --max-minutes 30     # a piece of one run
    python tools/train_bundled.py --snapshot                   # export the newest checkpoints
    python tools/train_bundled.py --smoke                      # all the machinery, in seconds

A run may be cut at any time (SIGTERM, Ctrl-C, power): called again, it goes on from its newest
checkpoint. Called with other `--tokens`, it goes on under the schedule that leads there.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

import torch
from bundled import (
    card,
    checkpoint,
    corpus,
    distill,
    evaluation,
    export,
    packing,
    training,
    vocabulary,
)
from bundled.model import SHAPES, Llama
from bundled.packing import Tokens
from tokenizers import Tokenizer

TRAINING = ("stories", "derived", "synthetic")
VALIDATION = ("validation_stories", "validation_chat")
RUNS = {"target": 20_000_000, "draft": 12_000_000, "distil": 3_000_000}  # tokens
SAMPLED_TOKENS = 130_000
PASSAGES, PASSAGE_CHARACTERS = 8, 1200
DEFAULT_OUTPUT = Path(__file__).resolve().parent.parent / "engine" / "bundled"


@dataclass(frozen=True, slots=True)
class Pair:
    """One training of the pair: where its files are and how it is to run."""

    corpus: Path | None
    work: Path
    output: Path
    settings: training.Settings

    @property
    def tokenizer_file(self) -> Path:
        return self.work / "tokenizer.json"

    def packed_file(self, stream: str) -> Path:
        return self.work / f"{stream}.u16"

    @property
    def samples_file(self) -> Path:
        return self.packed_file("sampled")

    def streams(self, names: Iterable[str]) -> dict[str, Tokens]:
        return {name: packing.open_packed(self.packed_file(name)) for name in names}

    def tokenizer(self) -> Tokenizer:
        return Tokenizer.from_file(str(self.tokenizer_file))

    def newest(self, *runs: str) -> Path:
        """The newest checkpoint of the first of `runs` that has one.

        Raises:
            SystemExit: none has.
        """
        for run in runs:
            found = checkpoint.latest(self.work / run)
            if found is not None:
                return found
        raise SystemExit(f"no checkpoint in {', '.join(str(self.work / run) for run in runs)}")

    def prepare(self) -> None:
        """Corpus -> tokenizer -> packed streams."""
        outputs = [
            self.tokenizer_file,
            self.work / "passages.json",
            *map(self.packed_file, (*TRAINING, *VALIDATION)),
        ]
        if self.corpus is None:
            if all(path.exists() for path in outputs):
                return
            raise SystemExit(f"--corpus is needed: {self.work} holds no packed corpus yet")
        inputs = [self.corpus / name for name in corpus.ALL_FILES]
        code = [Path(module.__file__ or "") for module in (corpus, vocabulary, packing)]
        stage(self.work, "prepare", inputs=[*inputs, *code], outputs=outputs, run=self._prepare)

    def _prepare(self) -> None:
        assert self.corpus is not None
        texts = corpus.read(self.corpus)
        some_chats = map(vocabulary.chat_text, [*texts.derived[::3], *texts.synthetic[::6]])
        tokenizer = vocabulary.train_tokenizer([*texts.stories[::2], *some_chats])
        tokenizer.save(str(self.tokenizer_file))
        mixed = [*texts.synthetic, *texts.copying]
        Random(0).shuffle(mixed)
        parts = {
            "stories": map(vocabulary.story_text, texts.stories),
            "derived": map(vocabulary.chat_text, texts.derived),
            "synthetic": map(vocabulary.chat_text, mixed),
            "validation_stories": map(vocabulary.story_text, texts.validation_stories),
            "validation_chat": map(vocabulary.chat_text, texts.validation_chats),
        }
        for name, part in parts.items():
            count = packing.pack(part, tokenizer, self.packed_file(name))
            print(f"packed {name}: {count} tokens", flush=True)
        every = max(1, len(texts.validation_stories) // PASSAGES)
        passages = [story[:PASSAGE_CHARACTERS] for story in texts.validation_stories[::every]]
        export.write_json(self.work / "passages.json", passages[:PASSAGES])

    def train(self, run: str, tokens: int | None) -> bool:
        """Trains one of `RUNS`; False when it was cut before its end."""
        folder = self.work / run
        total = claim(folder, self.packed_file("stories"), tokens, default=RUNS[run])
        settings = replace(self.settings, tokens=total)
        validation = self.streams(VALIDATION)
        if run != "distil":
            streams = list(self.streams(TRAINING).values())
            return training.train(folder, SHAPES[run], streams, validation, settings)
        teacher = Llama(SHAPES["target"])
        checkpoint.load(self.newest("target"), teacher)
        if not self.samples_file.exists():
            distill.write_samples(
                teacher,
                list(self.streams(TRAINING).values()),
                self.samples_file,
                tokens=min(SAMPLED_TOKENS, total),
                seed=settings.seed,
            )
        teacher.to(settings.device)
        return training.train(
            folder,
            SHAPES["draft"],
            list(self.streams((*TRAINING, "sampled")).values()),
            validation,
            settings,
            loss=distill.distillation_loss(teacher),
            mixture=distill.mixture_at,
            start=self.newest("draft"),
        )

    def export(self) -> None:
        """Writes the newest checkpoints to the output folder."""
        for name, shards, newest in (
            ("target", 2, self.newest("target")),
            ("draft", 1, self.newest("distil", "draft")),
        ):
            model = Llama(SHAPES[name])
            checkpoint.load(newest, model)
            export.export(model, self.tokenizer(), self.output / name, shards=shards)

    def evaluate(self) -> None:
        """Measures what was exported; writes `eval.json` and the card's figures beside it."""
        target, draft = (
            evaluation.load_exported(self.output / name, SHAPES[name]) for name in SHAPES
        )
        passages: list[str] = json.loads((self.work / "passages.json").read_text("utf-8"))
        figures = evaluation.evaluate(
            target, draft, self.tokenizer(), self.streams(VALIDATION), passages
        )
        figures = {"training": self._history()} | figures
        export.write_json(self.output / "eval.json", figures)
        card.refresh(self.output / "README.md", figures)

    def _history(self) -> dict[str, Any]:
        history: dict[str, Any] = {}
        for run in RUNS:
            newest = checkpoint.latest(self.work / run)
            if newest is not None:
                progress = checkpoint.progress_of(newest)
                history[run] = {
                    "steps": progress.step,
                    "tokens": progress.tokens,
                    "seconds": round(progress.seconds),
                    "threads": progress.threads,
                    "seed": progress.seed,
                }
        return history


def stage(
    work: Path,
    name: str,
    *,
    inputs: Iterable[Path],
    outputs: Iterable[Path],
    run: Callable[[], None],
) -> None:
    """Runs a stage unless its outputs exist and its inputs are those of the last time."""
    work.mkdir(parents=True, exist_ok=True)
    stamp = work / f"{name}.stamp.json"
    digests = {path.name: digest(path) for path in inputs}
    if (
        stamp.exists()
        and json.loads(stamp.read_text("utf-8")) == digests
        and all(path.exists() for path in outputs)
    ):
        print(f"{name}: up to date", flush=True)
        return
    began = time.monotonic()
    run()
    export.write_json(stamp, digests)
    print(f"{name}: {time.monotonic() - began:.0f} s", flush=True)


def claim(folder: Path, data: Path, tokens: int | None, *, default: int) -> int:
    """Notes in `folder` what a run reads and how far it goes; returns how far.

    Raises:
        SystemExit: `folder` holds a run over other data.
    """
    note = folder / "run.json"
    before = json.loads(note.read_text("utf-8")) if note.exists() else {}
    now = {"data": digest(data), "tokens": tokens or before.get("tokens", default)}
    if before and before["data"] != now["data"]:
        raise SystemExit(f"{folder} holds a run over other data; move it away to begin anew")
    folder.mkdir(parents=True, exist_ok=True)
    export.write_json(note, now)
    return int(now["tokens"])


def digest(path: Path) -> str:
    """The SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def smoke() -> None:
    """Every stage but the corpus files, two steps a run, in a temporary folder."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pair = Pair(
            corpus=folder / "corpus",
            work=folder / "work",
            output=folder / "output",
            settings=training.Settings(tokens=4096, tokens_per_step=2048, length_limit=512),
        )
        corpus.write_toy(folder / "corpus", characters=200_000)
        pair.prepare()
        pair.prepare()
        for run in RUNS:
            assert pair.train(run, 4096)
        pair.export()
        for name in SHAPES:
            evaluation.load_exported(pair.output / name, SHAPES[name])
    print("smoke: fine")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--corpus", type=Path, help="folder of the corpus files")
    parser.add_argument("--work", type=Path, default=Path(".train"), help="checkpoints and logs")
    parser.add_argument("--output", type=Path, default=DEFAULT_OUTPUT, help="folder of the export")
    parser.add_argument("--config", choices=RUNS, help="only this run, without an export")
    parser.add_argument("--tokens", type=int, help="how far --config goes")
    parser.add_argument("--max-minutes", type=float, help="cut a run after so many minutes")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--tokens-at-once", type=int, default=4096, help="tokens of a micro-batch")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--snapshot", action="store_true", help="export without further training")
    parser.add_argument("--smoke", action="store_true", help="try the machinery and stop")
    options = parser.parse_args()
    if options.tokens is not None and options.config is None:
        parser.error("--tokens needs --config")
    if options.smoke:
        smoke()
        return
    pair = Pair(
        corpus=options.corpus,
        work=options.work,
        output=options.output,
        settings=training.Settings(
            tokens=0,
            seed=options.seed,
            threads=options.threads,
            device=options.device,
            tokens_at_once=options.tokens_at_once,
            max_seconds=options.max_minutes * 60 if options.max_minutes else None,
        ),
    )
    pair.prepare()
    if options.config is not None:
        pair.train(options.config, options.tokens)
        return
    if not options.snapshot and not all(pair.train(run, None) for run in RUNS):
        raise SystemExit("cut; call again to go on")
    pair.export()
    pair.evaluate()


if __name__ == "__main__":
    main()
