"""What disturbed a sweep: counted by point, and said only where it matters."""

import re

import pytest

from scalebench_lib.config import Config
from scalebench_lib.disturbances import DisturbanceCounts, disturbance_sentences
from tests.factories import disturbed, machine, measured, small_records

SMALL = machine(cores=2, smt=False)
CONFIG = Config(batch_size=4)


def test_a_point_counts_what_disturbed_it_in_all_its_trials() -> None:
    had = {"waited": 0.5, "throttled": 3, "stolen": 0.2}
    one, other = disturbed(measured(CONFIG, SMALL), 2, **had), disturbed(measured(CONFIG, SMALL))
    found = DisturbanceCounts.of([one.points[1], other.points[1]])
    assert (found.turns, found.shared, found.throttled) == (16, 2, 6)
    assert found.stolen == pytest.approx(0.2 * 2 / 16 / 2, rel=0.1)


def test_what_the_system_does_not_tell_is_not_counted_as_nought() -> None:
    """Older records have no such figures."""
    record = measured(CONFIG, SMALL)
    assert DisturbanceCounts.of(record.points) == DisturbanceCounts(16, None, None, None)
    assert list(disturbance_sentences([record])) == []


def test_of_a_sweep_that_nothing_disturbed_nothing_is_said() -> None:
    calm_records = [disturbed(record) for record in small_records()]
    assert list(disturbance_sentences(calm_records)) == []
    hardly = disturbed(small_records()[0], 1, waited=0.3, stolen=0.3)
    assert list(disturbance_sentences([hardly, *calm_records[1:]])) == []
    assert list(disturbance_sentences([])) == []


def test_shared_turns_are_said_with_the_point_that_had_the_most() -> None:
    """Medians hold with less than half of them."""
    records = [disturbed(measured(Config(batch_size=n), SMALL), 3, waited=0.5) for n in (1, 4)]
    records[1] = disturbed(records[1], 2, threads=1, waited=0.5)
    (told,) = disturbance_sentences(records)
    assert told.startswith("Something else was computing here: it shared 5 of 32 turns")
    assert "the most at BERT, batch 1 of 16 tokens, eager, SMT off, 2 threads (3 of 8)" in told
    assert told.endswith("(results.csv): so do all here.")


def test_a_point_with_half_its_turns_shared_is_said_however_many_others_are_calm() -> None:
    """Its median does not hold: it is to be measured anew."""
    records = [disturbed(record) for record in small_records((1, 2, 4, 8, 16, 32))]
    records[0] = disturbed(records[0], 4, waited=0.5)
    (told,) = disturbance_sentences(records)
    assert "it shared 4 of 192 turns" in told
    assert "not so at 1 point, so measure anew" in told


def test_a_quota_that_stops_passes_is_said() -> None:
    records = [disturbed(record) for record in small_records()]
    (told,) = disturbance_sentences([disturbed(records[0], 2, throttled=3), *records[1:]])
    assert told.startswith("A CPU quota stopped passes in 6 periods of 96 turns, the most at BERT")
    assert "raise the quota, or use fewer threads" in told


def test_a_hypervisor_that_takes_much_is_said() -> None:
    record = measured(CONFIG, SMALL)
    (told,) = disturbance_sentences([disturbed(record, 8, stolen=0.5)])
    assert re.match(r"The hypervisor took 1[23]\.\d % of the CPU time for other guests", told)
    assert "2 threads (25.0 %)" in told


def test_a_governor_that_changed_meanwhile_is_said() -> None:
    on = SMALL.model_copy(update={"governor": "powersave"})
    records = [measured(CONFIG, on), measured(Config(batch_size=1), on)]
    assert list(disturbance_sentences(records)) == []
    records[0] = records[0].model_copy(update={"governor_after": "performance"})
    (told,) = disturbance_sentences(records)
    assert "governor changed during 1 trial" in told
    assert "from powersave to performance" in told
