"""Speed-ups are the ratios of `Results`, as columns of the table."""

import numpy as np
import pandas as pd
import pytest

from scalebench_lib.analysis.tables import (
    best_threads,
    default_optimization,
    pairing_label,
    value_and_bounds,
    with_ratio_as_speedup,
)
from scalebench_lib.results import Results
from tests import factories

RESULTS = Results(factories.small_records())
TABLE = RESULTS.table


def test_the_speedup_over_eager_is_the_one_that_was_made() -> None:
    """Within its interval, at every batch size; eager over itself is 1, exactly."""
    found = with_ratio_as_speedup(best_threads(TABLE, 2), "same_threads")
    found = found.set_index(["optimization", "batch_size"])
    assert found.loc["script", "speedup"].to_numpy() == pytest.approx(
        factories.SCRIPT_SPEEDUP, rel=0.03
    )
    assert found.loc["none", ["speedup", "speedup_low", "speedup_high"]].eq(1).all(axis=None)
    assert (found.loc["script", "speedup_low"] < found.loc["script", "speedup_high"]).all()
    assert set(found["speedup_paired"]) == {"paired"}


def test_at_the_best_thread_count_it_is_what_the_results_say() -> None:
    """Of the base at its best thread count over the point."""
    results, found = RESULTS, best_threads(TABLE).set_index("config_id")
    for name, row in found.iterrows():
        key = (name, row["threads"])
        ratio = results.ratio(results.base(key), key)
        assert (row["speedup"], row["speedup_low"]) == (ratio.value, ratio.low)


def test_figures_of_one_optimization_begin_with_the_fastest_of_the_smallest_batch() -> None:
    """Not with eager, unless it is alone; where nothing succeeded, with any."""
    other = TABLE[TABLE["optimization"] == "script"]
    faster = other.assign(optimization="zz", latency_ms=other["latency_ms"] / 2)
    slow_later = faster["latency_ms"].where(faster["batch_size"] == 1, 1e6)
    both = pd.concat([TABLE, faster.assign(latency_ms=slow_later)])
    assert default_optimization(both) == "zz"
    assert default_optimization(both.assign(status="failed")) == "script"
    assert default_optimization(TABLE[TABLE["optimization"] == "none"]) == "none"


def test_without_eager_there_is_no_speedup() -> None:
    """An empty value, not a one; and nothing is called eager."""
    alone = [r for r in factories.small_records() if r.config.optimization == "script"]
    table = Results(alone).table
    assert table["speedup"].isna().all()
    assert not table["is_base"].any()


def test_where_eager_failed_it_is_the_base_all_the_same() -> None:
    """Nothing can be said of a speed-up over it, and no other takes its place."""
    on = factories.machine(cores=2, smt=False)
    none, script = factories.configs(on, [8])
    gone = factories.missing(none, on, "failed", "out of memory")
    table = Results([gone, factories.measured(script, on)]).table
    assert table.loc[table["is_base"], "status"].tolist() == ["failed"]
    assert table["speedup"].isna().all()


def test_smt_on_and_other_allocators_are_compared_with_the_same_eager() -> None:
    """SMT off, on the default allocator."""
    on = factories.machine(cores=2)
    configs = [*factories.configs(on, [1]), *factories.configs(on, [1], allocator="jemalloc")]
    table = Results([factories.measured(config, on) for config in configs]).table
    base = table[table["is_base"]]
    assert base[["optimization", "smt", "allocator"]].drop_duplicates().to_numpy().tolist() == [
        ["none", False, "default"]
    ]
    best = base["latency_ms"].min()
    assert table["speedup"].to_numpy(float) == pytest.approx(best / table["latency_ms"], rel=0.05)


def test_one_thread_over_itself_is_one() -> None:
    """And two threads are faster, by less than two."""
    found = with_ratio_as_speedup(TABLE, "scaling")
    assert (found.loc[found["threads"] == 1, "speedup"] == 1).all()
    assert found.loc[found["threads"] == 2, "speedup"].between(1, 2).all()


def test_how_ratios_were_got_is_counted_where_it_differs() -> None:
    """With eager by its own name."""
    assert pairing_label([]) == ""
    assert pairing_label(["paired", "paired"]) == "paired"
    assert pairing_label(pd.Series(["paired", "via none", "paired"])) == "2 paired, 1 via eager"


def test_an_interval_without_bounds_has_none_to_draw() -> None:
    """As of two turns that differ much: a logarithmic axis has no place for 0."""
    rows = pd.DataFrame({"speedup": [2.0, 3.0], "speedup_low": [0.0, 2.5]})
    rows["speedup_high"] = [float("inf"), 3.5]
    middle, low, high = value_and_bounds(rows, "speedup")
    assert middle.tolist() == [2, 3]
    assert [*low[1:], *high[1:]] == [2.5, 3.5]
    assert np.isnan([low[0], high[0]]).all()
