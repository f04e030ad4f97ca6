"""Recording work."""

from __future__ import annotations

from ..ops import NotRecordable, Recorder


def recorder() -> Recorder:
    """See `ops.MakeRecorder`."""
    raise NotRecordable("kernels in plain torch cannot be called without it")
