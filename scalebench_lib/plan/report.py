"""What a decision says: tables to read, commands to run, and ``plan.json`` for programs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from scalebench_lib.plan.decide import Candidate, Decision, Ground
from scalebench_lib.plan.interference import Observation
from scalebench_lib.plan.planner import Plan
from scalebench_lib.plan.profile import InstanceOption
from scalebench_lib.record import write_atomically
from scalebench_lib.stats import Ratio
from scalebench_lib.text import format_number, pluralize

FILE = "plan.json"


def save(decision: Decision) -> Path:
    """Write ``plan.json`` into the sweep's folder, and say where it lies."""
    path = decision.ground.out / FILE
    write_atomically(path, json.dumps(as_json(decision), indent=1) + "\n")
    return path


def as_json(decision: Decision) -> dict[str, Any]:
    """The decision as plain values; times in ms, None where something is not known.

    `fat_ms` and `thin_ms` are measured where the plan was verified, else predicted.
    """
    best, profile = decision.best, decision.ground.profile
    names = {"fat": decision.named("fat"), "thin": decision.named("thin")}
    return {
        "batch_size": best.plan.batch_size,
        "cores": best.plan.cores,
        "cores_available": decision.ground.cores,
        "optimization": best.plan.optimization,
        "instances": [
            {
                "threads": one.option.threads,
                "batch_size": one.option.batch_size,
                "cpus": list(one.cpus),
                "optimization": one.option.optimization,
                "smt": one.option.smt,
                "allocator": one.option.allocator,
                "environment": one.environment,
                "taskset": one.taskset,
                "numactl": one.numactl,
            }
            for one in decision.placed
        ],
        **_times(best),
        "throughput": best.plan.batch_size / best.latency_ms * 1e3,
        **{f"{name}_ms": _known(one.latency_ms) if one else None for name, one in names.items()},
        **{
            f"speedup_over_{name}": _ratio(decision.over(one) if one else None)
            for name, one in names.items()
        },
        "verified": decision.proved,
        "slowdown_exponent": decision.ground.exponent,
        "slo_ms": decision.request.slo_ms or None,
        "model": profile.model,
        "seq_len": profile.seq_len,
        "machine": profile.machine,
        "considered": [
            {"plan": str(one.plan), "names": one.names, "cores": one.plan.cores, **_times(one)}
            for one in decision.entries
        ],
    }


def _times(entry: Candidate) -> dict[str, Any]:
    found = entry.measured_ms
    return {
        "predicted_ms": _known(entry.plan.predicted_ms),
        "measured_ms": found and found.value,
        "measured_ms_low": found and found.low,
        "measured_ms_high": found and found.high,
        "failed": entry.run.reason if entry.run else None,
    }


def _ratio(ratio: Ratio | None) -> dict[str, float | None] | None:
    if ratio is None:
        return None
    limits = {"low": _known(ratio.low), "high": _known(ratio.high)}
    return {"value": ratio.value, **limits, "paired": ratio.how == "paired"}


def _known(value: float) -> float | None:
    return value if np.isfinite(value) else None


def comparison(decision: Decision) -> Table:
    """The plans side by side: predicted, measured, and how much faster than fat."""
    table = Table(title=_title(decision), title_justify="left", title_style="bold", box=SIMPLE_HEAD)
    table.add_column("", no_wrap=True)
    table.add_column("⟨threads, batch⟩", overflow="fold")
    table.add_column("predicted", justify="right", no_wrap=True)
    if decision.proved:
        table.add_column("measured", overflow="fold")
    table.add_column("against fat", overflow="fold")
    ordered = sorted(decision.entries, key=lambda one: (one is not decision.best, one.latency_ms))
    for entry in ordered:
        style = "bold" if entry is decision.best else None
        table.add_row(*map(escape, _cells(decision, entry)), style=style)
    return table


def _title(decision: Decision) -> str:
    ground = decision.ground
    limit = f", within {decision.request.slo_ms:g} ms" if decision.request.slo_ms else ""
    cores = pluralize(ground.cores, "core")
    size = decision.best.plan.batch_size
    return f"{ground.profile.model}, batch {size} on {cores}{limit}; times in ms"


def _cells(decision: Decision, entry: Candidate) -> list[str]:
    fat = decision.named("fat")
    ratio = decision.over(fat, entry) if fat and fat is not entry else None
    names = ["plan"] * (entry is decision.best)
    names += [name for name in entry.names if name in ("fat", "thin")]
    return [
        ", ".join(names),
        f"{entry.plan}, {entry.plan.optimization}",
        _ms(entry.plan.predicted_ms),
        *([_measured(entry)] * decision.proved),
        "" if ratio is None else _short(ratio),
    ]


def _measured(entry: Candidate) -> str:
    if entry.measured_ms:
        return f"{format_number(entry.measured_ms.value, 4)} ±{entry.measured_ms.half_width:.1%}"
    return f"failed: {entry.run.reason}" if entry.run else ""


def _ms(value: float) -> str:
    return format_number(value, 4) if np.isfinite(value) else "unknown"


def _short(ratio: Ratio) -> str:
    interval = f" ({ratio.low:.2f} … {ratio.high:.2f})" if ratio.low > 0 else ""
    return f"{ratio.value:.2f}×{interval}"


def commands(decision: Decision) -> Iterator[str]:
    """What to run: a line an instance, to put before one's own command."""
    yield "To run it, put before the command of each instance:"
    for place, one in enumerate(decision.placed, 1):
        settings = " ".join(f"{name}={value}" for name, value in one.environment.items())
        yield f"  {place}: {_what(one.option)}:  {settings} {one.taskset}"
    yield "or, in place of taskset -c, numactl --localalloc --physcpubind="


def _what(option: InstanceOption) -> str:
    threads = pluralize(option.threads, "thread")
    named = f", {option.allocator}" * (option.allocator != "default")
    return f"batch {option.batch_size}, {threads}, {option.optimization}{named}"


def sentences(decision: Decision) -> Iterator[str]:
    """What the tables come to."""
    best = decision.best
    how = "measured" if decision.proved else "predicted"
    yield (
        f"{best.plan} serves batch {best.plan.batch_size} in "
        f"{format_number(best.latency_ms, 4)} ms ({how}), "
        f"{format_number(best.plan.batch_size / best.latency_ms * 1e3, 4)} inferences/s"
    )
    if 0 < decision.request.slo_ms < best.latency_ms:
        yield (
            f"that is over the limit of {decision.request.slo_ms:g} ms: ask again, "
            "what was measured counts now"
        )
    for name in ("fat", "thin"):
        other = decision.named(name)
        if other is best:
            yield f"it is the {name} plan itself: splitting differently gains nothing here"
        elif other and (ratio := decision.over(other)):
            yield f"{_compared(ratio)} {name}, {other.plan}"
        else:
            yield f"against {name}: {_why_not(decision, name)}"
    idle = decision.ground.cores - best.plan.cores
    if idle >= 1:
        yield f"{idle:g} of {decision.ground.cores} cores are left idle, on purpose"


def _compared(ratio: Ratio) -> str:
    if ratio.differs or not ratio.low:
        return f"{_short(ratio)} as fast as"
    return f"no measurable difference, {_short(ratio)}, to"


def _why_not(decision: Decision, name: str) -> str:
    entry = decision.named(name)
    if entry and entry.run:
        return f"it failed: {entry.run.reason}"
    if name == "fat":
        return "that batch size was not profiled on all cores; --verify runs it all the same"
    return "the profiled batch sizes of one thread do not sum to this batch"


def about_profile(ground: Ground) -> str:
    """What there is to plan with, in a sentence."""
    profile = ground.profile
    sizes = ", ".join(map(str, profile.batch_sizes))
    return (
        f"{profile.model} on {profile.machine}: {len(profile.options)} points, batch {sizes}, "
        f"{', '.join(profile.optimizations)}; {ground.cores} cores to plan with"
    )


def about_gains(gains: Mapping[int, float]) -> str:
    """Where splitting gains most, and where nothing."""
    if not gains:
        return "no batch size was profiled on all cores, so there is no fat to compare with"
    most = max(gains, key=gains.__getitem__)
    none = [str(size) for size, ratio in gains.items() if ratio <= 1]
    at = f"most at batch {most}, {gains[most]:.2f}×" if gains[most] > 1 else "nothing anywhere"
    return f"splitting gains {at}" + (f"; nothing at batch {', '.join(none)}" if none else "")


def about_frontier(plans: Sequence[Plan]) -> str:
    """The two ends of the frontier."""
    ends = {"soonest": plans[0], "most": plans[-1]}
    return "\n".join(
        f"{name}: batch {plan.batch_size} in {format_number(plan.predicted_ms, 4)} ms, "
        f"{format_number(plan.throughput, 4)} inferences/s, {plan}"
        for name, plan in ends.items()
    )


def about_predictions(seen: Sequence[Observation]) -> str:
    """How far predictions were off."""
    if not seen:
        return "no plan was run yet: 'scalebench plan OUT --batch-size … --verify' does"
    off = [run.measured_ms / run.predicted_ms - 1 for run in seen]
    worst = max(off, key=abs)
    within = sum(abs(one) <= 0.1 for one in off)
    return (
        f"{within} of {len(off)} plans were within 10 % of their prediction; at worst {worst:+.1%}"
    )
