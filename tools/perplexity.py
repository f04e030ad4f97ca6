"""What rounding its weights costs the bundled model: perplexity on held-out passages.

    python tools/perplexity.py [FILE]     prints the figures, and writes them to FILE as JSON

The passages are those of engine/bundled/eval.json, which training never saw. Every figure comes
out of the engine itself, through the log-probabilities of prompts, as a client would see them.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

from octavo import LLM, SamplingParams

PASSAGES = Path(__file__).parents[1] / "engine/bundled/eval.json"
WEIGHTS = ("none", "int8", "int4")


def perplexity(quantization: str, passages: list[str]) -> dict[str, float]:
    """Of bfloat16 arithmetic with these weights, over all tokens that have one before them."""
    asked = SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=0)
    with LLM(quantization=quantization, dtype="bfloat16", prefix_caching=False) as llm:
        outputs = llm.generate(passages, asked)
    scores = [token.logprob for output in outputs for token in output.prompt_logprobs]
    loss = -sum(scores) / len(scores)
    return {"tokens": len(scores), "loss": round(loss, 4), "perplexity": round(math.exp(loss), 3)}


def main(arguments: list[str]) -> None:
    passages = [passage["text"] for passage in json.loads(PASSAGES.read_text())["passages"]]
    figures = {quantization: perplexity(quantization, passages) for quantization in WEIGHTS}
    report = {"model": "bundled", "dtype": "bfloat16", "quantization": figures}
    print(text := json.dumps(report, indent=2))
    for file in arguments:
        Path(file).write_text(text + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
