"""Build and run the model of a sweep once before it, in a process of its own."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence

from scalebench_lib.config import Config
from scalebench_lib.errors import RequestError, reason
from scalebench_lib.processes import exit_reason, oom_kills
from scalebench_lib.sweep.run import SweepRun
from scalebench_lib.sweep.trial_process import SETUP_LIMIT_S

_COMMAND = ("-P", "-m", "scalebench_lib.measure.preflight")


def require_measurable(run: SweepRun) -> None:
    """Have `measure.preflight` run the model of `run` in each size without a good record.

    Writes nothing. Raises `RequestError`, saying why, where it cannot be measured.
    """
    measured = {_size(record.config) for record in run.records if record.status == "ok"}
    left = {_size(trial.config): trial.config for trial in run.schedule.left}
    configs = [left[size] for size in sorted(left.keys() - measured)]
    if configs and (why_not := _reason_against(configs, run)):
        raise RequestError(why_not)


def _size(config: Config) -> tuple[int, int, str]:
    return config.seq_len, config.image_size, config.phase


def _reason_against(configs: Sequence[Config], run: SweepRun) -> str | None:
    """Return why one of `configs` cannot be measured, or why the process died."""
    kills, limit_s = oom_kills(), run.trial_timeout or SETUP_LIMIT_S
    try:
        done = subprocess.run(  # noqa: S603 - our own module
            [run.python.executable, *_COMMAND],
            input=json.dumps([config.model_dump() for config in configs]),
            env=run.python.environment,
            capture_output=True,
            text=True,
            timeout=limit_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"model: {run.sweep.model!r} is not built and run within {limit_s:.0f} s"
    if done.returncode == 0:
        found: str | None = json.loads(done.stdout.splitlines()[-1])
        return found
    said = reason(done.stderr) if done.returncode > 0 else ""
    why = said or exit_reason(done.returncode, kills)
    return f"model: {run.sweep.model!r} cannot be built and run: {why}"
