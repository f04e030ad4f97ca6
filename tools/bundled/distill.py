"""The draft learns the target's distribution, not only its text.

The closer the draft's probabilities are to the target's, the more of its proposals are accepted. It
learns on corpus text and on what the target itself writes, which is what it will have to predict.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bundled import training
from bundled.generation import generate
from bundled.model import Llama
from bundled.packing import Mixture, Tokens
from bundled.training import Loss
from bundled.vocabulary import BEGIN_OF_TEXT_ID

# Stories, derived chat, synthetic chat, the target's own continuations.
SHARES = (0.35, 0.15, 0.25, 0.25)

PROMPT_LENGTH = 32
SAMPLE_LENGTH = 224
SAMPLES_AT_ONCE = 128


def mixture_at(seen: int, total: int) -> Mixture:
    """The same shares throughout; long windows in the last part, as in training."""
    return Mixture(SHARES, training.mixture_at(seen, total).length)


def distillation_loss(teacher: Llama) -> Loss:
    """The Kullback-Leibler divergence of the draft from `teacher` at temperature 1, in nats."""
    teacher.requires_grad_(False)

    def loss(model: Llama, inputs: Tensor, targets: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = teacher.logits(teacher(inputs)).float().log_softmax(dim=-1)
        given = model.logits(model(inputs)).float().log_softmax(dim=-1)
        return F.kl_div(
            given.flatten(0, 1), wanted.flatten(0, 1), reduction="batchmean", log_target=True
        )

    return loss


def write_samples(
    teacher: Llama, streams: list[Tokens], path: Path, *, tokens: int, seed: int
) -> None:
    """Packs about `tokens` tokens that `teacher` writes after short pieces of the streams."""
    at_once = min(SAMPLES_AT_ONCE, max(1, tokens // (PROMPT_LENGTH + SAMPLE_LENGTH)))
    random = np.random.Generator(np.random.Philox(seed))
    temporary = path.with_suffix(".tmp")
    written = 0
    with temporary.open("wb") as file:
        while written < tokens:
            starts = []
            for _ in range(at_once):
                stream = streams[random.choice(len(streams), p=(0.5, 0.25, 0.25))]
                start = int(random.integers(len(stream) - PROMPT_LENGTH))
                starts.append(np.asarray(stream[start : start + PROMPT_LENGTH]))
            prompts = torch.from_numpy(np.stack(starts).astype(np.int64))
            with torch.autocast("cpu", dtype=torch.bfloat16):
                samples = generate(
                    teacher, prompts, most=SAMPLE_LENGTH, temperature=1.0, seed=seed + written
                )
            rows = torch.cat(
                (torch.full((len(prompts), 1), BEGIN_OF_TEXT_ID), prompts, samples), dim=1
            )
            file.write(rows.numpy().astype(np.uint16).tobytes())
            written += rows.numel()
    temporary.replace(path)
