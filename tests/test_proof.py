"""Plans that are run for real, with the tiny model; and instances that die or hang."""

import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from scalebench_lib.config import Config
from scalebench_lib.errors import MeasurementError
from scalebench_lib.machine import Machine
from scalebench_lib.plan import crew
from scalebench_lib.plan import decide as deciding
from scalebench_lib.plan.interference import Interference
from scalebench_lib.plan.planner import Plan
from scalebench_lib.plan.profile import Option
from scalebench_lib.plan.proof import Limits, Proof, Ratio, Run, speedup
from tests import madeup
from tests.standins import STAND_IN, instances

MACHINE = Machine.here()
TINY = Config(model="bert-tiny")
LIMITS = Limits(max_seconds=1.0, setup_s=120.0, batch_s=2.0)
ONE, TWO, THREE = (Plan.of([Option(1, size, 5.0, cores=1.0)]) for size in (1, 2, 3))

pytestmark = pytest.mark.skipif(not MACHINE.pinnable, reason="no affinity here")


def hit(victims: dict[int, signal.Signals]) -> Callable[[str], None]:
    """Listens to a proof, and sends signals to its n-th processes when the rounds begin."""

    def say(text: str) -> None:
        if text.startswith("round") and victims:
            running = instances()
            for victim in list(victims):
                running[victim].send_signal(victims.pop(victim))

    return say


@pytest.mark.parametrize("real", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_an_instance_that_dies_or_hangs_fails_its_plan_only(real: bool, monkeypatch) -> None:
    """The third plan is measured, and no process is left. Process 0 is the probe."""
    if not real:
        monkeypatch.setattr(crew, "_COMMAND", STAND_IN)
    victims = {1: signal.SIGKILL, 2: signal.SIGSTOP}
    proof = Proof(TINY, MACHINE, 1, float("nan"), LIMITS, hit(victims))
    dead, hung, whole = proof.run([ONE, TWO, THREE])
    assert "was killed by SIGKILL" in dead.reason
    assert "did not answer within 2 s" in hung.reason
    assert dead.headline is hung.headline is None
    assert whole.reason is None
    assert whole.measured_ms[1] < whole.measured_ms[0] < whole.measured_ms[2]
    assert speedup(whole, dead) is None
    assert instances() == []


@pytest.mark.slow
def test_a_plan_is_proved_and_its_slow_down_kept(tmp_path: Path) -> None:
    """The answer is the best measured; fat is always among those that were run."""
    records = [
        madeup.measured(TINY.model_copy(update={"batch_size": size}), MACHINE) for size in (1, 2)
    ]
    out = madeup.save_sweep(tmp_path, records)
    decision = deciding.decide(out, deciding.Request.of(batch_size=2))
    proved = deciding.prove(decision, LIMITS)
    assert proved.proved
    fat = proved.named("fat")
    assert fat.measured_ms or fat.run.reason  # a busy machine may not give it all its threads
    run = [one for one in proved.entries if one.measured_ms]
    assert proved.best.latency_ms == min(one.latency_ms for one in run)
    assert Interference.load(out).observations
    assert instances() == []
    again = deciding.decide(out, deciding.Request.of(batch_size=2))
    assert again.best.plan.predicted_ms < 2 * proved.best.latency_ms


def test_a_plan_that_does_not_fit_into_memory_is_told(monkeypatch) -> None:
    """Before anything of it is started."""
    huge = Plan.of([Option(1, 1, 5.0, cores=1.0, memory_mb=1e9)])
    proof = Proof(TINY, MACHINE, 1, float("nan"), LIMITS)
    runs = [Run(huge), Run(ONE)]
    assert next(iter(proof._waves(runs))) == []
    assert "its instances need" in runs[0].reason


def test_a_speed_up_is_paired_turn_by_turn() -> None:
    """A machine that slows both alike does not widen it."""
    drift = [1.0, 1.5, 1.2]
    runs = []
    for factor in (1.0, 2.0):
        run = Run(ONE, turns=[0, 1, 2], steady_ns=np.array(drift) * factor * 1e6)
        run.headline = type("Found", (), {"value": factor * 1e6})()
        runs.append(run)
    ratio = speedup(*runs)
    assert ratio.value == 2.0
    assert ratio.high - ratio.low < 1e-9
    assert str(Ratio(2.0, 1.9, 2.1)) == "2.00× (1.90 … 2.10)"


def test_when_nothing_can_be_run_it_says_why(tmp_path: Path) -> None:
    """One line, with each reason."""
    run = Run(ONE, reason="no luck")
    with pytest.raises(MeasurementError, match=r"no plan could be run: .*no luck"):
        deciding._fastest([deciding.Entry(ONE, ("fat",), run)])
