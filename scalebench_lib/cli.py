"""The ``scalebench`` command. Exit codes: 0 done, 1 some configs failed, 2 wrong request."""

from __future__ import annotations

import io
import logging
import math
import os
import re
import signal
import sys
import webbrowser
from collections.abc import Callable
from functools import partial
from inspect import Parameter, Signature, signature
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer
from rich.console import Console

from scalebench_lib import __version__
from scalebench_lib.config import AXES, PRESETS, SPEC, Sweep, preset
from scalebench_lib.errors import RequestError, ScalebenchError
from scalebench_lib.files import write_atomically
from scalebench_lib.machine import Machine
from scalebench_lib.processes import ensure_home
from scalebench_lib.results import Imported, Results
from scalebench_lib.sweep.locks import lock_machine, read_status, require_folder_free
from scalebench_lib.sweep.schedule import Schedule, schedules_by_host
from scalebench_lib.text import parse_duration, pluralize

if TYPE_CHECKING:
    from scalebench_lib.plan.load import LoadRun
    from scalebench_lib.sweep.sweep_run import SweepRun

app = typer.Typer(
    help="How fast does a model run on this machine?",
    invoke_without_command=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


class _Output(Console):
    """Standard output: no text is taken for markup, and where nobody reads on, the command ends."""

    def __init__(self) -> None:
        super().__init__(highlight=False, markup=False)

    def say(self, *lines: object) -> None:
        """Print lines; a terminal's are wrapped between words, but for links and tables."""
        for line in lines:
            words = isinstance(line, str) and "://" not in line
            self.print(line, soft_wrap=not (words and self.is_terminal))

    def on_broken_pipe(self) -> NoReturn:
        """End as after an error: rich would exit without a word."""
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        kept = "; what was measured is kept" if _is_measuring() else ""
        raise ScalebenchError(f"stopped: standard output was closed{kept}")


console = _Output()

Out = Annotated[
    Path, typer.Argument(metavar="OUT", help="The sweep's folder, such as outputs/mine.")
]
IfBusyOption = Annotated[
    Literal["refuse", "wait", "ignore"],
    typer.Option(help="What to do where this machine is measuring already, such as wait."),
]
_HELP = {
    "version": "Print the version.",
    "preset": f"The sweep to start from: "
    f"{' or '.join(f'{name} ({what})' for name, what in PRESETS.items())}. "
    "[default: the settings of the sweep in OUT, else page]",
    "spec": "A YAML file to start from instead, with lines like 'batch_sizes: 1,8'.",
    "time_budget": "Stop after this time, such as 10m, and keep what is measured.",
    "kernels": "How a trial's process starts: warm (forked, fast) or fresh.",
    "trial_timeout": "Fail a trial that hangs for this time, such as 10m.",
    "retry_failed": "Measure again what failed before.",
    "against": "Measure in turn with another Python, such as old/bin/python.",
    "dry_run": "List the trials without running them.",
    "scheduler": "Measure on the hosts of this dask cluster, such as tcp://one:8786.",
    "any_host": "Measure each config on any one of those hosts, which are alike.",
    "open_page": "Open the page in a browser at the end.",
    "any_machine": "Render records of several machines together.",
    "machine": "The name of the machine, such as 'Xeon 8480'.",
    "batch_size": "Items of one batch to split over instances, such as 32.",
    "cores": "Physical cores to use, such as 4. [default: all]",
    "optimization": "The only optimization to use, such as openvino. [default: any]",
    "rate": "Requests per second, such as 200.",
    "slo_ms": "The latency limit in ms, such as 50.",
    "percentile": "The percentile of latencies that has to be within the limit.",
    "verify": "Run the best plans, and report what was measured.",
    "max_seconds": "How many seconds --verify runs each plan.",
    "price_per_hour": "The machine's price, such as 1.53, for the cost of a million requests.",
    "export": "Write a script that starts the plan into this new folder.",
    "lengths": "Tokens of requests with shares, such as 16:70,128:30. [default: all alike]",
    "arrivals": "How requests arrive: poisson, constant or gamma:CV, such as gamma:2.",
    "trace": "A file of arrival times in s, one a line.",
    "duration": "How long to send requests, such as 60s. [default: 20s, or the trace]",
    "max_batch": "The most requests in a batch. [default: the plan's]",
    "max_wait_ms": "How long a batch waits for more requests. [default: the plan's]",
    "threshold": "Ignore changes up to this share, such as 0.02.",
    "anyway": "Compare though machine or software differ.",
    "model_a": "The model of OUT_A to compare, such as bert.",
    "model_b": "The name of that model in OUT_B, such as ./mine.",
    "markdown": "Print Markdown, for a comment or a page.",
    "to": "Also write compare.md, .png and .csv into this folder.",
}
_NOT_SAID = re.compile(r"[\s'()]|,(?=\))")


def _renamed(**names: str) -> dict[str, Any]:
    """Return settings of a command that still takes options by their former `names`, unlisted."""
    former = {name.replace("_", "-"): now.replace("_", "-") for name, now in names.items()}
    return {"token_normalize_func": lambda name: former.get(name, name)}


_Command = Callable[..., None]


def _with_options(*first: str, **helps: str) -> Callable[[_Command], _Command]:
    """Give a command's options their `_HELP`, and it more that take text; list `first` first."""

    def give(command: _Command) -> _Command:
        own = signature(command, eval_str=True).parameters.values()
        parameters = [_helped(one) for one in own if one.kind is not Parameter.VAR_KEYWORD]
        for name, text in helps.items():
            kind = Annotated[str | None, typer.Option(help=text)]
            parameters.append(
                Parameter(name, Parameter.KEYWORD_ONLY, default=None, annotation=kind)
            )
        places = {name: place for place, name in enumerate(first)}
        parameters.sort(key=lambda one: (one.kind, places.get(one.name, len(first))))
        command.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {one.name: one.annotation for one in parameters}
        return command

    return give


def _helped(parameter: Parameter) -> Parameter:
    """Return `parameter` as an option with its help, if there is one; a flag has no opposite."""
    if not (text := _HELP.get(parameter.name)):
        return parameter
    name = f"--{parameter.name.removesuffix('_page').replace('_', '-')}"
    return parameter.replace(
        annotation=Annotated[parameter.annotation, typer.Option(name, help=text)]
    )


_SWEEP_OPTIONS = {
    name: f"{field.description} [default: {_NOT_SAID.sub('', str(field.default))}]"
    for name, field in Sweep.model_fields.items()
    if field.description
}
_OFTEN = ("model", "batch_sizes", "optimizations", "threads", "smt", "seq_lens")
_GROUPS = [name for name, axis in AXES.items() if axis.splits and not axis.within]
_PLAN_OPTIONS = {
    name: f"{AXES[name].title if name in AXES else name.title()}, where OUT has several."
    for name in ("machine", "model", *_GROUPS)
}


@app.callback()
@_with_options()
def _start(context: typer.Context, version: bool = False) -> None:
    if version:
        console.say(f"scalebench {__version__}")
    elif context.invoked_subcommand is None:
        console.say(context.get_help())


@app.command(
    short_help="Measure a sweep into OUT, or continue it, and render its page.",
    context_settings=_renamed(
        visit_timeout="trial_timeout", seq_len="seq_lens", image_size="image_sizes"
    ),
)
@_with_options(*_OFTEN, "rounds", "max_seconds", "preset", **_SWEEP_OPTIONS)
def sweep(
    context: typer.Context,
    out: Out,
    *,
    preset: str | None = None,
    spec: Path | None = None,
    time_budget: str | None = None,
    kernels: Literal["warm", "fresh"] = "warm",
    if_busy: IfBusyOption = "refuse",
    trial_timeout: str | None = None,
    retry_failed: bool = False,
    against: str | None = None,
    dry_run: bool = False,
    scheduler: str | None = None,
    any_host: bool = False,
    open_page: bool = False,
    **options: str | None,
) -> None:
    """Measure every combination of batch size, threads and optimization into OUT.

    Then its page is rendered. A sweep that is in OUT goes on, with its own settings in place of the
    defaults below.
    """
    hosts = _hosts(scheduler, any_host, against)
    for folder in () if dry_run else (out, out / "a", out / "b"):
        require_folder_free(folder)
    from scalebench_lib.sweep import progress  # papermill takes seconds to import
    from scalebench_lib.sweep.cluster import HostsRun, client_of

    given = {name: value for name, value in options.items() if value is not None}
    budget = parse_duration("time_budget", time_budget) or math.inf
    timeout = parse_duration("trial_timeout", trial_timeout)
    begun, origin = _start_of(preset, spec, out / "a" if against else out)
    request, warm = Sweep.from_input({**begun, **given, "hosts": hosts}), kernels == "warm"
    if scheduler:
        client = context.with_resource(client_of(scheduler))
        across = HostsRun(request, out, client, retry_failed, warm, if_busy)
        console.say(origin, across)
        runs, measure = across.runs, partial(across.run_with_progress, budget, console)
    else:
        runs = _prepared(request, out, against, retry_failed)
        measure = partial(progress.run_with_progress, runs, budget, warm, if_busy, console)
        console.say(origin)
    for run in runs:
        run.trial_timeout = timeout
    progress.announce(runs, console)
    if dry_run:
        for run in runs:
            _print_schedule(run.schedule, f" on {run.host or run.out}" if len(runs) > 1 else "")
    else:
        _measure_and_report(runs, measure, out if against else None, open_page)


def _prepared(request: Sweep, out: Path, against: str | None, retry_failed: bool) -> list[SweepRun]:
    """Return the runs of a sweep on this machine, whose models were built and run once."""
    from scalebench_lib.sweep.sweep_run import SweepRun, prepare_pair

    if against:
        runs = list(prepare_pair(request, out, against, retry_failed))
    else:
        runs = [SweepRun.prepare(request, out, retry_failed)]
    for run in runs:
        with console.status(f"{run.sweep.model} is built and run once …"):
            run.require_measurable()
    return runs


@app.command()
@_with_options()
def report(
    out: Out,
    any_machine: bool = False,
    price_per_hour: float | None = None,
    open_page: bool = False,
) -> None:
    """Render OUT's page: results.csv, figures, index.md, index.html."""
    from scalebench_lib.analysis.findings import recommendations  # seaborn and pandas take a second
    from scalebench_lib.analysis.page import write_page

    results = Results.load(out, any_machine)
    page = write_page(out, results, price_per_hour)
    for answer in recommendations(results):
        console.say(*answer.lines)
    link = page.absolute().as_uri()
    console.say(f"page: {link}")
    if open_page and not webbrowser.open(link):
        _complain("there is no browser here: open that link in one")


@app.command()
def status(out: Out) -> None:
    """List what is done, failed or left, and why."""
    if imported := Imported.load(out):
        _print_import(imported)
        return
    schedules = schedules_by_host(out)
    every = schedules.values()
    done, failed = sum(len(one.done) for one in every), sum(len(one.failed) for one in every)
    left, finished = sum(len(one.left) for one in every), sum(one.finished for one in every)
    trials = pluralize(finished, "trial")
    console.say(f"configs: {done} done, {failed} failed, {left} left; {trials} finished")
    if doing := read_status(out):
        console.say(f"running: {doing}")
    for host, schedule in schedules.items():
        _print_schedule(schedule, f" on {host}" if host else "")


@app.command("import")
@_with_options()
def import_(
    csv: Annotated[
        list[Path], typer.Argument(metavar="CSV…", help="Published files of one machine.")
    ],
    out: Annotated[Path, typer.Option(help="The new sweep's folder, such as outputs/published.")],
    machine: str | None = None,
) -> None:
    """Import published latencies into OUT.

    report, plan and the notebooks read them like a sweep. Columns: benchmark
    (model_manual_optimization, or model_default_optimization for threads that were not pinned),
    intraop_threads, batch_size; latency(min), latency(avg), latency(max) in ms, or throughput in
    inferences/s. Optional: ht, topology, pinning, source, allocator, instance_id, interop_threads,
    flops.
    """
    from scalebench_lib.analysis.published import import_published

    _print_import(import_published(csv, out, machine))
    console.say(f"its page: scalebench report {out}")


@app.command(context_settings=_renamed(threads="cores"))
@_with_options(**_PLAN_OPTIONS)
def plan(
    out: Out,
    batch_size: str | None = None,
    rate: float | None = None,
    slo_ms: float | None = None,
    percentile: float = 99.0,
    lengths: str | None = None,
    cores: str | None = None,
    optimization: str | None = None,
    verify: bool = False,
    max_seconds: float = 10.0,
    price_per_hour: float | None = None,
    export: Path | None = None,
    if_busy: IfBusyOption = "refuse",
    **of: str | None,
) -> None:
    """Recommend what to run for a rate, a latency limit or a batch.

    The answer is a number of instances (copies of the model on cores of their own), with the cores
    and batches of each. Without --rate it is the highest; without --slo-ms the limit is 5 times the
    fastest pass. To split one batch give --batch-size. Exit code 1 if no plan kept to the limit
    with --verify.
    """
    from scalebench_lib.plan.answer import ask
    from scalebench_lib.plan.report import commands
    from scalebench_lib.plan.search import Predictor

    served = {"rate": rate, "slo_ms": slo_ms, "percentile": percentile, "max_seconds": max_seconds}
    on = {"batch_size": batch_size, "cores": cores, "optimization": optimization}
    context, question = ask(out, lengths=lengths, **served, **on, **of)
    with console.status("") as line:
        answer = question.answer(Predictor(context, line.update))
    if verify:
        with lock_machine(f"a plan of {out}", if_busy), console.status("") as line:
            answer = answer.verified(line.update, _show_load(out))
    path = answer.save()
    console.say(answer.table, *map(_as_typed, answer.sentences), "")
    console.print(*commands(answer.decision), "", sep="\n", soft_wrap=True)  # to be copied
    if answer.decision.limit_kept is False:
        raise typer.Exit(1)
    if price_per_hour is not None:
        console.say(*answer.costs(price_per_hour), "")
    if export:
        from scalebench_lib.measure.optimizations import build_engine_folder
        from scalebench_lib.plan.export import export as write

        start = write(answer.decision, answer.sentences, export, build_engine_folder)
        console.say(f"exported: {start}")
    console.say(f"plan: {path}")


def _show_load(out: Path) -> Callable[[LoadRun], None]:
    """Return what prints a load test, and draws it into ``load.png``."""
    from scalebench_lib.plan import load_report as telling

    def show(run: LoadRun) -> None:
        console.say(*telling.sentences(run), "")
        write_atomically(out / "load.png", telling.over_time(run).png())

    return show


@app.command()
@_with_options()
def load(
    out: Out,
    rate: float | None = None,
    arrivals: str = "poisson",
    trace: Path | None = None,
    duration: str | None = None,
    slo_ms: float | None = None,
    percentile: float = 99.0,
    lengths: str | None = None,
    max_batch: int | None = None,
    max_wait_ms: float | None = None,
    if_busy: IfBusyOption = "refuse",
) -> None:
    """Load-test the plan of OUT.

    Requests arrive on time, however late the answers are. Without --rate or --trace, find the
    highest rate within --slo-ms.
    """
    from scalebench_lib.plan import load_report as telling
    from scalebench_lib.plan.arrivals import arrival_times, read_trace
    from scalebench_lib.plan.runner import Limits
    from scalebench_lib.plan.search import LoadVerifier, Predictor, Target, read_planned_deployment

    if bool(rate) == bool(trace) and (rate or not slo_ms):
        raise RequestError("load: name a rate, or a trace, or a limit with --slo-ms")
    seconds = parse_duration("duration", duration) or (math.inf if trace else 20.0)
    asked = {"rate": rate or 0.0, "slo_ms": slo_ms or 0.0, "percentile": percentile}
    target = Target.from_input({**asked, "max_seconds": 20.0 if trace else seconds})
    times = arrival_times(arrivals, rate or 1.0, max(1, round(target.rate * target.max_seconds)))
    if trace:
        times, arrivals = read_trace(trace), f"trace {trace.name}"
        times = times[: max(1, int((times <= seconds).sum()))]
    context, deployment = read_planned_deployment(out, max_batch or 0, max_wait_ms, lengths)
    runner = context.runner(Limits(), console.say)
    verifier = LoadVerifier(Predictor(context), runner, target, _show_load(out), arrivals)
    with lock_machine(f"a load test of {out}", if_busy):
        if rate or trace:
            verifier.run(deployment, times, target.rate)
        else:
            curve = verifier.predictor.curve(deployment, target)
            runs = verifier.highest(deployment)
            write_atomically(out / "load-rates.png", telling.by_rate(curve, runs).png())
            console.say(telling.highest_rate_sentence(runs), f"curve: {out / 'load-rates.png'}")
    console.say(f"over time: {out / 'load.png'}; every run: {out / 'load.jsonl'}")


@app.command()
@_with_options()
def compare(
    a: Annotated[Path, typer.Argument(metavar="OUT_A", help="The sweep to compare with.")],
    b: Annotated[Path, typer.Argument(metavar="OUT_B", help="The sweep in question.")],
    threshold: float = 0.05,
    anyway: bool = False,
    model_a: str | None = None,
    model_b: str | None = None,
    markdown: bool = False,
    to: Path | None = None,
) -> None:
    """Compare the sweep OUT_B with the sweep OUT_A, point by point.

    Exit code 1 if any point, or what is common to all, is slower, or OUT_B lacks a config of OUT_A.
    """
    from scalebench_lib.analysis import compare as comparing
    from scalebench_lib.analysis import compare_report

    found = comparing.compare(a, b, threshold, anyway, model_a, model_b)
    if to:
        compare_report.save(found, to)
    if markdown:
        print(compare_report.markdown(found))
    else:
        console.say(*compare_report.renderables(found))
    if found.has_regressions:
        raise typer.Exit(1)


@app.command()
def render(
    notebooks: Annotated[
        list[Path],
        typer.Argument(metavar="NOTEBOOK…", help="Executed notebooks, such as out.ipynb."),
    ],
) -> None:
    """Prepare executed notebooks for sharing.

    Remove the paths of this machine, and write each as an offline HTML page.
    """
    from scalebench_lib.notebook import render as write  # nbconvert takes a second

    for notebook in notebooks:
        console.say(f"page: {write(notebook)}")


@app.command()
def doctor() -> None:
    """Describe this machine: what it can measure, and how noisy it is."""
    from scalebench_lib.doctor import topics
    from scalebench_lib.measure.noise import PROBE_SECONDS, probe_noise

    for topic, lines in topics(Machine.here()).items():
        console.say(topic, *(f"  {line}" for line in lines))
    console.say(f"Noise: the same matrix products over and over, for {PROBE_SECONDS:.0f} s …")
    noise = probe_noise()
    console.say(
        f"  best {noise.best:.2f} ms, typical {noise.typical:.2f} ms, worst of a hundred "
        f"{noise.worst:.2f} ms",
        f"  {noise.advice}",
    )


class Interrupted(BaseException):
    """Ctrl-C or a termination; no `Exception`, so that nothing on the way takes it for one."""


def main() -> NoReturn:
    """Run the command; every error is one line and an exit code."""
    ensure_home()
    logging.getLogger("papermill").setLevel(logging.CRITICAL)  # what it logs, we say in one line
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, _interrupt)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # an ASCII terminal is no reason to fail
    try:
        sys.exit(app(standalone_mode=False))
    except (ScalebenchError, _UsageError, OSError, Interrupted) as error:
        message, code = _message_and_code(error)
        _complain(message)
        sys.exit(code)


def _message_and_code(error: BaseException) -> tuple[str, int]:
    match error:
        case ScalebenchError():
            return _as_typed(str(error)), 2 if isinstance(error, RequestError) else 1
        case OSError():
            where = f" ({error.filename})" if error.filename else ""
            return f"stopped: {error.strerror or error}{where}", 1
        case Interrupted():
            word = "interrupted" if error.args[0] == signal.SIGINT else "terminated"
            kept = ": what a sweep has measured is kept, 'scalebench report' shows it"
            more = f"{kept}, and it goes on by the same command" if _is_measuring() else ""
            return f"{word}{more}", 128 + error.args[0]
        case _:
            message = error.format_message()  # type: ignore[attr-defined]
            return message.replace("Value error, ", ""), 2


def _is_measuring() -> bool:
    """Return whether the command leaves what it has measured where it is stopped."""
    return sys.argv[1:2] in (["sweep"], ["load"]) or "--verify" in sys.argv


def _as_typed(message: str) -> str:
    """Return `message` with its options as they are typed: ``--slo-ms``."""
    known = {name: name for name in _HELP | _SWEEP_OPTIONS | _PLAN_OPTIONS}
    if "sweep" in sys.argv[1:2]:
        known |= {name: axis.several for name, axis in AXES.items() if axis.several}
    typed = {name: f"--{option.replace('_', '-')}" for name, option in known.items()}
    return _NAMES.sub(lambda found: typed.get(found[0], found[0]), message)


_NAMES = re.compile(r"^\w+(?=: )|(?<![\w/.'-])[a-z]+_[a-z_]+(?![\w/.'-])")
"""The option that a message begins with, and names of others in it, but not parts of paths."""

_UsageError: Any = typer.BadParameter.mro()[1]
"""The base of typer's own complaints: from click, or from the copy of it that typer brings."""


def _interrupt(signum: int, frame: FrameType | None) -> NoReturn:
    raise Interrupted(signum)


def _complain(message: str) -> None:
    print(f"scalebench: {message}", file=sys.stderr)


def _print_import(imported: Imported) -> None:
    console.say(f"{pluralize(imported.points, 'point')}. {imported.source}")
    console.say(*(f"note: {note}" for note in imported.notes))


def _print_schedule(schedule: Schedule, where: str) -> None:
    for trial, record in schedule.failed:
        console.say(f"{record.status}: {trial}{where}: {record.reason}")
    for trial in schedule.left:
        console.say(f"left: {trial}{where}, threads {', '.join(map(str, trial.threads))}")


def _report_against(out: Path) -> bool:
    """Compare the two sweeps of ``--against``; return whether B is slower."""
    from scalebench_lib.analysis import compare as comparing
    from scalebench_lib.analysis.compare_report import renderables

    found = comparing.compare_paired(out / "a", out / "b")
    comparing.save_paired(found, out / "against.csv")
    console.say(*renderables(found))
    return found.has_regressions


def _measure_and_report(
    runs: list[SweepRun], measure: Callable[[], list[str]], pair: Path | None, open_page: bool
) -> None:
    """Measure, and render the pages; compare the two sweeps in folder `pair`, if there is one.

    Exits with 1 where a config failed, a host was lost, or B of the pair is slower than A.
    """
    from scalebench_lib.sweep import progress

    for trouble in (troubles := measure()):
        _complain(trouble)
    for folder in dict.fromkeys(run.out for run in runs if run.records):
        report(folder, open_page=open_page)
    slower = pair is not None and _report_against(pair)
    if complaints := [line for run in runs for line in progress.print_summary(run, console)]:
        _complain("; ".join(complaints))
    lost = bool(troubles) and any(r.schedule.left for r in runs if r.sweep.hosts != "one")
    if complaints or slower or lost:
        raise typer.Exit(1)


def _hosts(scheduler: str | None, any_host: bool, against: str | None) -> str:
    """Return `Sweep.hosts` by these options."""
    if any_host and not scheduler:
        raise RequestError("any_host: needs a cluster: name it with '--scheduler tcp://…'")
    if against and scheduler:
        raise RequestError("against: takes turns on one machine: leave '--scheduler' out")
    return "any" if any_host else "each" if scheduler else "one"


def _start_of(name: str | None, spec: Path | None, folder: Path) -> tuple[dict[str, Any], str]:
    """Return the fields that a sweep starts with, by default those of the one in `folder`, and
    where they are from."""
    if spec:
        return Sweep.load(spec).model_dump(), f"starts from {spec}"
    if name is None and (own := folder / SPEC).exists():
        return Sweep.load(own).model_dump(), f"continues {own}"
    return preset(name or "page"), f"starts from the preset {name or 'page'}"


if __name__ == "__main__":
    main()
