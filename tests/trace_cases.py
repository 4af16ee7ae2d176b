"""A machine and a record of traces that tests vary."""

from __future__ import annotations

import json
from datetime import UTC, datetime

from effc.costmodel.hardware import Hardware, Speed
from effc.costmodel.traces import Code, Trace

MACHINE = Hardware(
    "host/64/", "a cpu", ("avx512f",), 64, 2, 1 << 15, 1 << 20, 0, Speed(1e11, 1e10), Speed(6e10, 8e9), (2e11, 1e11, 4e10), True
)  # fmt: skip
SPEC = json.dumps(
    {
        "template": "loops",
        "dims": [],
        "operands": [],
        "body": [],
        "symbols": ["n"],
        "attributes": {},
        "schedule": {"mr": 6},
    }
)
TRACE = Trace(
    computation="0123", family="linear", subject="linear/1x2x3 float32", op="linear+relu", spec=SPEC, own_choice=True,
    symbols=(7,), threads=2, median=2e-5, low=1.9e-5, high=2.2e-5, least=1.8e-5, rounds=9, contaminated=2, calls=20,
    when=datetime(2026, 5, 1, 12, 30, tzinfo=UTC), code=Code(1000, 6000, 2, 3, 0.5),
)  # fmt: skip
