"""Who imports whom, who reads the environment, and the smells that only counting shows.

Everything is read off the syntax trees of all files, so a rule broken anywhere names file and line.
"""

from __future__ import annotations

import ast
import re
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import networkx as nx
import pytest

ROOT = Path(__file__).resolve().parent.parent
# Folder: (our folders it may import, packages from outside). The face and the tools wire all.
LAYERS: dict[str, tuple[set[str], set[str]]] = {
    "ir": ({"ir"}, {"numpy", "networkx", "scipy"}),  # scipy: erf and Latin hypercubes
    "codegen": ({"codegen", "ir"}, {"numpy"}),
    "costmodel": ({"costmodel", "ir"}, {"numpy", "scipy", "sklearn", "lightgbm"}),
    "datasets": ({"datasets", "ir"}, {"numpy", "platformdirs", "psutil", "pyarrow"}),
    "search": ({"search", "ir"}, {"numpy"}),
    "tools": (
        {"tools", "ir", "codegen", "costmodel", "datasets", "search", "autosched"},
        {"numpy", "networkx", "scipy", "psutil", "rich", "onnx", "onnxruntime", "torch"},
    ),
    "autosched": ({"autosched", "tools", "ir", "codegen", "datasets"},
                  {"numpy", "onnx", "rich", "typer"}),
}  # fmt: skip
# Packages that only the files named here may import; everything else reaches them through these.
OWNERS: dict[str, set[str]] = {
    "tvm": {"codegen/tvm_import.py"},
    "tvm_ffi": {"codegen/runtime/native.py", "codegen/tvm_import.py"},
    "onnx": {
        "ir/frontend/onnx.py", "autosched/examples.py", "tools/export_examples.py",
        "tools/subgraph.py", "tools/onnx_cases.py",
    },
    "google": {"ir/frontend/onnx.py"},  # protobuf, for the errors of onnx
    "onnxruntime": {"codegen/runtime/island.py", "tools/peers.py", "tools/sides.py"},
    "torch": {
        "ir/frontend/torch.py", "tools/torch_parts.py", "codegen/runtime/torch_op.py",
        "tools/export_examples.py",
        "tools/peers.py", "tools/gpu_peers.py", "tools/gpu_peers_library.py",
        "tools/gpu_peers_flex.py", "tools/gpu_peers_inductor.py", "tools/gpu_peers_helion.py",
        "tools/gpu_peers_masks.py", "tools/suite_jobs.py", "tools/suite_race.py",
        "codegen/runtime/launch.py", "codegen/cubin.py", "codegen/runtime/gpu.py",
        "codegen/gpu_check.py", "codegen/gpu_jobs.py", "codegen/gpu_task.py",
        "codegen/gpu_arena.py", "codegen/gpu_reference.py",
        "codegen/gpu_timing.py", "codegen/torch_arrays.py", "codegen/torch_gather.py",
        "codegen/torch_types.py", "tools/profile_jobs.py", "tools/triton_interpreter.py",
        "tools/triton_mended.py",
    },
    "iree": {"ir/mlir.py"},
    "helion": {"tools/gpu_peers_helion.py"},
    "triton": {
        "codegen/triton_build.py", "codegen/runtime/gpu.py", "codegen/runtime/launch.py",
        "tools/triton_interpreter.py", "tools/triton_mended.py",
    },
    "ml_dtypes": {
        "ir/arrays.py", "ir/frontend/torch.py", "codegen/runtime/arrays.py", "tools/verify.py",
    },
}
# Heavy or optional: these may be imported where they are needed, inside a function.
# (resource is not there on Windows.)
LAZY = {"tvm", "tvm_ffi", "onnx", "onnxruntime", "torch", "triton", "iree", "ml_dtypes", "scipy",
        "lightgbm", "sklearn", "platformdirs", "pyarrow", "rich",
        "resource"}  # fmt: skip
# Files whose purpose is to load the rest late: a command must not pay for what it does not use.
LAZY_FACES = {"autosched/__init__.py", "autosched/cli.py"}
# Ours inside a function, each for a reason: a node's operators build nodes of the op table, which
# itself is made of nodes, and its key is that of its text. Torch is optional and takes seconds to
# load, so that its importer and its side of a race are loaded for torch models alone.
KNOWN_KNOTS = {
    ("ir/node.py", "autosched.ir.ops"), ("ir/node.py", "autosched.ir.key"),
    ("tools/models.py", "autosched.ir.frontend.torch"),
    ("tools/sides.py", "autosched.tools.torch_parts"),
}  # fmt: skip
# Environment: tools and the packages' runtime may read it. A child inherits its parent's.
ENVIRONMENT = {"codegen/worker_process.py"}
ENVIRONMENT_FOLDERS = ("tools/", "codegen/runtime/")

# Folders in which a kernel family's name would be a template in disguise, and such names.
GENERIC = ("ir/", "codegen/", "costmodel/", "search/")
NOT_GENERIC = ("ir/frontend/", "ir/naming.py")  # importers; names of results, for people
FAMILIES = ("softmax", "attention", "layernorm", "layer_norm", "rmsnorm", "rms_norm", "gelu",
            "swiglu", "rotary", "gemm", "transformer", "flash")  # fmt: skip
# Names of single operators, as words of a name: each is one way too few to say what is meant.
OPERATORS = {
    "attention", "attn", "softmax", "softplus", "sigmoid", "silu", "swish", "gelu", "relu",
    "elu", "mish", "swiglu", "geglu", "layernorm", "rmsnorm", "batchnorm", "groupnorm",
    "instancenorm", "matmul", "gemm", "gemv", "bmm", "einsum", "conv", "conv2",
    "convolution", "pooling", "maxpool", "rotary", "rope", "alibi", "embedding", "dropout",
    "lstm", "gru", "mlp", "moe", "transformer", "flash", "topk", "qkv", "logits",
    "crossentropy", "retention", "mamba",
}  # fmt: skip
# How many there are, for the reason given. The numbers only go down.
OPERATORS_LEFT = {
    "codegen/torch_gather.py": 4,  # einsum of torch, and what calls it
    "codegen/torch_source.py": 1,  # einsum of torch, in generated text
    "codegen/vecmath.py": 3,  # a sigmoid as one formula of vector instructions
    "ir/contract.py": 5,  # matmul of NumPy, and what calls it
    "ir/ops.py": 1,  # a builder of 1 / (1 + exp(-x))
}
LONG_LINES = 400  # of a file; style.md: rarely over
LONG_FILES = 12  # how many there may be: lower it as they are split, never raise it
LONGEST = 650


@dataclass(frozen=True)
class Import:
    line: int
    module: str
    inside: bool  # a function


def files() -> list[str]:
    return sorted(
        str(path.relative_to(ROOT)) for folder in LAYERS for path in (ROOT / folder).rglob("*.py")
    )


@cache
def tree(file: str) -> ast.Module:
    return ast.parse((ROOT / file).read_text(), file)


def module_of(file: str) -> str:
    parts = Path(file).with_suffix("").parts
    name = parts if parts[0] == "autosched" else ("autosched", *parts)
    return ".".join(name[:-1] if name[-1] == "__init__" else name)


@cache
def imports(file: str) -> tuple[Import, ...]:
    name = module_of(file)
    package = name if file.endswith("__init__.py") else name.rpartition(".")[0]
    return tuple(_imports(tree(file), package, inside=False))


def _imports(node: ast.AST, package: str, *, inside: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            continue  # never runs
        if isinstance(child, ast.Import):
            yield from (Import(child.lineno, a.name, inside) for a in child.names)
        elif isinstance(child, ast.ImportFrom):
            yield from _from(child, package, inside)
        elif isinstance(child, ast.Call) and ast.unparse(child.func).endswith("import_module"):
            match child.args:
                case [ast.Constant(value=str(name)), *_] if not name.startswith("."):
                    yield Import(child.lineno, name, True)
        deeper = inside or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        yield from _imports(child, package, inside=deeper)


def _from(node: ast.ImportFrom, package: str, inside: bool) -> Iterator[Import]:
    base = node.module or ""
    if node.level:
        parts = package.split(".")
        base = ".".join([*parts[: len(parts) - node.level + 1], *([base] if base else [])])
    for alias in node.names:
        whole = f"{base}.{alias.name}"
        yield Import(node.lineno, whole if whole in _modules() else base, inside)


@cache
def _modules() -> frozenset[str]:
    return frozenset(module_of(file) for file in files())


def folder_of(module: str) -> str:
    """The folder of one of our modules; "autosched" for the face."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in LAYERS else "autosched"


def said(file: str, line: int, what: str) -> str:
    return f"{file}:{line}: {what}"


# ---- imports -----------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", LAYERS)
def test_folders_import_only_what_they_may(folder):
    ours, outside = LAYERS[folder]
    wrong = []
    for file in files():
        if file.split("/")[0] != folder:
            continue
        for found in imports(file):
            top = found.module.split(".")[0]
            if top == "autosched":
                fine = folder_of(found.module) in ours
            else:
                fine = top in sys.stdlib_module_names or top in outside or file in OWNERS.get(
                    top, ())  # fmt: skip
            if not fine:
                wrong.append(said(file, found.line, f"imports {found.module}"))
    assert not wrong, "\n".join(wrong)


def test_packages_with_an_owner_are_imported_there_only():
    wrong = [
        said(file, found.line, f"imports {found.module}, which belongs to {sorted(owners)}")
        for file in files()
        for found in imports(file)
        if (owners := OWNERS.get(found.module.split(".")[0])) and file not in owners
    ]
    assert not wrong, "\n".join(wrong)


def test_what_packages_carry_imports_nothing_of_ours():
    wrong = [
        said(file, found.line, f"imports {found.module}")
        for file in files()
        if file.startswith("codegen/runtime/")
        for found in imports(file)
        if found.module.startswith("autosched")
        and not found.module.startswith("autosched.codegen.runtime")
    ]
    assert not wrong, "\n".join(wrong)
    absolute = [
        said(file, node.lineno, "names autosched: a package would not find it")
        for file in files()
        if file.startswith("codegen/runtime/")
        for node in ast.walk(tree(file))
        if isinstance(node, ast.ImportFrom) and not node.level and node.module
        and node.module.startswith("autosched")
    ]
    assert not absolute, "\n".join(absolute)


def test_imports_stand_at_the_top_but_for_heavy_and_optional_packages():
    wrong = [
        said(file, found.line, f"imports {found.module} inside a function")
        for file in files()
        for found in imports(file)
        if found.inside
        and found.module.split(".")[0] not in LAZY
        and file not in LAZY_FACES
        and (file, found.module) not in KNOWN_KNOTS
    ]
    assert not wrong, "\n".join(wrong)


def test_no_module_imports_itself_round_a_corner():
    graph = nx.DiGraph()
    for file in files():
        for found in imports(file):
            if not found.inside and found.module in _modules():
                graph.add_edge(module_of(file), found.module)
    # A package that names its own submodules is no cycle of theirs.
    cycles = [c for c in nx.simple_cycles(graph) if len(c) > 1]
    assert not cycles, "\n".join(" -> ".join(c) for c in cycles)


# ---- the environment ---------------------------------------------------------------------------


def test_environment_is_read_by_tools_and_packages_only():
    wrong = [
        said(file, node.lineno, ast.unparse(node))
        for file in files()
        if not file.startswith(ENVIRONMENT_FOLDERS) and file not in ENVIRONMENT
        for node in ast.walk(tree(file))
        if isinstance(node, ast.Attribute) and node.attr in ("environ", "environb", "getenv")
    ]
    assert not wrong, "\n".join(wrong)


def test_nothing_is_unpickled_or_evaluated():
    names = {"eval", "exec", "pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve"}
    wrong = [
        said(file, node.lineno, ast.unparse(node))
        for file in files()
        for node in ast.walk(tree(file))
        if (isinstance(node, ast.Call) and ast.unparse(node.func) in names)
        or (isinstance(node, ast.Import) and {a.name for a in node.names} & names)
        or (isinstance(node, ast.ImportFrom) and node.module in names)
    ]
    assert not wrong, "\n".join(wrong)


# ---- smells ------------------------------------------------------------------------------------


def names_in(file: str) -> Iterator[tuple[int, str]]:
    """Identifiers and strings of a file, docstrings apart."""
    documents = set()
    for node in ast.walk(tree(file)):
        match getattr(node, "body", None):
            case [ast.Expr(value=ast.Constant(value=str()) as text), *_]:
                documents.add(text)
    for node in ast.walk(tree(file)):
        match node:
            case ast.Constant(value=str(text)) if node not in documents:
                yield node.lineno, text
            case ast.Name(id=text) | ast.Attribute(attr=text) | ast.arg(arg=text):
                yield node.lineno, text
            case ast.FunctionDef(name=text) | ast.ClassDef(name=text):
                yield node.lineno, text


def test_generic_code_names_no_kernel_family():
    wrong = [
        said(file, line, name)
        for file in files()
        if file.startswith(GENERIC) and not file.startswith(NOT_GENERIC)
        for line, name in names_in(file)
        if any(family in name.lower() for family in FAMILIES)
    ]
    assert not wrong, "\n".join(wrong)


def words(name: str) -> set[str]:
    """The words of snake_case, CamelCase and prose."""
    return set(re.findall(r"[a-z]+[0-9]*", re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()))


def test_names_of_operators_only_get_fewer():
    found = [
        (file, line, name)
        for file in files()
        if file.startswith(GENERIC) and not file.startswith(NOT_GENERIC)
        for line, name in names_in(file)
        if words(name) & OPERATORS
    ]
    counts = Counter(file for file, _, _ in found)
    more = [said(*f) for f in found if counts[f[0]] > OPERATORS_LEFT.get(f[0], 0)]
    assert not more, "\n".join(more)
    fewer = {f: counts[f] for f, n in OPERATORS_LEFT.items() if counts[f] < n}
    assert not fewer, f"lower OPERATORS_LEFT to {fewer}"


def test_words_of_names():
    """What is no operator's name counts for nothing, however it is spelled."""
    assert words("_FlashLoop2 over flat_gelu_x1") == {
        "flash", "loop2", "over", "flat", "gelu", "x1"}  # fmt: skip
    assert not words("normalised convolved ropes gemms2") & OPERATORS


def test_files_are_small():
    lengths = {file: len((ROOT / file).read_text().splitlines()) for file in files()}
    long = sorted((n, file) for file, n in lengths.items() if n > LONG_LINES)
    assert not long or long[-1][0] <= LONGEST, long[-1]
    assert len(long) <= LONG_FILES, long


def test_every_file_says_what_it_is():
    silent = [file for file in files() if not ast.get_docstring(tree(file))]
    assert not silent, silent
