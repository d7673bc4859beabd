"""Build and run each model once before a sweep, in a process of its own.

``python -m`` this module reads configs from standard input as JSON, and prints why one of them
cannot be measured, or null.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable

import torch

from scalebench_lib.config import Config
from scalebench_lib.errors import MeasurementError
from scalebench_lib.measure import models
from scalebench_lib.measure.verify import Verifier
from scalebench_lib.model_names import is_own
from scalebench_lib.processes import die_with_parent

MAX_WEIGHT_BYTES = 2 * 2**30
"""Larger weights are not loaded: only shapes are checked."""


def reason_against(configs: Iterable[Config]) -> str | None:
    """Run an item of each of `configs`, and verify the first; return the first failure, or None."""
    try:
        with torch.inference_mode():
            for index, config in enumerate(configs):
                _require_measurable(config, verify=index == 0)
    except MeasurementError as error:
        return str(error)
    return None


def _require_measurable(config: Config, verify: bool) -> None:
    shapes = models.build(config, shapes_only=True)
    if sum(part.nbytes for part in shapes.module.parameters()) > MAX_WEIGHT_BYTES:
        return
    model = models.build(config)
    if is_own(config.model) and models.digest(model) != models.digest(shapes):
        raise MeasurementError(
            f"model: {config.model!r} is another each time that it is made: seed its weights"
        )
    if verify:
        Verifier(model, model.inputs(1, config.seed), seed=config.seed).check(model.module)


if __name__ == "__main__":
    die_with_parent()
    torch.set_num_threads(1)  # fast enough for one item
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # the user's code may print
    found = reason_against(map(Config.model_validate, json.load(sys.stdin)))
    print(json.dumps(found), file=answers)
