"""A bare loop in a process of its own: what a sweep's trials are held against.

It shares with a trial the model, and nothing else: no notebook, no kernel, no verification, no
search for threads, and its own two readings of the clock around a pass. `BareLoop` lets it take
turns in a block. ``python -m scalebench_lib.validation.bare_loop`` runs one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from scalebench_lib.config import Config, Trial
from scalebench_lib.errors import MeasurementError
from scalebench_lib.machine import Machine
from scalebench_lib.measure.turns import PointTurns
from scalebench_lib.processes import (
    cause_of_death,
    die_with_parent,
    end,
    go_on,
    peak_bytes,
    stand_still,
)
from scalebench_lib.protocol import Answer, EndedBy
from scalebench_lib.record import Point, Record, Software, Turn

KNOWN = ("none", "script")
"""The optimizations that a bare loop can do by itself."""

_WARMUP_PASSES = 3


class BareLoop:
    """A member of a block, as `sweep.block.Process`; its record goes into folder `out`."""

    def __init__(self, trial: Trial, out: Path, machine: Machine) -> None:
        self.trial, self.out, self.machine = trial, out, machine
        self._points = {threads: PointTurns(threads) for threads in trial.threads}
        self._started, start = datetime.now(UTC), time.monotonic()
        config = trial.config
        cpus = {t: machine.cpus_for(t, config.smt, config.placement) for t in trial.threads}
        self._process = subprocess.Popen(  # noqa: S603 - our own module
            [sys.executable, "-m", __name__, config.model_dump_json(), json.dumps(cpus)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._read()
        stand_still(self._process.pid)
        self.setup_s = time.monotonic() - start

    @property
    def peak_bytes(self) -> int:
        """The most memory that it has held so far."""
        return peak_bytes(self._process.pid)

    def turn(self, cycle: int, threads: int, seconds: float) -> Answer:
        """Let it take a turn; `MeasurementError` where it has died."""
        go_on(self._process.pid)
        start = time.perf_counter_ns()
        with suppress(BrokenPipeError):  # reading tells why
            print(threads, seconds, file=self._stream("stdin"), flush=True)
        samples = self._read()
        stand_still(self._process.pid)
        point = self._points[threads]
        point.turns.append(Turn(cycle=cycle, start_ns=start, samples_ns=tuple(samples)))
        return point.answer(time.perf_counter_ns() - start)

    def end(self, reason: EndedBy) -> Record:
        """End it, and write what it has seen as the record of its trial."""
        self.kill()
        record = Record(
            config=self.trial.config,
            config_id=self.trial.config.id,
            trial=self.trial.number,
            round=self.trial.round,
            block=self.trial.block or None,
            status="ok",
            ended_by=reason,
            started=self._started,
            finished=datetime.now(UTC),
            machine=self.machine,
            software=Software.here(),
            points=tuple(map(self._point, self.trial.threads)),
        )
        record.save(self.out / "records")
        return record

    def kill(self) -> None:
        """End it, at once."""
        end(self._process)  # type: ignore[arg-type]

    def _point(self, threads: int) -> Point:
        config = self.trial.config
        return Point(
            threads=threads,
            cores=self.machine.cores_of(threads, config.smt),
            cpus=self.machine.cpus_for(threads, config.smt, config.placement),
            pinned=False,
            turns=tuple(self._points[threads].turns),
        )

    def _read(self) -> Any:
        line = self._stream("stdout").readline()
        if not line:
            raise MeasurementError(f"the bare loop {cause_of_death(self._process)}")  # type: ignore[arg-type]
        return json.loads(line)

    def _stream(self, name: str) -> IO[str]:
        stream: IO[str] = getattr(self._process, name)
        return stream


def _passes(run: Callable[[], object], seconds: float) -> Iterator[int]:
    """Passes of `run` for so many seconds, at least one: nanoseconds of each."""
    end_s = time.perf_counter() + seconds
    while True:
        start = time.perf_counter_ns()
        run()
        yield time.perf_counter_ns() - start
        if time.perf_counter() >= end_s:
            return


def _use(cpus: list[int]) -> None:
    """Compute with one thread for each of `cpus`, all of them free to run on any of these."""
    import torch

    torch.set_num_threads(len(cpus))
    for task in Path("/proc/self/task").iterdir():
        with suppress(ProcessLookupError):  # it has just ended
            os.sched_setaffinity(int(task.name), cpus)


def _loop(config: Config, cpus: dict[str, list[int]]) -> None:
    """Say ready, then answer each line ``THREADS SECONDS`` with the times of its passes in ns."""
    import torch

    from scalebench_lib.measure import models

    warnings.simplefilter("ignore")  # of tracing: what is traced is held against a trial here
    die_with_parent()
    model = models.build(config)
    inputs, module = model.inputs(config.batch_size, config.seed), model.module
    with torch.inference_mode():
        if config.optimization == "script":
            traced = torch.jit.trace(module, inputs, check_trace=False)
            module = torch.jit.optimize_for_inference(torch.jit.freeze(traced))
        run: Callable[[], object] = lambda: module(*inputs)  # noqa: E731
        for chosen in cpus.values():
            _use(chosen)
            for _ in range(_WARMUP_PASSES):
                run()
        print(json.dumps("ready"), flush=True)
        for line in sys.stdin:
            threads, seconds = line.split()
            _use(cpus[threads])
            run()
            print(json.dumps(list(_passes(run, float(seconds)))), flush=True)


if __name__ == "__main__":
    _loop(Config.model_validate_json(sys.argv[1]), json.loads(sys.argv[2]))
