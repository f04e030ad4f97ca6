"""`octavo bench offline`: the `LLM` class on a load, in this process: no HTTP, no second process.

What the engine can do; a server's tokens per second over these is what serving costs.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from octavo.engine.errors import ConfigError
from octavo.engine.params import SamplingParams
from octavo.loadtest import machine
from octavo.loadtest.lengths import lengths

from .offline import LLM
from .settings import load


def main(words: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="octavo bench offline",
        description=__doc__,
        epilog="Other flags are those of octavo serve, the model among them.",
        allow_abbrev=False,
    )
    parser.add_argument("--requests", type=int, default=96, help="in each round")
    parser.add_argument("--streams", type=int, default=32, help="how many run at the same time")
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--output-tokens", type=int, default=32)
    parser.add_argument(
        "--token-ids", type=lengths, default=lengths("300..3900"), help="ordinary tokens"
    )
    parser.add_argument("--rounds", type=int, default=3, help="the median of so many counts")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here, too")
    chosen, flags = parser.parse_known_args(words)
    if min(chosen.requests, chosen.streams, chosen.rounds, chosen.output_tokens) < 1:
        raise ConfigError("--requests, --streams, --rounds and --output-tokens must be 1 or more.")
    figures = measure(chosen, [*flags, "--max-num-seqs", str(chosen.streams)])
    for name, figure in figures.items():
        sys.stdout.write(f"{name:<32} {figure:.4g}\n")
    if chosen.json is not None:
        content = {**machine.described(), "figures": figures}
        chosen.json.write_text(json.dumps(content, indent=1) + "\n", "utf-8")
    return 0


def measure(chosen: argparse.Namespace, flags: Sequence[str]) -> dict[str, float]:
    """Medians over the rounds, after one round that does not count; of drafts all rounds count."""
    settings = load(flags).settings
    params = SamplingParams(
        max_tokens=chosen.output_tokens, temperature=0.0, ignore_eos=True, seed=chosen.seed
    )
    seconds = []
    with LLM(**asdict(settings)) as llm:
        for round_number in range(chosen.rounds + 1):
            draw = random.Random(f"{chosen.seed} {round_number}")  # no prompt is cached
            prompts = [
                [chosen.token_ids.draw(draw) for _ in range(chosen.prompt_tokens)]
                for _ in range(chosen.requests)
            ]
            began = time.perf_counter()
            answers = llm.generate(prompts, params)
            if round_number:
                seconds.append(time.perf_counter() - began)
        stats = llm.stats
    tokens = sum(len(output.token_ids) for answer in answers for output in answer.outputs)
    middle = statistics.median(seconds)
    figures = {
        "output tokens/s": tokens / middle,
        "requests/s": chosen.requests / middle,
        "seconds a round": middle,
    }
    if stats.draft_tokens:
        accepted = sum(stats.drafts_accepted)
        figures["draft tokens accepted, share"] = accepted / stats.draft_tokens
        figures["accepted a draft, tokens"] = accepted / stats.drafts
    return figures
