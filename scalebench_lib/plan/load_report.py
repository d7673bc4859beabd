"""Deployments and load tests as a table, sentences, pictures and ``plan.json``."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from scalebench_lib.files import write_atomically
from scalebench_lib.picture import Picture
from scalebench_lib.plan import report
from scalebench_lib.plan.decide import Decision, Request
from scalebench_lib.plan.figures import canvas
from scalebench_lib.plan.load_results import PERCENTILES, LoadRun, requests_for
from scalebench_lib.plan.prove import highest_rate
from scalebench_lib.plan.search import Prediction, Predictor, Target, baseline
from scalebench_lib.plan.simulate import Log
from scalebench_lib.text import format_duration, format_number

_LIMIT, _COLOURS = "#d55e00", {"p50": "#56b4e9", "p99": "#0072b2"}


def ranking(
    predictor: Predictor, target: Target, found: Sequence[Prediction], runs: Sequence[LoadRun]
) -> Table:
    """Return the deployments as a table: predicted, and measured where they were run."""
    rate = f"{target.rate:g} requests/s" if target.rate else "the most requests/s"
    context, q = predictor.context, f"p{target.percentile:g}"
    title = f"{context.profile.shared['model']}, {rate} with {q} within {target.slo_ms:g} ms"
    table = Table(title=Text(title), title_justify="left", title_style="bold", box=SIMPLE_HEAD)
    columns = ["", "deployment", "requests/s", "median (ms)", f"{q} (ms)"]
    for name in (*columns, *([f"measured {q} (ms)"] if runs else [])):
        table.add_column(name, overflow="fold", justify="right" if "/s" in name else "left")
    measured = {run.deployment: run for run in runs}
    for one in found:
        values = one.rate, 1e3 * float(np.median(one.log.latency_s)), one.reached_ms
        cells = [baseline(one.deployment, context.cores), str(one.deployment)]
        seen = [_measured(measured[one.deployment])] if one.deployment in measured else []
        table.add_row(*map(Text, [*cells, *map(format_number, values), *seen]))
    return table


def _measured(run: LoadRun) -> str:
    if run.overloaded:
        return "overload: the queue grew"
    rate = f" at {format_number(run.rate)}/s"
    return f"{_percentile(run, run.percentile)}{rate}" if run.percentiles else "too few requests"


def _percentile(run: LoadRun, q: float) -> str:
    values = [format_number(value) if np.isfinite(value) else "∞" for value in run.percentiles[q]]
    return f"{values[0]} ({values[1]} … {values[2]})"


def sentences(run: LoadRun) -> Iterator[str]:
    """Yield what a load test found."""
    rate, achieved = run.rate, (run.requests - run.failed) / run.seconds
    yield (
        f"{run.deployment}: {run.requests:,} requests, {run.arrivals}, {format_number(rate)}/s for "
        f"{format_duration(run.requests / rate)}; {format_number(achieved)}/s were answered"
        + ", interrupted"
        * run.interrupted
    )
    if run.overloaded:
        yield (
            "overload: the queue grew all the time, so no percentile would hold for longer; "
            f"about {format_number(achieved)}/s can be served"
        )
    for q in run.percentiles:
        simulated = f"predicted {format_number(run.predicted_ms[q])}"
        replayed = f"by this run's service times {format_number(run.replayed_ms[q])}"
        yield f"p{q:g}: {_percentile(run, q)} ms; {simulated}, {replayed}"
    for q in sorted({*PERCENTILES, run.percentile} - run.percentiles.keys()):
        if not run.overloaded:
            needed = requests_for(q)
            yield f"p{q:g} needs {needed:,} requests: --duration {needed / rate:.0f}s"
    if run.slo_ms:
        share, good = run.within_slo / run.requests, run.within_slo / run.seconds
        yield f"within {run.slo_ms:g} ms: {share:.2%}, {format_number(good)} requests/s (goodput)"
    sizes = ", ".join(f"{size}: {count}" for size, count in run.batch_sizes.items())
    yield (
        f"in the mean {format_number(run.queue_ms)} ms in the queue, "
        f"{format_number(run.mean_service_ms)} ms in service; batches by size: {sizes}; "
        f"instances were busy {', '.join(f'{share:.0%}' for share in run.busy)} of the time"
    )
    if run.failed:
        yield f"{run.failed:,} requests failed or were not answered"
    yield from run.failures


def highest(runs: Sequence[LoadRun]) -> str:
    """Return the highest rate that held, in a sentence."""
    rate, low, high = highest_rate(runs)
    limit = f"p{runs[0].percentile:g} within {runs[0].slo_ms:g} ms"
    if not rate:
        least = min(run.rate for run in runs)
        return f"no rate held {limit}, down to {format_number(least)} requests/s"
    above = f"surely below {format_number(high)}" if np.isfinite(high) else "more was not tried"
    below = f"surely {format_number(low)}, " if low else ""
    return f"highest rate with {limit}: {format_number(rate)} requests/s ({below}{above})"


def over_time(run: LoadRun, log: Log) -> Picture:
    """Draw each request's latency over its arrival, so that drift and warm-up are seen."""
    figure, axes = canvas(f"{format_number(run.rate)} requests/s over time")
    done = np.isfinite(log.latency_s)
    at, latency = log.arrivals[done], 1e3 * log.latency_s[done]
    axes.plot(at, latency, ".", markersize=2, color="0.7", rasterized=True)
    parts = [part for part in np.array_split(np.arange(at.size), 30) if part.size]
    for name, q in (("p50", 50), ("p99", 99)):
        values = [np.percentile(latency[part], q) for part in parts]
        label = f"{name} of a thirtieth"
        axes.plot([at[part].mean() for part in parts], values, color=_COLOURS[name], label=label)
    return _finished(figure, axes, "arrival (s)", run.slo_ms)


def by_rate(runs: Sequence[LoadRun]) -> Picture:
    """Draw p50 and p99 by rate with their intervals, as measured and as predicted."""
    figure, axes = canvas(f"Latency by rate: {runs[0].deployment}")
    known = sorted((run for run in runs if 99 in run.percentiles), key=lambda run: run.rate)
    rates = [run.rate for run in known]
    for name, q in (("p50", 50.0), ("p99", 99.0)):
        found = np.array([run.percentiles[q] for run in known]).reshape(-1, 3).T
        reach = np.nan_to_num(np.abs(found[1:] - found[0]), posinf=0.0)
        axes.errorbar(rates, found[0], reach, fmt="o-", color=_COLOURS[name], label=name)
        predicted = [run.predicted_ms[q] for run in known]
        axes.plot(rates, predicted, ":", color=_COLOURS[name], label=f"{name} predicted")
    for run in runs:
        if run.overloaded:
            axes.axvline(run.rate, color="0.8", label="the queue grew")
    return _finished(figure, axes, "requests/s", runs[0].slo_ms)


def _finished(figure: Picture, axes: Any, across: str, slo_ms: float) -> Picture:
    if slo_ms:
        axes.axhline(slo_ms, color=_LIMIT, linewidth=1, label=f"limit {slo_ms:g} ms")
    axes.set(xlabel=across, ylabel="latency of a request (ms)")
    axes.set_ylim(bottom=0)
    unique = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    axes.legend(unique.values(), unique.keys(), frameon=False, loc="upper left", fontsize=8)
    return figure


def save(
    predictor: Predictor, best: Prediction, run: LoadRun | None, target: Target
) -> tuple[Path, Decision]:
    """Write ``plan.json`` for the best deployment; return its path, and the plan as a decision."""
    context, plan, batching = predictor.context, best.deployment.plan, best.deployment.batching
    request = Request.of(slo_ms=target.slo_ms)
    decision = Decision(context, request, plan, fat=None, thin=None)
    values = {
        **report.as_json(decision),
        "rate": best.rate,
        "percentile": target.percentile,
        "max_batch": batching.max_batch,
        "max_wait_ms": batching.max_wait_ms,
        "predicted_percentile_ms": best.reached_ms,
        "measured_percentile_ms": run and run.reached_ms,
    }
    path = context.out / report.FILE
    write_atomically(path, json.dumps(values, indent=1) + "\n")
    return path, decision
