"""Rows of a matrix."""

from __future__ import annotations

from torch import Tensor

from ..ops import TakeRows
from .library import COUNT, POINTER, Library, dense


def take_rows(library: Library) -> TakeRows:
    function = library.function("take_rows", *[POINTER] * 3, *[COUNT] * 3)

    def run(matrix: Tensor, ids: Tensor) -> Tensor:
        ids = dense(ids)
        rows, size = matrix.shape
        out = library.empty((len(ids), size), matrix.dtype)
        function(
            matrix.data_ptr(),
            ids.data_ptr(),
            out.data_ptr(),
            len(ids),
            rows,
            size * matrix.element_size(),
        )
        return out

    return run
