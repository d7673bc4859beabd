"""A decision as a table and sentences to read, commands to run, and ``plan.json`` for programs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from scalebench_lib import cost
from scalebench_lib.config import WITHIN
from scalebench_lib.errors import RequestError
from scalebench_lib.files import write_atomically
from scalebench_lib.model_names import model_title
from scalebench_lib.optimizations import optimization_title
from scalebench_lib.plan.decide import Context, Decision
from scalebench_lib.plan.placement import PlacedInstance
from scalebench_lib.plan.planner import Plan, split_evenly
from scalebench_lib.record import Software
from scalebench_lib.stats import Interval, Ratio
from scalebench_lib.text import format_number, pluralize

FILE = "plan.json"

BASELINES = {"fat": "one instance on all cores (fat)", "thin": "one instance a core (thin)"}
"""What people call the plans that need no thought."""

NOISY = 0.2
"""A ratio whose interval is of this half-width, or more, is no verdict."""

QUIET_CPUS = 0.1
"""Services of an idle machine use a few hundredths of a CPU; this is a core for 1 s in every 10."""

new_table = partial(
    Table,
    title_justify="left",
    title_style="bold",
    box=SIMPLE_HEAD,
    caption="fat: one instance on all cores; thin: one a core",
    caption_justify="left",
)

_RUN_BY = ("threads", "batch_size", *WITHIN)


def save_plan_json(decision: Decision, **more: Any) -> Path:
    """Write ``plan.json``, with `more` values, into the sweep's folder; return its path."""
    path = decision.context.out / FILE
    write_atomically(path, json.dumps({**as_json(decision), **more}, indent=1) + "\n")
    return path


def as_json(decision: Decision) -> dict[str, Any]:
    """Return the decision as plain values; times in ms, None if something is not known.

    `fat_ms` and `thin_ms` are measured where the plans were run, else predicted;
    `slowdown_per_core` is the logarithm of what each core that others keep busy costs an instance.
    """
    best, context = decision.best, decision.context
    baselines = {"fat": decision.fat, "thin": decision.thin}
    named = {"best": best, **baselines}
    return {
        "batch_size": best.batch_size,
        "cores": best.cores,
        "cores_available": context.cores,
        "optimization": _optimization(best),
        "instances": [_placed(one) for one in decision.placed],
        **_times(best),
        "throughput": best.throughput,
        **{f"{name}_ms": one and finite(one.latency_ms) for name, one in baselines.items()},
        **{
            f"speedup_over_{name}": one and _ratio(decision.speedup(best, one))
            for name, one in baselines.items()
        },
        "verified": bool(decision.timings),
        "limit_kept": decision.limit_kept,
        "slowdown_per_core": context.slowdown,
        "slo_ms": decision.request.slo_ms or None,
        **context.profile.shared,
        "considered": [_considered(plan, named) for plan in decision.plans],
    }


def _placed(one: PlacedInstance) -> dict[str, Any]:
    """An instance, and how to run a command in its place."""
    names = ("cpus", "environment", "taskset", "numactl")
    return {
        **{name: getattr(one.instance, name) for name in _RUN_BY},
        **{name: getattr(one, name) for name in names},
    }


def _considered(plan: Plan, named: Mapping[str, Plan | None]) -> dict[str, Any]:
    names = [name for name, one in named.items() if one == plan]
    return {"plan": str(plan), "cores": plan.cores, "names": names, **_times(plan)}


def _times(plan: Plan) -> dict[str, Any]:
    measured = plan.measured_ms
    return {
        "predicted_ms": finite(plan.predicted_ms),
        "measured_ms": measured and measured.value,
        "measured_ms_low": measured and finite(measured.high) and measured.low,
        "measured_ms_high": measured and finite(measured.high),
        "failed": plan.failed,
    }


def _ratio(ratio: Ratio | None) -> dict[str, float | None] | None:
    if ratio is None:
        return None
    limits = {"low": finite(ratio.low), "high": finite(ratio.high)}
    return {"value": ratio.value, **limits, "paired": ratio.how == "paired"}


def finite(value: float) -> float | None:
    """Return `value`; None for JSON, which has no infinity, where it is none."""
    return value if np.isfinite(value) else None


def plan_table(decision: Decision) -> Table:
    """Return the plans as a table: predicted, measured, and how much faster than fat."""
    context, best, fat = decision.context, decision.best, decision.fat
    limit = f", within {decision.request.slo_ms:g} ms" if decision.request.slo_ms else ""
    model, cores = model_title(context.profile.shared["model"]), pluralize(context.cores, "core")
    title = f"{model}, batch {best.batch_size} on {cores}{limit}; times in ms"
    table = new_table("", title=Text(title))
    table.add_column("instances", overflow="fold")
    table.add_column("predicted", justify="right", no_wrap=True)
    run = any(plan.measured_ms for plan in decision.plans)
    if run:
        table.add_column("measured", overflow="fold")
    table.add_column("against fat", overflow="fold")
    named = {"best": best, "fat": fat, "thin": decision.thin}
    for plan in decision.plans:
        ratio = decision.speedup(plan, fat) if fat and plan != fat else None
        cells = [
            ", ".join(name for name, one in named.items() if one == plan),
            f"{plan}, {_optimization(plan)}",
            _ms(plan.predicted_ms),
            *([_measured(plan)] if run else []),
            _short(ratio) if ratio else "",
        ]
        table.add_row(*map(Text, cells), style="bold" if plan == best else None)
    return table


def _measured(plan: Plan) -> str:
    if found := plan.measured_ms:
        margin = f" ±{found.half_width:.1%}" if np.isfinite(found.half_width) else ""
        return f"{_ms(found.value)}{margin}"
    return f"failed: {plan.failed}" if plan.failed else ""


def _optimization(plan: Plan) -> str:
    """Return ``TorchScript + eager`` if its instances differ."""
    return " + ".join(sorted(map(optimization_title, plan.optimizations)))


def _ms(value: float) -> str:
    return format_number(value, 4) if np.isfinite(value) else "unknown"


def _short(ratio: Ratio) -> str:
    interval = f" ({ratio.low:.2f} … {ratio.high:.2f})" if ratio.low > 0 else ""
    return f"{ratio.value:.2f}×{interval}"


def commands(decision: Decision) -> Iterator[str]:
    """Yield how to start the best plan, a line for each instance."""
    if decision.limit_kept is False:
        yield "Nothing to run: no plan kept to the limit."
        return
    yield "To run it, start your own server once for each instance, with these in front:"
    for number, one in enumerate(decision.placed, 1):
        settings = " ".join(f"{name}={value}" for name, value in one.environment.items())
        batch = "" if decision.batching else f"batch {one.instance.batch_size}, "
        before = f"{settings} {one.taskset} YOUR_SERVER"
        yield f"  {number}: {batch}{one.instance.label}:  {before}"
    yield "or, in place of taskset -c, numactl --localalloc --physcpubind="
    yield from server_settings(decision)
    yield "'scalebench plan OUT … --export DIR' writes run.sh, which starts all of them."
    if not decision.context.record:
        yield "The CPU numbers are made up: an import does not tell which CPUs its machine has."


_THREAD_SETTINGS = {
    "onnxruntime": "Set session_options.intra_op_num_threads = {}",
    "openvino": 'Give compile_model config={{"INFERENCE_NUM_THREADS": {}}}',
}
"""Engines whose threads OMP_NUM_THREADS does not set."""


def server_settings(decision: Decision) -> Iterator[str]:
    """Yield what the server of an instance has to do: its batches, and threads, in code."""
    if (batching := decision.batching) and (most := batching.max_batch) > 1:
        wait_ms = batching.max_wait_ms
        wait = f"waiting at most {wait_ms:g} ms" if wait_ms else "not waiting"
        yield f"Let each collect up to {most} requests into a batch, {wait} for more."
    elif batching:
        yield "Let each take one request at a time."
    for engine, code in _THREAD_SETTINGS.items():
        mine = (one for one in decision.best.instances if one.optimization.startswith(engine))
        for count in sorted({one.threads for one in mine}):
            yield f"{code.format(count)} in those of {pluralize(count, 'thread')}"


def sentences(decision: Decision) -> Iterator[str]:
    """Yield the findings: the best plan against fat and thin, and idle cores."""
    best, cores = decision.best, decision.context.cores
    before = "measured before" if decision.context.record else "published"
    how = "predicted" if not best.measured_ms else "measured" if decision.timings else before
    if decision.limit_kept is False:
        yield none_kept(len(decision.timings), decision.request.slo_ms, best.latency_ms)
    yield (
        f"{best} serves batch {best.batch_size} in {_ms(best.latency_ms)} ms ({how}), "
        f"{format_number(best.throughput, 4)} {decision.context.profile.unit}"
    )
    for name, other in (("fat", decision.fat), ("thin", decision.thin)):
        if other == best:
            gain = ": splitting gains nothing here" if name == "fat" else ""
            yield f"it is {BASELINES[name]}{gain}"
        elif other and (ratio := decision.speedup(best, other)):
            yield f"{_compared(ratio)} {BASELINES[name]}, {other}"
        else:
            yield f"against {BASELINES[name]}: {_why_not(name, other, decision)}"
    if cores > best.cores:
        yield f"{cores - best.cores} of {cores} cores are left idle, on purpose"
    yield from _reservations(decision)


def none_kept(plans: int, slo_ms: float, nearest_ms: float) -> str:
    """Return in a sentence that none of the `plans` that were run kept to the limit."""
    nearest = f"the nearest took {format_number(nearest_ms, 4)} ms"
    return (
        f"none of the {pluralize(plans, 'plan')} kept {slo_ms:g} ms when run: "
        f"{nearest if np.isfinite(nearest_ms) else 'the queues grew'}; "
        "ask again: what was measured counts now"
    )


def disturbance(other_cpus: float | None) -> Iterator[str]:
    """Yield that something else computed meanwhile, if it was more than `QUIET_CPUS`."""
    if other_cpus and other_cpus > QUIET_CPUS:
        yield (
            f"something else used {other_cpus:.1f} CPUs in the mean meanwhile: run it again when "
            "the machine is quiet"
        )


def cost_lines(decision: Decision, price_per_hour: float) -> Iterator[str]:
    """Yield what a million requests cost with the best plan of each optimization."""
    highest: dict[str, Interval] = {}
    for name in decision.context.profile.optimizations:
        request = decision.request.model_copy(update={"optimization": name})
        with suppress(RequestError):  # not all can do what was asked for
            best = decision.context.decide(request).best
            highest[name] = Interval(best.throughput, best.interval_ms.variance)
    return cost.cost_lines(highest, price_per_hour)


def _reservations(decision: Decision) -> Iterator[str]:
    """Yield what the prediction assumes, what disturbed a run, and where it does not count."""
    best, context = decision.best, decision.context
    yield from disturbance(decision.other_cpus)
    yield from context.reservations(best)
    here = Software.here()
    measured_with = context.record.software if context.record else here
    if decision.timings and (differs := measured_with.differs_from(here)):
        yield f"the sweep has other software ({differs}): later plans do not count these runs"


def _compared(ratio: Ratio) -> str:
    if ratio.low > 0 and ratio.half_width >= NOISY:
        again = "the machine is too noisy now: again with more max_seconds"
        return f"no verdict ({again}), {_short(ratio)}, against"
    if ratio.differs or not ratio.low:
        return f"{_short(ratio)} as fast as"
    return f"no measurable difference, {_short(ratio)}, to"


def _why_not(name: str, plan: Plan | None, decision: Decision) -> str:
    if plan:
        return f"it failed: {plan.failed}"
    size, context = decision.best.batch_size, decision.context
    if name == "thin" and size < context.cores:
        return f"there is none: {pluralize(size, 'item')} for {context.cores} cores"
    where = "all cores" if name == "fat" else "one thread"
    sizes = set(split_evenly(size, 1 if name == "fat" else context.cores))
    batches = " or ".join(map(str, sorted(sizes)))
    run = "; verify runs it all the same" if context.record else ""
    return f"batch {batches} was not measured on {where}{run}"


def describe_profile(context: Context) -> str:
    """Return in a sentence what the profile holds."""
    profile = context.profile
    sizes = ", ".join(map(str, profile.batch_sizes))
    optimizations = ", ".join(map(optimization_title, profile.optimizations))
    return (
        f"{model_title(profile.shared['model'])} on {profile.shared['machine']}: "
        f"{pluralize(len(profile.instances), 'point')}, batch {sizes}, "
        f"{optimizations}; {pluralize(context.cores, 'core')} to plan with"
    )
