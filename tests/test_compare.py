"""Comparing sweeps: what is the same is called so, what is slower too, and what is neither."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from scalebench_lib.analysis.compare import TOO_WIDE, Comparison, compare
from scalebench_lib.errors import RequestError
from scalebench_lib.record import Record
from tests import madeup, simulated

PAIRS = 8
"""Comparisons of 12 points each, on machines of two kinds."""


def sweep(seed: int, slower: simulated.Slower = 1.0, **options: Any) -> list[Record]:
    """The records of a simulated sweep of four rounds, whose passes are far out now and then."""
    kind = simulated.far_out if seed % 4 > 1 else simulated.steady
    return simulated.sweep(kind, seed, **{"rounds": 4, **options}, slower=slower).records


def saved(folder: Path, records: list[Record]) -> Path:
    """The records as a sweep's folder."""
    return madeup.save_sweep(folder, records)


@pytest.fixture
def pair(tmp_path: Path):
    """Compare two lists of records that were saved as sweeps side by side."""

    def build(before: list[Record], after: list[Record], **options) -> Comparison:
        a, b = saved(tmp_path / "before", before), saved(tmp_path / "after", after)
        return compare(a, b, **options)

    return build


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory):
    """Tables of `PAIRS` comparisons of simulated sweeps: alike, and with B slower by 10 %."""
    folder = tmp_path_factory.mktemp("simulated")

    def compared(slower: float) -> pd.DataFrame:
        found = []
        for seed in range(PAIRS):
            where = folder / f"{slower}-{seed}"
            a = saved(where / "a", sweep(2 * seed))
            b = saved(where / "b", sweep(2 * seed + 1, slower))
            found.append(compare(a, b).table)
        return pd.concat(found)

    return {"alike": compared(1.0), "slower": compared(1.1)}


def half_width(table: pd.DataFrame) -> pd.Series:
    """Half of each ratio's interval, over the ratio."""
    return (table["ratio_high"] - table["ratio_low"]) / 2 / table["ratio"]


def test_the_same_is_called_the_same(tables) -> None:
    """At least 95 % of the points of A/A comparisons."""
    assert (tables["alike"]["verdict"] == "same").mean() >= 0.95


def test_intervals_hold_as_often_as_they_say(tables) -> None:
    """1 lies in them in at least about 95 % of the points, and they are no wider than useful.

    They are of these rounds: on a machine that drifts an hour differs by more from the next.
    """
    alike = tables["alike"]
    held = ((alike["ratio_low"] <= 1) & (alike["ratio_high"] >= 1)).mean()
    assert held >= 0.93
    assert half_width(alike).median() < 0.04


def test_a_slow_down_of_a_tenth_is_found(tables) -> None:
    """In at least 95 % of the points whose interval is at most ±3 %."""
    slower = tables["slower"]
    narrow = slower[half_width(slower) <= 0.03]
    assert len(narrow) > 50
    assert (narrow["verdict"] == "slower").mean() >= 0.95


def test_only_what_changed_is_called_slower(pair) -> None:
    """One config slower by a fifth, one faster, the rest as it was."""
    slow, fast = simulated.CONFIGS[0].id, simulated.CONFIGS[3].id
    found = pair(sweep(0), sweep(1, {slow: 1.2, fast: 0.8}))
    verdicts = found.table.groupby("config_id")["verdict"].unique()
    assert list(verdicts[slow]) == ["slower"]
    assert list(verdicts[fast]) == ["faster"]
    assert found.count("same") == len(found.table) - 4
    assert found.worse


def test_a_change_below_the_threshold_is_none(pair) -> None:
    """However clear it is; a lower threshold calls it."""
    found = pair(sweep(0), sweep(1, 1.2), threshold=0.5)
    assert found.count("same") == len(found.table)
    assert not found.worse


def test_points_with_many_outliers_get_no_verdict(pair) -> None:
    """A neighbour in 40 % of B's samples: B looks slower, and nobody can know."""
    records = sweep(1, 1.1)
    found = pair(sweep(0), [_hogged(record) for record in records])
    assert found.count("not comparable") == len(found.table)
    assert found.table["why"].str.contains("outliers").all()
    assert not found.worse


def _hogged(record: Record) -> Record:
    """From some time on passes take twice as long."""
    return with_passes(record, lambda passes: [*passes[:9], *(2 * ns for ns in passes[9:])])


def with_passes(record: Record, change: Callable[[list[int]], Iterable[int]]) -> Record:
    """`record` with the passes of each point, in ns, changed; a turn each."""
    points = [
        madeup.with_turns(point, madeup.turns(change(list(point.samples_ns))))
        for point in record.points
    ]
    return record.model_copy(update={"points": tuple(points)})


def test_too_wide_an_interval_is_no_answer(pair) -> None:
    """Three wild turns cannot tell a slow-down; it says to measure for longer."""
    noisy = [_wild(sweep(seed, rounds=1, cycles=3)) for seed in (0, 1)]
    found = pair(*noisy)
    wide = half_width(found.table) > TOO_WIDE
    assert wide.any()
    assert (found.table.loc[wide, "verdict"] == "not comparable").all()
    assert found.table.loc[wide, "why"].str.contains("too wide.*measure for longer").all()


def _wild(records: list[Record]) -> list[Record]:
    """Passes that differ by a factor of up to two."""
    random = np.random.default_rng(0)
    return [
        with_passes(record, lambda passes: [int(ns * random.uniform(1, 2)) for ns in passes])
        for record in records
    ]


def test_what_failed_in_b_is_named_and_counts_as_worse(pair) -> None:
    """A change that breaks a config must not pass as one that slowed nothing down."""
    before, gone = sweep(0), simulated.CONFIGS[0]
    after = [record for record in sweep(1) if record.config != gone]
    after.append(madeup.missing(gone, simulated.ON, "failed", "no | memory"))
    found = pair(before, after)
    lost = found.table[found.table["config_id"] == gone.id]
    assert (lost["verdict"] == "not comparable").all()
    assert set(lost["why"]) == {"failed: no | memory in B"}
    assert len(found.lost) == 2
    assert found.worse


def test_configs_of_one_sweep_alone_are_left_out(pair) -> None:
    """B measured fewer: what is not shared is no failure of B."""
    only = [record for record in sweep(1) if record.config.batch_size == 4]
    found = pair(sweep(0), only)
    assert set(found.table["batch_size"]) == {4}
    assert not found.worse


def test_other_software_is_compared_only_when_asked(pair) -> None:
    """With the difference named."""
    newer = madeup.SOFTWARE.model_copy(update={"versions": {"numpy": "2.2.0", "torch": "2.7.0"}})
    after = [record.model_copy(update={"software": newer}) for record in sweep(1)]
    with pytest.raises(RequestError, match=r"differ in torch 2.6.0 → 2.7.0.*--anyway"):
        pair(sweep(0), after)


def test_another_machine_is_compared_when_asked(pair) -> None:
    """And the machines are named."""
    other = simulated.ON.model_copy(update={"cpu_model": "Madeup 5"})
    after = [record.model_copy(update={"machine": other}) for record in sweep(1, 2.0)]
    found = pair(sweep(0), after, anyway=True)
    assert "Madeup 9000, 2 cores → Madeup 5, 2 cores" in found.differences[0]
    assert found.count("slower") == len(found.table)


@pytest.mark.parametrize("threshold", [-0.1, 1.0, float("nan")])
def test_a_threshold_is_a_fraction(tmp_path: Path, threshold: float) -> None:
    """Five per cent is 0.05."""
    with pytest.raises(RequestError, match="threshold: must be at least 0 and below 1"):
        compare(tmp_path, tmp_path, threshold)


def test_sweeps_of_other_configs_are_no_comparison(pair, tmp_path: Path) -> None:
    """Nor is a folder without records."""
    with pytest.raises(RequestError, match="no config in common"):
        pair(madeup.small_records([1]), madeup.small_records([2]))
    with pytest.raises(RequestError, match="holds no records"):
        compare(tmp_path / "before", tmp_path / "nothing")
