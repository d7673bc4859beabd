"""Verdicts on experiments, from made-up turns of which the right answer is known."""

from collections.abc import Callable, Sequence
from math import log
from pathlib import Path

import numpy as np
import pytest

from scalebench_lib.config import Config
from scalebench_lib.record import Point
from scalebench_lib.results import Results
from scalebench_lib.stats import Interval, VarianceEstimate
from scalebench_lib.validation import verdicts
from scalebench_lib.validation.experiments import is_hog_cycle
from tests import factories

ON = factories.machine(cores=2, smt=False)
CYCLES = 24


def hog(cycle: int, threads: int) -> float:
    """On 2 threads it doubles the time."""
    return 2.0 if is_hog_cycle(cycle) and threads == 2 else 1.0


def results(
    factor: dict[str, float],
    slower: Callable[[int, int], float] = lambda cycle, threads: 1.0,
    configs: Sequence[Config] = (Config(optimization="none"), Config(optimization="script")),
) -> Results:
    """Configs on 1 and 2 threads; `factor` is on an optimization's time, `slower` on a turn's."""
    random, records = np.random.default_rng(3), []
    for config in configs:
        record = factories.measured(config, ON)
        points = []
        for point in record.points[:2]:
            times = (
                1e8
                * factor.get(config.optimization, 1.0)
                * np.exp(0.003 * random.standard_normal(CYCLES))
            )
            times *= [slower(cycle, point.threads) for cycle in range(1, CYCLES + 1)]
            points.append(factories.with_turns(point, factories.turns(times.astype(int).tolist())))
        records.append(record.model_copy(update={"points": tuple(points)}))
    return Results(records)


def in_pairs(measured: Results) -> Results:
    """The same turns, each two of them in one cycle."""

    def paired(point: Point) -> Point:
        turns = [t.model_copy(update={"cycle": (t.cycle + 1) // 2}) for t in point.turns]
        return factories.with_turns(point, turns)

    return Results(
        r.model_copy(update={"points": tuple(map(paired, r.points))}) for r in measured.records
    )


def waiting(point: Point, marked: Callable[[int], bool]) -> Point:
    """In the `marked` cycles a thread of `point` waits for a CPU half of the time."""
    turns = [
        t.model_copy(update={"waited_ns": marked(t.cycle) * sum(t.samples_ns) // 2})
        for t in point.turns
    ]
    return factories.with_turns(point, turns)


def test_the_same_thing_twice_holds() -> None:
    """All ratios are near 1, and their intervals hold it."""
    found = verdicts.point_ratios(results({}), results({}))
    assert verdicts.judge("same", found, 0.01, 0.04).startswith("same: holds. 0.")


def test_a_process_that_is_slower_does_not_hold() -> None:
    """And the verdict names the point."""
    found = verdicts.point_ratios(results({"script": 1.1}), results({}))
    verdict = verdicts.judge("same", found, 0.01, 0.04)
    assert verdict.startswith("same: does not hold. ")
    assert "at worst (bar 4%: script, batch 1, " in verdict


def test_intervals_that_leave_out_1_do_not_hold() -> None:
    """Though all errors are small."""
    found = {
        "a": Interval(1.001, VarianceEstimate(1e-4)),
        "b": Interval(1.001, VarianceEstimate(1e-9)),
    }
    verdict = verdicts.judge("narrow", found, 0.01, 0.04)
    assert "does not hold" in verdict
    assert "1 of 2 intervals hold it" in verdict


def test_odd_and_even_cycles_of_a_steady_machine_agree() -> None:
    """Within a group; every pair counts once."""
    odd, even = verdicts.odd_and_even_turns(results({"script": 0.5}))
    found = verdicts.ratios_of_ratios(odd, even)
    assert len(found) == 6
    assert "halves: holds" in verdicts.judge("halves", found, 0.01, 0.04)


def test_a_turn_that_others_leave_cold_is_found() -> None:
    """Of two on end the first comes after turns of other points, the second does not."""
    steady = results({})
    cold = results({}, slower=lambda cycle, threads: 1.1 if cycle % 2 else 1.0)
    for measured, verdict in ((steady, "turns: holds"), (cold, "turns: does not hold")):
        found = verdicts.point_ratios(*verdicts.odd_and_even_turns(in_pairs(measured)))
        assert len(found) == 4
        assert verdict in verdicts.judge("turns", found, 0.01, 0.04)


def test_a_hog_leaves_ratios_of_one_thread_count_alone() -> None:
    """It runs for a third of the cycles, which the median does not feel."""
    hogged = results({}, slower=hog)
    found = verdicts.ratios_of_ratios(hogged, verdicts.without_hog(hogged), same_threads=True)
    assert list(found) == [
        f"none, batch 1, {threads} / script, batch 1, {threads}"
        for threads in ("1 thread", "2 threads")
    ]
    assert "stay: holds" in verdicts.judge("stay", found, 0.02, 0.05)


@pytest.mark.parametrize(
    ("marked", "figures"),
    [
        (is_hog_cycle, "holds. 16 of 16 disturbed turns are marked (bar 95%), and 0 of 64 quiet"),
        (
            lambda cycle: True,
            "does not hold. 16 of 16 disturbed turns are marked (bar 95%), and 64",
        ),
        (lambda cycle: False, "does not hold. 0 of 16 disturbed"),
    ],
)
def test_turns_that_the_hog_disturbed_are_to_be_marked(marked, figures: str) -> None:
    """All on all CPUs, and no quiet ones."""
    measured = results({})
    records = [
        record.model_copy(update={"points": tuple(waiting(p, marked) for p in record.points)})
        for record in measured.records
    ]
    assert figures in verdicts.judge_shared_marks(Results(records))


def test_the_effect_of_a_layer_less_is_that_of_bare_loops(tmp_path: Path) -> None:
    """By batch size and thread count; whichever comes first."""
    (tmp_path / "config.json").write_text("{}")
    whole, less = Config(model="bert-tiny"), Config(model=str(tmp_path))
    both = {config: results({}, configs=(config,)).records for config in (whole, less)}
    recorded = Results([*both[less], *both[whole]])
    faster = Results([*results({"none": 0.9}, configs=(less,)).records, *both[whole]])
    found = verdicts.ratios_of_ratios(recorded, recorded, same_threads=True)
    assert "found: holds" in verdicts.judge("found", found, 0.01, 0.03)
    found = verdicts.ratios_of_ratios(recorded, faster, same_threads=True)
    assert list(found) == ["none, batch 1, 1 thread", "none, batch 1, 2 threads"]
    assert {abs(round(log(one.value), 2)) for one in found.values()} == {0.11}
