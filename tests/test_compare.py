"""Comparing sweeps: what is the same is called so, what is slower too, and what is neither."""

from pathlib import Path

import pandas as pd
import pytest

from scalebench_lib.analysis.compare import TOO_WIDE, Comparison, compare
from scalebench_lib.errors import RequestError
from scalebench_lib.record import Record
from tests import drifting, madeup

PAIRS = 8
"""Comparisons of 12 points each."""


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
def simulated(tmp_path_factory: pytest.TempPathFactory):
    """Tables of `PAIRS` comparisons of drifting sweeps: alike, and with B slower by 10 %."""
    folder = tmp_path_factory.mktemp("simulated")

    def tables(slower: float) -> pd.DataFrame:
        found = []
        for seed in range(PAIRS):
            where = folder / f"{slower}-{seed}"
            a = saved(where / "a", drifting.sweep(2 * seed))
            b = saved(where / "b", drifting.sweep(2 * seed + 1, slower))
            found.append(compare(a, b).table)
        return pd.concat(found)

    return {"alike": tables(1.0), "slower": tables(1.1)}


def half_width(table: pd.DataFrame) -> pd.Series:
    """Half of each ratio's interval, over the ratio."""
    return (table["ratio_high"] - table["ratio_low"]) / 2 / table["ratio"]


def test_the_same_is_called_the_same(simulated) -> None:
    """At least 95 % of the points of A/A comparisons."""
    assert (simulated["alike"]["verdict"] == "same").mean() >= 0.95


def test_intervals_hold_as_often_as_they_say(simulated) -> None:
    """1 lies in them in at least 90 % of the points, and they are no wider than useful.

    They are of these rounds: how an hour differs from the next is in none of them.
    """
    alike = simulated["alike"]
    held = ((alike["ratio_low"] <= 1) & (alike["ratio_high"] >= 1)).mean()
    assert held >= 0.90
    assert half_width(alike).median() < 0.04


def test_a_slow_down_of_a_tenth_is_found(simulated) -> None:
    """In at least 95 % of the points whose interval is at most ±3 %."""
    slower = simulated["slower"]
    narrow = slower[half_width(slower) <= 0.03]
    assert len(narrow) > 50
    assert (narrow["verdict"] == "slower").mean() >= 0.95


def test_only_what_changed_is_called_slower(pair) -> None:
    """One config slower by a fifth, one faster, the rest as it was."""
    slow, fast = drifting.CONFIGS[0].id, drifting.CONFIGS[3].id
    found = pair(drifting.sweep(0), drifting.sweep(1, {slow: 1.2, fast: 0.8}))
    verdicts = found.table.groupby("config_id")["verdict"].unique()
    assert list(verdicts[slow]) == ["slower"]
    assert list(verdicts[fast]) == ["faster"]
    assert found.count("same") == len(found.table) - 4
    assert found.worse


def test_a_change_below_the_threshold_is_none(pair) -> None:
    """However clear it is; a lower threshold calls it."""
    found = pair(drifting.sweep(0), drifting.sweep(1, 1.2), threshold=0.5)
    assert found.count("same") == len(found.table)
    assert not found.worse


def test_points_with_many_outliers_get_no_verdict(pair) -> None:
    """A neighbour in 40 % of B's samples: B looks slower, and nobody can know."""
    records = drifting.sweep(1, 1.1)
    disturbed = [record.model_copy(update={"points": _hogged(record)}) for record in records]
    found = pair(drifting.sweep(0), disturbed)
    assert found.count("not comparable") == len(found.table)
    assert found.table["why"].str.contains("outliers").all()
    assert not found.worse


def _hogged(record: Record) -> tuple:
    """From some time on passes take twice as long."""
    return tuple(
        point.model_copy(update={"turns": madeup.turns(_late_doubled(point.samples_ns))})
        for point in record.points
    )


def _late_doubled(times_ns: tuple[int, ...]) -> tuple[int, ...]:
    calm = len(times_ns) * 3 // 5
    return (*times_ns[:calm], *(2 * ns for ns in times_ns[calm:]))


def test_too_wide_an_interval_is_no_answer(pair) -> None:
    """Three wild samples cannot tell a slow-down; it says to measure for longer."""
    noisy = [drifting.sweep(seed, rounds=1, samples=3, noise=0.2) for seed in (0, 1)]
    found = pair(*noisy)
    wide = half_width(found.table) > TOO_WIDE
    assert wide.any()
    assert (found.table.loc[wide, "verdict"] == "not comparable").all()
    assert found.table.loc[wide, "why"].str.contains("too wide.*measure for longer").all()


def test_what_failed_in_b_is_named_and_counts_as_worse(pair) -> None:
    """A change that breaks a config must not pass as one that slowed nothing down."""
    before, gone = drifting.sweep(0), drifting.CONFIGS[0]
    after = [record for record in drifting.sweep(1) if record.config != gone]
    after.append(madeup.missing(gone, drifting.MACHINE, "failed", "no | memory"))
    found = pair(before, after)
    lost = found.table[found.table["config_id"] == gone.id]
    assert (lost["verdict"] == "not comparable").all()
    assert set(lost["why"]) == {"failed: no | memory in B"}
    assert len(found.lost) == 2
    assert found.worse


def test_configs_of_one_sweep_alone_are_left_out(pair) -> None:
    """B measured fewer: what is not shared is no failure of B."""
    only = [record for record in drifting.sweep(1) if record.config.batch_size == 4]
    found = pair(drifting.sweep(0), only)
    assert set(found.table["batch_size"]) == {4}
    assert not found.worse


def test_other_software_is_compared_only_when_asked(pair) -> None:
    """With the difference named."""
    newer = madeup.SOFTWARE.model_copy(update={"versions": {"numpy": "2.2.0", "torch": "2.7.0"}})
    after = [record.model_copy(update={"software": newer}) for record in drifting.sweep(1)]
    with pytest.raises(RequestError, match=r"differ in torch 2.6.0 → 2.7.0.*--anyway"):
        pair(drifting.sweep(0), after)


def test_another_machine_is_compared_when_asked(pair) -> None:
    """And the machines are named."""
    other = drifting.MACHINE.model_copy(update={"cpu_model": "Madeup 5"})
    after = [record.model_copy(update={"machine": other}) for record in drifting.sweep(1, 2.0)]
    found = pair(drifting.sweep(0), after, anyway=True)
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
