"""The nest of a contraction as a target's kernels read it."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

from effc.compiler.codegen.cpu.contraction.byte_factors import sums_bytes
from effc.compiler.codegen.cpu.contraction.form import is_codes
from effc.compiler.codegen.cpu.contraction.grouped import across_groups
from effc.compiler.codegen.cpu.contraction.roles import Nest, find
from effc.compiler.codegen.cpu.contraction.stacked import stacked
from effc.compiler.codegen.cpu.target import Target
from effc.compiler.ir.formats import Format
from effc.compiler.ir.spec import KernelSpec


@lru_cache(maxsize=1024)
def cast(spec: KernelSpec, target: Target, *, lines: int = 0) -> Nest | str:
    """`roles.find`'s nest, or its reason; groups of few channels share vectors (`grouped`), and lanes hold several taps of
    their channel where an instruction sums their products (`stacked`).

    Packed bytes that are summed as floats are codes of eight bits where an instruction sums four: they then lie four in a word, as that
    takes them (`fixed_point`); elsewhere one by one, which one instruction widens.
    """
    nest = find(spec, lines=lines)
    if isinstance(nest, str):
        return nest
    nest = across_groups(nest, target) or stacked(nest, spec, target) or nest
    if not is_codes(nest) or nest.right.format is not None:
        return nest
    ops = [nest.spec.body[i].op for i in nest.right.chain]
    if ops not in (["arith.sitofp"], ["arith.uitofp"]) or not sums_bytes(target):
        return nest
    return replace(nest, right=replace(nest.right, format=Format(8, signed=ops == ["arith.sitofp"])))
