"""Load on stand-ins whose service time is known; and on some that stop, die or hang."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from scalebench_lib.config import Config
from scalebench_lib.errors import ScalebenchError
from scalebench_lib.machine import Machine
from scalebench_lib.plan import runner
from scalebench_lib.plan.arrivals import arrival_times
from scalebench_lib.plan.load import FILE, Deployment, LoadRun, LoadTest, read_load_runs, save_run
from scalebench_lib.plan.planner import Plan
from scalebench_lib.plan.profile import Instance
from scalebench_lib.plan.runner import Workers
from scalebench_lib.plan.simulate import Batching, Log
from scalebench_lib.plan.worker import WorkerSpec
from tests import factories
from tests.standins import STAND_IN, instances
from tests.waiting import wait_until

SPEC = WorkerSpec(config=Config(model="bert-tiny"), cpus=(0,), shapes=((1, 0), (2, 0), (4, 0)))
ONE = Batching(max_batch=1, sizes=(1,))
FOUR = Batching(max_batch=4, sizes=(1, 2, 4))


@contextmanager
def standing_in(count: int, batching: Batching, **limits: float) -> Iterator[LoadTest]:
    """A load test of processes that take 5 ms for everything; none of them is left."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "_COMMAND", STAND_IN)
        with Workers([SPEC] * count) as workers:
            workers.answers(60)
            yield LoadTest(workers, batching, **limits)
    assert instances() == []


def at(seconds: float, number: int, sent: signal.Signals) -> None:
    """Send a signal to the n-th instance so many seconds from now."""
    victim = instances()[number]
    threading.Timer(seconds, victim.send_signal, [sent]).start()


def run(log: Log, batching: Batching = ONE, **changed: object) -> LoadRun:
    """What is kept of a load test."""
    plan = Plan.of([Instance(1, batching.max_batch, 5.0, cores=1)])
    values = {
        "when": factories.START,
        "software": factories.SOFTWARE,
        "shared": {"model": "bert-tiny"},
        "deployment": Deployment(plan, batching),
        "kind": "poisson",
        "rate": 100.0,
        "slo_ms": 20.0,
        "percentile": 99.0,
        "interrupted": False,
        "failures": (),
        "predicted_ms": {},
        "arrivals_s": log.arrivals.tolist(),
        "batches": log.batches,
    }
    return LoadRun(**{**values, **changed})


def test_every_request_is_answered_by_instances_that_share_them() -> None:
    """Batches keep to the policy: none is sent before it may go, nor larger than it may be."""
    times = arrival_times("poisson", 300, 150)
    with standing_in(2, FOUR) as test:
        log = test.run(times)
    assert np.isfinite(log.latency_s).all()
    assert log.count.sum() == 150
    assert log.count.max() <= 4
    assert set(log.instance) == {0, 1}
    assert (log.latency_s - log.wait_s).min() >= 0.005
    first = np.cumsum(log.count) - log.count
    assert (log.sent_s >= FOUR.ready_s(times)[first]).all()


def test_a_server_that_stops_is_seen_in_the_tail() -> None:
    """15 requests arrive meanwhile: they all wait, though the server never saw them."""
    with standing_in(1, ONE) as test:
        victim = instances()[0]

        def stop() -> None:
            victim.suspend()
            time.sleep(0.3)
            victim.resume()

        threading.Timer(0.5, stop).start()
        log = test.run(arrival_times("constant", 50, 100))
    assert len(log.arrivals) == 100
    assert np.percentile(log.latency_s, 99) > 0.2
    assert (log.latency_s > 0.1).sum() >= 8


def test_overload_is_given_up_and_said() -> None:
    """One instance does 200 a second; 1000 arrive. What waits is not called answered."""
    with standing_in(1, ONE, patience_s=0.5) as test:
        log = test.run(arrival_times("constant", 1000, 5000))
        again = test.run(arrival_times("constant", 20, 10))
    assert log.overloaded
    assert log.arrivals[-1] < 2
    assert np.isinf(log.latency_s).any()
    assert run(log).percentiles == {}
    assert run(log).holds is False
    assert np.isfinite(again.latency_s).all()


@pytest.mark.parametrize(("sent", "why"), [("KILL", "killed by SIGKILL"), ("STOP", "within 0.3 s")])
def test_an_instance_that_dies_or_hangs_fails_its_requests_only(sent: str, why: str) -> None:
    """The other one goes on."""
    with standing_in(2, FOUR, limit_s=0.3) as test:
        at(0.3, 0, getattr(signal, f"SIG{sent}"))
        log = test.run(arrival_times("constant", 200, 300))
    assert 1 <= np.isinf(log.latency_s).sum() <= 4
    assert len(test.failures) == 1
    assert why in test.failures[0]


def test_when_the_last_instance_dies_the_run_ends() -> None:
    """What had arrived by then has failed."""
    with standing_in(1, ONE) as test:
        at(0.3, 0, signal.SIGKILL)
        log = test.run(arrival_times("constant", 50, 5000))
    assert log.arrivals[-1] < 60
    assert np.isinf(log.latency_s).any()


def test_what_was_measured_before_an_interruption_is_there() -> None:
    """Requests that were being computed have not failed; they are left out."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGUSR1, interrupt)
    try:
        with standing_in(1, ONE) as test:

            def interrupt_later() -> None:
                wait_until(lambda: len(getattr(test, "_batches", ())) > 20)
                os.kill(os.getpid(), signal.SIGUSR1)

            threading.Thread(target=interrupt_later).start()
            with pytest.raises(KeyboardInterrupt):
                test.run(arrival_times("constant", 100, 10_000))
            log = test.log
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert 10 < len(log.arrivals) < 10_000
    assert np.isfinite(log.latency_s).all()


def test_runs_are_kept_and_damage_is_said(tmp_path: Path) -> None:
    """A request that was not answered stays so."""
    log = Log.of(np.array([0.0, 0.1]), [(0, 1, 0.0, 0.005), (0, 1, 0.1, np.inf)])
    for percentile in (50.0, 99.0):
        save_run(run(log, percentile=percentile), tmp_path)
    one, two = read_load_runs(tmp_path)
    assert (one.percentile, two.percentile) == (50.0, 99.0)
    assert two.log.latency_s.tolist() == pytest.approx([0.005, np.inf])
    (tmp_path / FILE).write_text("{}\n")
    with pytest.raises(ScalebenchError, match=r"load\.jsonl is damaged"):
        read_load_runs(tmp_path)


def test_percentiles_are_given_from_mlperfs_bound_on() -> None:
    """And where more requests failed than they leave out, they are infinite."""
    sent = np.arange(700) * 0.02
    batches = [(0, 1, at, at + 0.005) for at in sent]
    few = run(Log.of(sent[:100], batches[:100]))
    assert few.percentiles.keys() == {50.0, 90.0}
    assert (few.holds, few.reached_ms) == (None, np.inf), "not known, so neither kept nor not"
    many = run(Log.of(sent, batches))
    assert many.reached_ms == pytest.approx(5.0)
    assert many.percentiles.keys() == {50.0, 90.0, 95.0, 99.0}
    failed = [(0, 1, at, np.inf if n % 50 == 0 else at + 0.005) for n, at in enumerate(sent)]
    assert run(Log.of(sent, failed)).reached_ms == np.inf


def test_a_replay_with_its_own_service_times_gives_the_run_again() -> None:
    """Simulated twice: of a simulated run, the percentiles come out alike."""
    from scalebench_lib.plan.simulate import ServiceTimes, simulate

    service = ServiceTimes({(n, 0): [0.004 + n / 1000, 0.006 + n / 1000] for n in (1, 2, 4)})
    kept = run(simulate(arrival_times("poisson", 300, 20_000), FOUR, [service]), FOUR)
    found = 1e3 * float(np.percentile(kept.replay.latency_s, 99))
    assert found == pytest.approx(kept.reached_ms, rel=0.05)
    assert kept.late_ms < 1e-6


def test_a_batcher_that_is_late_is_told() -> None:
    """The instance was free, the request there, and nothing was sent for 3 ms."""
    sent = np.arange(1000) * 0.02
    late = [(0, 1, at + 0.003, at + 0.008) for at in sent]
    assert run(Log.of(sent, late)).late_ms == pytest.approx(3.0)


def test_the_time_that_passes_is_that_of_the_arrivals() -> None:
    """Open loop: ten requests at 20 a second take half a second, however fast the answers."""
    with standing_in(1, ONE) as test:
        began = time.monotonic()
        test.run(arrival_times("constant", 20, 10))
        assert time.monotonic() - began >= 0.5


@pytest.mark.stress
@pytest.mark.skipif(not Machine.here().pinnable, reason="no affinity here")
@pytest.mark.parametrize("optimization", ["none", "openvino"])
def test_real_instances_take_batches_of_several_sizes(optimization: str) -> None:
    """By one model for all sizes, or by one of each; a larger batch takes longer."""
    config = Config(model="bert-tiny", batch_size=32, optimization=optimization)
    batching = Batching(max_batch=32, max_wait_ms=50, sizes=(1, 32))
    spec = WorkerSpec(config=config, cpus=(0,), shapes=tuple(batching.shapes))
    with Workers([spec]) as workers:
        workers.answers(300)
        times = np.array([0.0, *[0.5] * 32, *[2.0] * 32, 4.0])
        log = LoadTest(workers, batching).run(times)
    assert log.count.tolist() == [1, 32, 32, 1]
    took = log.ended_s - log.sent_s
    assert min(took[1:3]) > min(took[[0, 3]])
    assert instances() == []


@pytest.mark.stress
@pytest.mark.skipif(not Machine.here().pinnable, reason="no affinity here")
def test_real_instances_take_requests_of_several_lengths() -> None:
    """A batch with a long request takes as long as a long one."""
    batching = Batching(max_batch=4, sizes=(1, 4), lengths=((8, 3.0), (128, 1.0)))
    spec = WorkerSpec(config=SPEC.config, cpus=(0,), shapes=tuple(batching.shapes))
    with Workers([spec]) as workers:
        workers.answers(300)
        log = LoadTest(workers, batching).run(np.repeat(np.arange(50) * 0.1, 4))
    took = run(log, batching).service_s
    assert np.median(took[4, 128]) > 2 * np.median(took[4, 8])
