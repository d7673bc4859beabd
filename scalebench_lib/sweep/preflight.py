"""Build and run the model of a sweep once before it, in a process of its own."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence

from scalebench_lib.config import Config
from scalebench_lib.errors import RequestError, reason
from scalebench_lib.processes import exit_reason, oom_kills
from scalebench_lib.sweep.interpreter import run_module
from scalebench_lib.sweep.run import SweepRun
from scalebench_lib.sweep.trial_process import SETUP_LIMIT_S

_MODULE = "scalebench_lib.measure.preflight"


def require_measurable(run: SweepRun) -> None:
    """Have `measure.preflight` run the model of `run` in each size without a good record.

    Writes nothing. Raises `RequestError`, saying why, where it cannot be measured.
    """
    measured = {_size(record.config) for record in run.records if record.status == "ok"}
    left = {_size(trial.config): trial.config for trial in run.schedule.left}
    if configs := [left[size] for size in sorted(left.keys() - measured)]:
        _require_measurable(run, configs)


def _size(config: Config) -> tuple[int, int, str]:
    return config.seq_len, config.image_size, config.phase


def _require_measurable(run: SweepRun, configs: Sequence[Config]) -> None:
    model, limit_s = f"model: {run.sweep.model!r}", run.trial_timeout or SETUP_LIMIT_S
    asked, kills = json.dumps([config.model_dump() for config in configs]), oom_kills()
    try:
        python = [run.python.executable]
        done = run_module(python, _MODULE, run.python.environment, asked, limit_s)
    except subprocess.TimeoutExpired:
        raise RequestError(f"{model} is not built and run within {limit_s:.0f} s") from None
    if done.returncode:
        said = reason(done.stderr) if done.returncode > 0 else ""
        why = said or exit_reason(done.returncode, kills)
        raise RequestError(f"{model} cannot be built and run: {why}")
    if why_not := json.loads(done.stdout.splitlines()[-1]):
        raise RequestError(why_not)
