"""Plans that are run for real, with the tiny model; and instances that die or hang."""

import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from scalebench_lib.config import Config
from scalebench_lib.errors import MeasurementError
from scalebench_lib.machine import Machine
from scalebench_lib.plan import decide as deciding
from scalebench_lib.plan import runner
from scalebench_lib.plan.interference import Interference
from scalebench_lib.plan.planner import Plan
from scalebench_lib.plan.profile import InstanceOption
from scalebench_lib.plan.runner import Limits, PlanRunner, Run, speedup
from scalebench_lib.record import Turn
from tests import factories
from tests.standins import STAND_IN, instances

MACHINE = Machine.here()
TINY = Config(model="bert-tiny")
LIMITS = Limits(max_seconds=1.0, setup_s=120.0, batch_s=2.0)
ONE, TWO, THREE = (Plan.of([InstanceOption(1, size, 5.0, cores=1.0)]) for size in (1, 2, 3))

pytestmark = pytest.mark.skipif(not MACHINE.pinnable, reason="no affinity here")


def hit(victims: dict[int, signal.Signals]) -> Callable[[str], None]:
    """Listens to a proof, and sends signals to its n-th processes when the cycles begin."""

    def say(text: str) -> None:
        if text.startswith("cycle") and victims:
            running = instances()
            for victim in list(victims):
                running[victim].send_signal(victims.pop(victim))

    return say


@pytest.mark.parametrize("real", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_an_instance_that_dies_or_hangs_fails_its_plan_only(real: bool, monkeypatch) -> None:
    """The third plan is measured, and no process is left."""
    if not real:
        monkeypatch.setattr(runner, "_COMMAND", STAND_IN)
    victims = {0: signal.SIGKILL, 1: signal.SIGSTOP}
    proof = PlanRunner(TINY, MACHINE, LIMITS, hit(victims))
    dead, hung, whole = proof.run([ONE, TWO, THREE])
    assert "was killed by SIGKILL" in dead.reason
    assert "did not answer within 2 s" in hung.reason
    assert dead.latency_ms is hung.latency_ms is None
    assert whole.reason is None
    assert whole.latency_ms.low < whole.latency_ms.value < whole.latency_ms.high
    assert speedup(whole, dead) is None
    assert instances() == []


@pytest.mark.slow
def test_a_plan_is_proved_and_its_slow_down_kept(tmp_path: Path) -> None:
    """The answer is the best measured; fat is always among those that were run."""
    records = [
        factories.measured(TINY.model_copy(update={"batch_size": size}), MACHINE) for size in (1, 2)
    ]
    out = factories.save_sweep(tmp_path, records)
    decision = deciding.decide(out, deciding.Request.of(batch_size=2))
    proved = deciding.verify(decision, LIMITS)
    assert proved.proved
    fat = proved.named("fat")
    assert fat.measured_ms or fat.run.reason  # a busy machine may not give it all its threads
    measured = [one for one in proved.entries if one.measured_ms]
    assert proved.best.latency_ms == min(one.latency_ms for one in measured)
    assert Interference.load(out).observations
    assert instances() == []
    again = deciding.decide(out, deciding.Request.of(batch_size=2))
    assert again.best.plan.predicted_ms < 2 * proved.best.latency_ms


def test_a_plan_that_does_not_fit_into_memory_is_told(monkeypatch) -> None:
    """Before anything of it is started."""
    huge = Plan.of([InstanceOption(1, 1, 5.0, cores=1.0, memory_mb=1e9)])
    proof = PlanRunner(TINY, MACHINE, LIMITS)
    runs = [Run(huge), Run(ONE)]
    assert next(iter(proof._memory_batches(runs))) == []
    assert "its instances need" in runs[0].reason


def run(times_ms: list[float], first_cycle: int = 1) -> Run:
    """A plan that was run, a batch a turn."""
    return Run(
        ONE,
        turns=[
            Turn(cycle=cycle, start_ns=0, samples_ns=(int(ms * 1e6),))
            for cycle, ms in enumerate(times_ms, first_cycle)
        ],
    )


def test_a_speed_up_is_paired_by_cycle() -> None:
    """A machine that slows both alike does not widen it."""
    drift = [1.0, 1.5, 1.2, 1.0, 1.4, 1.1, 1.2]
    ratio = speedup(run(drift), run([2 * ms for ms in drift]))
    assert ratio.how == "paired"
    assert ratio.value == pytest.approx(2.0)
    assert ratio.high - ratio.low < 1e-9


def test_plans_of_different_waves_are_not_called_paired() -> None:
    """They shared no cycle: their latencies are compared, with both intervals."""
    times = [1.0, 1.02, 1.01, 0.99, 1.03, 1.0]
    ratio = speedup(run(times), run([2 * ms for ms in times], first_cycle=7))
    assert ratio.how == "not measured together"
    assert ratio.value == pytest.approx(2.0)
    assert ratio.low < 1.95 < 2.05 < ratio.high


def test_all_plans_of_a_proof_have_equally_many_turns(monkeypatch) -> None:
    """At least 6, however little time there is; every cycle holds each plan once."""
    monkeypatch.setattr(runner, "_COMMAND", STAND_IN)
    monkeypatch.setattr(runner, "TURN_NS", 20_000_000)
    runs = PlanRunner(TINY, MACHINE, Limits(max_seconds=0.01)).run([ONE, TWO])
    cycles = [[turn.cycle for turn in one.turns] for one in runs]
    assert cycles == [[1, 2, 3, 4, 5, 6]] * 2


def test_when_nothing_can_be_run_it_says_why(tmp_path: Path) -> None:
    """One line, with each reason."""
    failed = Run(ONE, reason="no luck")
    with pytest.raises(MeasurementError, match=r"no plan could be run: .*no luck"):
        deciding._fastest([deciding.Candidate(ONE, ("fat",), failed)])
