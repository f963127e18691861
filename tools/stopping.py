"""Ctrl-C, SIGTERM and the clock in, one question out: shall the search go on?"""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any


class Stopper:
    """Time left of a budget, and whether the user asked to stop; a context manager.

    Inside, the first Ctrl-C or SIGTERM only asks: what is measured is finished, stored and used.
    The second one interrupts, and folders in use are removed either way. Where signals can't be
    handled (not the main thread) both are as always.
    """

    def __init__(self, budget_s: float | None, begun: float | None = None) -> None:
        """budget_s: from `begun` (time.monotonic) on; None without a limit."""
        self._begun = time.monotonic() if begun is None else begun
        self._budget_s = budget_s
        self._before: dict[signal.Signals, Any] = {}
        self.asked = False

    @property
    def left_s(self) -> float | None:
        """Seconds left, not below zero; None without a limit."""
        if self._budget_s is None:
            return None
        return max(0.0, self._budget_s - (time.monotonic() - self._begun))

    def has(self, seconds: float) -> bool:
        """Whether the search may go on for so long."""
        left = self.left_s
        return not self.asked and (left is None or left > seconds)

    def __enter__(self) -> Stopper:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
