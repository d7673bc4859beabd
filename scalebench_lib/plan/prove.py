"""Deployments under load, one after another: what is seen is kept and shown."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import inf, sqrt
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ValidationError

from scalebench_lib.errors import MeasurementError, RequestError
from scalebench_lib.plan.arrivals import arrival_times
from scalebench_lib.plan.decide import Context, Request
from scalebench_lib.plan.load import LoadTest, ready
from scalebench_lib.plan.load_results import Deployment, LoadRun, Loads
from scalebench_lib.plan.planner import Plan
from scalebench_lib.plan.profile import SHARED, Instance
from scalebench_lib.plan.report import FILE
from scalebench_lib.plan.runner import PlanRunner
from scalebench_lib.plan.search import Prediction, Predictor, Target, baseline
from scalebench_lib.plan.simulate import Batching, Log

_PROVED = 3
"""How many deployments a verification runs besides fat and thin."""

_CLOSE, _TRIES = 1.05, 8
"""The highest rate is known when one so much higher failed, or after so many tries."""


@dataclass(frozen=True, eq=False)
class Prover:
    """Runs deployments under load; each run is kept in the sweep's folder, and `show` gets it."""

    predictor: Predictor
    runner: PlanRunner
    target: Target
    show: Callable[[LoadRun, Log], None]
    arrivals: str = "poisson"

    def run(self, deployment: Deployment, times: np.ndarray) -> LoadRun:
        """Return what `deployment` does with requests that arrive at `times`, in s."""
        with ready(self.runner, deployment.plan, deployment.batching) as test:
            return self._run(test, deployment, times)

    def verify(self, found: Sequence[Prediction]) -> list[LoadRun]:
        """Run the best three, and the best fat and thin; return the runs, the best first.

        Where no rate was asked for, each has nine tenths of the highest that was predicted. Raises
        `MeasurementError` if none could be started.
        """
        runs, reasons, cores = list[LoadRun](), list[str](), self.predictor.context.cores
        baselines = (one for one in found[_PROVED:] if baseline(one.deployment, cores))
        for one in (*found[:_PROVED], *baselines):
            try:
                times = self.times(self.target.rate or 0.9 * one.rate)
                runs.append(self.run(one.deployment, times))
            except MeasurementError as error:
                reasons.append(f"{one.deployment}: {error}")
        if not runs:
            raise MeasurementError(f"nothing could be run: {'; '.join(reasons)}")
        return sorted(runs, key=lambda run: (run.holds is False, -run.rate, run.reached_ms))

    def highest(self, deployment: Deployment) -> list[LoadRun]:
        """Find the highest rate that holds, by bracketing and bisection from the predicted on."""
        held, failed, runs = 0.0, inf, list[LoadRun]()
        rate = self.predictor.highest(deployment, self.target) or 1.0
        with ready(self.runner, deployment.plan, deployment.batching) as test:
            while failed > held * _CLOSE and len(runs) < _TRIES and not test.failures:
                runs.append(self._run(test, deployment, self.times(rate)))
                if runs[-1].reached_ms <= self.target.slo_ms:
                    held = max(held, rate)
                else:
                    failed = min(failed, rate)
                rate = held * 1.3 if failed == inf else sqrt(held * failed) if held else failed / 2
        return runs

    def times(self, rate: float) -> np.ndarray:
        """Return the arrivals of a test at `rate`."""
        return arrival_times(self.arrivals, rate, round(rate * self.target.seconds_at(rate)))

    def _run(self, test: LoadTest, deployment: Deployment, times: np.ndarray) -> LoadRun:
        """Run a test; what was seen is kept and shown, also where it is interrupted."""
        self.runner.say(f"{len(times)} requests in {times[-1]:.0f} s: {deployment}")
        interrupted = True
        try:
            test.run(times)
            interrupted = False
        finally:
            log = test.log
            if len(log.arrivals):
                run = LoadRun.of(
                    log,
                    deployment,
                    self.predictor.simulate(deployment, log.arrivals),
                    shared=dict(self.predictor.context.profile.shared),
                    arrivals=self.arrivals,
                    rate=len(times) / times[-1],
                    slo_ms=self.target.slo_ms,
                    percentile=self.target.percentile,
                    interrupted=interrupted,
                    failures=tuple(test.failures),
                )
                Loads.keep(self.predictor.context.out, run)
                self.show(run, log)
        return run


def highest_rate(runs: Sequence[LoadRun]) -> tuple[float, float, float]:
    """Return the highest rate that held, and between which rates it surely lies."""
    held = [run.rate for run in runs if run.reached_ms <= run.slo_ms]
    sure = [run.rate for run in runs if run.holds]
    failed = [run.rate for run in runs if run.holds is False]
    return max(held, default=0.0), max(sure, default=0.0), min(failed, default=inf)


class _Saved(BaseModel):
    instances: tuple[dict[str, object], ...]
    max_batch: int | None = None
    max_wait_ms: float = 0.0


def load_planned(
    out: Path, max_batch: int, max_wait_ms: float | None
) -> tuple[Context, Deployment]:
    """Return the deployment in ``plan.json``; a closed plan takes its largest batch at most.

    Raises `RequestError` where there is none.
    """
    try:
        text = (out / FILE).read_text()
        saved, values = _Saved.model_validate_json(text), json.loads(text)
    except (OSError, ValidationError) as error:
        raise RequestError(
            f"{out / FILE} cannot be read ({getattr(error, 'strerror', 'it is damaged')}): make a "
            f"plan first, with 'scalebench plan {out} --rate … --slo-ms …'"
        ) from None
    shared = {name: values[name] for name in SHARED if name in values}
    context = Context.load(out, Request.of(batch_size=1, **shared))
    plan = Plan.of(_profiled(context, one) for one in saved.instances)
    most = max_batch or saved.max_batch or max(one.batch_size for one in plan.instances)
    sizes = {size for size in context.profile.batch_sizes if size < most} | {most}
    wait = saved.max_wait_ms if max_wait_ms is None else max_wait_ms
    asked = {"max_batch": most, "max_wait_ms": wait, "sizes": sorted(sizes)}
    return context, Deployment(plan, Batching.from_input(asked))


def _profiled(context: Context, saved: dict[str, object]) -> Instance:
    """Return the instance as it was profiled, if need be with another batch."""
    wanted = {name: saved.get(name) for name in ("threads", "optimization", "smt", "allocator")}
    for one in context.profile.instances:
        if wanted.items() <= vars(one).items():
            return replace(one, batch_size=int(str(saved["batch_size"])))
    raise RequestError(f"plan: {saved.get('optimization')} was not profiled like that: plan anew")
