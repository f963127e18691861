"""The command line: options in, one table or one JSON object on stdout out, all else on stderr.

A user's mistake is one message and exit code 2, an answer that is wrong exit code 1; a bug raises.
Nothing heavy is imported before a command that needs it runs.
"""

from __future__ import annotations

import functools
import json as json_text
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from autosched import options

if TYPE_CHECKING:
    from rich.console import Console

USER_ERROR, WRONG, STOPPED = 2, 1, 130


def _example(arguments: str) -> str:
    return f"Example: autosched {arguments}"


app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
    rich_markup_mode=None, context_settings={"help_option_names": ["-h", "--help"]},
    help="Tune attention and GEMM graphs into fast kernels.\n\n"
    "Example: autosched example encoder -o model.onnx\n\n"
    "Then: autosched tune model.onnx -o tuned/ --shape input_ids=1,128",
)  # fmt: skip


@dataclass(frozen=True)
class Reply:
    """What a command found: plain JSON, and how to show it to people. ok: exit code 0."""

    data: dict[str, Any]
    show: Callable[[Console], None]
    ok: bool = True


def user_errors() -> tuple[type[Exception], ...]:
    """What is a user's to mend: each message names the cause and the way out."""
    from autosched.codegen.runtime.errors import PackageError
    from autosched.datasets.place import StoreError
    from autosched.datasets.suites import SuiteError
    from autosched.ir.graph import ModelError
    from autosched.ir.target import TargetError
    from autosched.tools.profile_pack import ProfileError
    from autosched.tools.suite_options import SuiteBenchError
    from autosched.tools.tuning import TuningError

    return (PackageError, StoreError, ModelError, TargetError, TuningError, SuiteError,
            SuiteBenchError, ProfileError, options.OptionError)  # fmt: skip


def _command(function: Callable[..., Reply]) -> Callable[..., None]:
    """A command whose Reply is printed and whose user's errors are shown."""

    @functools.wraps(function)
    def run(**given: Any) -> None:
        as_json = bool(given.get("json"))
        try:
            reply = function(**given)
        except KeyboardInterrupt:
            _fail("stopped", "stopped. What was measured is in the store: the same command with "
                  "--resume goes on from there", as_json, STOPPED)  # fmt: skip
        except user_errors() as error:
            _fail(type(error).__name__, str(error), as_json, USER_ERROR)
        else:
            _print(reply, as_json)
            if not reply.ok:
                raise typer.Exit(WRONG)

    return run


def _print(reply: Reply, as_json: bool) -> None:
    if as_json:
        typer.echo(json_text.dumps(reply.data, allow_nan=False))
        return
    from autosched.screens import console

    reply.show(console(err=False))


def _fail(kind: str, message: str, as_json: bool, code: int) -> None:
    typer.echo(f"autosched: {message}", err=True)
    if as_json:
        typer.echo(json_text.dumps({"error": {"kind": kind, "message": message}}))
    raise typer.Exit(code)


def _parsed(parse: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A typer callback that shows what the parser says of a bad value."""

    def callback(value: Any) -> Any:
        try:
            return value if value is None else parse(value)
        except options.OptionError as error:
            raise typer.BadParameter(str(error)) from None

    return callback


def _checked(parse: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """As _parsed, for options that keep their text (typer needs the type it declared)."""

    def callback(value: Any) -> Any:
        _parsed(parse)(value)
        return value

    return callback


# ---- options that commands share -----------------------------------------------------------------

ModelFile = Annotated[Path, typer.Argument(metavar="MODEL", help="The model: an ONNX file, or a "
                                           ".pt2 file of torch.export.save.")]
Kernels = Annotated[Path, typer.Option("--kernels", metavar="FOLDER", help="What tune wrote.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Of everything that is drawn.")]
Shapes = Annotated[
    list[str] | None,
    typer.Option("--shape", metavar="NAME=SIZES", callback=_checked(options.shapes),
                 help="Shape of an input, say input_ids=1,128; once for each input that needs it."),
]  # fmt: skip
TargetName = Annotated[
    str, typer.Option("--target", metavar="TARGET", help="What to tune for: auto or cpu (this "
                      "machine), cpu:x86-64-v2, -v3, -v4; sm_90 or sm_80 (GPUs, by Triton), with "
                      "+tf32 for coarser fp32 products. Without such a GPU the cost model picks, "
                      "unmeasured.")
]  # fmt: skip


# ---- commands ------------------------------------------------------------------------------------


@app.command(epilog=_example("tune model.onnx -o tuned/ --shape input_ids=1,128 --budget 2m"))
@_command
def tune(
    model: ModelFile,
    out: Annotated[Path, typer.Option("-o", "--out", metavar="FOLDER",
                                      help="The kernel package: a new or empty folder.")],
    target: TargetName = "auto",
    budget: Annotated[str | None, typer.Option(
        metavar="TIME", callback=_checked(options.duration_s),
        help="How long to tune: 120s (the default), 2m, 1h.")] = None,
    trials: Annotated[int | None, typer.Option(
        min=0, metavar="N", help="Candidates to measure, instead of a time; 0 trusts the "
        "model.")] = None,
    shape: Shapes = None,
    seed: Seed = 0,
    store: Annotated[Path | None, typer.Option(
        metavar="FILE", help="Where records are kept; by default the user's own.")] = None,
    resume: Annotated[bool, typer.Option(
        "--resume", help="Go on from the records of an earlier run.")] = False,
    dry_run: Annotated[bool, typer.Option(
        "--dry-run", help="Show the plan and an estimate of time, and stop.")] = False,
    json: Json = False,
) -> Reply:  # fmt: skip
    """Tune a model's kernels and write them as a package."""
    if budget is not None and trials is not None:
        raise options.OptionError("--budget and --trials are two ways to say when to stop: "
                                  "give one of them")  # fmt: skip
    from autosched import screens
    from autosched.tools.tune import tune as run_tune

    with screens.TuningScreen() as screen:
        result = run_tune(
            model, out, target=target, trials=trials, shapes=options.shapes(shape or ()),
            budget_s=options.duration_s(budget) if budget else options.BUDGET_S, seed=seed,
            store=store, resume=resume, dry_run=dry_run, progress=screen.update,
        )  # fmt: skip
    return Reply(result.to_json(), functools.partial(screens.tuning, result))


@app.command(epilog=_example("verify model.onnx --kernels tuned/"))
@_command
def verify(
    model: ModelFile,
    kernels: Kernels,
    inputs: Annotated[Path | None, typer.Option(
        metavar="IN.npz", help="Inputs by name; random ones by default.")] = None,
    seed: Seed = 0,
    json: Json = False,
) -> Reply:  # fmt: skip
    """Check a tuned model against onnxruntime or torch, and every kernel against float64."""
    from autosched import screens
    from autosched.tools.verify import verify as run_verify

    found = run_verify(model, kernels, inputs=inputs, seed=seed)
    return Reply(found.to_json(), functools.partial(screens.verification, found), found.ok)


@app.command(epilog=_example("run model.onnx --kernels tuned/ --inputs in.npz --outputs out.npz"))
@_command
def run(
    model: ModelFile,
    kernels: Kernels,
    inputs: Annotated[Path, typer.Option(metavar="IN.npz", help="An array for each input.")],
    outputs: Annotated[Path, typer.Option(metavar="OUT.npz", help="Where outputs go.")],
    json: Json = False,
) -> Reply:
    """Run a tuned model on the arrays of a file."""
    from autosched import screens
    from autosched.tools.run import run as run_model

    found = run_model(model, kernels, inputs, outputs)
    return Reply(found.to_json(), functools.partial(screens.ran, found))


@app.command(epilog=_example("bench model.onnx --kernels tuned/ --against onnxruntime\n\n"
                             "Or: autosched bench --suite dense --out results/ --minutes 25"))
@_command
def bench(
    model: Annotated[Path | None, typer.Argument(metavar="MODEL", help="The model; none "
                                                 "with --suite.")] = None,
    kernels: Annotated[Path | None, typer.Option(metavar="FOLDER", help="What tune wrote.")] = None,
    against: Annotated[str | None, typer.Option(
        metavar="PEER", help="onnxruntime for ONNX files; torch (the default there) or "
        "torch.compile for .pt2 files.")] = None,
    inputs: Annotated[Path | None, typer.Option(
        metavar="IN.npz", help="Inputs by name; random ones by default.")] = None,
    rounds: Annotated[int, typer.Option(
        min=1, max=1000, help="Of A B B A, or of a race; more are steadier.")] = 12,
    seed: Seed = 0,
    suite: Annotated[str | None, typer.Option(
        metavar="dense", help="Race a suite of workloads beside libraries on this GPU.")] = None,
    out: Annotated[Path | None, typer.Option(
        metavar="FOLDER", help="The suite's results; the same folder goes on.")] = None,
    minutes: Annotated[float, typer.Option(min=0.1, help="Of the suite's run.")] = 25.0,
    rows: Annotated[str, typer.Option(
        metavar="NAMES", help="Parts of the suite's rows' names, with commas.")] = "",
    peers: Annotated[str, typer.Option(
        metavar="NAMES", help="The suite's peers to run, with commas.")] = "",
    tune: Annotated[str, typer.Option(
        metavar="TIME", callback=_checked(options.duration_s),
        help="Search each of the suite's rows so long, from nothing: 20s, 1m.")] = "0s",
    tune_rows: Annotated[str, typer.Option(
        metavar="NAMES", help="Rows that --tune means, by names or peers.")] = "",
    pick: Annotated[str, typer.Option(
        metavar="logs|model", help="What is raced: the best of logs and model, or the model's "
        "pick.")] = "logs",
    store: Annotated[list[Path] | None, typer.Option(
        metavar="FILE", help="Records to choose from, besides the package's logs.")] = None,
    gpus: Annotated[int, typer.Option(min=0, help="For the suite; all by default.")] = 0,
    write_docs: Annotated[Path | None, typer.Option(
        "--write-docs", metavar="FILE.md", help="Where the suite's report goes.")] = None,
    plan: Annotated[bool, typer.Option("--plan", help="List the suite's rows and peers.")] = False,
    build_only: Annotated[bool, typer.Option(
        "--build-only", help="Build the suite's kernels; needs no GPU.")] = False,
    json: Json = False,
) -> Reply:  # fmt: skip
    """Time a tuned model against a peer, or a suite of workloads against libraries."""
    if suite is not None:
        if model is not None or kernels is not None:
            raise options.OptionError("a suite has workloads of its own: leave out the model and "
                                      "--kernels, or --suite")  # fmt: skip
        from autosched import screens
        from autosched.suite_command import race

        text = race(
            suite, out, tune, options.names(tune_rows), pick, plan,
            lambda line: typer.echo(line, err=True), minutes=minutes, rows=options.names(rows),
            peers=options.names(peers), stores=tuple(store or ()), write_docs=write_docs,
            build_only=build_only, seed=seed, rounds=rounds, gpus=gpus)  # fmt: skip
        return Reply({"suite": suite, "out": str(out), "table": text},
                     functools.partial(screens.plain, text))  # fmt: skip
    if model is None or kernels is None:
        raise options.OptionError("name a model and its kernels (MODEL --kernels FOLDER), or "
                                  "a suite (--suite dense)")  # fmt: skip
    from autosched import screens
    from autosched.tools.bench import bench as run_bench

    with screens.status("timing") as say:
        found = run_bench(model, kernels, against=against, inputs=inputs, rounds=rounds,
                          seed=seed, progress=say)  # fmt: skip
    return Reply(found.to_json(), functools.partial(screens.benchmark, found))


@app.command(epilog=_example("show model.onnx --shape input_ids=1,128 --task 3 --level tile"))
@_command
def show(
    model: ModelFile,
    task: Annotated[int | None, typer.Option(
        metavar="N", min=0, help="A task by its number; without it, the list of tasks.")] = None,
    level: Annotated[str, typer.Option(
        metavar="algebra|tile|tvm|triton", help="What it computes; each action of its schedule and "
        "what comes of it; what is compiled for a CPU, for a GPU.")] = "tile",
    shape: Shapes = None,
    target: TargetName = "auto",
    kernels: Annotated[Path | None, typer.Option(
        metavar="FOLDER", help="Show the schedules of this package, not the default "
        "ones.")] = None,
    json: Json = False,
) -> Reply:  # fmt: skip
    """Show what the compiler sees of a model."""
    from autosched import screens
    from autosched.tools.show import show as run_show

    found = run_show(model, task=task, level=level, shapes=options.shapes(shape or ()),
                     target=target, kernels=kernels)  # fmt: skip
    return Reply(found.to_json(), functools.partial(screens.showing, found))


@app.command(epilog=_example("profile --out run --pack builds.pack --minutes 9.5"))
@_command
def profile(
    out: Annotated[Path | None, typer.Option(
        "--out", metavar="FOLDER", help="Of the run; goes on with what is there.")] = None,
    suite: Annotated[str, typer.Option(metavar="NAMES", help="Suites, with commas.")] = "profile",
    only: Annotated[str, typer.Option(
        metavar="PATTERNS", help="Names or groups of workloads, with commas.")] = "",
    minutes: Annotated[float, typer.Option(min=0.01, help="Of the whole run.")] = 9.5,
    build_only: Annotated[bool, typer.Option(
        "--build-only", help="Fill the pack ahead of time; needs no GPU.")] = False,
    pack: Annotated[Path | None, typer.Option(
        metavar="FILE", help="Builds that were made ahead.")] = None,
    merge: Annotated[list[Path] | None, typer.Option(
        "--merge", metavar="RUN", help="Run folders or Parquet files to one file; once for "
        "each.")] = None,
    into: Annotated[Path | None, typer.Option(
        "-o", "--into", metavar="LOG.parquet", help="What --merge writes.")] = None,
    target: Annotated[str, typer.Option(metavar="TARGET", help="A GPU.")] = "sm_90",
    gpus: Annotated[int | None, typer.Option(min=1, help="All by default.")] = None,
    builders: Annotated[int | None, typer.Option(min=1, help="Processes.")] = None,
    seed: Seed = 0,
    json: Json = False,
) -> Reply:  # fmt: skip
    """Measure a suite's workloads under many schedules, as logs that models learn from."""
    from autosched.tools import profile as profiling

    begun = profiling.process_begun()
    given = {"--out": out, "--suite": suite, "--only": only, "--minutes": minutes, "--pack": pack,
             "-o": into, "--target": target, "--gpus": gpus, "--builders": builders,
             "--seed": seed}  # fmt: skip
    argv = [str(x) for pair in given.items() if pair[1] not in (None, "") for x in pair]
    argv += ["--build-only"] * build_only + (["--merge", *map(str, merge)] if merge else [])
    found = profiling.profile(profiling.parser().parse_args(argv), begun)
    return Reply(found.data, lambda console: console.print(found.text, markup=False,
                                                           highlight=False))  # fmt: skip


@app.command(epilog=_example("example encoder -o model.onnx --inputs in.npz"))
@_command
def example(
    name: Annotated[str, typer.Argument(metavar="NAME", help="encoder, decoder, tiny_encoder or "
                                        "tiny_decoder.")],
    out: Annotated[Path, typer.Option("-o", "--out", metavar="MODEL.onnx", help="The file to "
                                      "write.")],
    inputs: Annotated[Path | None, typer.Option(
        metavar="IN.npz", help="Also write random inputs of --batch rows of --sequence "
        "tokens.")] = None,
    batch: Annotated[int, typer.Option(min=1)] = 1,
    sequence: Annotated[int, typer.Option(min=1)] = 128,
    seed: Seed = 0,
    external_data: Annotated[bool, typer.Option(
        "--external-data", help="Weights in a file beside the model.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace files that are there.")] = False,
    json: Json = False,
) -> Reply:  # fmt: skip
    """Write one of the example models, its weights drawn from a seed."""
    from autosched import screens
    from autosched.tools.example import example as write_example

    found = write_example(name, out, inputs=inputs, batch=batch, sequence=sequence, seed=seed,
                          external_data=external_data, force=force)  # fmt: skip
    return Reply(found.to_json(), functools.partial(screens.written, found))


def _version(wanted: bool) -> None:
    if wanted:
        import autosched

        typer.echo(f"autosched {autosched.__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True,
                                          help="Show the version.")] = False,
) -> None:  # fmt: skip
    pass


def main() -> None:
    """The console script."""
    app(prog_name="autosched")


if __name__ == "__main__":
    main()
