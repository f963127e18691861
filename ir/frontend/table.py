"""The operator table: every ONNX operator that the algebra says, by name."""

from __future__ import annotations

from autosched.ir.frontend import (
    attention,
    cells,
    contraction,
    elementwise,
    gather,
    movement,
    quantize,
    recurrent,
    reduction,
    resize,
    window,
)
from autosched.ir.frontend.call import Row

OPSETS = range(13, 29)  # versions of the default operator set that the rows were written for

_MODULES = (
    elementwise, reduction, contraction, movement, gather, attention, window, quantize, recurrent,
    cells, resize,
)  # fmt: skip
TABLE: dict[str, Row] = {row.op: row for module in _MODULES for row in module.ROWS}
