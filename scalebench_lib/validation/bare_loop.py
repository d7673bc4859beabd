"""A bare loop in a process of its own, which trials are compared with.

It shares the model with a trial, and nothing else: no notebook, no kernel, no verification, no
search for threads, and two readings of the clock of its own around a pass.
"""

from __future__ import annotations

import os
import signal
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from scalebench_lib import processes
from scalebench_lib.config import Config, Trial
from scalebench_lib.errors import MeasurementError
from scalebench_lib.machine import Machine
from scalebench_lib.measure.turns import PointTurns
from scalebench_lib.protocol import EndedBy, TurnResult
from scalebench_lib.record import Point, Record, Software, Turn

KNOWN = ("none", "script")
"""The optimizations that a bare loop can do by itself."""

_WARMUP_PASSES = 3


class BareLoop:
    """A member of a block, as `sweep.block.Process`; its record goes into folder `out`."""

    setup_s, peak_bytes = 0.0, 0  # asked for where blocks are filled by time and memory

    def __init__(self, trial: Trial, out: Path, _kernels: object = None) -> None:
        self.trial, self.out, self._started = trial, out, datetime.now(UTC)
        self._machine, config = Machine.here(), trial.config
        self._turns = {threads: PointTurns(threads) for threads in trial.threads}
        self._cpus = {
            threads: self._machine.cpus_for(threads, config.smt, config.placement)
            for threads in trial.threads
        }
        context = get_context("spawn")
        self._pipe, theirs = context.Pipe()
        served = (theirs, config, self._cpus)
        self._process = context.Process(target=_serve, args=served, daemon=True)
        self._process.start()
        self.pid = self._process.pid or 0
        theirs.close()
        self._receive()

    def turn(self, cycle: int, threads: int, seconds: float) -> TurnResult:
        """Let it take a turn; raise `MeasurementError` where it has died."""
        processes.signal_group(self.pid, signal.SIGCONT)
        start, point = time.perf_counter_ns(), self._turns[threads]
        with suppress(OSError):  # receiving says why
            self._pipe.send((threads, seconds))
        point.turns.append(Turn(cycle=cycle, start_ns=start, samples_ns=tuple(self._receive())))
        return point.answer(time.perf_counter_ns() - start)

    def end(self, reason: EndedBy) -> Record:
        """End it, and write its turns as the record of its trial."""
        self.kill()
        record = Record.of(
            self.trial,
            status="ok",
            ended_by=reason,
            started=self._started,
            machine=self._machine,
            software=Software.here(),
            points=tuple(
                Point(
                    threads=threads,
                    cores=self._machine.cores_of(threads, self.trial.config.smt),
                    cpus=self._cpus[threads],
                    pinned=False,
                    turns=tuple(point.turns),
                )
                for threads, point in self._turns.items()
            ),
        )
        record.save(self.out / "records")
        return record

    def kill(self) -> None:
        """End it, at once."""
        self._process.kill()
        self._process.join()
        self._pipe.close()

    def _receive(self) -> Any:
        """Return its answer, after which it stands still."""
        try:
            answer = self._pipe.recv()
        except (EOFError, OSError):
            self._process.join()
            code = self._process.exitcode
            raise MeasurementError(f"the bare loop ended with code {code}") from None
        processes.signal_group(self.pid, signal.SIGSTOP)
        return answer


def _use(cpus: Sequence[int]) -> None:
    """Compute with one thread for each of `cpus`, all of them free to run on any of these."""
    import torch

    torch.set_num_threads(len(cpus))
    for task in Path("/proc/self/task").iterdir():
        with suppress(ProcessLookupError):  # it has just ended
            os.sched_setaffinity(int(task.name), cpus)


def _serve(pipe: Connection, config: Config, cpus: Mapping[int, Sequence[int]]) -> None:
    """Build the model; answer each thread count and seconds with the ns of its passes."""
    import torch

    from scalebench_lib.measure import models

    os.setsid()
    processes.die_with_parent()
    warnings.simplefilter("ignore")  # of tracing: what is traced is compared with a trial here
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
        pipe.send("ready")
        while True:
            threads, seconds = pipe.recv()
            _use(cpus[threads])
            run()
            samples, end = list[int](), time.perf_counter() + seconds
            while not samples or time.perf_counter() < end:
                start = time.perf_counter_ns()
                run()
                samples.append(time.perf_counter_ns() - start)
            pipe.send(samples)
