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
    constants, more = _constants(weights)
    return _bytes([*kept, *model.buffers(), *constants]) + more


def weights_size(weights: Mapping[str, StoredWeight[Form]]) -> int:
    """Bytes of compressed weights: codes by their bits, of pruned weights the stored blocks and where they lie, else all constants. A
    weight ``name:role`` stands in the place of that constant of the weight ``name``.
    """
    constants, more = _constants(weights)
    return _bytes(constants) + more


def _constants(weights: Mapping[str, StoredWeight[Form]]) -> tuple[list[Tensor], int]:
    """The constants that are stored as they are, and bytes of what is not."""
    constants: list[Tensor] = []
    more = 0
    for name, weight in weights.items():
        form = weight.form
        parts = {role: t for role, t in form.parts().items() if f"{name}:{role}" not in weights}
        if isinstance(form, QuantizedWeight):
            more += ceil(parts.pop("codes").numel() * form.scheme.bits / 8)
        elif isinstance(form, PrunedWeight):
            parts.pop("pruned", None)
            found = form.sparsity
            places = ceil(found.stored * log2(found.m) / 8) if found.m else found.stored * _PLACE
            more += found.elements * form.weight.element_size() + places
        constants += parts.values()
    return constants, more


def _bytes(tensors: Iterable[Tensor]) -> int:
    """Of all; one that several share counts once."""
    each = {(t.data_ptr(), t.shape, t.stride()): t.numel() * t.element_size() for t in tensors}
    return sum(each.values())
