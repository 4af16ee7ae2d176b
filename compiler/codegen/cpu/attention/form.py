"""What an attention kernel computes, read from its spec, and which kernels are supported."""

from __future__ import annotations

from dataclasses import dataclass

from effc.compiler.codegen.cpu.target import Target
from effc.compiler.ir.expr import Expr
from effc.compiler.ir.spec import ITEM_SIZE, KernelSpec

#: Bytes of stack for q, scores and results of a block; the convention allows 64 KiB for all that a kernel keeps there.
STACK_BYTES = 60 * 1024
#: Keys of a block: its scores (32 queries x 128 keys, 16 KiB) stay in L1 beside q and the results.
KEYS = 128


@dataclass(frozen=True)
class Attention:
    """A spec read: ``accumulator`` is the type of scores and sums."""

    spec: KernelSpec
    accumulator: str

    @property
    def causal(self) -> bool:
        return bool(self.spec.get("causal"))

    @property
    def scale(self) -> float:
        return float(self.spec.get("scale"))

    @property
    def group(self) -> int:
        """Heads that share one head of k and v."""
        return int(self.spec.get("group", 1))

    @property
    def nan_rows(self) -> bool:
        return bool(self.spec.get("nan", 0))

    @property
    def channels(self) -> tuple[int, int]:
        """Of q and k, and of v and the result."""
        d, e = self.spec.dims[4].size.constant, self.spec.dims[5].size.constant
        assert d is not None, "supports() admits only known channels"
        assert e is not None, "supports() admits only known channels"
        return d, e

    def has(self, name: str) -> bool:
        return self.spec.get(name) is not None

    def operand(self, name: str) -> int:
        order = ["q", "k", "v", "out", *(n for n in ("mask", "lse") if self.has(n))]
        return order.index(name)

    def dtype(self, name: str) -> str:
        return self.spec.operands[self.operand(name)].dtype

    def address(self, name: str) -> Expr:
        address = self.spec.get(name)
        assert isinstance(address, Expr), f"attention needs the address of {name}"
        return address


def supports(spec: KernelSpec, target: Target) -> str | None:
    """None where `emit` makes a kernel of ``spec``, else the reason why it does not."""
    if len(spec.dims) != 6:
        return f"attention has six dimensions, this one {len(spec.dims)}"
    if spec.dims[4].size.constant is None or spec.dims[5].size.constant is None:
        return "the number of channels is not known"
    accumulator = "f64" if spec.operands[0].dtype == "f64" else "f32"
    if any(o.dtype not in ("f64", "f32", "bf16", "f16") for o in spec.operands[:4]):
        return "attention is computed on floats"
    size = ITEM_SIZE[accumulator]
    lanes = target.lanes(size)
    channels = spec.dims[4].size.constant + spec.dims[5].size.constant
    if (channels + KEYS + 16) * lanes * size > STACK_BYTES:
        return f"{channels} channels of q and v do not fit the cache"
    for name in ("q", "k", "v", "out"):
        for dim in ("d2", "d3", "d4", "d5"):
            factor = spec.get(name).coefficient(dim)
            if factor is None or any(v[0] == "d" for v in factor.variables()):
                return f"the address of {name} is not linear in {dim}"
    return None
