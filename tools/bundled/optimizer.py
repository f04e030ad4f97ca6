"""Muon for the matrices of the layers, AdamW for embedding and norms, one learning-rate schedule.

Muon (Jordan et al. 2024) replaces the momentum matrix by the nearest orthogonal one, found with a
few Newton-Schulz steps in bf16.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bundled.model import Llama


@dataclass(frozen=True, slots=True)
class Schedule:
    """Warm-up, constant, linear to zero; a factor on both learning rates, by tokens seen."""

    total_tokens: int
    warmup_tokens: int = 300_000
    decay_share: float = 0.4

    def factor(self, seen: int) -> float:
        """The factor for the step that begins after `seen` tokens."""
        rise = min(1.0, (seen + 1) / self.warmup_tokens) if self.warmup_tokens else 1.0
        fall = (self.total_tokens - seen) / (self.decay_share * self.total_tokens)
        return rise * max(0.0, min(1.0, fall))


class Optimizer:
    """Updates a model from its gradients; `state` names every tensor it remembers."""

    matrix_rate = 0.02
    matrix_momentum = 0.95
    matrix_decay = 0.1
    # An orthogonal update of size `rate` and a decay of `rate * d` keep every singular value below
    # 1/d. Without such a bound the queries and keys grew until each head saw one position only
    # (entropy 0.1 to 0.3 after 6 M tokens), and copying was not learned.
    query_key_decay = 0.5
    rate = 0.004
    betas = (0.9, 0.95)
    epsilon = 1e-10

    def __init__(self, model: Llama) -> None:
        self.state: dict[str, Tensor] = {}
        self._matrices: dict[str, Tensor] = {}
        self._others: dict[str, Tensor] = {}
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2 and name.startswith("layers."):
                self._matrices[name] = parameter
                self.state[f"momentum.{name}"] = torch.zeros_like(parameter)
            else:
                self._others[name] = parameter
                self.state[f"mean.{name}"] = torch.zeros_like(parameter)
                self.state[f"square.{name}"] = torch.zeros_like(parameter)

    @torch.no_grad()
    def step(self, factor: float, count: int) -> None:
        """Applies and clears the gradients; `count` is 1 for the first step ever taken."""
        for name, matrix in self._matrices.items():
            bounded = name.endswith(("q_proj.weight", "k_proj.weight"))
            decay = self.query_key_decay if bounded else self.matrix_decay
            self._muon(matrix, self.state[f"momentum.{name}"], factor, decay)
        for name, parameter in self._others.items():
            self._adamw(name, parameter, factor, count)
        for parameter in (*self._matrices.values(), *self._others.values()):
            parameter.grad = None

    def _muon(self, matrix: Tensor, momentum: Tensor, factor: float, decay: float) -> None:
        assert matrix.grad is not None
        momentum.lerp_(matrix.grad, 1 - self.matrix_momentum)
        nesterov = matrix.grad.lerp(momentum, self.matrix_momentum)
        rows, columns = matrix.shape
        update = orthogonalised(nesterov) * max(1.0, rows / columns) ** 0.5
        rate = self.matrix_rate * factor
        matrix.mul_(1 - rate * decay).add_(update.to(matrix.dtype), alpha=-rate)

    def _adamw(self, name: str, parameter: Tensor, factor: float, count: int) -> None:
        assert parameter.grad is not None
        mean, square = self.state[f"mean.{name}"], self.state[f"square.{name}"]
        mean.lerp_(parameter.grad, 1 - self.betas[0])
        square.lerp_(parameter.grad.square(), 1 - self.betas[1])
        unbiased_mean = mean / (1 - self.betas[0] ** count)
        unbiased_square = square / (1 - self.betas[1] ** count)
        parameter.addcdiv_(
            unbiased_mean,
            unbiased_square.sqrt_().add_(self.epsilon),
            value=-self.rate * factor,
        )


def orthogonalised(matrix: Tensor, steps: int = 5) -> Tensor:
    """An approximately orthogonal matrix with the singular vectors of `matrix`, in bf16."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x: Tensor = matrix.bfloat16()
    tall = x.shape[0] > x.shape[1]
    if tall:
        x = x.T
    x = x / (x.norm() + 1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if tall else x
