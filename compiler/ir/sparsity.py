"""Which elements of a constant matrix may differ from zero, as far as the sizes and loops of a kernel depend on it.

The vocabulary and the text are those of upstream's ``sparse_tensor`` dialect (https://mlir.llvm.org/docs/Dialects/SparseTensorOps):
the rows of blocks are dense, the blocks of a row are compressed, so that only those with an element other than zero are stored. Or the
groups of a row are dense, and ``structured[N, M]``: N of the M elements of each are stored.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

#: The levels of a matrix of blocks; `encoding` writes ``i, j``, MLIR prints ``d0, d1``. A side of one element has one level.
_BLOCKS = re.compile(
    r"(?P<i>\w+), (?P<j>\w+)\) -> \((?P=i)(?: floordiv (?P<rows>\d+))? : dense, (?P=j)(?: floordiv (?P<columns>\d+))? : compressed"
    r"(?:, (?P=i) mod (?P<r>\d+) : dense)?(?:, (?P=j) mod (?P<c>\d+) : dense)?\)"
)
#: The levels of a matrix of groups.
_GROUPS = re.compile(
    r"(?P<i>\w+), (?P<j>\w+)\) -> \((?P=i) : dense, (?P=j) floordiv (?P<m>\d+) : dense, "
    r"(?P=j) mod (?P=m) : structured\[(?P<n>\d+), (?P=m)\]\)"
)

#: Elements of the longest group that a level of upstream's has a number for.
LONGEST_GROUP = 255


@dataclass(frozen=True)
class Sparsity:
    """Of a tensor seen as the matrix ``[first dimension, all others]``: ``stored`` blocks of ``rows`` x ``columns`` elements, aligned to
    multiples of their size, hold all that is not zero; 1 x 1 is unstructured. The last blocks may reach beyond the matrix.

    ``n``, ``m``: moreover, of each ``m`` neighbouring elements of a row, aligned to multiples of ``m``, at most ``n`` differ from zero;
    0 where nothing of this kind is known.
    """

    rows: int
    columns: int
    stored: int
    n: int = 0
    m: int = 0

    def __post_init__(self) -> None:
        if min(self.rows, self.columns) < 1 or self.stored < 0:
            raise ValueError(f"{self.stored} blocks of {self.rows} x {self.columns} are no sparsity")
        if (self.n or self.m) and not (1 <= self.n <= self.m <= LONGEST_GROUP and self.rows == self.columns == 1):
            raise ValueError(f"{self.n} of {self.m} in blocks of {self.rows} x {self.columns} are no sparsity")

    @staticmethod
    def of_each(n: int, m: int, elements: int) -> Sparsity:
        """At most ``n`` of each ``m`` of a matrix of so many ``elements``."""
        return Sparsity(1, 1, elements // m * n, n, m)

    @property
    def elements(self) -> int:
        """Elements of all stored blocks."""
        return self.stored * self.rows * self.columns

    @property
    def transposed(self) -> Sparsity:
        """Of the transposed matrix. Groups of its columns have no name."""
        return Sparsity(self.columns, self.rows, self.stored)

    @property
    def numbers(self) -> list[int]:
        """The arguments that make it, as plain data."""
        return [self.rows, self.columns, self.stored, *([self.n, self.m] if self.m else [])]

    def holds(self, other: Sparsity) -> bool:
        """Whether what is stored by ``other``, of a matrix of the same sizes, has room here."""
        alike = (self.rows, self.columns) == (other.rows, other.columns) and other.stored <= self.stored
        return alike and (not self.m or (self.m == other.m and other.n <= self.n))

    @property
    def encoding(self) -> str:
        """The attribute of ``sparse_tensor`` for the matrix."""
        if self.m:
            levels = f"i : dense, j floordiv {self.m} : dense, j mod {self.m} : structured[{self.n}, {self.m}]"
            return f"#sparse_tensor.encoding<{{ map = (i, j) -> ({levels}) }}>"
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
        groups = _GROUPS.search(encoding)
        if groups is not None:
            return Sparsity(1, 1, stored, int(groups["n"]), int(groups["m"]))
        found = _BLOCKS.search(encoding)
        if found is None or (found["rows"], found["columns"]) != (found["r"], found["c"]):
            raise ValueError(
                f"no kernel knows the sparsity {encoding}: rows of blocks are dense, blocks compressed, or groups structured[n, m]"
            )
        return Sparsity(int(found["rows"] or 1), int(found["columns"] or 1), stored)
