"""The small model pair that is shipped, so that the first request needs no download."""

from __future__ import annotations

from pathlib import Path

TARGET = Path(__file__).resolve().parent / "target"  # about 11 M parameters, the default model
DRAFT = TARGET.parent / "draft"  # about 1 M parameters, the same tokenizer
