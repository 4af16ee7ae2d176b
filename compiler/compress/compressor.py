"""Compressing the weights of a captured graph, by options or by a plan."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch.fx import GraphModule, Node

from effc.compiler.capture.nodes import drop_unread
from effc.compiler.compress.channels.arranged import Arranged
from effc.compiler.compress.channels.by_channel import Removal
from effc.compiler.compress.channels.removed import Removed
from effc.compiler.compress.form import Form
from effc.compiler.compress.masked import Masked, fold_masks
from effc.compiler.compress.rewrite import Rewriter, Rewritten
from effc.compiler.compress.sites import WeightSite, find_sites, root_of
from effc.compiler.compress.stored import StoredWeight
from effc.compiler.ir.calibration import Calibration

#: A calibration of a model, given that of the model before a step.
Narrow = Callable[[Calibration], Calibration]
#: Sites that read one activation, which their forms may share something of.
Groups = Sequence[Sequence[WeightSite]]


class Forms(Protocol):
    """Where compressed weights come from, all of one kind."""

    @property
    def rewriter(self) -> type[Rewriter]:
        """What writes that kind."""
        ...

    def refusal(self, site: WeightSite, weight: torch.Tensor) -> str:
        """Why the site's weight stays as it is, or ``""``."""
        ...

    def of(self, groups: Groups, weights: Mapping[str, torch.Tensor]) -> Mapping[str, StoredWeight[Form]]:
        """The compressed ``weights``, by name; of the same shapes for new values of a weight. Without those that gain nothing."""
        ...

    def summary(self, taken: Sequence[WeightSite]) -> str:
        """For the report."""
        ...

    def narrowed(self, narrow: Narrow) -> Forms:
        """The same for a graph that earlier steps have changed, so that its calibration is another; what has been chosen for weights holds
        for both.
        """
        ...


#: What a graph goes through, one after the other.
Step = Forms | Removal


@dataclass(frozen=True)
class Stage:
    """One kind of compression, ``forms``, of a graph: ``groups`` of its sites, and ``weights`` by name. ``forms`` know of the channels that
    have gone before, and not of what meets the parts that earlier stages have left: see `knowing`.
    """

    forms: Forms
    groups: Groups
    weights: Mapping[str, StoredWeight[Form]]
    rewritten: Rewritten

    @property
    def sites(self) -> list[WeightSite]:
        return [site for group in self.groups for site in group]


@dataclass(frozen=True)
class Compressed:
    """A graph's compression, ``stages`` in order, each of what those before have left: ``values`` of the graph's parameters; ``masked``:
    products of these that became constants first; ``removed``: what is left of both where channels went then, or were put in another order;
    ``notes``: for the report.
    """

    values: Mapping[Node, torch.Tensor]
    masked: Sequence[Masked]
    removed: Sequence[Removed | Arranged]
    stages: Sequence[Stage]
    notes: Sequence[str]

    @property
    def sources(self) -> list[Node]:
        """The parameters that the compressed forms were made from."""
        weights = [source for removed in self.removed for source in removed.sources]
        weights += [site.param for stage in self.stages for site in stage.sites]
        weights = [param for param in weights if param in self.values]
        return list(dict.fromkeys([*(factor for m in self.masked for factor in m.factors), *weights]))

    @property
    def tensors(self) -> dict[Node, torch.Tensor]:
        """Of the parameters, and of all constants that a stage found or made."""
        found = dict(self.values) | {m.node: m.tensor for m in self.masked}
        for removed in self.removed:
            found |= removed.tensors
        for stage in self.stages:
            found |= {node: stage.rewritten.tensors[name] for node, name in stage.rewritten.constants.items()}
        return found

    @property
    def constants(self) -> dict[Node, str]:
        """What the graph holds in their place, by name."""
        made = {node: name for stage in self.stages for node, name in stage.rewritten.constants.items()}
        first = {m.node: m.name for m in self.masked}
        for removed in self.removed:
            first |= removed.names
        return {node: name for node, name in (first | made).items() if node.users}

    def renew(self, tensors: Sequence[torch.Tensor]) -> str:
        """Compress ``tensors``, new values of ``sources``, into the constants that the graph holds; why that cannot be, or ``""``."""
        values = on_cpu(dict(zip(self.sources, tensors, strict=True)))
        found = [(m.tensor, m.of(values)) for m in self.masked]
        values |= {m.node: product for m, (_, product) in zip(self.masked, found, strict=True)}
        for removed in self.removed:
            if refused := removed.refusal(values):
                return refused
            made = removed.of(values)
            found += [(removed.tensors[node], tensor) for node, tensor in made.items()]
            values |= made
        known: list[Narrow] = []
        for stage in self.stages:
            source = _after(known, stage.forms)
            refused = next((r for s in stage.sites if (r := source.refusal(s, values[s.param]))), "")
            if refused:
                return refused
            forms = source.of(stage.groups, {s.name: values[s.param] for s in stage.sites})
            moved = next((n for n, w in forms.items() if w.range != stage.weights[n].range), None)
            if moved is not None:
                return f"what meets {moved} has another range for it: compile the model again"
            known.append(knowing(forms))
            parts = {f"{name}:{role}": t for name, w in forms.items() for role, t in w.form.parts().items()}
            for node, name in stage.rewritten.constants.items():
                held = stage.rewritten.tensors[name]
                if name not in parts or parts[name].shape != held.shape:
                    return f"{name} has another shape for it: compile the model again"
                values[node] = parts[name]
                found.append((held, parts[name]))
        for held, tensor in found:
            held.copy_(tensor)
        return ""


def compress(
    gm: GraphModule, params: Mapping[Node, str], values: Mapping[Node, torch.Tensor], steps: Sequence[Step]
) -> Compressed:
    """Rewrite ``gm`` in place. ``params``: its inputs that are parameters, by name; ``values``: their tensors. Whatever device these are
    on, forms are made on the CPU, and the graph holds them where the parameters are.

    OptionError: a weight that cannot be compressed (NaN, or groups that do not divide it), or a calibration that is not its model's.
    """
    made: list[Stage] = []
    known: list[Narrow] = []
    removals: list[Removed | Arranged] = []
    notes: dict[str, None] = {}  # in order, each once: what one stage leaves out, the next may too
    tensors = on_cpu(values)
    masked = fold_masks(gm, params, tensors)
    factors = {factor for m in masked for factor in m.factors}
    names = {n: name for n, name in params.items() if n not in factors} | {m.node: m.name for m in masked}
    tensors |= on_cpu({m.node: m.tensor for m in masked})
    for step in steps:
        if isinstance(step, Removal):
            removed = step.remove(gm, names, tensors)
            drop_unread(gm.graph)
            removals.append(removed)
            notes |= dict.fromkeys(removed.notes)
            names = {n: name for n, name in names.items() if n.op == "get_attr" or n.users} | removed.names
            tensors |= on_cpu(removed.tensors)
        else:
            forms = step
            for removed in removals:
                forms = forms.narrowed(removed.narrowed)
            stage, kept = _stage(gm, names, tensors, forms, known)
            made.append(stage)
            known.append(knowing(stage.weights))
            notes[forms.summary(stage.sites)] = None
            notes |= {f"{name} stays as it is: {reason}": None for name, reason in kept.items() if reason}
            names |= stage.rewritten.constants
            tensors |= on_cpu({n: stage.rewritten.tensors[name] for n, name in stage.rewritten.constants.items()})
        for node in [
            n for n in names if n.op == "get_attr" and not n.users
        ]:  # one step made it, another has replaced it
            delattr(gm, str(node.target))
            del names[node]
    return Compressed(values, masked, removals, made, list(notes))


def on_cpu(tensors: Mapping[Node, torch.Tensor]) -> dict[Node, torch.Tensor]:
    """Those that are there as they are, copies of the others."""
    return {node: t if t.device.type == "cpu" else t.detach().cpu() for node, t in tensors.items()}


def _stage(
    gm: GraphModule,
    names: Mapping[Node, str],
    values: Mapping[Node, torch.Tensor],
    forms: Forms,
    known: Sequence[Narrow],
) -> tuple[Stage, Mapping[str, str]]:
    """Compress what ``forms``, of a calibration in which the rest is ``known``, fit; and why the rest stays."""
    source = _after(known, forms)
    sites, kept = find_sites(names)
    taken = []
    for site in sites:
        reason = source.refusal(site, values[site.param])
        if reason:
            kept[site.name] = reason
        else:
            taken.append(site)
    together = _together(taken)
    weights = source.of(together, {site.name: values[site.param] for site in taken})
    kept |= {site.name: "no form of it gains anything" for site in taken if site.name not in weights}
    groups = [g for group in together if (g := [site for site in group if site.name in weights])]
    rewriter = forms.rewriter(gm)
    for group in groups:
        for site in group:
            rewriter.write(site, weights[site.name])
    drop_unread(gm.graph)
    return Stage(forms, groups, weights, rewriter.made), kept


def knowing(weights: Mapping[str, StoredWeight[Form]]) -> Narrow:
    """A calibration that has also seen what meets the parts of ``weights``, by name."""

    def more(calibration: Calibration) -> Calibration:
        found = dict(calibration.sites)
        for name, stored in weights.items():
            if name in calibration.sites:
                met = stored.form.met(calibration.sites[name])
                found |= {f"{name}:{role}": statistics for role, statistics in met.items()}
        return replace(calibration, sites=found)

    return more


def _after(known: Sequence[Narrow], forms: Forms) -> Forms:
    """``forms`` behind stages that make this ``known``."""
    for more in known:
        forms = forms.narrowed(more)
    return forms


def _together(taken: Sequence[WeightSite]) -> list[list[WeightSite]]:
    """Sites that read one activation, and nothing else, stand together."""
    groups: dict[object, list[WeightSite]] = {}
    for site in taken:
        linear = [use for use in site.uses if use.kind == "linear"]
        alone = len(site.uses) != 1 or len(linear) != 1
        groups.setdefault(site.name if alone else root_of(linear[0].activation, site.width), []).append(site)
    return list(groups.values())
