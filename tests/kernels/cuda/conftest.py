"""Triton reads when its kernels are defined whether they are to be interpreted."""

from __future__ import annotations

import os

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before anything imports octavo.kernels.cuda


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Where the kernels run: a GPU, or host memory in the interpreter."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(autouse=True)
def _without_triton() -> None:
    pytest.importorskip("triton")
