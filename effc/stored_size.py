"""How many bytes weights take: as they are, and as a plan stores them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import ceil, log2

from torch import Tensor, nn

from effc.compiler.compress.form import Form
from effc.compiler.compress.pruning.pruned import PrunedWeight
from effc.compiler.compress.quantized import QuantizedWeight
from effc.compiler.compress.stored import StoredWeight

#: Bytes by which a stored block says where it lies.
_PLACE = 4


def model_size(model: nn.Module) -> int:
    """Bytes of all parameters and buffers; what modules share counts once."""
    return _bytes([*model.parameters(), *model.buffers()])


def planned_size(model: nn.Module, weights: Mapping[str, StoredWeight[Form]]) -> int:
    """The same with ``weights`` in the place of the parameters of these names."""
    kept = [p for name, p in model.named_parameters() if name not in weights]
    found = [_stored(weight.form) for weight in weights.values()]
    constants = [t for tensors, _ in found for t in tensors]
    return _bytes([*kept, *model.buffers(), *constants]) + sum(more for _, more in found)


def form_size(form: Form) -> int:
    """Bytes of a compressed weight: codes by their bits, of pruned weights the stored blocks and where they lie, else all constants."""
    tensors, more = _stored(form)
    return _bytes(tensors) + more


def _stored(form: Form) -> tuple[list[Tensor], int]:
    """The constants that are stored as they are, and bytes of what is not."""
    parts = dict(form.parts())
    if isinstance(form, QuantizedWeight):
        codes = parts.pop("codes")
        return list(parts.values()), ceil(codes.numel() * form.scheme.bits / 8)
    if isinstance(form, PrunedWeight):
        found = form.sparsity
        places = ceil(found.stored * log2(found.m) / 8) if found.m else found.stored * _PLACE
        return [], found.elements * form.weight.element_size() + places
    return list(parts.values()), 0


def _bytes(tensors: Iterable[Tensor]) -> int:
    """Of all; one that several share counts once."""
    each = {(t.data_ptr(), t.shape, t.stride()): t.numel() * t.element_size() for t in tensors}
    return sum(each.values())
