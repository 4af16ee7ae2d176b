from effc.compiler.codegen.cpu.contraction.roles import find
from effc.compiler.codegen.cpu.target import Target
from effc.compiler.ir.spec import KernelSpec, Schedule


def default_schedule(spec: KernelSpec, target: Target) -> Schedule:
    nest = find(spec)
    if nest.column is None:
        return Schedule((("mr", 6), ("nr", 1), ("unroll", 4)))
    return Schedule((("mr", 6), ("nr", 64), ("unroll", 4)))
