"""GPU kernels of specs, run in the ``tt`` interpreter on torch tensors, as a launcher would call them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from tt_interpreter import launch

from effc.compiler.capture.kernel_reference import evaluate
from effc.compiler.codegen.gpu.contraction.roles import Roles, find
from effc.compiler.codegen.gpu.emit import emit
from effc.compiler.codegen.gpu.launch import Emitted
from effc.compiler.codegen.gpu.target import GpuTarget
from effc.compiler.ir.expr import Expr, const
from effc.compiler.ir.spec import KernelSpec
from effc.runtime.dtypes import TORCH_DTYPES

SM80, SM90 = GpuTarget.named("sm_80"), GpuTarget.named("sm_90")
SM100 = GpuTarget.named("sm_100")
TMA = GpuTarget.named("sm_90+tma")


def memory_of(tensor: torch.Tensor) -> np.ndarray[tuple[int], np.dtype[np.generic]]:
    """The elements that ``tensor``'s storage holds from its first on, 1-D, as memory's own type (bf16: uint16, bool: int8)."""
    storage = tensor.untyped_storage()
    count = storage.nbytes() // tensor.element_size() - tensor.storage_offset()
    flat = tensor.as_strided((count,), (1,))
    if tensor.dtype == torch.bfloat16:
        return flat.view(torch.int16).numpy().view(np.uint16)
    if tensor.dtype in (torch.bool, torch.uint8):
        return flat.view(torch.int8).numpy()
    return flat.numpy()


class Kernel:
    """``spec`` for ``target``. ``emitted``: its launches."""

    def __init__(self, spec: KernelSpec, target: GpuTarget = SM80, *, aligned: bool = True) -> None:
        self.spec = spec
        self.emitted: Emitted = emit(spec, target, aligned=aligned)

    @property
    def text(self) -> str:
        return "\n".join(launched.text for launched in self.emitted.launches)

    def __call__(self, tensors: Sequence[torch.Tensor], symbols: Sequence[int] = (), threads: int = 1) -> int:
        """The value of the error cell after the call. A tensor an operand, whose first element is its base."""
        values = dict(zip(self.spec.symbols, symbols, strict=True))
        scratch = np.full(max(_number(self.emitted.scratch, values), 1), np.nan, np.float32)
        error = np.zeros(1, np.int32)
        buffers = [*map(memory_of, tensors), scratch, error]
        for launched in self.emitted.launches:
            launch(launched.text, _number(launched.grid, values), buffers, list(symbols))
        return int(error[0])


def sized(spec: KernelSpec) -> KernelSpec:
    """A spec without symbols, of whose operands the sizes are those that it reads and writes: of packed codes their number."""
    places: list[tuple[int, int]] = []
    for part in spec.stages or (spec,):
        last = {f"d{i}": (d.size.constant or 1) - 1 for i, d in enumerate(part.dims)}
        addresses = [(i["operand"], i["address"]) for i in part.body if i.op in ("load", "store")]
        addresses += [(n, e) for n, name in enumerate(("q", "k", "v", "out")) if (e := part.get(name)) is not None]
        places += [(n, e.evaluate(last)) for n, e in addresses]
    sizes = {n: 1 + max(place for m, place in places if m == n) for n, _ in places}
    sizes |= {n: 1 for n, operand in enumerate(spec.operands) if operand.role == "scratch"}
    operands = (replace(o, size=const(sizes[n])) if n in sizes else o for n, o in enumerate(spec.operands))
    return replace(spec, operands=tuple(operands))


def operands_of(spec: KernelSpec) -> list[torch.Tensor]:
    """Random memory for each operand of a spec without symbols, 1-D, just large enough; what is written is NaN or 77."""
    found = []
    for operand in sized(spec).operands:
        size, dtype = operand.size.evaluate({}), TORCH_DTYPES[operand.dtype]
        if operand.role == "write":
            found.append(torch.full((size,), float("nan") if dtype.is_floating_point else 77, dtype=dtype))
        elif dtype.is_floating_point:
            found.append(torch.randn(size).to(dtype))
        else:
            found.append(torch.randint(-8, 8, (size,), dtype=dtype))
    return found


def _number(e: Expr, values: dict[str, int]) -> int:
    return e.evaluate(values)


#: Bound on the relative error of one result, by its dtype: a few roundings of a few instructions.
_TOLERANCE = {torch.float64: 1e-12, torch.float32: 4e-6, torch.bfloat16: 1.6e-2, torch.float16: 2e-3}


def agrees(
    spec: KernelSpec, tensors: Sequence[torch.Tensor], symbols: Sequence[int] = (), *, aligned: bool = True
) -> Kernel:
    """The kernel of ``spec`` writes what float64 gives for its body; integers and bools exactly; nothing else changes."""
    before = [t.clone() for t in tensors]
    expected = evaluate(spec, before, symbols, wide=True)
    assert expected is not None, "the reference does not know an instruction"
    kernel = Kernel(spec, aligned=aligned)
    assert kernel(tensors, symbols) == 0
    for operand, (got, old) in enumerate(zip(tensors, before, strict=True)):
        want = expected.get(operand, old)
        if got.is_floating_point():
            bound = _TOLERANCE[got.dtype]
            torch.testing.assert_close(got.double(), want.double(), rtol=bound, atol=bound, equal_nan=True)
        else:
            assert torch.equal(got, want.to(got.dtype)), operand
    return kernel


def roles_of(spec: KernelSpec) -> Roles:
    """Of a product that tensor cores take."""
    found = find(spec)
    assert isinstance(found, Roles), found
    return found
