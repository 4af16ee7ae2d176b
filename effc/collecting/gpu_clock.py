"""Times of single kernels on a GPU."""

from __future__ import annotations

from effc.collecting.gpu import Reply
from effc.compiler.gpu.alone import alone
from effc.compiler.gpu.build import read_code
from effc.compiler.ir.errors import DeviceError
from effc.compiler.ir.spec import KernelSpec
from effc.runtime.gpu.device import Device
from effc.runtime.guard import Unchanged


class GpuClock:
    """On ``device``. ``unchanged``: the native function that executables are made with."""

    def __init__(self, device: Device, unchanged: Unchanged) -> None:
        self.model, self._device, self._unchanged = device.model, device, unchanged

    def seconds(self, spec: KernelSpec, reply: Reply) -> float | None:
        """Of one call; None: there is no memory for its operands, or the driver refuses it."""
        try:
            times = self._device.elapsed([alone(spec, read_code(reply), self._device, self._unchanged)])
        except (RuntimeError, DeviceError):
            return None
        return times[0] if times is not None else None
