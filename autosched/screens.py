"""What commands found in, tables for people out; and the live lines of a tuning."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from autosched.tools.tuning import (
    Event,
    RecordEvent,
    StageEvent,
    TaskEvent,
    TaskResult,
    TuningResult,
)

if TYPE_CHECKING:
    from autosched.tools.bench import Benchmark
    from autosched.tools.example import Written
    from autosched.tools.run import Ran
    from autosched.tools.show import Showing
    from autosched.tools.verify import Verification

PIPE_WIDTH = 120  # of tables that go to a file


def console(err: bool) -> Console:
    """Standard output, or standard error for what is said meanwhile."""
    made = Console(stderr=err, highlight=False, markup=False)
    return made if made.is_terminal else Console(
        stderr=err, highlight=False, markup=False, width=PIPE_WIDTH)  # fmt: skip


@contextmanager
def status(what: str) -> Iterator[Callable[[str], None]]:
    """A line on standard error that says what goes on; call what it yields with each change."""
    screen = console(err=True)
    if not screen.is_terminal:
        yield lambda text: screen.print(f"{what}: {text}")
        return
    with screen.status(what) as live:
        yield lambda text: live.update(Text(f"{what}: {text}"))


def plain(text: str, console: Console) -> None:
    """Text that has its form already, say a Markdown table."""
    console.print(text, soft_wrap=True)


def table(title: str, *columns: str, left: int = 1) -> Table:
    """An empty table whose first `left` columns hold text and the others numbers."""
    made = Table(title=title, title_justify="left", title_style="bold", pad_edge=False,
                 box=box.SIMPLE_HEAD)  # fmt: skip
    for number, column in enumerate(columns):
        numeric = number >= left
        made.add_column(column, justify="right" if numeric else "left", no_wrap=numeric,
                        overflow="fold")  # fmt: skip
    return made


def micros(value: float | None) -> str:
    """Microseconds with three digits that say something."""
    if value is None:
        return "-"
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def verdict(ok: bool) -> str:
    return "ok" if ok else "WRONG"


def seconds(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.0f} s" if value < 120 else f"{value / 60:.1f} min"


# ---- tuning --------------------------------------------------------------------------------------


class TuningScreen:
    """The live lines of a tuning on standard error; `update` takes each event.

    A terminal shows a line per task; a file or a pipe gets one whenever a stage or a task ends.
    """

    def __init__(self) -> None:
        self._out = console(err=True)
        self._stage = StageEvent("import")
        self._tasks: dict[str, TaskEvent] = {}
        self._live = Live(console=self._out, auto_refresh=False, transient=True)

    def __enter__(self) -> TuningScreen:
        if self._out.is_terminal:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:  # fmt: skip
        self._live.stop()

    def update(self, event: Event) -> None:
        if isinstance(event, RecordEvent):
            return  # the task's own event counts it
        lines = self._stage_line(event) if isinstance(event, StageEvent) else self._task_line(event)
        if self._out.is_terminal:
            self._live.update(self._board(), refresh=True)
        else:
            for line in lines:
                self._out.print(line)

    def _stage_line(self, event: StageEvent) -> Iterator[str]:
        self._stage = event
        left = "" if event.left_s is None else f" ({seconds(event.left_s)} left)"
        return iter([f"{event.name}: {event.detail}{left}" if event.detail else event.name + left])

    def _task_line(self, event: TaskEvent) -> Iterator[str]:
        before = self._tasks.get(event.key)
        self._tasks[event.key] = event
        if before is None or event.active or event == before or not event.tried:
            return iter(())
        times = f"{micros(event.best_us)} µs, peer {micros(event.peer_us)} µs"
        timed = times if event.best_us or event.peer_us else "compiled, not measured"
        return iter([f"  {event.name}: {timed}, {event.tried} tried, {event.failed} failed, "
                     f"{seconds(event.left_s)} left"])  # fmt: skip

    def _board(self) -> RenderableType:
        left = "" if self._stage.left_s is None else f", {seconds(self._stage.left_s)} left"
        head = Text(f"{self._stage.name}{left}: {self._stage.detail}".rstrip(": "))
        if not self._tasks:
            return head
        rows = table("", "", "task", "runs", "best µs", "peer µs", "roofline µs", "tried/failed",
                     "left", left=2)  # fmt: skip
        for t in self._tasks.values():
            rows.add_row(">" if t.active else "", t.name, str(t.count), micros(t.best_us),
                         micros(t.peer_us), micros(t.roofline_us), f"{t.tried}/{t.failed}",
                         seconds(t.left_s), style="bold" if t.active else None)  # fmt: skip
        return Group(head, rows)


# What the table of a tuning shows of a task: heading and cell.
_Column = tuple[str, Callable[[TaskResult], str]]
_CANDIDATES: _Column = ("candidates", lambda t: str(t.candidates))
_PREDICTED: _Column = ("predicted µs", lambda t: micros(t.predicted_us))
_TUNED: _Column = ("tuned µs", lambda t: micros(t.tuned_us))
_ROOFLINE: _Column = ("roofline µs", lambda t: micros(t.roofline_us))
_SPEEDUP: _Column = ("speed-up", lambda t: ratio(t.speedup))
_SHARE: _Column = ("share", lambda t: share(t.share))
_TRIED: _Column = ("tried/failed", lambda t: f"{t.tries}/{sum(t.failures.values())}")


def _columns(found: TuningResult) -> tuple[_Column, ...]:
    if found.package is None:
        return (_CANDIDATES, _PREDICTED, _ROOFLINE, _SHARE)
    if not found.measured:
        return (_PREDICTED, _ROOFLINE, _SHARE, _TRIED)
    if found.peer == "none":
        return (_TUNED, _PREDICTED, _ROOFLINE, _SHARE, _TRIED)
    peer: _Column = (f"{found.peer} µs", lambda t: micros(t.peer_us))
    return (_TUNED, peer, _ROOFLINE, _SPEEDUP, _SHARE, _TRIED)


def tuning(found: TuningResult, out: Console) -> None:
    threads = f", {found.threads} threads" if found.threads else ""
    out.print(f"{found.device}, target {found.target}{threads}; {found.coverage}")
    dry, columns = found.package is None, _columns(found)
    rows = table("plan" if dry else "tasks", "task", "runs", *(name for name, _ in columns))
    for t in found.tasks:
        rows.add_row(t.name, str(t.count), *(cell(t) for _, cell in columns))
    out.print(rows)
    if dry:
        out.print(f"tuning would take about {seconds(found.estimate_s)}")
        return
    if not found.measured:
        out.print("picked by the model, not measured here: tune on a machine with such a GPU to "
                  "measure")  # fmt: skip
    elif found.peer != "none":
        out.print(f"against {found.peer}: {ratio(found.speedup)} weighted by its time, "
                  f"{ratio(found.plain_speedup)} over tasks above 50 µs "
                  "(geometric means)")  # fmt: skip
    spent = ", ".join(f"{name} {seconds(s)}" for name, s in found.seconds.items() if s >= 0.5)
    out.print(f"{found.trials} attempts, {found.reused} records of earlier runs; ranked by "
              f"{found.ranked_by}; {spent}")  # fmt: skip
    if found.interrupted:
        out.print("stopped early: the best so far was written; --resume goes on")
    out.print(f"package {found.package}, digest {found.digest}; records in {found.store}")


# ---- the other commands --------------------------------------------------------------------------


def verification(found: Verification, out: Console) -> None:
    whole = table("whole model", "output", "against", "rel. L2", "max/|max|", "bound", "", left=2)
    for o in found.outputs:
        whole.add_row(o.name, o.reference, f"{o.rel_l2:.1e}", f"{o.max_rel:.1e}",
                      f"{o.bound:.1e}", verdict(o.ok))  # fmt: skip
    out.print(whole)
    each = table("kernels against float64", "kernel", "runs", "rel. L2", "bound", "")
    for k in found.kernels:
        each.add_row(k.name, str(k.runs), f"{k.rel_l2:.1e}", f"{k.bound:.1e}", verdict(k.ok))
    out.print(each)
    for k in found.kernels:
        if k.reason:
            out.print(f"{k.name}: {k.reason}")
    out.print("all right" if found.ok else "WRONG: these kernels must not be used")


def ran(found: Ran, out: Console) -> None:
    for name, (dtype, shape) in found.outputs.items():
        out.print(f"{name}: {dtype}{list(shape)}")
    out.print(f"written to {found.path}; the run took {found.run_ms:.1f} ms")


def benchmark(found: Benchmark, out: Console) -> None:
    each = table("tasks", "task", "runs", "ours µs", f"{found.peer} µs", "roofline µs",
                 "speed-up", "share")  # fmt: skip
    for t in found.tasks:
        each.add_row(t.name, str(t.count), micros(t.ours_us), micros(t.peer_us),
                     micros(t.roofline_us), ratio(t.speedup), share(t.share))  # fmt: skip
    out.print(each)
    e = found.end_to_end
    out.print(f"end to end: {e.ours_ms:.2f} ms, {found.peer} {e.peer_ms:.2f} ms, speed-up "
              f"{e.speedup:.2f} ({e.speedup_low:.2f} to {e.speedup_high:.2f})")  # fmt: skip
    for advice in found.advice:
        out.print(advice)


def showing(found: Showing, out: Console) -> None:
    if found.task is None:
        out.print(found.coverage)
        rows = table(f"tasks for {found.target}", "", "task", "runs", "GFLOP", "share", left=2)
        for r in found.rows:
            rows.add_row(str(r.number), r.name, str(r.count), f"{r.gflops:.3g}", share(r.share))
        out.print(rows)
        return
    for view in found.views:
        out.print(Text(f"# {view.title}", style="bold"), soft_wrap=True)
        if view.title in ("tvm", "triton") and out.is_terminal:
            out.print(Syntax(view.text, "python", background_color="default"))
        else:
            out.print(view.text, soft_wrap=True)


def written(found: Written, out: Console) -> None:
    out.print(f"{found.model}: {found.description} ({found.nbytes / 2**20:.1f} MiB)")
    if found.inputs is not None:
        out.print(f"{found.inputs}: random inputs")
