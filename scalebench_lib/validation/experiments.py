"""The experiments: what takes turns with what, in one block made by hand, or in whole sweeps."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

from scalebench_lib.config import Sweep, Trial
from scalebench_lib.errors import MeasurementError, RequestError, nearest
from scalebench_lib.machine import Machine
from scalebench_lib.notebook import OUTPUTS
from scalebench_lib.processes import end
from scalebench_lib.record import Record, deciding
from scalebench_lib.results import Results
from scalebench_lib.sweep.block import Block, Member, Process
from scalebench_lib.sweep.kernels import Kernels
from scalebench_lib.sweep.run import SweepRun
from scalebench_lib.sweep.runner import run_in_turn
from scalebench_lib.sweep.trial_process import TrialProcess
from scalebench_lib.validation.bare_loop import KNOWN, BareLoop

LAYERS = {
    "bert": {"num_hidden_layers": 12},
    "bert-tiny": {
        "num_hidden_layers": 2,
        "hidden_size": 128,
        "num_attention_heads": 2,
        "intermediate_size": 512,
    },
}
"""The models that can be validated, as transformers configures them."""

_NEVER = 1e-4
"""A half-width that no point reaches: turns end when their time is up, in every group alike."""

Start = Callable[[Trial], Process]


@dataclass
class Validation:
    """What is validated: the trials of `sweep` on this machine, measured into folders of `out`."""

    sweep: Sweep
    out: Path
    kernels: Kernels
    machine: Machine = field(default_factory=Machine.here)

    @classmethod
    def of(cls, out: str, model: str, batch_sizes: Sequence[int], max_seconds: float) -> Validation:
        """`model`, one of `LAYERS`, eager and as TorchScript, for `max_seconds` a point each time.

        Without `out` into a new folder. Raises `RequestError` where a value is wrong.
        """
        if model not in LAYERS:
            raise RequestError(f"unknown model {model!r}: {nearest(model, LAYERS)}")
        asked = {"model": model, "batch_sizes": tuple(batch_sizes), "max_seconds": max_seconds}
        sweep = Sweep.from_input({**asked, "optimizations": KNOWN, "smt": "off", "rounds": 2})
        return cls(sweep, Path(out) if out else _new_folder(), Kernels(warm=True))

    def twice_and_bare(self) -> tuple[Results, Results, Results]:
        """Every trial twice, and a bare loop of each: the results of these three."""
        names = ("a", "b", "bare")
        starts = (self._trial("a"), self._trial("b"), self._bare("bare"))
        in_one_block((trial, start) for trial in self._trials(self.sweep) for start in starts)
        a, b, bare = (Results.load(self.out / name) for name in names)
        return a, b, bare

    def fewer_layers(self) -> tuple[Results, Results]:
        """The eager model, and the same with a layer less: the trials, and their bare loops."""
        models = (self.sweep.model, str(_with_a_layer_less(self.sweep.model, self.out)))
        eager = {"optimizations": ("none",)}
        sweeps = [self.sweep.model_copy(update={"model": model, **eager}) for model in models]
        trials = [trial for sweep in sweeps for trial in self._trials(sweep)]
        starts = (self._trial("layers"), self._bare("bare-layers"))
        in_one_block((trial, start) for trial in trials for start in starts)
        return Results.load(self.out / "layers"), Results.load(self.out / "bare-layers")

    def hogged(self, cycles: int) -> Results:
        """So many cycles of all trials; in every third another program keeps one CPU busy."""

        def run(block: Block) -> None:
            for cycle in range(1, cycles + 1):
                with _hog(self.machine) if is_hogged(cycle) else nullcontext():
                    block.take_cycle()

        trials = [t.model_copy(update={"max_seconds": 3600.0}) for t in self._trials(self.sweep)]
        in_one_block(((trial, self._trial("hogged")) for trial in trials), run)
        return Results.load(self.out / "hogged")

    def sweeps(self, number_of_sweeps: int = 2) -> list[Path]:
        """The folders of so many whole sweeps, one after another."""
        folders = [self.out / f"sweep-{number}" for number in range(1, number_of_sweeps + 1)]
        for folder in folders:
            run = SweepRun.prepare(self.sweep, folder)
            run.kernels = self.kernels
            run_in_turn([run], lambda _: None)
        return folders

    def _trials(self, sweep: Sweep) -> list[Trial]:
        one_block = {"target_ci": _NEVER, "max_seconds": sweep.max_seconds}
        return [t.model_copy(update=one_block) for t in sweep.trials(self.machine)]

    def _trial(self, name: str) -> Start:
        environment = deciding(os.environ)
        return lambda trial: TrialProcess.start(trial, self.out / name, self.kernels, environment)

    def _bare(self, name: str) -> Start:
        return lambda trial: BareLoop(trial, self.out / name, self.machine)


def in_one_block(
    trials: Iterable[tuple[Trial, Start]], run: Callable[[Block], None] = Block.run
) -> None:
    """Set all of `trials` up and let them take turns; those of one batch size have equally many.

    Raises `MeasurementError` where any of them fails.
    """
    block = Block(secrets.token_hex(4), "validation")
    try:
        for trial, start in trials:
            process = start(trial.model_copy(update={"block": block.name}))
            block.add(process, trial.config.batch_size)
        run(block)
        block.end(_require_record)
    finally:
        block.kill()


def _new_folder() -> Path:
    numbers = (OUTPUTS / f"validation-{number}" for number in count(1))
    return next(folder for folder in numbers if not folder.exists())


def is_hogged(cycle: int) -> bool:
    """Whether the hog runs in `cycle`."""
    return cycle % 3 == 0


def _require_record(member: Member, found: Record | str) -> None:
    if isinstance(found, str):
        raise MeasurementError(f"{member.trial}: {found}")


@contextmanager
def _hog(machine: Machine) -> Iterator[None]:
    """Another program keeps the last CPU busy."""
    cpus = machine.cpus_for(machine.max_threads(smt=False), False, "sequential")[-1:]
    pinned = f"import os; os.sched_setaffinity(0, {cpus})\n" * machine.pinnable
    code = f"from scalebench_lib.processes import die_with_parent; die_with_parent()\n{pinned}"
    hog = subprocess.Popen(  # noqa: S603 - our own code
        [sys.executable, "-c", f"{code}print(flush=True)\nwhile True: pass"],
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        assert hog.stdout is not None  # noqa: S101 - asked for above
        hog.stdout.readline()
        yield
    finally:
        end(hog)


def _with_a_layer_less(model: str, out: Path) -> Path:
    """`model` as a folder in `out` that transformers loads."""
    architecture: dict[str, object] = {"model_type": "bert", **LAYERS[model]}
    architecture["num_hidden_layers"] = (layers := LAYERS[model]["num_hidden_layers"] - 1)
    folder = out / f"{model}-{layers}-layers"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(architecture), encoding="utf-8")
    return folder
