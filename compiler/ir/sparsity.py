"""Which elements of a constant matrix may differ from zero, as far as the sizes and loops of a kernel depend on it.

The vocabulary and the text are those of upstream's ``sparse_tensor`` dialect (https://mlir.llvm.org/docs/Dialects/SparseTensorOps):
the rows of blocks are dense, the blocks of a row are compressed, so that only those with an element other than zero are stored.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

#: The levels of a matrix of blocks; `encoding` writes ``i, j``, MLIR prints ``d0, d1``. A side of one element has one level.
_BLOCKS = re.compile(
    r"(?P<i>\w+), (?P<j>\w+)\) -> \((?P=i)(?: floordiv (?P<rows>\d+))? : dense, (?P=j)(?: floordiv (?P<columns>\d+))? : compressed"
    r"(?:, (?P=i) mod (?P<r>\d+) : dense)?(?:, (?P=j) mod (?P<c>\d+) : dense)?\)"
)


@dataclass(frozen=True)
class Sparsity:
    """Of a tensor seen as the matrix ``[first dimension, all others]``: ``stored`` blocks of ``rows`` x ``columns`` elements, aligned to
    multiples of their size, hold all that is not zero; 1 x 1 is unstructured. The last blocks may reach beyond the matrix.
    """

    rows: int
    columns: int
    stored: int

    def __post_init__(self) -> None:
        if min(self.rows, self.columns) < 1 or self.stored < 0:
            raise ValueError(f"{self.stored} blocks of {self.rows} x {self.columns} are no sparsity")

    @property
    def elements(self) -> int:
        """Elements of all stored blocks."""
        return self.stored * self.rows * self.columns

    @property
    def transposed(self) -> Sparsity:
        return Sparsity(self.columns, self.rows, self.stored)

    @property
    def encoding(self) -> str:
        """The attribute of ``sparse_tensor`` for the matrix."""
        sides = [(name, size) for name, size in (("i", self.rows), ("j", self.columns)) if size > 1]
        block = {name: f" floordiv {size}" for name, size in sides}
        levels = ", ".join([
            f"i{block.get('i', '')} : dense", f"j{block.get('j', '')} : compressed",
            *(f"{name} mod {size} : dense" for name, size in sides),
        ])  # fmt: skip
        return f"#sparse_tensor.encoding<{{ map = (i, j) -> ({levels}) }}>"

    @staticmethod
    def of(encoding: str, stored: int) -> Sparsity:
        """What ``encoding`` says, also as MLIR prints it; ValueError for another pattern than `encoding` writes."""
        found = _BLOCKS.search(encoding)
        if found is None or (found["rows"], found["columns"]) != (found["r"], found["c"]):
            raise ValueError(f"no kernel knows the sparsity {encoding}: rows of blocks are dense, blocks compressed")
        return Sparsity(int(found["rows"] or 1), int(found["columns"] or 1), stored)
