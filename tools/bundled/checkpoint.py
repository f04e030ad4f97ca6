"""Checkpoints: one safetensors file each, with everything a run needs to go on.

The tensors are the weights and the optimizer's state; the numbers (step, tokens seen, seed,
threads) are a JSON object in the file's header. A file appears whole or not at all, and the last
two are kept.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from bundled.model import Llama
from bundled.optimizer import Optimizer

KEEP = 2


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a run stands."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    seed: int = 0
    threads: int = 0


def save(folder: Path, model: Llama, optimizer: Optimizer, progress: Progress) -> Path:
    """Writes a checkpoint and deletes all but the last two."""
    tensors = {f"model.{name}": value.detach() for name, value in model.named_parameters()}
    tensors |= {f"optimizer.{name}": value for name, value in optimizer.state.items()}
    path = folder / f"step-{progress.step:07d}.safetensors"
    write_tensors(path, tensors, {"progress": json.dumps(asdict(progress))})
    for old in checkpoints(folder)[:-KEEP]:
        old.unlink()
    return path


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """Writes a safetensors file that is either whole or absent."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    save_file({name: value.contiguous() for name, value in tensors.items()}, temporary, metadata)
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.replace(path)


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a run, oldest first."""
    return sorted(folder.glob("step-*.safetensors"))


def latest(folder: Path) -> Path | None:
    """The newest checkpoint of a run, if it has one."""
    found = checkpoints(folder)
    return found[-1] if found else None


def load(path: Path, model: Llama, optimizer: Optimizer | None = None) -> Progress:
    """Fills the model, and the optimizer if given, from a checkpoint."""
    with safe_open(path, framework="pt") as file, torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(file.get_tensor(f"model.{name}"))
        if optimizer is not None:
            for name, value in optimizer.state.items():
                value.copy_(file.get_tensor(f"optimizer.{name}"))
    return progress_of(path)


def progress_of(path: Path) -> Progress:
    """Where the run stood when it wrote the checkpoint."""
    with safe_open(path, framework="pt") as file:
        return Progress(**json.loads(file.metadata()["progress"]))
