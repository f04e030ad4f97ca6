"""Where the kernels of this folder run."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

Matrix = npt.NDArray[Any]


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Where the kernels run: a GPU, or host memory in the interpreter."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(autouse=True)
def _without_triton() -> None:
    pytest.importorskip("triton")


@pytest.fixture
def even_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where kernels are interpreted: products of matrices whose rows are all computed alike.

    The interpreter leaves them to numpy's BLAS, which sums a row in another order depending on its
    place in the matrix. A tensor core has no such places.
    """

    def matmul(a: Matrix, b: Matrix, dtype: np.dtype[np.generic]) -> Matrix:
        return (a.astype(dtype)[:, :, None] * b.astype(dtype)[None]).sum(axis=1, dtype=dtype)

    monkeypatch.setattr(np, "matmul", matmul)
