"""Kernels in order → ``Program``: the arena's offsets, pointers, derived weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from effc.compiler.codegen.cpu.block.choice import Block, block_of
from effc.compiler.codegen.cpu.schedules import Packing, default_schedule, packing
from effc.compiler.codegen.cpu.target import Target
from effc.compiler.codegen.gpu.target import GpuTarget
from effc.compiler.codegen.targets import AnyTarget
from effc.compiler.ir.expr import Expr, const, product
from effc.compiler.ir.program import Call, Derived, Input, Joined, Output, Part, Pointer, Program, TensorSpec
from effc.compiler.ir.spec import CONVOLUTION, ITEM_SIZE, KernelSpec, Operand, Schedule
from effc.compiler.pipeline.blocks import fuse_blocks
from effc.compiler.pipeline.graph import Graph, GraphInput
from effc.compiler.pipeline.memory import Life, plan_arena
from effc.compiler.pipeline.placed import Kernel, Site
from effc.compiler.pipeline.placement import Base, Layout, row_major


class Assembler:
    """``prepared``: how many of the graph's inputs, behind all that are arguments and before those that are joined, are results of
    ``prepare``. ``schedules``: a plan's, by ``KernelSpec.key()``. ``pairs``: whether two products may be one kernel on a GPU. For a
    GPU codes of few bits are packed, and sparse matrices become lists of blocks.

    What is for GPUs alone is imported where it is called: its emitters cost a process that compiles for CPUs 60 ms.
    """

    def __init__(
        self,
        graph: Graph,
        layout: Layout,
        kernels: Sequence[Kernel],
        prepared: int,
        prepare: Program | None,
        target: AnyTarget,
        schedules: Mapping[str, Schedule],
        pairs: bool = True,
    ) -> None:
        self.graph, self.layout, self.kernels, self.prepare = graph, layout, kernels, prepare
        self.target, self.schedules, self.pairs = target, schedules, pairs
        self.joined = [source for source in graph.inputs if source.parts]
        self.real = len(graph.inputs) - prepared - len(self.joined)
        self.constants = graph.constants()
        self.derived: list[Derived] = [Derived("as_is", ("prepared", i)) for i in range(prepared)]
        self.derived += [Derived("as_is", ("joined", i)) for i in range(len(self.joined))]
        self.prepared = prepared
        self.specs: dict[KernelSpec, int] = {}

    def run(self) -> Program:
        """The program."""
        constants = {Base("input", i) for i in self.constants}
        if isinstance(self.target, Target):
            self.kernels = fuse_blocks(self.kernels, constants, self._is_dense, self.target)
        else:
            self.kernels = [_marked(kernel) for kernel in self.kernels]
            if self.pairs:
                from effc.compiler.pipeline.gpu_pairs import fuse_pairs

                self.kernels = fuse_pairs(self.kernels, constants, self._is_sparse, self.target)
        self.packings = [self._packed(kernel) for kernel in self.kernels]
        bytes_of = [size * ITEM_SIZE[dtype] for dtype, size in self.layout.buffers]
        cores = isinstance(self.target, Target)
        self.offsets, arena = plan_arena(bytes_of, self._lives(), self._scratch(), cores=cores)
        calls = self._without_unread(
            [self._call(kernel, found) for kernel, found in zip(self.kernels, self.packings, strict=True)]
        )
        graph = self.graph
        return Program(
            symbols=graph.symbols,
            inputs=tuple(
                Input(TensorSpec(i.tensor.dtype, i.tensor.sizes, i.strides), i.param) for i in graph.inputs[: self.real]
            ),
            outputs=tuple(
                Output(TensorSpec(o.tensor.dtype, o.tensor.sizes, o.strides), o.mutates) for o in graph.outputs
            ),
            derived=tuple(self.derived),
            kernels=tuple(self.specs),
            calls=calls,
            arena_bytes=arena,
            prepare=self.prepare,
            joined=tuple(self._joined(source) for source in self.joined),
        )

    def _joined(self, source: GraphInput) -> Joined:
        number = {i.tensor: n for n, i in enumerate(self.graph.inputs)}
        return Joined(tuple(Part(self._source(number[p.tensor]), p.offset, p.sizes, p.strides) for p in source.parts))

    def _source(self, index: int) -> tuple[str, int]:
        """What a derivation calls input ``index`` of the graph."""
        if index < self.real:
            return ("input", index)
        index -= self.real
        return ("prepared", index) if index < self.prepared else ("joined", index - self.prepared)

    def _lives(self) -> dict[int, Life]:
        lives: dict[int, Life] = {}
        for number, kernel in enumerate(self.kernels):
            for site in kernel.sites:
                if site.base.kind == "buffer":
                    known = lives.get(site.base.index)
                    lives[site.base.index] = Life(known.first if known else number, number)
        return lives

    def _scratch(self) -> set[int]:
        """The buffers that are a kernel's own."""
        pairs = zip(self.kernels, self.packings, strict=True)
        sites = (
            pair for kernel, found in pairs if found for pair in zip(kernel.sites, found.spec.operands, strict=True)
        )
        return {site.base.index for site, operand in sites if site.base.kind == "buffer" and operand.role == "scratch"}

    def _packed(self, kernel: Kernel) -> Packing | Block | None:
        """How contractions on a CPU read constant factors (on a GPU `_for_gpu` says it); scratch memory becomes a buffer that lives for
        this kernel alone (on a GPU it is empty: what lies between the products of a pair is in no memory).
        """
        if not isinstance(self.target, Target):
            for operand in kernel.spec.operands[len(kernel.sites) :]:
                kernel.sites = (*kernel.sites, self._scratch_site(operand))
            return None
        constant = [i for i, site in enumerate(kernel.sites) if self._is_constant(site)]
        found: Packing | Block | str
        if kernel.spec.template == "block":
            found = block_of(kernel.spec, constant, self.target)
        elif kernel.spec.template == "contraction":
            found = packing(self._with_sparsity(kernel, constant), constant, self.target, self.schedules)
        else:
            return None
        if isinstance(found, str):
            return None
        for operand in found.spec.operands[len(kernel.sites) :]:
            if operand.role == "scratch":
                site = self._scratch_site(operand)
            else:
                assert isinstance(found, Packing), "of a block, only scratch memory is new"
                site = kernel.sites[found.operand]
            kernel.sites = (*kernel.sites, site)
        return found

    def _scratch_site(self, operand: Operand) -> Site:
        self.layout.buffers.append((operand.dtype, operand.size))
        return Site(Base("buffer", len(self.layout.buffers) - 1), const(0), operand.dtype)

    def _with_sparsity(self, kernel: Kernel, constant: Sequence[int]) -> KernelSpec:
        """The kernel's spec, with what is known of the zeros of its operands ``constant``."""
        operands = list(kernel.spec.operands)
        for i in constant:
            site = kernel.sites[i]
            source = self.graph.inputs[site.base.index]
            dense = source.param == "prepared" or source.strides == row_major(source.tensor.sizes)
            if source.sparsity is not None and site.offset.constant == 0 and dense:
                operands[i] = replace(operands[i], sparsity=source.sparsity)
        return replace(kernel.spec, operands=tuple(operands))

    def _call(self, kernel: Kernel, found: Packing | Block | None) -> Call:
        pointers = [self._pointer(site) for site in kernel.sites]
        spec = kernel.spec
        if found is not None:
            spec = found.spec
            for operand, function, attributes in found.derivations():
                pointers[operand] = self._derived(kernel.sites[operand], function, attributes)
        elif not isinstance(self.target, Target):
            spec = self._for_gpu(kernel, pointers, self.target)
        elif spec.template == "contraction" and isinstance(self.target, Target):
            wanted = self.schedules.get(spec.key())
            spec = replace(spec, schedule=default_schedule(spec, self.target, wanted))
        number = self.specs.setdefault(spec, len(self.specs))
        return Call(number, tuple(pointers), kernel.symbols, kernel.name, kernel.location, _flops(kernel))

    def _for_gpu(self, kernel: Kernel, pointers: list[Pointer], target: GpuTarget) -> KernelSpec:
        """The spec under a plan's schedule, with codes of few bits packed, or a sparse matrix as lists; ``pointers`` change to those."""
        from effc.compiler.codegen.gpu.nibbles import FUNCTION, packed_codes
        from effc.compiler.codegen.gpu.sparse.choice import chosen as chosen_sparse

        wanted = self.schedules.get(kernel.spec.key(), kernel.spec.schedule)
        constant = [i for i, site in enumerate(kernel.sites) if self._is_constant(site)]
        known = self._with_sparsity(kernel, constant)
        schedule = chosen_sparse(known, target) if any(o.sparsity for o in known.operands) else None
        if schedule is not None:
            return self._of_lists(kernel, known, schedule, pointers)
        spec, sizes = packed_codes(replace(kernel.spec, schedule=wanted), constant)
        for operand, size in sizes.items():
            pointers[operand] = self._derived(kernel.sites[operand], FUNCTION, {"offset": 0, "size": size})
        return spec

    def _of_lists(self, kernel: Kernel, spec: KernelSpec, schedule: Schedule, pointers: list[Pointer]) -> KernelSpec:
        """The spec that reads lists of blocks in the place of its sparse matrix; ``pointers`` are changed to those."""
        from effc.compiler.codegen.gpu.sparse.choice import derivations, sparse_spec
        from effc.compiler.codegen.gpu.sparse.form import find as find_sparse

        weight = next(i for i, o in enumerate(spec.operands) if o.sparsity is not None)
        form = find_sparse(spec)
        assert not isinstance(form, str), "a schedule was chosen"
        elements, *lists = (
            self._derived(kernel.sites[weight], function, attributes) for function, attributes in derivations(form)
        )
        pointers[weight] = elements
        pointers += lists
        return sparse_spec(spec, schedule, weight)

    def _derived(self, site: Site, function: str, attributes: dict[str, Any]) -> Pointer:
        """The packed form of a constant factor, or of what it is scaled by."""
        attributes["offset"] += site.offset.constant
        entry = Derived(function, self._source(site.base.index), tuple(sorted(attributes.items())))
        if entry not in self.derived:
            self.derived.append(entry)
        return Pointer("derived", self.derived.index(entry), const(0))

    def _without_unread(self, calls: Sequence[Call]) -> tuple[Call, ...]:
        """Drop what is derived for no call: prepared weights that are read in packed form only."""
        read = sorted({p.index for call in calls for p in call.pointers if p.base == "derived"})
        self.derived = [self.derived[i] for i in read]
        number = {old: new for new, old in enumerate(read)}

        def moved(p: Pointer) -> Pointer:
            return replace(p, index=number[p.index]) if p.base == "derived" else p

        return tuple(replace(call, pointers=tuple(map(moved, call.pointers))) for call in calls)

    def _is_constant(self, site: Site) -> bool:
        """Whether an operand is a parameter, or prepared from parameters, at a known offset."""
        return site.base.kind == "input" and site.offset.constant is not None and site.base.index in self.constants

    def _is_dense(self, site: Site) -> bool:
        """Whether an operand is constant, and nothing is known of zeros in it."""
        return self._is_constant(site) and not self._is_sparse(site)

    def _is_sparse(self, site: Site) -> bool:
        """Whether an operand is constant, and zeros are known in it."""
        return self._is_constant(site) and self.graph.inputs[site.base.index].sparsity is not None

    def _pointer(self, site: Site) -> Pointer:
        offset = site.offset * ITEM_SIZE[site.dtype]
        base = site.base
        if base.kind == "buffer":
            return Pointer("arena", 0, self.offsets[base.index] + offset)
        if base.kind == "input" and base.index >= self.real:
            return Pointer("derived", base.index - self.real, offset)
        return Pointer(base.kind, base.index, offset)


def _marked(kernel: Kernel) -> Kernel:
    """A kernel for a GPU: whether its factors of float32 may be rounded is another setting of torch's where it is a convolution."""
    if not kernel.convolves or all(o.dtype != "f32" for o in kernel.spec.operands):
        return kernel
    return replace(kernel, spec=replace(kernel.spec, attributes=(*kernel.spec.attributes, (CONVOLUTION, 1))))


def _flops(kernel: Kernel) -> Expr:
    """Multiplications and additions of a contraction or attention (an elementwise kernel is bound by memory, not by these)."""
    if kernel.spec.stages:
        return sum((_flops(replace(kernel, spec=stage)) for stage in kernel.spec.stages), const(0))
    back = {f"s{i}": e for i, e in enumerate(kernel.symbols)}
    sizes = [d.size.substitute(back) for d in kernel.spec.dims]
    if kernel.spec.template == "contraction":
        return 2 * product(sizes)
    if kernel.spec.template == "attention":
        return 2 * product(sizes[:4]) * (sizes[4] + sizes[5])
    return const(0)
