"""TVM's constructors, imported at first use: the only file that imports TVM.

Its module names move between releases; everything else takes them from the namespace `tvm()`.
"""

from __future__ import annotations

import sys
from functools import cache
from types import SimpleNamespace


@cache
def tvm() -> SimpleNamespace:
    """The namespace; torch is hidden from the import, of which it would be half the cost."""
    hidden = "torch" not in sys.modules
    if hidden:
        sys.modules["torch"] = None  # type: ignore[assignment]
    try:
        import tvm as whole
        from tvm import ir, tirx
        from tvm.ir import _ffi_api as base
        from tvm.ir.prim import _ffi_api as prim
        from tvm.target.codegen import llvm_lookup_intrinsic_id
        from tvm.tirx import _ffi_api as tir
    finally:
        if hidden:
            del sys.modules["torch"]
    found = {"tvm": whole, "ir": ir, "tirx": tirx, "base": base, "prim": prim, "tir": tir}
    return SimpleNamespace(**found, intrinsic=llvm_lookup_intrinsic_id)
