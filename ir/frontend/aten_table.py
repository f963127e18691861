"""The ATen table: every overload that the algebra says, by name."""

from __future__ import annotations

from autosched.ir.frontend import aten_blocks, aten_elementwise, aten_movement, aten_reduction
from autosched.ir.frontend.aten import SINCE
from autosched.ir.frontend.call import Call, Row
from autosched.ir.frontend.tensor import Tensor

SAME = "same"  # a value under another name


def _same(call: Call) -> Tensor:
    return call.x()


_MODULES = (aten_elementwise, aten_movement, aten_reduction, aten_blocks)
TABLE: dict[str, Row] = {
    SAME: Row(SAME, (SINCE,), _same),
    **{row.op: row for module in _MODULES for row in module.ROWS},
}
