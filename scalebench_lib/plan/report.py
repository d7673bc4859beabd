"""What a decision says: tables to read, commands to run, and ``plan.json`` for programs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from scalebench_lib.files import write_atomically
from scalebench_lib.plan.decide import Candidate, Context, Decision
from scalebench_lib.plan.planner import Plan
from scalebench_lib.plan.profile import Instance
from scalebench_lib.record import Software
from scalebench_lib.stats import Ratio
from scalebench_lib.text import format_number, pluralize

FILE = "plan.json"

_RUN_BY = ("threads", "batch_size", "optimization", "smt", "allocator")


def save(decision: Decision) -> Path:
    """Write ``plan.json`` into the sweep's folder, and say where it lies."""
    path = decision.context.out / FILE
    write_atomically(path, json.dumps(as_json(decision), indent=1) + "\n")
    return path


def as_json(decision: Decision) -> dict[str, Any]:
    """The decision as plain values; times in ms, None where something is not known.

    `fat_ms` and `thin_ms` are measured where the plans were run, else predicted;
    `slowdown_per_core` is the logarithm of what each core that others keep busy costs an instance.
    """
    plan, context = decision.best.plan, decision.context
    baselines: dict[str, Any] = {}
    for name in ("fat", "thin"):
        one = decision.named(name)
        baselines[f"{name}_ms"] = _finite(one.plan.latency_ms) if one else None
        baselines[f"speedup_over_{name}"] = _ratio(decision.speedup(one)) if one else None
    return {
        "batch_size": plan.batch_size,
        "cores": plan.cores,
        "cores_available": context.cores,
        "optimization": _optimization(plan),
        "instances": [
            {
                **{name: getattr(one.instance, name) for name in _RUN_BY},
                "cpus": one.cpus,
                "environment": one.environment,
                "taskset": one.taskset,
                "numactl": one.numactl,
            }
            for one in decision.placed
        ],
        **_times(decision.best),
        "throughput": plan.throughput,
        **baselines,
        "verified": decision.verified,
        "slowdown_per_core": context.slowdown,
        "slo_ms": decision.request.slo_ms or None,
        **context.profile.shared,
        "considered": [
            {"plan": str(one.plan), "names": one.names, "cores": one.plan.cores, **_times(one)}
            for one in decision.candidates
        ],
    }


def _times(candidate: Candidate) -> dict[str, Any]:
    measured = candidate.plan.measured_ms
    return {
        "predicted_ms": _finite(candidate.plan.predicted_ms),
        "measured_ms": measured and measured.value,
        "measured_ms_low": measured and measured.low,
        "measured_ms_high": measured and measured.high,
        "failed": candidate.timing and candidate.timing.reason,
    }


def _ratio(ratio: Ratio | None) -> dict[str, float | None] | None:
    if ratio is None:
        return None
    limits = {"low": _finite(ratio.low), "high": _finite(ratio.high)}
    return {"value": ratio.value, **limits, "paired": ratio.how == "paired"}


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None


def comparison(decision: Decision) -> Table:
    """The plans side by side: predicted, measured, and how much faster than fat."""
    context, best = decision.context, decision.best
    limit = f", within {decision.request.slo_ms:g} ms" if decision.request.slo_ms else ""
    model, cores = context.profile.shared["model"], pluralize(context.cores, "core")
    title = f"{model}, batch {best.plan.batch_size} on {cores}{limit}; times in ms"
    table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD)
    table.add_column("", no_wrap=True)
    table.add_column("⟨threads, batch⟩", overflow="fold")
    table.add_column("predicted", justify="right", no_wrap=True)
    run = [one for one in decision.candidates if one.timing or one.plan.measured_ms]
    if run:
        table.add_column("measured", overflow="fold")
    table.add_column("against fat", overflow="fold")
    fat = decision.named("fat")
    for one in sorted(decision.candidates, key=lambda one: (one is not best, one.plan.latency_ms)):
        ratio = decision.speedup(fat, one) if fat and fat is not one else None
        cells = [
            ", ".join([*["plan"] * (one is best), *(n for n in one.names if n in ("fat", "thin"))]),
            f"{one.plan}, {_optimization(one.plan)}",
            _ms(one.plan.predicted_ms),
            *([_measured(one)] if run else []),
            _short(ratio) if ratio else "",
        ]
        table.add_row(*map(escape, cells), style="bold" if one is best else None)
    return table


def _measured(candidate: Candidate) -> str:
    if found := candidate.plan.measured_ms:
        return f"{_ms(found.value)} ±{found.half_width:.1%}"
    return f"failed: {candidate.timing.reason}" if candidate.timing else ""


def _optimization(plan: Plan) -> str:
    """``none + script`` where they differ."""
    return " + ".join(sorted(plan.optimizations))


def _ms(value: float) -> str:
    return format_number(value, 4) if np.isfinite(value) else "unknown"


def _short(ratio: Ratio) -> str:
    interval = f" ({ratio.low:.2f} … {ratio.high:.2f})" if ratio.low > 0 else ""
    return f"{ratio.value:.2f}×{interval}"


def commands(decision: Decision) -> Iterator[str]:
    """What to run: a line an instance, to put before one's own command."""
    yield "To run it, put before the command of each instance:"
    for number, one in enumerate(decision.placed, 1):
        settings = " ".join(f"{name}={value}" for name, value in one.environment.items())
        yield f"  {number}: {_description(one.instance)}:  {settings} {one.taskset}"
    yield "or, in place of taskset -c, numactl --localalloc --physcpubind="


def _description(one: Instance) -> str:
    allocator = f", {one.allocator}" * (one.allocator != "default")
    threads = pluralize(one.threads, "thread")
    return f"batch {one.batch_size}, {threads}, {one.optimization}{allocator}"


def sentences(decision: Decision) -> Iterator[str]:
    """What the tables come to."""
    plan, context = decision.best.plan, decision.context
    how = "predicted" if not plan.measured_ms else "measured" + " before" * (not decision.verified)
    yield (
        f"{plan} serves batch {plan.batch_size} in {_ms(plan.latency_ms)} ms ({how}), "
        f"{format_number(plan.throughput, 4)} inferences/s"
    )
    if 0 < decision.request.slo_ms < plan.latency_ms:
        yield (
            f"that is over the limit of {decision.request.slo_ms:g} ms: ask again, "
            "what was measured counts now"
        )
    for name in ("fat", "thin"):
        other = decision.named(name)
        if other is decision.best:
            gain = ": splitting gains nothing here" if name == "fat" else ""
            yield f"it is the {name} plan itself{gain}"
        elif other and (ratio := decision.speedup(other)):
            yield f"{_compared(ratio)} {name}, {other.plan}"
        else:
            yield f"against {name}: {_why_not(name, other)}"
    if context.cores > plan.cores:
        yield f"{context.cores - plan.cores} of {context.cores} cores are left idle, on purpose"
    yield from _reservations(decision)


def _reservations(decision: Decision) -> Iterator[str]:
    """What the prediction, or the verification, does not cover."""
    plan, context = decision.best.plan, decision.context
    if len(plan.instances) > 1 and not plan.measured_ms and context.slowdown is None:
        tells = "--verify measures it" if context.record else "what was imported cannot tell"
        yield f"instances are assumed not to slow each other down: {tells}"
    measured_with = context.record.software if context.record else Software.here()
    if decision.verified and (differs := measured_with.differs_from(Software.here())):
        yield f"the sweep has other software ({differs}): later plans do not count these runs"


def _compared(ratio: Ratio) -> str:
    if ratio.differs or not ratio.low:
        return f"{_short(ratio)} as fast as"
    return f"no measurable difference, {_short(ratio)}, to"


def _why_not(name: str, candidate: Candidate | None) -> str:
    if candidate and candidate.timing:
        return f"it failed: {candidate.timing.reason}"
    if name == "fat":
        return "that batch size was not profiled on all cores; --verify runs it all the same"
    return "the profiled batch sizes of one thread do not sum to this batch"


def describe_profile(context: Context) -> str:
    """What there is to plan with, in a sentence."""
    profile = context.profile
    sizes = ", ".join(map(str, profile.batch_sizes))
    return (
        f"{profile.shared['model']} on {profile.shared['machine']}: "
        f"{len(profile.instances)} points, batch {sizes}, "
        f"{', '.join(profile.optimizations)}; {context.cores} cores to plan with"
    )
