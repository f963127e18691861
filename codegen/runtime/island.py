"""The operators between kernels that no kernel covers: ONNX graphs run by onnxruntime.

A session is made once a process: after a fork its threads are gone, so the child makes its own.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .errors import KernelFailedError, UnsupportedMachineError
from .spec import Value

_making = threading.Lock()
os.register_at_fork(after_in_child=lambda: globals().update(_making=threading.Lock()))
_abandoned: list[Any] = []  # a parent's sessions: destroying one waits for its lost threads
_BFLOAT16 = 16  # ONNX's number: the one dtype that onnxruntime can't take by NumPy's name


class Island:
    """One ONNX graph; its session is made at the first run."""

    def __init__(self, name: str, path: Path, threads: int) -> None:
        self.name = name
        self._path = path
        self._threads = threads
        self._session: Any = None
        self._process = 0

    def session(self) -> Any:
        """The onnxruntime session of this process."""
        if self._session is None or self._process != os.getpid():
            with _making:
                if self._session is None or self._process != os.getpid():
                    _abandoned.append(self._session)
                    self._session, self._process = self._start(), os.getpid()
        return self._session

    def _start(self) -> Any:
        try:
            ort = importlib.import_module("onnxruntime")
        except ImportError as error:
            raise UnsupportedMachineError(
                "this model has operators that run in onnxruntime: pip install onnxruntime"
            ) from error
        options = ort.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # Its waiting threads would spin on the cores that the kernels need next.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        return ort.InferenceSession(str(self._path), options, providers=["CPUExecutionProvider"])


class BoundIsland:
    """An Island that reads and writes given memory; one run at a time.

    Args: buffers: the inputs, then the outputs, in the graph's order, each with the cell that
        says where it lies at the moment of a run.
    """

    def __init__(self, island: Island, buffers: Sequence[tuple[Value, ctypes.c_void_p]]) -> None:
        self._island = island
        self._buffers = tuple(
            (cell, _BFLOAT16 if value.dtype == "bfloat16" else value.dtype, list(value.shape))
            for value, cell in buffers
        )

    def run(self) -> int:
        """Runs the graph; 0 as kernels return it. Raises KernelFailedError."""
        session = self._island.session()
        names = [node.name for node in session.get_inputs()]
        results = [node.name for node in session.get_outputs()]
        binding = session.io_binding()
        try:
            for name, (cell, dtype, shape) in zip(names, self._buffers):
                binding.bind_input(name, "cpu", 0, dtype, shape, cell.value)
            for name, (cell, dtype, shape) in zip(results, self._buffers[len(names) :]):
                binding.bind_output(name, "cpu", 0, dtype, shape, cell.value)
            session.run_with_iobinding(binding)
        except Exception as error:  # onnxruntime raises types of its own, by build
            raise KernelFailedError(f"island {self._island.name} failed: {error}") from error
        return 0
