"""The linker: what it makes loads and runs, what it cannot handle it refuses."""

from __future__ import annotations

import ctypes
import struct
from pathlib import Path

import numpy as np
import pytest

from autosched.codegen import tvm_api as t
from autosched.codegen.link import LinkError, link
from autosched.ir.target import X86_LEVELS

WHERE = ("x86_64", X86_LEVELS["x86-64-v3"])


def copier() -> object:
    """Loops that LLVM turns into memcpy and memset."""
    a, b, n = t.parameter("a", "float32"), t.parameter("b", "float32"), t.var("n")
    i, j = t.var("i"), t.var("j")
    copy = t.loop(i, n, t.store(b, i, t.load(a, i)))
    return t.function("copy", [a, b, n], t.seq(copy, t.loop(j, n, t.store(a, j, 0.0))))


def scaler(name: str, factor: float) -> object:
    """A parallel loop (launch slot through the GOT) with a constant from memory."""
    a, n, i = t.parameter("a", "float32"), t.var("n"), t.var("i")
    body = t.store(a, i, t.mul(t.load(a, i), factor))
    return t.function(name, [a, n], t.loop(i, n, body, "parallel"))


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("object") / "k.o"
    functions = [copier(), scaler("twice", 2.5), scaler("thrice", 3.5)]
    t.codegen(functions, t.target(*WHERE)).write_to_file(str(path), "o")
    return path.read_bytes()


def test_library_runs(image: bytes, tmp_path: Path) -> None:
    path = tmp_path / "k.so"
    path.write_bytes(link(image))
    library = ctypes.CDLL(str(path))
    a = np.arange(100, dtype=np.float32)
    b = np.zeros_like(a)
    assert library.copy(ctypes.c_void_p(a.ctypes.data), ctypes.c_void_p(b.ctypes.data), 60) == 0
    np.testing.assert_array_equal(b, np.r_[np.arange(60), np.zeros(40)])
    np.testing.assert_array_equal(a, np.r_[np.zeros(60), np.arange(60, 100)])

    calls = []
    kind = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int)
    launch = kind(lambda task, data, count: calls.append(count) or 0)
    slot = ctypes.c_void_p.in_dll(library, t.LAUNCH_SLOT)
    assert slot.value is None
    slot.value = ctypes.cast(launch, ctypes.c_void_p).value
    assert library.twice(ctypes.c_void_p(a.ctypes.data), 10) == 0
    assert library.thrice(ctypes.c_void_p(a.ctypes.data), 10) == 0
    assert calls == [0, 0], "0 asks for as many tasks as there are threads"


def test_only_kernels_are_exported(image: bytes, tmp_path: Path) -> None:
    path = tmp_path / "k.so"
    path.write_bytes(link(image))
    library = ctypes.CDLL(str(path))
    assert not hasattr(library, "__truncsfhf2")
    with pytest.raises(AttributeError):
        _ = library.missing


def test_same_bytes_twice(image: bytes) -> None:
    assert link(image) == link(image)


def test_refuses_what_is_no_object(image: bytes) -> None:
    for bad in (b"", b"MZ" + bytes(100), image[:3] + b"\0" + image[4:]):
        with pytest.raises(LinkError, match="not a relocatable"):
            link(bad)
    arm = image[:18] + struct.pack("<H", 183) + image[20:]
    with pytest.raises(LinkError, match="not a relocatable"):
        link(arm)


def test_refuses_unknown_relocations(image: bytes) -> None:
    """Type 37 (IRELATIVE) in place of the GOT load of the launch slot."""
    (table,) = struct.unpack_from("<Q", image, 40)
    (count,) = struct.unpack_from("<H", image, 60)
    for n in range(count):
        _, kind, _, _, offset, size, *_ = struct.unpack_from("<IIQQQQ", image, table + 64 * n)
        for at in range(offset, offset + size, 24) if kind == 4 else ():
            (info,) = struct.unpack_from("<Q", image, at + 8)
            if info & 0xFFFFFFFF in (9, 41, 42):
                changed = bytearray(image)
                struct.pack_into("<Q", changed, at + 8, info & ~0xFFFFFFFF | 37)
                with pytest.raises(LinkError, match="relocation of type 37 in"):
                    link(bytes(changed))
                return
    pytest.fail("no GOT relocation in the object")
