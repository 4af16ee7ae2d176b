"""Plans in files: one archive each, with the compressed weights in it."""

from __future__ import annotations

import os
from dataclasses import fields

from effc.compiler.ir import plan as ir
from effc.compiler.ir.errors import ArtifactError
from effc.planning.weights import Tensors, decoded, encoded
from effc.runtime import archive

KIND = "plan 5"


class Plan(ir.Plan):
    """See ``effc.compiler.ir.plan``; this one can be kept in a file."""

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the plan; a file that is there is replaced in one step."""
        tensors = Tensors()
        weights = {name: encoded(weight, tensors) for name, weight in self.weights.items()}
        archive.write(path, KIND, {"plan": self.to_json(), "weights": weights}, tensors.listed)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Plan:
        """What ``save`` wrote. ArtifactError: unreadable, truncated, edited, or of another version."""
        return load_plan(path)


def plan_of(plan: ir.Plan) -> Plan:
    """The same plan, as one that can be kept."""
    return Plan(**{f.name: getattr(plan, f.name) for f in fields(plan)})


def load_plan(path: str | os.PathLike[str]) -> Plan:
    """The plan in a file; see `Plan.load`."""
    found = archive.read(path, KIND)
    try:
        weights = {name: decoded(data, found.tensors) for name, data in found.values["weights"].items()}
        return plan_of(ir.Plan.from_json(found.values["plan"], weights))
    except (KeyError, TypeError, ValueError, IndexError) as err:
        raise ArtifactError(f"the plan {path} does not hold what a plan holds ({err!r})") from err
