"""The entry point for ``torch.compile(model, backend="effc")``."""

from __future__ import annotations

import platform
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from typing import Any

import torch
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.partitioners import min_cut_rematerialization_partition
from torch.fx import GraphModule

from effc.compiler.capture.decompositions import decompositions
from effc.compiler.capture.devices import Build, BuildOnGpus
from effc.compiler.capture.graph import GraphCompiler
from effc.compiler.capture.owner import Owner, owned_names, running
from effc.compiler.capture.planned import code_options
from effc.compiler.capture.repeated import left_whole, take_apart
from effc.compiler.compress.forms import steps_of
from effc.compiler.ir.errors import OptionError
from effc.compiler.ir.options import Options, suggest

#: The boxed function of an ATen graph, of its kind (``inference``, ``forward`` or ``backward``) and its inputs.
CompileGraph = Callable[[GraphModule, str, Sequence[Any]], Callable[..., Any]]


def effc(
    gm: GraphModule,
    example_inputs: list[Any],
    *,
    options: Options | Mapping[str, Any] | None = None,
    mode: str | None = None,
    **unknown: Any,
) -> Callable[..., Any]:
    """Compile a graph of Dynamo's. OptionError: an option, a value or a mode that effc does not take."""
    if unknown:
        name = next(iter(unknown))
        raise OptionError(
            f"torch.compile handed effc an unknown argument '{name}'; {suggest(name, ('options', 'mode'))}"
        )
    return compile_with(gm, example_inputs, Options.of(options, mode), partial(_started_ahead, gm))


def compile_with(
    gm: GraphModule,
    example_inputs: list[Any],
    options: Options,
    builder: Callable[[Options], Build],
    gpus: Callable[[], BuildOnGpus] | None = None,
    owner: Owner | None = None,
) -> Callable[..., Any]:
    """Compile, ``builder(options)`` making executables of regions, of those on GPUs ``gpus()``, by default effc's; without a native path
    the graph runs in eager. ``owner``: of the parameters, by default the module whose compiled call is running.

    CacheError: the cache directory that the user named cannot be used.
    """
    if not native():
        return in_eager(gm)
    names, shared = owned_names(gm, example_inputs, owner or running())
    compiler = GraphCompiler(names, options, builder(options), example_inputs, steps_of(options), gpus, shared)
    return through_aot(gm, example_inputs, compiler.compile)


def through_aot(gm: GraphModule, example_inputs: list[Any], compile_graph: CompileGraph) -> Callable[..., Any]:
    """A graph of Dynamo's through AOTAutograd, whose graphs ``compile_graph`` compiles."""
    table = decompositions()

    def stage(kind: str) -> Callable[[GraphModule, Any], Callable[..., Any]]:
        def compiled(graph: GraphModule, inputs: Any) -> Callable[..., Any]:
            take_apart(
                graph.graph, table
            )  # a model may switch gradients on itself: then its forward graph has such ops
            return compile_graph(graph, kind, inputs)

        return compiled

    compiled: Callable[..., Any] = aot_autograd(
        fw_compiler=stage("forward"),
        bw_compiler=stage("backward"),
        inference_compiler=stage("inference"),
        decompositions=table if torch.is_grad_enabled() else left_whole(table),
        partition_fn=partial(min_cut_rematerialization_partition, compiler="effc"),
        keep_inference_input_mutations=True,
    )(gm, example_inputs)
    return compiled


def native() -> bool:
    """Whether effc emits machine code for this machine: Linux on x86-64."""
    return sys.platform == "linux" and platform.machine() in ("x86_64", "AMD64")


def in_eager(gm: GraphModule) -> Callable[..., Any]:
    """The graph as it is, with a warning."""
    _warn_eager()
    return gm.forward


@lru_cache(maxsize=1)
def _warn_eager() -> None:
    warnings.warn(
        f"effc compiles for Linux on x86-64; on {sys.platform} {platform.machine()} models run in eager", stacklevel=2
    )


def _started_ahead(gm: GraphModule, options: Options) -> Build:
    """`builder`, for whose requests the processes may start now. ``gm``: Dynamo's graph."""
    from effc.compiler.capture.ahead import start_ahead
    from effc.runtime.cache import Cache

    start_ahead(gm, code_options(options), Cache(options.cache_dir))
    return builder(options)


def builder(options: Options) -> Build:
    """Makes executables of regions' graph IR for the CPU, through the caches."""
    from effc.compiler.build import Built, build
    from effc.runtime.cache import Cache

    cache, code = Cache(options.cache_dir), code_options(options)

    def make(text: str) -> Built:
        return build(text, options=code, cache=cache)

    if options.trace is None:
        return make
    from effc.tracing import traced

    return traced(make, options)
