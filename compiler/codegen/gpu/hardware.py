"""What NVIDIA's GPUs differ in, by compute capability: one table, of published limits and data sheets.

Limits are those of the CUDA C++ Programming Guide, "Technical Specifications per Compute Capability".
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

#: Which threads multiply together on tensor cores: those of a warp (``mma.sync``), of four (``wgmma``), or one for all of a block
#: (``tcgen05.mma``).
TensorCores = Literal["mma", "wgmma", "tcgen05"]

#: Multiply-adds a cycle of one processor by dtype of the factors (data sheets: dense rates, sums of 32 bits), of float32 as TF32 by
#: ``"tf32"``; that of ``"f32"`` is without tensor cores.
Rates = tuple[tuple[str, int], ...]
_A100: Rates = (("f32", 64), ("tf32", 512), ("f16", 1024), ("bf16", 1024), ("i8", 2048))
_H100: Rates = (("f32", 128), ("tf32", 1024), ("f16", 2048), ("bf16", 2048), ("i8", 4096))
_B200: Rates = (("f32", 128), ("tf32", 2048), ("f16", 4096), ("bf16", 4096), ("i8", 8192))
#: Of GPUs that are not made for data centres.
_NARROW: Rates = (("f32", 128), ("tf32", 128), ("f16", 256), ("bf16", 256), ("i8", 1024))


@dataclass(frozen=True)
class Hardware:
    """``processors``: streaming multiprocessors of the largest GPU of the kind. Of one: ``warps`` and ``blocks`` that it holds at most, and
    KiB of ``shared`` memory, of which a block may have ``block_shared``.
    """

    processors: int
    warps: int
    blocks: int
    shared: int
    block_shared: int
    tensor_cores: TensorCores
    rates: Rates

    def rate(self, dtype: str) -> int:
        """Multiply-adds a cycle of one processor."""
        return dict(self.rates)[dtype]


_KNOWN = {
    80: Hardware(108, 64, 32, 164, 163, "mma", _A100),
    86: Hardware(84, 48, 16, 100, 99, "mma", _NARROW),
    87: Hardware(16, 48, 16, 164, 163, "mma", _NARROW),
    89: Hardware(142, 48, 24, 100, 99, "mma", _NARROW),
    90: Hardware(132, 64, 32, 228, 227, "wgmma", _H100),
    100: Hardware(148, 64, 32, 228, 227, "tcgen05", _B200),
    103: Hardware(148, 64, 32, 228, 227, "tcgen05", _B200),
    120: Hardware(188, 48, 24, 100, 99, "mma", _NARROW),
    121: Hardware(48, 48, 24, 100, 99, "mma", _NARROW),
}
#: The oldest compute capability that code is made for, and the oldest whose hardware copies by descriptors.
OLDEST, FIRST_DESCRIBED = 80, 90
#: All that is known, rising.
CAPABILITIES = tuple(_KNOWN)


def hardware(capability: int) -> Hardware:
    """Of ``capability``, from `OLDEST` on; one that is not known has what all known ones have, and the rates of the last before it."""
    known = _KNOWN.get(capability)
    if known is not None:
        return known
    least = {
        name: min(getattr(h, name) for h in _KNOWN.values()) for name in ("warps", "blocks", "shared", "block_shared")
    }
    before = _KNOWN[max(c for c in _KNOWN if c <= capability)]
    return replace(before, processors=128, tensor_cores="mma", **least)
