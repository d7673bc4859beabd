"""Plans that are run for real, with the tiny model; and instances that die or hang."""

import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from scalebench_lib.config import Config
from scalebench_lib.errors import MeasurementError
from scalebench_lib.machine import Machine
from scalebench_lib.plan import decide as deciding
from scalebench_lib.plan import runner
from scalebench_lib.plan.planner import Plan
from scalebench_lib.plan.profile import Instance
from scalebench_lib.plan.runner import Limits, PlanRunner, PlanTiming, paired
from scalebench_lib.record import Software, Turn
from tests import factories
from tests.standins import STAND_IN, instances

MACHINE = Machine.here()
TINY = Config(model="bert-tiny")
LIMITS = Limits(max_seconds=1.0, setup_s=120.0, batch_s=2.0)
ONE, TWO, THREE = (Plan.of([Instance(1, size, 5.0, cores=1)]) for size in (1, 2, 3))

pytestmark = pytest.mark.skipif(not MACHINE.pinnable, reason="no affinity here")


def hit(victims: dict[int, signal.Signals]) -> Callable[[str], None]:
    """Listen to a runner, and send signals to its n-th processes when the cycles begin."""

    def say(text: str) -> None:
        if text.startswith("cycle") and victims:
            running = instances()
            for victim in list(victims):
                running[victim].send_signal(victims.pop(victim))

    return say


@pytest.mark.parametrize("real", [False, pytest.param(True, marks=pytest.mark.stress)])
def test_an_instance_that_dies_or_hangs_fails_its_plan_only(real: bool, monkeypatch) -> None:
    """The third plan is measured, and no process is left."""
    if not real:
        monkeypatch.setattr(runner, "_COMMAND", STAND_IN)
    victims = {0: signal.SIGKILL, 1: signal.SIGSTOP}
    dead, hung, whole = PlanRunner(TINY, MACHINE, LIMITS, hit(victims)).run([ONE, TWO, THREE])
    assert "was killed by SIGKILL" in dead.reason
    assert "did not answer within 2 s" in hung.reason
    assert dead.latency_ms is hung.latency_ms is None
    assert whole.reason is None
    assert whole.latency_ms.low < whole.latency_ms.value < whole.latency_ms.high
    assert dead.measured.failed == dead.reason
    assert instances() == []


@pytest.mark.stress
def test_a_plan_is_verified_and_its_slow_down_kept(tmp_path: Path) -> None:
    """The answer is the best measured, now and next time; fat is always among those run."""
    configs = [TINY.model_copy(update={"batch_size": size}) for size in (1, 2)]
    here = {"software": Software.here()}
    records = [factories.measured(one, MACHINE).model_copy(update=here) for one in configs]
    out = factories.save_sweep(tmp_path, records)
    request = deciding.PlanRequest.of(batch_size=2)
    verified = deciding.verify_by_running(
        deciding.Context.load(out, request).decide(request), LIMITS
    )
    # A busy machine may withhold threads from fat.
    assert verified.fat.measured_ms or verified.fat.failed
    measured = [plan for plan in verified.plans if plan.measured_ms]
    assert verified.best.latency_ms == min(plan.latency_ms for plan in measured)
    assert instances() == []
    assert set(verified.context.runs) == set(measured)
    again = deciding.Context.load(out, request).decide(request).best
    assert again.latency_ms <= verified.best.latency_ms
    assert again.measured_ms or again not in measured


def test_a_plan_that_does_not_fit_into_memory_fails() -> None:
    """Nothing of it is started."""
    huge = Plan.of([Instance(1, 1, 5.0, cores=1, memory_mb=1e9)])
    said: list[str] = []
    (timing,) = PlanRunner(TINY, MACHINE, LIMITS, said.append).run([huge])
    assert "its instances need" in timing.reason
    assert said == []


def test_plans_that_fit_only_one_at_a_time_run_in_groups(monkeypatch) -> None:
    """They share no cycle, and that is said."""
    monkeypatch.setattr(runner, "_COMMAND", STAND_IN)
    monkeypatch.setattr(runner, "TURN_NS", 10_000_000)
    monkeypatch.setattr(runner, "available_bytes", lambda: 100e6)
    plans = [Plan.of([Instance(1, size, 5.0, cores=1, memory_mb=60)]) for size in (1, 2)]
    said: list[str] = []
    one, two = PlanRunner(TINY, MACHINE, Limits(max_seconds=0.01), said.append).run(plans)
    assert {turn.cycle for turn in one.turns}.isdisjoint(turn.cycle for turn in two.turns)
    assert any("run in several groups" in line for line in said)


def timing(times_ms: list[float], first_cycle: int = 1) -> PlanTiming:
    """A plan that was run, a batch a turn."""
    turns = [
        Turn(cycle=cycle, start_ns=0, samples_ns=(int(ms * 1e6),))
        for cycle, ms in enumerate(times_ms, first_cycle)
    ]
    return PlanTiming(ONE, turns)


def test_a_speed_up_is_paired_by_cycle() -> None:
    """A machine that slows both alike does not widen it."""
    drift = [1.0, 1.5, 1.2, 1.0, 1.4, 1.1, 1.2]
    ratio = paired(timing(drift), timing([2 * ms for ms in drift]))
    assert ratio.how == "paired"
    assert ratio.value == pytest.approx(2.0)
    assert ratio.high - ratio.low < 1e-9


def test_plans_that_never_met_are_not_called_paired() -> None:
    """Those that run in different groups share no cycle."""
    assert paired(timing([1.0] * 6), timing([2.0] * 6, first_cycle=7)) is None


def test_all_plans_have_equally_many_turns(monkeypatch) -> None:
    """At least 6, however little time there is; every cycle holds each plan once."""
    monkeypatch.setattr(runner, "_COMMAND", STAND_IN)
    monkeypatch.setattr(runner, "TURN_NS", 20_000_000)
    timings = PlanRunner(TINY, MACHINE, Limits(max_seconds=0.01)).run([ONE, TWO])
    cycles = [[turn.cycle for turn in one.turns] for one in timings]
    assert cycles == [[1, 2, 3, 4, 5, 6]] * 2


def test_when_nothing_can_be_run_it_says_why(tmp_path: Path, monkeypatch) -> None:
    """One line has each reason."""
    out = factories.save_sweep(tmp_path, [factories.measured(TINY, MACHINE)])
    monkeypatch.setattr(runner, "_COMMAND", (sys.executable, "-c", "exit('no luck')"))
    request = deciding.PlanRequest.of(batch_size=1)
    decision = deciding.Context.load(out, request).decide(request)
    with pytest.raises(MeasurementError, match=r"no plan could be run: .*no luck"):
        deciding.verify_by_running(decision, LIMITS)
    assert not (out / "interference.json").exists()
