"""What is left of a sweep."""

from pathlib import Path

import pytest

from scalebench_lib.config import Config, Sweep
from scalebench_lib.errors import RequestError
from scalebench_lib.sweep.state import Judge, sweep_state
from tests.madeup import machine, measured, missing, save_sweep

SMALL = machine(cores=2, smt=False)
SWEEP = Sweep(batch_sizes=(1, 4), optimizations=("none",), rounds=1)


def record(batch_size: int):
    """A record of `SWEEP`."""
    return measured(Config(batch_size=batch_size), SMALL)


def test_what_has_a_record_is_done(tmp_path: Path) -> None:
    """And it alone."""
    state = Judge(SWEEP, SMALL).state(tmp_path, [record(1)])
    assert [visit.config.batch_size for visit in state.done] == [1]
    assert [visit.config.batch_size for visit in state.left] == [4]


def test_thread_counts_that_are_missing_are_left(tmp_path: Path) -> None:
    """A sweep may be gone on with at more thread counts."""
    half = record(1)
    half = half.model_copy(update={"points": half.points[:1]})
    state = Judge(SWEEP, SMALL).state(tmp_path, [half, record(4)])
    assert [(visit.config.batch_size, visit.threads) for visit in state.left] == [(1, (2,))]


def test_what_failed_is_left_alone_until_it_is_asked_for(tmp_path: Path) -> None:
    """In its place in the order."""
    failed = missing(Config(batch_size=1), SMALL, "failed", "no luck")
    state = Judge(SWEEP, SMALL).state(tmp_path, [failed])
    assert [found.reason for _, found in state.failed] == ["no luck"]
    again = Judge(SWEEP, SMALL, retry=[failed.config_id]).state(tmp_path, [failed])
    assert [visit.config.batch_size for visit in again.left] == [1, 4]


def test_status_tells_of_the_machine_that_measured(tmp_path: Path) -> None:
    """Wherever it is asked."""
    save_sweep(tmp_path, [measured(Config(batch_size=1), machine(cores=4, smt=False))])
    state = sweep_state(tmp_path)
    assert [visit.config.optimization for visit in state.done] == ["none"]
    assert [visit.config.optimization for visit in state.left] == ["script"]


def test_a_folder_without_a_sweep_says_what_to_do(tmp_path: Path) -> None:
    """One line."""
    with pytest.raises(RequestError, match="holds no sweep: start one with"):
        sweep_state(tmp_path)
