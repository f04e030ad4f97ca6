"""The seam `AttentionBackend`: prepare once per step, attend once per layer."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from octavo.kernels.ops import AttentionLayer, AttentionPlan

from ..batch import Batch


class AttentionBackend(Protocol):
    """Stores a step's keys and values and attends to all that its sequences have stored."""

    @property
    def replayable(self) -> bool:
        """Whether its work of a step may be recorded once and done again with other values in the
        same tensors: nothing of it is decided by the host but from the host's own lengths."""

    @property
    def wide(self) -> bool:
        """Whether `attend` wants projections in float32, whatever the model's dtype: then queries
        and keys are rounded once, when they have been normed and rotated."""

    def prepare(self, batch: Batch, block_size: int) -> AttentionPlan:
        """Work out what all layers of this step share."""

    def attend(
        self,
        projected: Tensor,
        cache: Tensor,
        plan: AttentionPlan,
        cosine: Tensor,
        sine: Tensor,
        layer: AttentionLayer,
    ) -> Tensor:
        """See `ops.AttendProjected`; `cache` is the layer's."""
