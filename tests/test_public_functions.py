"""A package's kernels by public names: operands, packing, dispatch by shape, NumPy and torch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import kernels
import numpy as np
import pytest

from autosched.codegen import tvm_api as t
from autosched.codegen.artifact import Artifact, Kernel, KernelArg, PackSpec
from autosched.codegen.package import write_package
from autosched.codegen.runtime.errors import ChangedFileError, InputError
from autosched.codegen.runtime.package import Package, PublicFunction

X = np.random.default_rng(0).standard_normal((kernels.M, kernels.N), dtype=np.float32)
W = kernels.weight(5)


def twice(rows: int, dtype: str = "float32") -> Kernel:
    """y = x + x over `rows` elements, and its negation; two outputs of one public name."""
    x, y, z = (t.parameter(name, dtype) for name in "xyz")
    i = t.var("i")
    value = t.load(x, i)
    if dtype == "bfloat16":
        value = t.cast(value, "float32")
    total = t.add(value, value)
    minus = t.sub(0, total) if dtype == "int32" else t.mul(total, -1.0)
    stores = t.seq(t.store(y, i, t.cast(total, dtype)), t.store(z, i, t.cast(minus, dtype)))
    symbol = f"twice_{rows}_{dtype}"
    built = t.build([t.function(symbol, [x, y, z], t.loop(i, rows, stores))],
                    t.target("x86_64", kernels.FEATURES))  # fmt: skip
    args = (KernelArg("x", "input", dtype, (rows,)), KernelArg("y", "output", dtype, (rows,)),
            KernelArg("z", "output", dtype, (rows,)))  # fmt: skip
    return kernels.scale_add("serial", key=symbol, public_name="twice", symbol=symbol,
                             library=built, args=args)  # fmt: skip


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Package:
    artifact = Artifact((
        kernels.scale_add("parallel"), kernels.scale_add("serial"), twice(3), twice(4),
        twice(4, "int32"), twice(4, "bfloat16"),
    ))  # fmt: skip
    written = write_package(artifact, tmp_path_factory.mktemp("functions") / "out", "functions")
    return Package(str(written.module))


def function(package: Package, name: str) -> PublicFunction:
    return package.kernel(name, "doc")


@pytest.mark.parametrize("name", ["scale_add_parallel", "scale_add_serial"])
def test_operands_by_position_by_name_and_packed(package: Package, name: str) -> None:
    scale_add = function(package, name)
    want = X * 2 + W
    packed = scale_add.pack(W)
    for result in (
        scale_add(X, W), scale_add(X, w=W), scale_add(w=W, x=X), scale_add(X, packed),
        scale_add(X, w=scale_add.pack(W, "w")), scale_add(np.asfortranarray(X), W[::-1][::-1]),
    ):  # fmt: skip
        assert np.allclose(result, want, 1e-6)


def test_of_several_packed_operands_the_shape_says_which(tmp_path: Path) -> None:
    columns = tuple(KernelArg(f"{name}_packed", "packed", "float32", (5, 10),
                              replace(kernels.PACK, source=name)) for name in "vw")  # fmt: skip
    index = ("add", ("mul", ("axis", 0), ("const", 10)), ("axis", 1))
    long = PackSpec("u", "float32", (100,), (10, 10), (index,))
    args = (*columns, KernelArg("u_packed", "packed", "float32", (10, 10), long),
            KernelArg("y", "output", "float32", (kernels.N,)))  # fmt: skip
    made = kernels.scale_add("serial", args=args)
    written = write_package(Artifact((made,)), tmp_path / "out", "several")
    several = function(Package(str(written.module)), "scale_add_serial")
    assert several.pack(np.zeros(100, np.float32)).operand.name == "u"
    assert several.pack(W, "v").operand.name == "v"
    with pytest.raises(InputError, match="say which operand; it packs u, v, w"):
        several.pack(W)


def test_wrong_operands_are_named(package: Package) -> None:
    scale_add = function(package, "scale_add_serial")
    other = function(package, "scale_add_parallel")
    for args, named, message in (
        ((), {}, "missing: x, w"),
        ((X,), {"x": X}, "missing: w; given twice: x"),
        ((X, W, W), {}, "takes x, w and got 3 operands$"),
        ((X, W), {"bias": W}, "unknown: bias"),
        ((X, W[1:]), {}, r"w is float32\[49\], but float32\[50\]"),
        ((X, other.pack(W)), {}, "packed for another kernel"),
    ):
        with pytest.raises(InputError, match=message):
            scale_add(*args, **named)
    with pytest.raises(InputError, match="no operand 'x'; it packs w"):
        scale_add.pack(X, "x")
    with pytest.raises(InputError, match="packs no operand"):
        function(package, "twice").kernels[0].pack(X)


@pytest.mark.parametrize("x", [np.arange(3, dtype="f4"), np.arange(4, dtype="f4"),
                               np.arange(4, dtype="i4")], ids=str)  # fmt: skip
def test_a_name_dispatches_by_shape_and_dtype(package: Package, x: np.ndarray) -> None:
    y, z = function(package, "twice")(x)
    assert y.dtype == z.dtype == x.dtype
    assert np.array_equal(y, x + x) and np.array_equal(z, -(x + x))


def test_a_shape_without_a_kernel_is_named(package: Package) -> None:
    with pytest.raises(InputError, match=r"no kernel for x float32\[5\]; it has\n  x .*\[3\]"):
        function(package, "twice")(np.zeros(5, np.float32))


def test_torch_in_torch_out(package: Package) -> None:
    torch = pytest.importorskip("torch")
    x, w = torch.from_numpy(X).T.contiguous().T, torch.from_numpy(W).requires_grad_()
    scale_add = function(package, "scale_add_parallel")
    for result in (scale_add(x, w), scale_add(x, scale_add.pack(w)), scale_add(X, w)):
        assert isinstance(result, torch.Tensor)
        assert torch.allclose(result, x * 2 + w)
    y, _ = function(package, "twice")(torch.arange(4, dtype=torch.bfloat16))
    assert y.dtype == torch.bfloat16 and y.tolist() == [0, 2, 4, 6]
    with pytest.raises(InputError, match=r"x is on device meta"):
        scale_add(torch.empty(X.shape, device="meta"), w)


def test_torch_operators_are_kept_whole_by_torch_compile(package: Package) -> None:
    torch = pytest.importorskip("torch")
    x, w = torch.from_numpy(X), torch.from_numpy(W)
    scale_add = function(package, "scale_add_parallel")
    raw, held = scale_add.torch_op(), scale_add.torch_op(w=w)
    torch.library.opcheck(raw, (x, w))
    torch.library.opcheck(held, (x,))
    twice_ = function(package, "twice").torch_op()
    torch.library.opcheck(twice_, (torch.arange(4, dtype=torch.int32),))

    @torch.compile(fullgraph=True, backend="aot_eager")
    def model(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return raw(x, w).relu() + held(x)

    want = x * 2 + w
    assert torch.allclose(model(x, w), want.relu() + want)


def test_plain_calls_are_operators_of_a_compiled_graph(package: Package) -> None:
    """Also where the first use of all is traced, and where operands are named."""
    torch = pytest.importorskip("torch")
    x, w = torch.from_numpy(X), torch.from_numpy(W)
    scale_add, twice_ = function(package, "scale_add_serial"), function(package, "twice")
    for backend in ("eager", "aot_eager"):
        torch._dynamo.reset()

        @torch.compile(fullgraph=True, backend=backend)
        def model(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
            y, z = twice_(x[0, :4])
            return scale_add(x + 1, w=w).relu() + y.sum() + z.sum()

        assert torch.allclose(model(x, w), ((x + 1) * 2 + w).relu(), atol=1e-5)

    class Whole(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return twice_(x + x)[0]

    made = torch.export.export(Whole(), (torch.ones(4),))
    assert "functions.twice" in str(made.graph)
    assert made.module()(torch.ones(4)).tolist() == [4, 4, 4, 4]


def test_operators_have_names_of_their_own_and_no_gradient(package: Package) -> None:
    torch = pytest.importorskip("torch")
    scale_add = function(package, "scale_add_serial")
    names = {str(scale_add.torch_op()) for _ in range(3)}
    assert len(names) == 3 and all(n.startswith("functions.scale_add_serial") for n in names)
    x, w = torch.from_numpy(X).requires_grad_(), torch.from_numpy(W)
    y = scale_add.torch_op()(x, w=w)
    with pytest.raises(RuntimeError, match=r"functions\.scale_add_serial has no gradient"):
        y.sum().backward()
    with pytest.raises(InputError, match="needs an operand that is no constant"):
        scale_add.torch_op(x=x, w=w)


def test_bfloat16_by_ml_dtypes(package: Package) -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    x = np.arange(4).astype(ml_dtypes.bfloat16)
    y, z = function(package, "twice")(x)
    assert y.dtype == x.dtype and y.astype(float).tolist() == [0, 2, 4, 6]
    assert z.astype(float).tolist() == [0, -2, -4, -6]


def test_a_changed_kernel_is_refused(package: Package, tmp_path: Path) -> None:
    written = write_package(Artifact((kernels.scale_add("serial"),)), tmp_path / "out", "one")
    (library,) = written.module.glob("kernels/*.so")
    library.write_bytes(library.read_bytes() + b"\0")
    with pytest.raises(ChangedFileError, match="was changed"):
        Package(str(written.module)).kernel("scale_add_serial", "")(X, W)
