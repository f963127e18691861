"""The lazy face of a kernel package: nothing but the standard library until the first use.

A package's `__init__` makes one Package and a function for each public name from it.
"""

from __future__ import annotations

import importlib
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .function import Function
    from .manifest import Manifest
    from .model import Model


class PublicFunction:
    """A kernel by the name of what it computes; loads at the first call.

    Call it with NumPy arrays or torch tensors, by position or by name, each raw or made by
    `pack`; results are new arrays of the callers' kind. In a function that torch.compile traces
    a call becomes an operator of the graph, without a break.
    """

    def __init__(self, package: Package, name: str, doc: str) -> None:
        self._package = package
        self._function: Function | None = None
        self._operator = _constant(self._operator_name)
        self.__name__ = self.__qualname__ = name
        self.__doc__ = doc

    def _load(self) -> Function:
        if self._function is None:
            self._function = self._package.function(self.__name__)
        return self._function

    def _operator_name(self) -> str:
        name: str = _module("torch_op").operator_name(self._load(), self._package.root.name)
        return name

    def __call__(self, *operands: Any, **named: Any) -> Any:
        torch = sys.modules.get("torch")
        if torch is not None and torch.compiler.is_compiling():
            library, _, name = self._operator().partition("::")
            return getattr(getattr(torch.ops, library), name)(*operands, **named)
        function = self._function
        return (self._load() if function is None else function)(*operands, **named)

    def pack(self, array: Any, operand: str | None = None) -> Any:
        """A constant operand laid out once; pass the result in its place."""
        return self._load().pack(array, operand)

    def torch_op(self, **constants: Any) -> Any:
        """A torch operator, which torch.compile keeps whole; `constants` are packed once."""
        make: Any = _module("torch_op").torch_op
        return make(self._load(), self._package.root.name, constants)

    @property
    def kernels(self) -> tuple[Any, ...]:
        """The kernels behind this name, one for each signature."""
        return self._load().kernels

    def __repr__(self) -> str:
        return f"<kernel {self.__name__} of {self._package.root}>"


class Package:
    """The package whose folder is `root`."""

    def __init__(self, root: str) -> None:
        self.root = Path(root)
        self._loading = threading.Lock()
        self._manifest: Manifest | None = None

    def kernel(self, name: str, doc: str) -> PublicFunction:
        """The public function of that name."""
        return PublicFunction(self, name, doc)

    def manifest(self) -> Manifest:
        """The manifest, read and checked at the first call."""
        with self._loading:
            if self._manifest is None:
                self._manifest = _module("manifest").read(self.root)
            return self._manifest

    def function(self, name: str) -> Function:
        """The loaded function of that name."""
        function: Function = _module("function").Function(self.manifest(), name)
        return function

    def load(self, *, threads: int | None = None, expect_digest: str | None = None) -> Model:
        """The tuned model of this package, ready to run; see model.load."""
        model: Model = _module("model").load(
            self.root, threads=threads, expect_digest=expect_digest
        )
        return model


def _constant(make: Callable[[], str]) -> Callable[[], str]:
    """What torch.compile evaluates while it traces, and takes for a constant from then on.

    The mark is that of torch.compiler.assume_constant_result, for which torch would be needed.
    """

    def constant() -> str:
        return make()

    constant._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return constant


def _module(name: str) -> Any:
    return importlib.import_module(f".{name}", __package__)
