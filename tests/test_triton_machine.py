"""Registers that machine code reads before anything has written them."""

from __future__ import annotations

from pathlib import Path

import pytest
from split_programs import act, decode

from autosched.codegen.triton import Header, emit
from autosched.codegen.triton_build import MiscompiledError, build
from autosched.codegen.triton_entry import Build
from autosched.codegen.triton_machine import Instruction, machine_fault_of, reads, writes
from autosched.codegen.triton_spec import TritonModule
from autosched.ir.node import Program
from autosched.ir.schedule import run_actions
from autosched.ir.target import parse_target

TARGET = parse_target("sm_90")


def listing(*lines: str) -> str:
    """As nvdisasm writes it; a line that ends in a colon is a label."""
    return "\n".join(
        line if line.endswith(":") else f"        /*{16 * n:04x}*/    {line} ;"
        for n, line in enumerate(lines)
    )


SOUND = {
    "written before": ("UMOV UR4, 0x400", "UIADD3 UR5, UP0, UR4, 0x20, URZ", "EXIT"),
    "both words": ("ULDC.64 UR4, c[0x0][0x210]", "UIMAD.WIDE UR6, UR5, 0x2, UR4",
                   "IMAD.U32 R2, RZ, RZ, UR7", "EXIT"),
    "under a predicate": ("@!UP0 UIADD3 UR8, -URZ, 0x1, URZ", "@!UP1 SYNCS.EXCH.64 URZ, [UR8], URZ",
                          "EXIT"),
    "behind other results": ("ELECT P1, UR4, PT", "R2UR.OR P0, UR6, R4", "MOV R1, UR4",
                             "MOV R1, UR6", "EXIT"),
    "on one path": ("@P0 BRA `(.L_x_0)", "UMOV UR4, URZ", ".L_x_0:", "MOV R1, UR4", "EXIT"),
    "in the turn before": (".L_x_0:", "@P0 MOV R1, UR4", "S2UR UR4, SR_CTAID.X",
                           "@P1 BRA `(.L_x_0)", "EXIT"),
    "where threads meet": ("BSSY B0, `(.L_x_1)", "UMOV UR4, URZ", "BRA `(.L_x_0)", ".L_x_1:",
                           "MOV R1, UR4", "EXIT", ".L_x_0:", "BSYNC B0"),
    "in a function": ("CALL.REL.NOINC `($f)", "MOV R1, UR4", "EXIT", "$f:", "UMOV UR4, URZ",
                      "RET.REL.NODEC R2 `(kernel)"),
    "a left factor in registers": ("UMOV UR6, URZ", "UMOV UR7, URZ",
                                   "HGMMA.64x16x16.F32.BF16 R96, R132, gdesc[UR4].tnspB, R96",
                                   "EXIT"),
    "nothing": (),
}  # fmt: skip
FAULTY = {
    "never": (("S2R R0, SR_TID.X", "UIADD3 UR14, UP1, UR14, 0x20, URZ", "EXIT"), 14),
    "too late": (("MOV R1, UR4", "UMOV UR4, URZ", "EXIT"), 4),
    "one word of two": (("UMOV UR4, URZ", "UIMAD.WIDE UR6, UR4, 0x2, UR5", "EXIT"), 5),
    "as an address": (("UMOV UR8, URZ", "UTMALDG.2D [UR8], [UR4]", "EXIT"), 4),
    "the other factor": (("ULDC.128 UR8, c[0x0][0x210]", "UMOV UR4, URZ", "UMOV UR5, URZ",
                          "UMOV UR6, URZ", "HGMMA.64x8x16.F32.BF16 R24, gdesc[UR8], R24",
                          "HGMMA.64x8x16.F32.BF16 R24, gdesc[UR4], R24", "EXIT"), 7),
    # The barrier is used again: threads of the first use don't meet behind the second.
    "before a later use of a barrier": (
        ("BSSY B0, `(.L_x_0)", "BSYNC B0", ".L_x_0:", "MOV R1, UR4", "BSSY B0, `(.L_x_1)",
         "UMOV UR4, URZ", "BSYNC B0", ".L_x_1:", "EXIT"), 4),
}  # fmt: skip


@pytest.mark.parametrize("name", SOUND)
def test_what_may_have_been_written_is_sound(name: str) -> None:
    assert machine_fault_of(listing(*SOUND[name])) is None


@pytest.mark.parametrize("name", FAULTY)
def test_what_nothing_has_written_is_a_fault(name: str) -> None:
    lines, register = FAULTY[name]
    assert f"reads register UR{register}, which" in str(machine_fault_of(listing(*lines)))


def test_comparisons_and_copies_have_no_result_in_a_uniform_register() -> None:
    compared = Instruction("UISETP.NE.U32.AND", ("UP1", "UPT", "UR43", "0x2000", "UPT"))
    copied = Instruction("UTMALDG.2D", ("[UR40]", "[UR22]"))
    assert (reads(compared), writes(compared)) == ({43}, set())
    assert (reads(copied), writes(copied)) == ({40, 22}, set())


def test_a_kernel_whose_descriptor_is_left_out_is_refused(tmp_path: Path) -> None:
    """Queries of a group as columns of products, in steps along their rows as well: ptxas forgets
    to make the address of the weights in shared memory. An H200 read where no memory is."""
    assert _built(tmp_path, d=128).kernels[0].spill_bytes == 0
    with pytest.raises(MiscompiledError, match=r"reads register UR\d+, which nothing has written"):
        _built(tmp_path, d=64)


def _built(cache: Path, d: int) -> Build:
    facts = [["warps", 8], ["stages", 3], ["descriptors", 1], ["swap", 1]]
    axes, reduces = [["h", 4, "packed"], ["i", 1], ["e", 0]], [["d", d], ["j", 64]]
    plans = [[axes, reduces, facts]]
    tile = run_actions(decode(32, 8, 1, 8192, 128), [
        act("exp2"), act("tile", keep=[], narrow=True, precision="", plans=plans),
    ])  # fmt: skip
    assert isinstance(tile, Program), tile
    module = emit(tile, Header("decode"))
    assert isinstance(module, TritonModule), module
    return build(module, TARGET, cache)
