"""Deployments and load tests as sentences, pictures and ``plan.json``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter
from rich.table import Table
from rich.text import Text

from scalebench_lib import cost
from scalebench_lib.picture import Picture
from scalebench_lib.plan import report
from scalebench_lib.plan.arrivals import lengths_suffix, request_lengths
from scalebench_lib.plan.decide import Decision
from scalebench_lib.plan.figures import canvas, logarithmic
from scalebench_lib.plan.load import PERCENTILES, Deployment, LoadRun
from scalebench_lib.plan.search import Prediction, Predictor, Target, baseline_name, min_requests
from scalebench_lib.record import EXACT_DB
from scalebench_lib.stats import Interval, VarianceEstimate
from scalebench_lib.text import format_duration, format_error_db, format_number, pluralize

_LIMIT, _COLOURS = "#d55e00", ("#56b4e9", "#0072b2")

_AS_ASKED = 0.03
"""Arrivals at a rate that differs by more from the one that was asked for are told."""


def deployment_table(
    cores: int, found: Sequence[Prediction], best: Prediction, runs: Sequence[LoadRun]
) -> Table:
    """Return deployments as a table: predicted on that many `cores`, and measured in `runs`."""
    target, measured = best.target, {run.deployment: run for run in runs}
    q, seen = f"p{target.percentile:g}", bool(runs)
    lengths = lengths_suffix(best.deployment.batching.lengths)
    title = f"{q} within {target.slo_ms:g} ms{lengths}; times in ms"
    table = report.new_table("", title=Text(title))
    for name in ("requests/s", "p50", q, *["measured"] * seen):
        table.add_column(name, justify="right", overflow="fold")
    table.add_column("instances", overflow="fold")
    for one in found:
        names = "best" * (one is best), baseline_name(one.deployment, cores)
        numbers = one.rate, one.median_ms, one.reached_ms
        run = measured.get(one.deployment)
        told = [*map(format_number, numbers), *[_measured(run) if run else ""] * seen]
        cells = [", ".join(filter(None, names)), *told, one.title]
        table.add_row(*map(Text, cells), style="bold" if one is best else None)
    return table


def _measured(run: LoadRun) -> str:
    none = "unknown: the queue grew" if run.log.overloaded else "unknown: too few requests"
    reached = f"{_percentile(run, q)} ms" if (q := run.percentile) in run.percentiles else none
    return f"{reached}, at {format_number(run.rate)}/s"


def answer_sentences(
    predictor: Predictor, found: Sequence[Prediction], best: Prediction, runs: Sequence[LoadRun]
) -> Iterator[str]:
    """Yield what `best` of those `found` serves, simulated and in `runs`, and what that assumes.

    The run of `best` is the first. Where none kept to the limit, that comes first.
    """
    if runs and runs[0].holds is False:
        nearest_ms = min(run.reached_ms for run in runs)
        yield report.none_kept(len(runs), best.target.slo_ms, nearest_ms)
    yield _serves(predictor, best) + lengths_suffix(best.deployment.batching.lengths)
    for run in runs[:1]:
        kept = {True: "kept", False: "not kept", None: "in doubt"}
        limit = f"{run.slo_ms:g} ms are {kept[run.holds]}"
        yield f"measured: a p{run.percentile:g} of {_measured(run)}; {limit}"
        yield from report.disturbance(run.other_cpus)
    yield from _exact(predictor, found, best)
    yield from _load_tests(predictor, best)
    if not predictor.context.record:
        yield "an import has mean times alone: the tails of requests are longer than predicted"
    yield from predictor.reservations(best.deployment)


def _serves(predictor: Predictor, one: Prediction) -> str:
    error = format_error_db(predictor.sqnr_db(one.deployment))
    return (
        f"{one.deployment}: {format_number(one.rate)} requests/s with a p{one.target.percentile:g} "
        f"of {format_number(one.reached_ms)} ms, a median of {format_number(one.median_ms)} ms "
        f"(predicted){f', error {error} dB' * bool(error)}"
    )


def _exact(predictor: Predictor, found: Sequence[Prediction], best: Prediction) -> Iterator[str]:
    """Yield the best exact deployment if `best` is not exact."""
    exact = [one for one in found if predictor.sqnr_db(one.deployment) >= EXACT_DB]
    if exact and predictor.sqnr_db(best.deployment) < EXACT_DB:
        over = "" if exact[0].holds else ", over the limit"
        yield f"with less error{over}: {_serves(predictor, exact[0])}"


def _load_tests(predictor: Predictor, best: Prediction) -> Iterator[str]:
    """Yield how many load tests tell the times of `best`."""
    tests = pluralize(used := predictor.load_tests(best.deployment), "load test")
    if used:
        yield f"its times are those of {tests} in this folder (load.jsonl)"
    elif every := len(predictor.context.loads):
        others = f"none of {pluralize(every, 'load test')} in this folder is of these instances"
        yield f"its times are those of the sweep: {others}"


def _percentile(run: LoadRun, q: float) -> str:
    values = [format_number(value) if np.isfinite(value) else "∞" for value in run.percentiles[q]]
    middle, low, high = values
    return f"{middle} ({low} or more)" if high == "∞" else f"{middle} ({low} … {high})"


def sentences(run: LoadRun) -> Iterator[str]:
    """Yield what a load test found."""
    log, rate = run.log, run.rate
    requests, failed = log.arrivals.size, int(np.isinf(log.latency_s).sum())
    achieved = f"{format_number((requests - failed) / log.seconds)}/s were answered"
    arrived, asked = f"{format_number(rate)}/s", run.asked_rate
    if asked and abs(rate / asked - 1) > _AS_ASKED:
        arrived = f"asked {asked:g}/s, the random arrivals came at {arrived}"
    yield (
        f"{run.deployment}: {requests:,} requests, {run.kind}, {arrived} for "
        f"{format_duration(log.arrivals[-1])}; {achieved}{', interrupted' * run.interrupted}"
        f"{lengths_suffix(run.deployment.batching.lengths)}"
    )
    if log.overloaded:
        why = "overload: the queue grew all the time"
        why = "after an instance failed requests piled up" if run.failures else why
        yield f"{why}, so there are no percentiles; {achieved}"
    replay_ms = 1e3 * run.replay.latency_s if run.percentiles else np.zeros(1)
    for q in run.percentiles:
        replayed = f"from this run's own passes {format_number(np.percentile(replay_ms, q))}"
        predicted = f"predicted {format_number(run.predicted_ms[q])}, predicted {replayed}"
        yield f"p{q:g}: {_percentile(run, q)} ms; {predicted}"
    for q in sorted({*PERCENTILES, run.percentile} - run.percentiles.keys()):
        if not log.overloaded:
            needed = min_requests(q)
            yield f"p{q:g} needs {needed:,} requests: a duration of {np.ceil(needed / rate):.0f} s"
    if run.slo_ms:
        within = int((1e3 * log.latency_s <= run.slo_ms).sum())
        good = f"{format_number(within / log.seconds)} requests/s (goodput)"
        yield f"within {run.slo_ms:g} ms: {within / requests:.2%}, {good}"
    yield from _of_batches(run)
    if failed:
        yield f"{failed:,} requests failed, or were not answered"
    yield from run.failures
    yield from report.disturbance(run.other_cpus)


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
    if lengths := run.deployment.batching.lengths:
        computed = sum(size * tokens for size, tokens in run.deployment.batching.shapes_of(log))
        asked = request_lengths(lengths, int(log.count.sum())).sum()
        yield f"{1 - asked / computed:.0%} of the tokens that were computed are padding"


def highest_rate_sentence(runs: Sequence[LoadRun]) -> str:
    """Return in a sentence the highest rate that held, and between which it surely lies."""
    limit = f"p{runs[0].percentile:g} within {runs[0].slo_ms:g} ms"
    held = max((run.rate for run in runs if run.reached_ms <= run.slo_ms), default=0.0)
    if not held:
        least = format_number(min(run.rate for run in runs))
        return f"no rate held {limit}, down to {least} requests/s"
    failed = sorted(run.rate for run in runs if run.holds is False)
    low = max((o.rate for o in runs if o.holds and o.rate < min(failed, default=inf)), default=0.0)
    high = next((rate for rate in failed if rate > held), inf)
    between = f"surely more than {format_number(low)}" if low else "its low end is not known"
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


def by_rate(curve: Sequence[Prediction], every: Sequence[LoadRun]) -> Picture:
    """Draw p50 and the percentile by rate: lines are simulated, dots those of `every` run of it."""
    target, deployment = curve[0].target, curve[0].deployment
    runs = [run for run in every if run.deployment == deployment]
    figure, axes = canvas("Latency by rate")
    for colour, q in zip(_COLOURS, dict.fromkeys((50.0, target.percentile)), strict=False):
        simulated = [(one.rate, 1e3 * np.percentile(one.log.latency_s, q)) for one in curve]
        axes.plot(*np.transpose(simulated), color=colour, label=f"p{q:g} simulated")
        if known := [run for run in runs if q in run.percentiles]:
            middle, *ends = np.transpose([run.percentiles[q] for run in known])
            reach = np.nan_to_num(np.abs(ends - middle), posinf=0.0)
            look: dict[str, Any] = {"fmt": "o", "color": colour, "label": f"p{q:g} measured"}
            axes.errorbar([run.rate for run in known], middle, reach, **look)
    for run in runs:
        if run.log.overloaded:
            axes.axvline(run.rate, color="0.8", label="the queue grew")
    if target.rate:
        axes.axvline(target.rate, color="0.5", ls=":", label=f"{target.rate:g} requests/s")
    logarithmic(axes, "y")
    held = max((one.rate for one in curve if one.holds), default=0.0)
    where = f"up to {format_number(held)} requests/s" if held else "at no rate"
    figure.sentence = f"simulated, p{target.percentile:g} is within {target.slo_ms:g} ms {where}"
    return _finished(figure, axes, f"requests/s to {deployment}", target.slo_ms)


def _finished(figure: Picture, axes: Any, across: str, slo_ms: float) -> Picture:
    if slo_ms:
        axes.axhline(slo_ms, color=_LIMIT, linewidth=1, label=f"limit {slo_ms:g} ms")
    axes.set(xlabel=across, ylabel="latency of a request (ms)")
    named = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    options: dict[str, Any] = {"loc": "outside lower center", "ncols": len(named), "fontsize": 8}
    figure.legend(named.values(), named.keys(), frameon=False, **options)
    return figure


def cost_lines(
    predictor: Predictor, found: Sequence[Prediction], target: Target, price_per_hour: float
) -> Iterator[str]:
    """Yield what a million requests cost with the best deployment of each optimization."""
    every = [one.deployment for one in reversed(found)]
    best = {one.plan.instances[0].optimization: one for one in every}
    rates = {name: predictor.highest(one, target) for name, one in best.items()}
    highest = {name: Interval(rate, VarianceEstimate(0.0)) for name, rate in rates.items() if rate}
    return cost.cost_lines(highest, price_per_hour, target.rate)


def save_plan_json(decision: Decision, best: Prediction, run: LoadRun | None = None) -> Path:
    """Write ``plan.json`` for the best deployment, and return its path."""
    values = {
        "deployment": TypeAdapter(Deployment).dump_python(best.deployment, mode="json"),
        "rate": best.rate,
        "percentile": best.target.percentile,
        "predicted_percentile_ms": best.reached_ms,
        "measured_percentile_ms": run and report.finite(run.reached_ms),
    }
    return report.save_plan_json(decision, **values)
