"""The experiments: which processes take turns in one block, made by hand."""

from __future__ import annotations

import secrets
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import psutil

from scalebench_lib.config import Sweep, Trial
from scalebench_lib.errors import MeasurementError, RequestError, did_you_mean
from scalebench_lib.machine import Machine
from scalebench_lib.model_names import MODELS, TAKES_IMAGES
from scalebench_lib.notebook import OUTPUTS, progress
from scalebench_lib.protocol import TurnResult
from scalebench_lib.results import Results
from scalebench_lib.sweep.block import Block, Process
from scalebench_lib.sweep.kernels import Kernels
from scalebench_lib.sweep.trial_process import TrialProcess
from scalebench_lib.validation.bare_loop import KNOWN, BareLoop

TEXT_MODELS = tuple(model for model in MODELS if model not in TAKES_IMAGES)

_NEVER = 1e-4
"""A half-width that no point reaches: turns end when their time is up, in every group alike."""

Start = Callable[[Trial, Path, Kernels], Process]
"""Sets up a trial that writes its record into a folder, in kernels where it needs one."""


class DoubleTurnProcess(TrialProcess):
    """A trial that takes two turns in a row each time, in the same cycle."""

    def turn(self, cycle: int, threads: int, seconds: float) -> TurnResult:
        """Take both; returns the answer to the second."""
        super().turn(cycle, threads, seconds)
        return super().turn(cycle, threads, seconds)


class Validation:
    """The trials of `model`, eager and as TorchScript, on this machine.

    Each point computes for `max_seconds` in each experiment. Without `out` the records go into a
    new folder. Raises `RequestError` where a value is wrong.
    """

    def __init__(self, out: str, model: str, batch_sizes: Sequence[int], max_seconds: float):
        if model not in TEXT_MODELS:
            raise RequestError(f"unknown model {model!r}: {did_you_mean(model, TEXT_MODELS)}")
        given = {"model": model, "batch_sizes": tuple(batch_sizes), "max_seconds": max_seconds}
        in_full = {"optimizations": KNOWN, "smt": "off", "rounds": 1, "target_ci": _NEVER}
        in_full["task"] = "none"
        self.sweep = Sweep.from_input({**given, **in_full})
        new = (OUTPUTS / f"validation-{number}" for number in count(1))
        self.out = Path(out) if out else next(path for path in new if not path.exists())

    def twice_and_bare(self) -> tuple[Results, Results, Results]:
        """Measure every trial by two processes, and by a bare loop; return the results of each."""
        members: dict[str, Start] = {"a": TrialProcess.start, "b": TrialProcess.start}
        a, b, bare = self._in_one_block(self._trials(), {**members, "bare": BareLoop})
        return a, b, bare

    def two_turns(self) -> Results:
        """Let every point take two turns in a row each time."""
        return self._in_one_block(self._trials(), {"two-turns": DoubleTurnProcess.start})[0]

    def fewer_layers(self) -> tuple[Results, Results]:
        """Measure the eager model, and the same with a layer less; by trials, and bare loops."""
        models = (self.sweep.model, str(_with_a_layer_less(self.sweep.model, self.out)))
        trials = [t for model in models for t in self._trials(model=model, optimizations=("none",))]
        members: dict[str, Start] = {"layers": TrialProcess.start, "bare-layers": BareLoop}
        recorded, bare = self._in_one_block(trials, members)
        return recorded, bare

    def hogged(self, cycles: int) -> Results:
        """Take so many cycles; in every third one another program keeps one CPU busy."""

        def run(block: Block) -> None:
            with _hog() as hog:
                for cycle in range(1, cycles + 1):
                    if is_hog_cycle(cycle):
                        hog.resume()
                    block.take_cycle()
                    hog.suspend()

        trials = self._trials(max_seconds=86_400.0)
        return self._in_one_block(trials, {"hogged": TrialProcess.start}, run)[0]

    def _trials(self, **change: object) -> list[Trial]:
        return self.sweep.model_copy(update=change).trials(Machine.here())

    def _in_one_block(
        self,
        trials: Sequence[Trial],
        members: dict[str, Start],
        run: Callable[[Block], None] = Block.run,
    ) -> list[Results]:
        """Let each of `trials` take turns once by each of `members`; return their results.

        Those of one batch size have equally many turns. Raises `MeasurementError` where any fails.
        """
        block = Block(secrets.token_hex(4), "validation")
        with Kernels(warm=True) as kernels, progress() as say:
            block.changed = lambda: say(f"cycle {block.cycle}")
            try:
                for trial in trials:
                    named = trial.model_copy(update={"block": block.name})
                    for name, start in members.items():
                        say(f"setting up {trial} ({name})")
                        process = start(named, self.out / name, kernels)
                        block.add(process, trial.config.batch_size)
                run(block)
                for member, found in block.end():
                    if isinstance(found, str):
                        raise MeasurementError(f"{member.trial}: {found}")
            finally:
                block.kill()
        return [Results.load(self.out / name) for name in members]


def is_hog_cycle(cycle: int) -> bool:
    """Return whether the hog runs in `cycle`."""
    return cycle % 3 == 0


@contextmanager
def _hog() -> Iterator[psutil.Popen]:
    """Start another program on the last CPU, and suspend it."""
    machine = Machine.here()
    cpus = machine.cpus_for(machine.max_threads(smt=False), False, "sequential")[-1:]
    end_with_us = "from scalebench_lib import processes; processes.die_with_parent()"
    hog = psutil.Popen([sys.executable, "-c", f"{end_with_us}\nwhile True: pass"])
    try:
        if machine.pinnable:
            hog.cpu_affinity(list(cpus))
        hog.suspend()
        yield hog
    finally:
        hog.kill()
        hog.wait()


def _with_a_layer_less(model: str, out: Path) -> Path:
    """Write `model` into a folder that transformers loads."""
    from transformers import AutoConfig

    from scalebench_lib.measure import models

    known = models.KNOWN[model]
    architecture = AutoConfig.for_model(known.kind, **known.architecture)
    architecture.num_hidden_layers -= 1
    folder = out / f"{model}-{architecture.num_hidden_layers}-layers"
    architecture.save_pretrained(folder)
    return folder
