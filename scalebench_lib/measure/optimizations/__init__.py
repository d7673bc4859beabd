"""The optimizations: functions of a `Target` that return an `OptimizedModel` of it.

`scalebench_lib.optimizations` declares them, and imports their modules when they are applied.
"""

from __future__ import annotations

from pathlib import Path

from scalebench_lib.config import Config
from scalebench_lib.measure import models
from scalebench_lib.measure.optimizations.base import Target
from scalebench_lib.optimizations import OPTIMIZATIONS


def build_engine_folder(config: Config) -> Path | None:
    """Return the folder of the files that the engine of `config` reads, if there are any."""
    model = models.build(config)
    target = Target(model, model.inputs(config.batch_size, config.seed), config)
    files: Path | None = OPTIMIZATIONS[config.optimization].apply(target).files
    return files
