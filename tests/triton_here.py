"""For tests that compile GPU code: triton is an extra."""

from __future__ import annotations

import pytest

from effc.compiler.codegen.gpu.installed import triton_version

needs_triton = pytest.mark.skipif(triton_version() is None, reason="triton is not installed: pip install 'effc[gpu]'")
