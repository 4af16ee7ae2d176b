"""What a GPU kernel is compiled for, and what of its resources a schedule may ask for."""

from __future__ import annotations

import re
from dataclasses import dataclass

from effc.compiler.codegen.gpu.hardware import CAPABILITIES, FIRST_DESCRIBED, OLDEST, Hardware, hardware
from effc.compiler.ir.spec import CONVOLUTION, KernelSpec


@dataclass(frozen=True)
class GpuTarget:
    """``capability``: 80 for sm_80. ``processors``: streaming multiprocessors (SMs).

    ``tf32``: whether matrix products of float32 may round their factors to TF32, as ``torch.backends.cuda.matmul.allow_tf32`` says; else
    they are exact. ``tf32_convolutions``: whether convolutions may, as ``torch.backends.cudnn.allow_tf32`` says. ``descriptors``: whether
    kernels may copy tiles by descriptors: the hardware has them, and the installed triton reads them in the form that effc writes.
    """

    capability: int
    processors: int
    tf32: bool = False
    tf32_convolutions: bool = False
    descriptors: bool = False

    @staticmethod
    def named(name: str) -> GpuTarget:
        """``"sm_80"``, ``"sm_90"``, …, with the processors of the largest GPU of the kind, ``"sm_90+tma"`` with descriptors; ValueError: no
        such target, too old, or without the descriptors that are asked for.
        """
        found = re.fullmatch(r"sm_(\d+)(\+tma)?", name)
        capability = int(found[1]) if found else 0
        if capability < OLDEST:
            known = ", ".join(f"sm_{c}" for c in CAPABILITIES)
            raise ValueError(f"unknown GPU target {name!r}: there are sm_{OLDEST} and newer ({known})")
        if found and found[2] and capability < FIRST_DESCRIBED:
            raise ValueError(f"GPU target {name!r}: copies by descriptors (TMA) begin with sm_{FIRST_DESCRIBED}")
        return GpuTarget(capability, hardware(capability).processors, descriptors=bool(found and found[2]))

    @property
    def name(self) -> str:
        """What `named` takes, which knows nothing of the device's own processors and torch's settings."""
        return f"sm_{self.capability}{'+tma' if self.descriptors else ''}"

    @property
    def hardware(self) -> Hardware:
        """What such GPUs have."""
        return hardware(self.capability)

    @property
    def shared_bytes(self) -> int:
        """Shared memory that one block of threads may have."""
        return self.hardware.block_shared << 10

    @property
    def has_wgmma(self) -> bool:
        """Whether four warps multiply together, from shared memory."""
        return self.hardware.tensor_cores == "wgmma"

    @property
    def key(self) -> str:
        """Text that equal targets share, for cache keys."""
        described = "/tma" if self.descriptors else ""
        products, convolutions = ("tf32" if rounds else "ieee" for rounds in (self.tf32, self.tf32_convolutions))
        return f"sm_{self.capability}/{self.processors}/{products}/{convolutions}{described}"

    def rounds(self, spec: KernelSpec) -> bool:
        """Whether factors of float32 in ``spec`` may be rounded to TF32."""
        return self.tf32_convolutions if spec.get(CONVOLUTION) else self.tf32

    def arithmetic(self, spec: KernelSpec, dtype: str) -> str:
        """As what factors of ``dtype`` in ``spec`` are multiplied (`Hardware.rate`)."""
        return "tf32" if dtype == "f32" and self.rounds(spec) else dtype
