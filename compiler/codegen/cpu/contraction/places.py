"""The places of the left factor that a register tile reads along a row of the image, and the products that share each."""

from __future__ import annotations

from effc.compiler.codegen.cpu.contraction.roles import Nest


def places(nest: Nest, rows: int, tap: int | None) -> dict[int, list[tuple[int, int]]]:
    """``(row, tap)`` of all products of a tile of ``rows``, by the offset of the place in the left factor, in elements; ``tap``: the dim of
    the taps along the row, None where there is one.
    """
    across, reach = (nest.stride(nest.left.load, dim).constant or 0 for dim in (nest.row, tap))
    found: dict[int, list[tuple[int, int]]] = {}
    for row in range(rows):
        for number in range(nest.size(tap).constant or 0):
            found.setdefault(row * across + number * reach, []).append((row, number))
    return dict(sorted(found.items()))
