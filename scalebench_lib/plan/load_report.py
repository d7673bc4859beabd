"""Deployments and load tests as sentences, pictures and ``plan.json``."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter

from scalebench_lib.cost import MARGIN, fleet
from scalebench_lib.files import write_atomically
from scalebench_lib.picture import Picture
from scalebench_lib.plan import report
from scalebench_lib.plan.decide import Decision, Request
from scalebench_lib.plan.figures import canvas, logarithmic
from scalebench_lib.plan.load import PERCENTILES, Deployment, LoadRun
from scalebench_lib.plan.search import Prediction, Predictor, Target, baseline, requests_for
from scalebench_lib.stats import Interval, Variance
from scalebench_lib.text import format_duration, format_number, pluralize

_LIMIT, _COLOURS = "#d55e00", ("#56b4e9", "#0072b2")


def ranking(
    predictor: Predictor, found: Sequence[Prediction], runs: Sequence[LoadRun]
) -> Iterator[str]:
    """Yield the deployments, the best first: predicted, and measured where they were run."""
    measured = {run.deployment: run for run in runs}
    for number, one in enumerate(found, 1):
        name, q = baseline(one.deployment, predictor.context.cores), f"p{one.target.percentile:g}"
        yield f"{number}: {one.deployment}{f' ({name})' * bool(name)}"
        times = format_number(1e3 * float(np.median(one.log.latency_s)))
        line = f"   predicted median {times} ms, {q} {format_number(one.reached_ms)} ms"
        if run := measured.get(one.deployment):
            none = "overload: the queue grew" if run.log.overloaded else "of too few requests"
            seen = _percentile(run, run.percentile) if run.percentiles else none
            line += f"; measured {q} {seen}, at {format_number(run.rate)} requests/s"
        yield f"{line}, at {format_number(one.rate)} requests/s" if not run else line
    if not predictor.context.record:
        yield "an import has mean times alone: the tails of requests are longer than predicted"
    if predictor.slowdown_unknown(found[0].deployment):
        yield "instances are assumed not to slow each other down: --verify measures it"
    yield from predictor.reservations(found[0].deployment)


def _percentile(run: LoadRun, q: float) -> str:
    values = [format_number(value) if np.isfinite(value) else "∞" for value in run.percentiles[q]]
    return f"{values[0]} ({values[1]} … {values[2]})"


def sentences(run: LoadRun) -> Iterator[str]:
    """Yield what a load test found."""
    log, rate = run.log, run.rate
    requests, failed = log.arrivals.size, int(np.isinf(log.latency_s).sum())
    achieved = f"{format_number((requests - failed) / log.seconds)}/s were answered"
    yield (
        f"{run.deployment}: {requests:,} requests, {run.kind}, {format_number(rate)}/s for "
        f"{format_duration(log.arrivals[-1])}; {achieved}{', interrupted' * run.interrupted}"
    )
    if log.overloaded:
        why = (
            "after an instance failed requests piled up"
            if run.failures
            else ("overload: the queue grew all the time")
        )
        yield f"{why}: no percentile is given as if that were steady; {achieved}"
    replay_ms = 1e3 * run.replay.latency_s if run.percentiles else np.zeros(1)
    for q in run.percentiles:
        replayed = f"by this run's service times {format_number(np.percentile(replay_ms, q))}"
        predicted = f"predicted {format_number(run.predicted_ms[q])}, {replayed}"
        yield f"p{q:g}: {_percentile(run, q)} ms; {predicted}"
    for q in sorted({*PERCENTILES, run.percentile} - run.percentiles.keys()):
        if not log.overloaded:
            needed = requests_for(q)
            yield f"p{q:g} needs {needed:,} requests: --duration {np.ceil(needed / rate):.0f}s"
    if run.slo_ms:
        within = int((1e3 * log.latency_s <= run.slo_ms).sum())
        good = f"{format_number(within / log.seconds)} requests/s (goodput)"
        yield f"within {run.slo_ms:g} ms: {within / requests:.2%}, {good}"
    yield from _of_batches(run)
    if failed:
        yield f"{failed:,} requests failed, or were not answered"
    yield from run.failures


def _of_batches(run: LoadRun) -> Iterator[str]:
    log, done = run.log, np.isfinite(run.log.latency_s)
    if done.any():
        queue, service = log.wait_s[done].mean(), (log.latency_s[done] - log.wait_s[done]).mean()
        sizes = ", ".join(
            f"{n}: {count}" for n, count in enumerate(np.bincount(log.count)) if count
        )
        busy = ", ".join(f"{log.busy(n):.0%}" for n in range(len(run.deployment.plan.instances)))
        yield (
            f"in the mean {format_number(1e3 * queue)} ms in the queue, "
            f"{format_number(1e3 * service)} ms in service; batches by size: {sizes}; instances "
            f"busy: {busy} of the time; the batcher was up to {run.late_ms:.2g} ms late (p99)"
        )


def highest(runs: Sequence[LoadRun]) -> str:
    """Return in a sentence the highest rate that held, and between which it surely lies."""
    limit = f"p{runs[0].percentile:g} within {runs[0].slo_ms:g} ms"
    held = max((run.rate for run in runs if run.reached_ms <= run.slo_ms), default=0.0)
    if not held:
        least = format_number(min(run.rate for run in runs))
        return f"no rate held {limit}, down to {least} requests/s"
    failed = sorted(run.rate for run in runs if run.holds is False)
    low = max((o.rate for o in runs if o.holds and o.rate < min(failed, default=inf)), default=0.0)
    high = next((rate for rate in failed if rate > held), inf)
    between = f"surely more than {format_number(low)}" if low else "how low is not clear"
    between += f" and less than {format_number(high)}" if high < inf else ", or more"
    return f"highest rate with {limit}: {format_number(held)} requests/s, {between}"


def over_time(run: LoadRun) -> Picture:
    """Draw each request's latency over its arrival, so that drift and warm-up are seen."""
    figure, axes = canvas(f"{format_number(run.rate)} requests/s over time")
    log, done = run.log, np.isfinite(run.log.latency_s)
    at, latency = log.arrivals[done], 1e3 * log.latency_s[done]
    axes.plot(at, latency, ".", markersize=2, color="0.7", rasterized=True)
    parts = [part for part in np.array_split(np.arange(at.size), 30) if part.size]
    for label, q in (("median of a thirtieth", 50), ("longest of a thirtieth", 100)):
        values = [np.percentile(latency[part], q) for part in parts]
        axes.plot([at[part].mean() for part in parts], values, color=_COLOURS[q > 50], label=label)
    axes.set(xlim=(0, log.arrivals[-1]), ylim=(0, None))
    return _finished(figure, axes, "arrival (s)", run.slo_ms)


def by_rate(runs: Sequence[LoadRun]) -> Picture:
    """Draw p50 and p99 by rate with their intervals, as measured and as predicted."""
    figure, axes = canvas("Latency by rate, measured and predicted")
    known = sorted((run for run in runs if 99 in run.percentiles), key=lambda run: run.rate)
    rates = [run.rate for run in known]
    for name, q in (("p50", 50.0), ("p99", 99.0)):
        found = np.array([run.percentiles[q] for run in known]).reshape(-1, 3).T
        reach = np.nan_to_num(np.abs(found[1:] - found[0]), posinf=0.0)
        axes.errorbar(rates, found[0], reach, fmt="o-", color=_COLOURS[q > 50], label=name)
        every = sorted((run.rate, run.predicted_ms[q]) for run in runs if q in run.predicted_ms)
        axes.plot(*zip(*every, strict=True), ":", color=_COLOURS[q > 50], label=f"{name} predicted")
    for run in runs:
        if run.log.overloaded:
            axes.axvline(run.rate, color="0.8", label="the queue grew")
    if known:
        logarithmic(axes, "y")
    return _finished(figure, axes, f"requests/s to {runs[0].deployment}", runs[0].slo_ms)


def _finished(figure: Picture, axes: Any, across: str, slo_ms: float) -> Picture:
    if slo_ms:
        axes.axhline(slo_ms, color=_LIMIT, linewidth=1, label=f"limit {slo_ms:g} ms")
    axes.set(xlabel=across, ylabel="latency of a request (ms)")
    named = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    options: dict[str, Any] = {"loc": "outside lower center", "ncols": len(named), "fontsize": 8}
    figure.legend(named.values(), named.keys(), frameon=False, **options)
    return figure


def costs(
    predictor: Predictor, found: Sequence[Prediction], target: Target, price_per_hour: float
) -> Iterator[str]:
    """Yield the cost of a million requests with the best deployment of each optimization."""
    best: dict[str, Deployment] = {}
    for one in found:
        best.setdefault(one.deployment.plan.instances[0].optimization, one.deployment)
    yield f"Cost per million requests, {price_per_hour:g} an hour, {MARGIN:.0%} left unused:"
    for name, deployment in best.items():
        if highest := predictor.highest(deployment, target):
            fleet_of = fleet(Interval(highest, Variance(0.0)), price_per_hour, target.rate)
            machines, cost = pluralize(fleet_of[0], "machine"), format_number(fleet_of[1])
            yield f"  {cost} with {name}: {machines} of {format_number(highest)} requests/s at most"


def save(
    predictor: Predictor, best: Prediction, run: LoadRun | None, target: Target
) -> tuple[Path, Decision]:
    """Write ``plan.json`` for the best deployment; return its path, and the plan as a decision."""
    context, plan = predictor.context, best.deployment.plan
    request = Request.of(slo_ms=target.slo_ms)
    decision = Decision(context, request, plan, fat=None, thin=None)
    values = {
        **report.as_json(decision),
        "deployment": TypeAdapter(Deployment).dump_python(best.deployment, mode="json"),
        "rate": best.rate,
        "percentile": target.percentile,
        "predicted_percentile_ms": best.reached_ms,
        "measured_percentile_ms": run and run.reached_ms,
    }
    path = context.out / report.FILE
    write_atomically(path, json.dumps(values, indent=1) + "\n")
    return path, decision
