"""Compiles one ATen graph: divide it, import and build each region, put everything together again.

A region that a later stage refuses is tried again without the op that the refusal is about, which is searched for where
the message does not name it, and goes to ATen as a whole after that; the report says so.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.fx import GraphModule, Node
from torch.fx.experimental.symbolic_shapes import optimization_hint

from effc.compiler.capture.assemble import Assembled, Boxed, CompiledGroup, assemble, from_aten
from effc.compiler.capture.calls import caller, waiting
from effc.compiler.capture.check import checked
from effc.compiler.capture.culprit import alike, smallest_refused
from effc.compiler.capture.devices import Build, BuildOnGpus, Devices, gpu_builder
from effc.compiler.capture.dump import Dump
from effc.compiler.capture.flops import flops_of
from effc.compiler.capture.importer import Region, import_region, supported
from effc.compiler.capture.layers import Layer, Layers, copied
from effc.compiler.capture.layouts import arrange
from effc.compiler.capture.nodes import Known
from effc.compiler.capture.normalize import normalize
from effc.compiler.capture.owner import Owner
from effc.compiler.capture.parameters import integer_ranges, is_looked_up, small_tables, statics_of
from effc.compiler.capture.partition import Group, Partition, device_of, is_scalar, is_view, partition
from effc.compiler.capture.planned import check_kind, plan_notes
from effc.compiler.capture.precision import guard_convolutions
from effc.compiler.capture.recording import Fallback, GraphFacts, KernelFacts, RegionFacts, active
from effc.compiler.capture.slower import faster_in_aten
from effc.compiler.capture.source import op_name, source_of
from effc.compiler.compress.compressor import Compressed, Step, compress
from effc.compiler.compress.watched import watched
from effc.compiler.ir.errors import LoweringError, UnsupportedError
from effc.compiler.ir.options import Options
from effc.compiler.ir.program import Call, Program

if TYPE_CHECKING:
    from effc.compiler.build import Built
    from effc.compiler.gpu.build import GpuBuilt
    from effc.runtime.executable import Executable

#: How often a graph is searched for the op that a refusal does not name, before a refused region goes to ATen whole.
_SEARCHES = 4
_HANG = "did not answer within"  # a stage that hangs costs minutes a trial: nothing is searched for
_NOTHING_TO_COMPUTE = "moves data only, or has no elements: nothing for effc to compute"


class GraphCompiler:
    """Compiles the ATen graphs of one Dynamo graph. ``names``: see ``parameters.static_names``; ``weights``: values of the inputs, of which
    these are looked at; ``steps``: what becomes of them at inference; ``gpus``: who builds what is on GPUs, by default effc. ``owner``: of
    the weights, where other layers of it may run the graph too (`owner.owned_names`).
    """

    def __init__(
        self,
        names: dict[int, str],
        options: Options,
        build: Build,
        weights: Sequence[Any] = (),
        steps: Sequence[Step] = (),
        gpus: Callable[[], BuildOnGpus] | None = None,
        owner: Owner | None = None,
    ) -> None:
        self._take(Layer(names, weights))
        self.options, self.steps, self.owner = options, steps, owner
        self.devices = Devices(options, build, gpus or partial(gpu_builder, options))

    def compile(self, gm: GraphModule, kind: str, inputs: Sequence[Any] | None = None) -> Boxed:
        """The boxed function of ``gm``; ``kind`` is ``inference``, ``forward`` or ``backward``. ``inputs``: ``layouts.arrange``."""
        if not self.steps or kind != "inference":
            return self.assembled(gm, kind, inputs).function()
        if self.owner is None:
            return self._compressing(gm, kind)
        return Layers(gm.graph, self.layer, self.owner, lambda layer: self._of(layer)._compressing(copied(gm), kind))

    def _take(self, layer: Layer) -> None:
        self.layer = layer
        self.names, self.weights = layer.names, layer.weights
        with unset_fake_temporarily():  # values are read, which AOTAutograd does not expect while it compiles
            self.ranges = integer_ranges(self.names, self.weights)
            self.tables = small_tables(self.names, self.weights)

    def _of(self, layer: Layer) -> GraphCompiler:
        """The same for another layer."""
        if layer is self.layer:
            return self
        found = copy.copy(self)
        found._take(layer)
        return found

    def _compressing(self, gm: GraphModule, kind: str) -> Boxed:
        """`compile` by ``steps``."""
        plain = copy.copy(self)
        plain.steps = ()
        original = copy.deepcopy(gm.graph)
        assembled, compressed = self._assembled(gm, kind, None)
        if compressed is None or not compressed.sources:
            return assembled.function()
        if not assembled.regions:  # nothing is compiled that would gain, or could compare the weights
            return plain.compile(GraphModule(gm, original), kind)
        unchanged = next(iter(assembled.regions.values())).built.executable.unchanged
        return watched(
            assembled.function(), lambda: plain.compile(GraphModule(gm, original), kind), compressed, unchanged
        )

    def assembled(self, gm: GraphModule, kind: str, inputs: Sequence[Any] | None = None) -> Assembled:
        """``gm`` with its regions compiled, as a graph. OptionError: a budget for errors where gradients are taken."""
        return self._assembled(gm, kind, inputs)[0]

    def compressed(self, gm: GraphModule, kind: str) -> Compressed | None:
        """What ``steps`` make of the weights of ``gm``, where nothing else is asked for; None of a graph that they leave as it is."""
        check_kind(self.options, kind)
        compilation = _Compilation(self, gm, GraphFacts(kind), None)
        compilation.compress()
        return compilation.compressed

    def _assembled(
        self, gm: GraphModule, kind: str, inputs: Sequence[Any] | None
    ) -> tuple[Assembled, Compressed | None]:
        check_kind(self.options, kind)
        facts = GraphFacts(kind)
        recording = active()
        if recording is not None:
            recording.graphs.append(facts)
        compilation = _Compilation(self, gm, facts, inputs)
        assembled = compilation.run()
        if recording is not None:
            recording.plan = self.options.plan
            recording.programs += compilation.programs
            recording.compressed += [compilation.compressed] if compilation.compressed is not None else []
            programs = [p for p, _ in compilation.programs]
            recording.notes += [*compilation.notes, *compilation.kept, *(n for p in programs for n in p.notes)]
            recording.notes += plan_notes(self.options, programs)
        return assembled, compilation.compressed


class _Compilation:
    def __init__(self, owner: GraphCompiler, gm: GraphModule, facts: GraphFacts, inputs: Sequence[Any] | None) -> None:
        self.owner = owner
        self.gm = gm
        self.inputs = inputs
        self.facts = facts
        self.excluded: dict[Node, str] = {}
        self.reasons: dict[Node, str | None] = {}
        self.searches = _SEARCHES
        self.built: dict[tuple[str, torch.device | None], Built | GpuBuilt] = {}
        self.notes: list[str] = []
        self.kept: list[str] = []  # notes of the kernels of the latest division
        self.programs: list[tuple[Program, Mapping[str, int]]] = []
        self.statics = statics_of(gm.graph, owner.names) if facts.kind == "inference" else {}
        self.params = {node: static.name for node, static in self.statics.items()}
        self.compressed: Compressed | None = None
        self.known = Known()
        for node, static in self.statics.items():
            place = (static.position, static.attributes)
            if place in owner.ranges:
                self.known.ranges[node] = owner.ranges[place]
            if place in owner.tables and is_looked_up(node):
                self.known.tables[node] = owner.tables[place]
        self.symints = [
            n
            for n in gm.graph.nodes
            if n.op == "placeholder" or n.target is torch.ops.aten.sym_size.int
            if isinstance(n.meta.get("val"), torch.SymInt)
        ]
        self.dump = Dump(facts.kind)

    def compress(self) -> None:
        """Put compressed forms in the place of weights."""
        if self.owner.steps and self.facts.kind == "inference":
            with self.facts.phase("compress"), unset_fake_temporarily():
                self._compress(self.owner.steps)

    def run(self) -> Assembled:
        self.compress()
        self.notes += normalize(self.gm.graph, self.params, self.known.sparsities)
        self.dump.write("graph.txt", lambda: self.gm.print_readable(print_output=False))
        if self.facts.kind != "inference":
            arrange(self.gm, self.facts.kind, self.inputs, lambda n: self._reason(n) is None)
        while True:
            with self.facts.phase("divide"):
                divided = partition(self.gm.graph, lambda n: self._reason(n) is None)
            fallbacks = self._fallbacks(divided)
            if self.owner.options.fallback == "error":
                _refuse(fallbacks)
            compiled = self._compile_groups(divided)
            if compiled is not None:
                break
        self.facts.fallbacks = fallbacks
        with self.facts.phase("assemble"):
            return assemble(self.gm, divided, compiled)

    def _compress(self, steps: Sequence[Step]) -> None:
        """Compressed forms are parameters from here on, with what is known of their values."""
        plain = {node: static for node, static in self.statics.items() if not static.attributes}
        values = {node: self.owner.weights[static.position] for node, static in plain.items()}
        self.compressed = compress(self.gm, {n: s.name for n, s in plain.items()}, values, steps)
        self.params.update(self.compressed.constants)
        for stage in self.compressed.stages:
            self.known.update(stage.rewritten.known)
        self.notes += self.compressed.notes

    # -- what goes where --------------------------------------------------------------------------------------------
    def _reason(self, node: Node) -> str | None:
        """Why ATen must run the node; None where effc may."""
        if node in self.excluded:
            return self.excluded[node]
        if node not in self.reasons:
            chooses = self.owner.options.fallback == "eager" and _is_on_cpu(node)  # where those were measured
            slower = faster_in_aten(node) if chooses else None
            self.reasons[node] = (
                _NOTHING_TO_COMPUTE if _is_empty(node) else self.owner.devices.reason(node) or slower or supported(node)
            )
        return self.reasons[node]

    def _fallbacks(self, divided: Partition) -> list[Fallback]:
        return [
            Fallback(op_name(n), source_of(n), self._reason(n) or _NOTHING_TO_COMPUTE, flops_of([n]))
            for n in divided.order
            if isinstance(n, Node) and n.op == "call_function" and not is_scalar(n) and "getitem" not in op_name(n)
            if not (is_view(n) and self._reason(n) is None)
        ]

    # -- regions ----------------------------------------------------------------------------------------------------
    def _compile_groups(self, divided: Partition) -> dict[int, CompiledGroup] | None:
        """All regions, or None where an op or a region was excluded and the graph must be divided anew."""
        self.facts.regions.clear()
        self.programs.clear()
        self.kept.clear()
        compiled: dict[int, CompiledGroup] = {}
        excluded = len(self.excluded)
        for number, group in enumerate(divided.groups):
            try:
                compiled[number] = self._compile_group(f"region_{number}", group)
            except (LoweringError, UnsupportedError) as error:
                self._exclude(group, error)
                return None
        return compiled if len(self.excluded) == excluded else None

    def _compile_group(self, name: str, group: Group) -> CompiledGroup:
        region = self._import(name, group)
        self.dump.write(f"{name}.mlir", lambda: region.text)
        built = self._build(region, group.device)
        if group.device is not None and group.device.type != "cpu":
            guard_convolutions(group.nodes)
            if self.owner.options.fallback == "eager":
                self._give_up_slower(group, cast("GpuBuilt", built), _hints(region))
        program, hints = built.executable.program, _hints(region)
        self.programs.append((program, hints))
        kernels = [_kernel_facts(program, call, hints) for call in program.calls]
        ops = sum(1 for n in group.nodes if not is_view(n))
        self.facts.regions.append(RegionFacts(name, ops, flops_of(group.nodes), kernels, built.report.from_cache))
        validates = self._must_validate(region)
        call = caller(built.executable, validates)
        if self.owner.options.check:
            on_cpu = group.device is None or group.device.type == "cpu"
            stepwise = cast("Executable", built.executable) if on_cpu else None
            call = checked(call if on_cpu else waiting(call, built.executable), stepwise, name, group, region)
        return CompiledGroup(group, region, built, call, validates)

    def _import(self, name: str, group: Group) -> Region:
        with self.facts.phase("import"):
            return import_region(
                group.nodes,
                list(dict.fromkeys([*group.inputs, *self.symints])),
                group.outputs,
                params=self.params,
                mutations=group.mutations,
                name=name,
                known=self.known,
            )

    def _build(self, region: Region, device: torch.device | None) -> Built | GpuBuilt:
        key = region.text, device
        if key not in self.built:
            with unset_fake_temporarily():  # building makes real tensors
                self.built[key] = built = self.owner.devices.build(region.text, device)
                self.notes += built.executable.notes
            for phase, seconds in built.report.seconds.items():
                self.facts.phases[phase] = self.facts.phases.get(phase, 0.0) + seconds
        return self.built[key]

    def _give_up_slower(self, group: Group, built: GpuBuilt, sizes: Mapping[str, int]) -> None:
        """Exclude the products and the attention that ATen runs faster."""
        from effc.compiler.capture.rivals import aten_op, products, sentence

        for product in products(group, built.executable.program, sizes):
            with unset_fake_temporarily():
                verdict = self.owner.devices.judged(built, product.call, aten_op(product, sizes))
            told = sentence(product.nodes[0], verdict, sizes)
            if not verdict.is_ours:
                self.excluded.update(dict.fromkeys(product.nodes, f"ATen is faster: {told}"))
            elif verdict.measured:
                self.kept.append(f"effc's kernel is kept: {told}")

    def _must_validate(self, region: Region) -> bool:
        """Whether an input's strides may differ from FakeTensor's: ATen made it, now or in the forward graph."""
        return self.facts.kind == "backward" or any(from_aten(n) for n in region.inputs)

    def _exclude(self, group: Group, error: LoweringError | UnsupportedError) -> None:
        """Give to ATen what the refusal of ``group`` is about: the named op, or the smallest part refused, or all of it."""
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        computing = [n for n in group.nodes if not is_view(n)]
        # an item of several results goes where the op that gives them goes
        culprits = [_producer(n) for n in computing if f"({n.name})" in reason]
        if not culprits and self.searches > 0 and _HANG not in reason:
            self.searches -= 1
            with self.facts.phase("search"):
                culprits = smallest_refused(group, self._is_refused)
        kinds = {alike(n) for n in culprits}
        repeated = [n for n in computing if alike(n) in kinds] if kinds else computing
        self.excluded.update(dict.fromkeys(repeated, reason))

    def _is_refused(self, part: Group) -> bool:
        try:
            self._build(self._import("part", part), part.device)
        except (LoweringError, UnsupportedError):
            return True
        return False


def _is_on_cpu(node: Node) -> bool:
    device = device_of(node)
    return device is None or device.type == "cpu"


def _producer(node: Node) -> Node:
    return node.all_input_nodes[0] if node.target is operator.getitem else node


def _refuse(fallbacks: Sequence[Fallback]) -> None:
    """UnsupportedError that names what effc does not compile, if there is such an op."""
    refused = [f for f in fallbacks if f.reason != _NOTHING_TO_COMPUTE]
    if not refused:
        return
    listed = "\n".join(f"  {f.op} at {f.source.describe()}: {f.reason}" for f in refused[:10])
    more = f"\n  and {len(refused) - 10} more" if len(refused) > 10 else ""
    raise UnsupportedError(
        f"effc does not compile {len(refused)} op{'s' if len(refused) > 1 else ''} of this graph:\n{listed}{more}\n"
        "Leave out the option fallback='error' to let ATen run them."
    )


def _is_empty(node: Node) -> bool:
    """Whether the op reads or makes a tensor without elements, whatever the symbolic sizes."""
    values = [n.meta.get("val") for n in (node, *node.all_input_nodes)]
    return any(isinstance(v, torch.Tensor) and any(isinstance(s, int) and s == 0 for s in v.shape) for v in values)


def _hints(region: Region) -> dict[str, int]:
    """The value of each symbol in the example."""
    return {s: _hint(source.node, source.dim) for s, source in zip(region.symbols, region.symbol_sources, strict=True)}


def _kernel_facts(program: Program, call: Call, hints: Mapping[str, int]) -> KernelFacts:
    return KernelFacts(call.name, call.location, program.kernels[call.kernel].template, call.flops.evaluate(hints))


def _hint(node: Node, dim: int | None) -> int:
    value = node.meta["val"] if dim is None else node.meta["val"].shape[dim]
    return optimization_hint(value, fallback=1)
