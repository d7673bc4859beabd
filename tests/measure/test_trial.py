"""A whole trial in this process, on the tiny model: alone, and told by a runner."""

import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import IO

import pytest
import torch

from scalebench_lib import protocol
from scalebench_lib.config import Config, Trial
from scalebench_lib.errors import MeasurementError
from scalebench_lib.machine import Machine, stolen_ns
from scalebench_lib.measure.optimizations import native
from scalebench_lib.measure.optimizations.base import OptimizedModel, Target, by_torch
from scalebench_lib.measure.trial import measure
from scalebench_lib.protocol import ConnectionEndedError, End, Ready, TurnRequest, TurnResult
from scalebench_lib.record import Record
from scalebench_lib.sweep.locks import make_socket_folder

MACHINE = Machine.here()
COUNTS = MACHINE.thread_counts("auto")[:2]


def trial(threads: tuple[int, ...] = COUNTS, **config: object) -> Trial:
    """A short trial of the tiny model."""
    return Trial(
        config=Config(**{"model": "bert-tiny", "batch_size": 2, **config}),
        threads=threads,
        max_seconds=0.5,
        target_ci=0.1,
        block="0000000c",
        round=2,
    )


@pytest.fixture(scope="module")
def record() -> Record:
    """The record of a trial of TorchScript, alone."""
    return measure(trial(optimization="script"), MACHINE)


def test_a_trial_tells_all_that_a_record_holds(record: Record) -> None:
    """Points, set-up, verification, memory, software, the model's digest."""
    assert record.status == "ok", record.reason
    assert [point.threads for point in record.points] == list(COUNTS)
    assert record.setup.optimize_s > 0
    assert record.verification.sqnr_db > 90
    assert record.verification.reference == "fp64"
    assert record.item == "16 tokens"
    assert record.peak_memory_bytes > 0.9 * record.resident_bytes > 50e6
    assert record.flops > 0
    assert record.software.versions["torch"].startswith(torch.__version__)
    assert len(record.model_hash) == 12
    assert (record.block, record.round, record.trial) == ("0000000c", 2, 1)
    assert record.ended_by in ("target_ci", "max_seconds")
    assert record.peak_gflops.keys() == set(COUNTS)
    assert 0 < record.setup.ready_s <= record.setup.optimize_s
    assert record.setup.export_cache is None, "nothing is exported"
    assert record.not_profiled is None
    assert record.operators.threads in COUNTS
    assert record.operators.shares["matrix products"] > 0.02


def test_a_profiler_that_fails_fails_nothing(monkeypatch) -> None:
    """The record says why; the peak of memory is that of before."""

    def broken(*_: object) -> None:
        raise RuntimeError("no profile\nin detail")

    peaks = iter([1_000_000, 2_000_000])
    monkeypatch.setattr("scalebench_lib.measure.trial.operator_times", broken)
    monkeypatch.setattr("scalebench_lib.measure.trial._peak_memory_bytes", lambda: next(peaks))
    found = measure(trial(COUNTS[:1]), MACHINE)
    assert (found.status, found.operators, found.not_profiled) == ("ok", None, "no profile")
    assert found.peak_memory_bytes == 1_000_000


def test_later_trials_are_not_profiled() -> None:
    """They would find the same."""
    found = measure(trial(COUNTS[:1]).model_copy(update={"thorough": False}), MACHINE)
    assert (found.status, found.operators, found.not_profiled) == ("ok", None, None)


def test_each_turn_tells_what_disturbed_it(record: Record) -> None:
    """CPU time beside wall time, how long threads waited for a CPU, and what was stolen."""
    for point in record.points:
        assert [turn.cycle for turn in point.turns] == list(range(1, len(point.turns) + 1))
        assert all(turn.cpu_ns > 0 for turn in point.turns)
        assert 0 < point.cpus_utilized < point.threads + 0.5
        assert point.spent_s >= point.wall_ns / 1e9
        if MACHINE.pinnable:
            assert all(turn.waited_ns is not None for turn in point.turns)
            told = stolen_ns(point.cpus) is not None
            assert all((turn.stolen_ns is not None) == told for turn in point.turns)


def test_a_governor_that_changed_meanwhile_is_in_the_record(monkeypatch, record: Record) -> None:
    """Only there."""
    assert record.governor_after is None
    monkeypatch.setattr("scalebench_lib.machine._governor", lambda root: "performance")
    saving = MACHINE.model_copy(update={"governor": "powersave"})
    assert measure(trial(weights="pretrained"), saving).governor_after == "performance"


def test_thread_counts_of_a_trial_alone_have_equally_many_turns(record: Record) -> None:
    """Until the same rule ends them as in a block."""
    assert len({len(point.turns) for point in record.points}) == 1


def test_points_tell_their_cpus(record: Record) -> None:
    """CPU numbers in the order in which they are filled."""
    for point in record.points:
        assert point.cpus == MACHINE.cpus_for(point.threads, False, "sequential")
        assert point.pinned == MACHINE.pinnable


@pytest.mark.usefixtures("record")
def test_the_process_is_given_its_cpus_back() -> None:
    """In JupyterLab the kernel lives on."""
    if MACHINE.pinnable:
        assert os.sched_getaffinity(0) == {cpu for core in MACHINE.cores for cpu in core.cpus}


def test_an_optimization_that_computes_something_else_fails_the_config(monkeypatch) -> None:
    """No points, and the figure in the reason."""

    def halved(target: Target) -> OptimizedModel:
        module = target.model.module
        return by_torch(lambda *batch: tuple(output / 2 for output in module(*batch)))

    monkeypatch.setattr(native, "script", halved)
    found = measure(trial(optimization="script"), MACHINE)
    assert found.status == "failed"
    assert "verification failed: error −6 dB against fp64" in found.reason
    assert found.points == ()
    assert found.ended_by is None
    assert found.setup is not None, "what came before is kept"


def test_a_model_that_cannot_be_built_fails_the_config() -> None:
    """With the builder's own words."""
    found = measure(trial(weights="pretrained"), MACHINE)
    assert found.status == "failed"
    assert found.reason.startswith("weights: bert-tiny has no published ones")
    with pytest.raises(MeasurementError):
        found.require_ok()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["onnxruntime", "onnxruntime-int8", "openvino"])
def test_an_engine_is_measured_at_each_thread_count_and_named(name: str) -> None:
    """Its own threads, each on its CPU; and what it is is in the record."""
    pytest.importorskip(name.partition("-")[0])
    found = measure(trial(optimization=name), MACHINE)
    assert found.status == "ok", found.reason
    assert [point.threads for point in found.points] == list(COUNTS)
    assert found.engine["name"] == name.partition("-")[0]
    assert found.engine["version"]
    assert found.engine["precision"] == found.verification.precision


@pytest.mark.slow
def test_each_thread_of_openvino_has_a_cpu_to_itself() -> None:
    """It looks at its CPUs in its first pass, of which this one is large enough to be shared."""
    pytest.importorskip("openvino")
    found = measure(trial(optimization="openvino", batch_size=256), MACHINE)
    assert found.status == "ok", found.reason


@pytest.mark.slow
def test_compiled_by_inductor_is_measured() -> None:
    """Compiled, verified, timed without compiling anew."""
    found = measure(trial((1,), optimization="compile"), MACHINE)
    assert found.status == "ok", found.reason
    assert found.engine["backend"] == "inductor"
    assert found.setup.optimize_s > found.setup.first_pass_s


def test_passes_rotate_over_inputs(monkeypatch) -> None:
    """No two in a row are alike, so nothing is gained by remembering an answer."""
    asked: list[int] = []

    def guarded(target: Target) -> OptimizedModel:
        def run(*batch: torch.Tensor) -> tuple[torch.Tensor, ...]:
            asked.append(hash(tuple(batch[0].flatten().tolist())))
            return target.model.module(*batch)

        return by_torch(run)

    monkeypatch.setattr(native, "script", guarded)
    assert measure(trial(optimization="script"), MACHINE).status == "ok"
    timed = asked[-20:-2]
    assert len(set(timed)) == 4
    assert all(one != other for one, other in pairwise(timed))


@pytest.fixture
def _long_passes(monkeypatch) -> None:
    """Passes count as long, however short they are."""
    for name in ("SHORT_PASS_NS", "LONG_PASS_NS"):
        monkeypatch.setattr(f"scalebench_lib.measure.turns.{name}", 0)


@pytest.mark.usefixtures("_long_passes")
@pytest.mark.parametrize("thorough", [True, False])
def test_no_long_pass_is_computed_only_to_be_verified(monkeypatch, thorough: bool) -> None:
    """After the turns, outputs of a timed pass are compared, and those of a few padded items."""
    sizes: list[int] = []

    def counted(target: Target) -> OptimizedModel:
        def run(*batch: torch.Tensor) -> tuple[torch.Tensor, ...]:
            sizes.append(len(batch[0]))
            return target.model.module(*batch)

        return by_torch(run)

    monkeypatch.setattr(native, "script", counted)
    monkeypatch.setattr("scalebench_lib.measure.trial.operator_times", lambda *_: None)
    asked = trial(optimization="script", batch_size=32).model_copy(update={"thorough": thorough})
    found = measure(asked, MACHINE)
    assert found.status == "ok", found.reason
    padded = [place for place, size in enumerate(sizes) if size < 32]
    timed = sum(len(point.samples_ns) * point.passes_per_sample for point in found.points)
    assert len(padded) == 2
    assert padded[1] == len(sizes) - 1
    assert padded[1] - padded[0] - 1 == timed


@pytest.mark.usefixtures("_long_passes")
def test_what_goes_wrong_in_the_timed_passes_alone_fails_the_trial(monkeypatch) -> None:
    """Before and after them all is well."""
    padded: list[int] = []

    def tired(target: Target) -> OptimizedModel:
        def run(*batch: torch.Tensor) -> tuple[torch.Tensor, ...]:
            padded.extend([1] * (len(batch[0]) < 32))
            outputs = target.model.module(*batch)
            wrong = padded and len(batch[0]) == 32
            return tuple(output / 2 for output in outputs) if wrong else outputs

        return by_torch(run)

    monkeypatch.setattr(native, "script", tired)
    found = measure(trial(optimization="script", batch_size=32), MACHINE)
    assert found.status == "failed"
    assert "verification failed: error −6 dB" in found.reason
    assert found.points == ()


def test_a_trial_that_is_not_thorough_measures_no_peak() -> None:
    """Nor FLOPs, nor float64: its config's first trial has."""
    found = measure(trial().model_copy(update={"thorough": False}), MACHINE)
    assert (found.flops, found.peak_gflops) == (None, {})
    assert found.verification.reference == "eager"


# Told by a runner: here the test is it


class Runner:
    """The other side of a trial: `say` something, `hear` what it answers."""

    def __init__(self, stream: IO[str]) -> None:
        self.stream = stream

    def say(self, message: protocol.TurnRequest | protocol.End) -> None:
        """As the runner does."""
        protocol.send(self.stream, message)

    def hear(self, kind):
        """A message of this `kind`."""
        return protocol.parse(self.stream.readline(), kind)


@contextmanager
def runner(monkeypatch: pytest.MonkeyPatch, plays: Callable[[Runner], None]) -> Iterator[None]:
    """A runner, in a thread, whose part is `plays`; what that raises is raised here."""
    folder = make_socket_folder()
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(folder / "runner"))
    server.listen()
    monkeypatch.setenv(protocol.RUNNER_SOCKET, str(folder / "runner"))
    troubles: list[BaseException] = []

    def play() -> None:
        try:
            connection, _ = server.accept()
            with connection, connection.makefile("rw") as stream:
                plays(Runner(stream))
        except BaseException as error:
            troubles.append(error)

    thread = threading.Thread(target=play)
    thread.start()
    try:
        yield
    finally:
        thread.join(timeout=60)
        server.close()
        Path(folder / "runner").unlink()
        folder.rmdir()
    assert not troubles, troubles


def test_a_trial_takes_the_turns_that_its_runner_asks_for(monkeypatch) -> None:
    """In its order, with its numbers; then it ends for the reason that it is given."""
    last = COUNTS[-1]
    asked = [(1, last), (1, COUNTS[0]), (2, COUNTS[0]), (5, last)]
    answers: list[TurnResult] = []

    def plays(runner: Runner) -> None:
        assert runner.hear(Ready).first_pass_s > 0
        for cycle, threads in asked:
            runner.say(TurnRequest(cycle=cycle, threads=threads, seconds=0.05))
            answers.append(runner.hear(TurnResult))
        runner.say(End(end="interrupted"))

    with runner(monkeypatch, plays):
        found = measure(trial(), MACHINE)
    assert found.status == "ok", found.reason
    assert found.ended_by == "interrupted"
    for point in found.points:
        cycles = [cycle for cycle, threads in asked if threads == point.threads]
        assert [turn.cycle for turn in point.turns] == cycles
    assert answers[-1].median_ns == found.points[-1].median_ns
    assert all(answer.spent_s >= 0.05 for answer in answers)


def test_a_trial_whose_runner_is_gone_ends_without_a_record(monkeypatch) -> None:
    """Nobody counts it."""

    def plays(runner: Runner) -> None:
        runner.hear(Ready)

    with runner(monkeypatch, plays), pytest.raises(ConnectionEndedError, match="is gone"):
        measure(trial(), MACHINE)
    monkeypatch.setenv(protocol.RUNNER_SOCKET, "/nowhere/at/all")
    with pytest.raises(ConnectionEndedError, match="the runner is gone"):
        measure(trial(), MACHINE)


def test_a_trial_that_does_not_understand_its_runner_ends_without_a_record(monkeypatch) -> None:
    """In one line."""

    def plays(runner: Runner) -> None:
        runner.hear(Ready)
        runner.stream.write("noise\n")
        runner.stream.flush()

    with runner(monkeypatch, plays), pytest.raises(ConnectionEndedError, match="said 'noise"):
        measure(trial(), MACHINE)


def test_a_trial_that_fails_before_it_is_ready_ends_its_connection(monkeypatch) -> None:
    """Its record says why."""

    def plays(runner: Runner) -> None:
        assert runner.stream.read() == ""

    with runner(monkeypatch, plays):
        found = measure(trial(weights="pretrained"), MACHINE)
    assert found.status == "failed"
    assert found.block == "0000000c"


@pytest.mark.skipif(len(COUNTS) < 2, reason="needs 2 CPUs")
def test_others_that_compute_in_a_turn_fail_the_trial(monkeypatch) -> None:
    """They are seen at the end of the turn, without a search."""
    stop = threading.Event()
    other = threading.Thread(target=_compute, args=(stop,))

    def plays(runner: Runner) -> None:
        runner.hear(Ready)
        other.start()
        runner.say(TurnRequest(cycle=1, threads=1, seconds=0.3))
        with pytest.raises(ConnectionEndedError, match="is gone"):
            runner.hear(TurnResult)

    with runner(monkeypatch, plays):
        try:
            found = measure(trial((1,)), MACHINE)
        finally:
            stop.set()
            other.join()
    assert found.status == "failed"
    assert "more threads computed than the 1 asked for" in found.reason
    assert found.points == ()


def _compute(stop: threading.Event) -> None:
    if MACHINE.pinnable:
        os.sched_setaffinity(0, MACHINE.cores[-1].cpus)
    values = torch.ones(1 << 18)
    while not stop.is_set():
        values.mul_(1.0)
