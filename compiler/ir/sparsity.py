"""Which elements of a constant matrix may differ from zero, as far as the sizes and loops of a kernel depend on it.

The vocabulary and the text are those of upstream's ``sparse_tensor`` dialect (https://mlir.llvm.org/docs/Dialects/SparseTensorOps):
the rows of blocks are dense, the blocks of a row are compressed, so that only those with an element other than zero are stored.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_INDEX = {"i": r"(?:i|d0)", "j": r"(?:j|d1)"}
_CSR = re.compile(r"\(\w+, \w+\) -> \({i} : dense, {j} : compressed\)".format(**_INDEX))
_BSR = re.compile(
    r"\(\w+, \w+\) -> \({i} floordiv (\d+) : dense, {j} floordiv (\d+) : compressed, "
    r"{i} mod \1 : dense, {j} mod \2 : dense\)".format(**_INDEX)
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
        if self.rows == self.columns == 1:
            levels = "i : dense, j : compressed"
        else:
            levels = (
                f"i floordiv {self.rows} : dense, j floordiv {self.columns} : compressed, "
                f"i mod {self.rows} : dense, j mod {self.columns} : dense"
            )
        return f"#sparse_tensor.encoding<{{ map = (i, j) -> ({levels}) }}>"

    @staticmethod
    def of(encoding: str, stored: int) -> Sparsity:
        """What ``encoding`` says, also as MLIR prints it; ValueError for another pattern than `encoding` writes."""
        if _CSR.search(encoding):
            return Sparsity(1, 1, stored)
        found = _BSR.search(encoding)
        if found is None:
            raise ValueError(f"no kernel knows the sparsity {encoding}: rows of blocks are dense, blocks compressed")
        return Sparsity(int(found[1]), int(found[2]), stored)
