"""Speed-ups are ratios of latencies, with the intervals of both sides in theirs."""

import numpy as np
import pytest

from scalebench_lib.analysis.ratios import over_eager, over_one_thread, ratio
from scalebench_lib.results import results_table
from tests import madeup

TABLE = results_table(madeup.small_records())


def test_the_speedup_over_eager_is_the_one_that_was_made() -> None:
    """Within its interval, at every batch size; eager over itself is 1, exactly."""
    found = over_eager(TABLE, threads=2).set_index(["optimization", "batch_size"])
    assert found.loc["script", "speedup"].to_numpy() == pytest.approx(
        madeup.SCRIPT_SPEEDUP, rel=0.03
    )
    assert found.loc["none", ["speedup", "speedup_low", "speedup_high"]].eq(1).all(axis=None)
    assert (found.loc["script", "speedup_low"] < found.loc["script", "speedup_high"]).all()


def test_without_eager_there_is_no_speedup() -> None:
    """An empty value, not a one."""
    alone = TABLE[TABLE["optimization"] == "script"]
    assert over_eager(alone)["speedup"].isna().all()


def test_one_thread_over_itself_is_one() -> None:
    """And two threads are faster, by less than two."""
    found = over_one_thread(TABLE)
    assert (found.loc[found["threads"] == 1, "speedup"] == 1).all()
    assert found.loc[found["threads"] == 2, "speedup"].between(1, 2).all()


def test_independent_errors_add_in_squares() -> None:
    """3 % and 4 % make 5 %."""
    sides = [tuple(np.array([v]) for v in (1, np.exp(-w), np.exp(w))) for w in (0.03, 0.04)]
    value, low, high = ratio(*sides)
    assert (value[0], np.log(low[0]), np.log(high[0])) == pytest.approx((1, -0.05, 0.05))
