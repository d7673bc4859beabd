"""Comparing sweeps: what all points share is told first, and each is judged by what is left."""

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from scalebench_lib.analysis.compare import (
    MAX_HALF_WIDTH,
    Comparison,
    compare,
    compare_paired,
    save_paired,
)
from scalebench_lib.config import Config
from scalebench_lib.errors import RequestError
from scalebench_lib.record import Record
from tests import factories, simulated
from tests.comparisons import compared, sweep

PAIRS = 8
"""Comparisons of 12 points each, on each kind of machine."""

ONE, OTHER = simulated.CONFIGS[0], simulated.CONFIGS[3]
CALLED = ["slower", "faster"]


def twice(kind: Callable, seed: int, slower: simulated.Slower) -> tuple[list[Record], ...]:
    """Two sweeps of two rounds on one machine, an hour or more apart, the second one `slower`."""
    random = np.random.default_rng(seed)
    machine, sides = kind(random), []
    for side, start_s, factor in (("a", 0, 1.0), ("b", simulated.HORIZON_S / 2, slower)):
        now, records = start_s + random.uniform(0, 5000), list[Record]()
        for number in (1, 2):
            name = f"{side}{seed:06x}{number}"
            records += simulated.block(machine, random, number, now, 15, factor, name)
            now += random.uniform(100, 600)
        sides.append(records)
    return tuple(sides)


@pytest.fixture(scope="module")
def slower_machine() -> list[Comparison]:
    """Comparisons of sweeps between which all points became slower by 8 %."""
    return [
        compared(*twice(kind, seed, 1.08)) for kind in simulated.MACHINES for seed in range(PAIRS)
    ]


def half_width(table: pd.DataFrame) -> pd.Series:
    """Half of each interval, over its value."""
    return (table["beyond_high"] - table["beyond_low"]) / 2 / table["beyond"]


def inside(table: pd.DataFrame) -> pd.Series:
    """Which intervals say that nothing is left of the change."""
    return (table["beyond_low"] <= 1) & (table["beyond_high"] >= 1)


def verdicts(found: Comparison) -> list[str]:
    """Those on what is common to the points of each thread count."""
    return [common.verdict for common in found.common]


def test_no_point_is_called_for_what_all_share(slower_machine) -> None:
    """This holds in at least 95 % of the comparisons, whatever the machine does."""
    quiet = [not found.table["verdict"].isin(CALLED).any() for found in slower_machine]
    assert np.mean(quiet) >= 0.95


def test_intervals_of_what_is_left_hold_as_often_as_they_say(slower_machine) -> None:
    """They are no wider than useful, though the machine drifts by 25 %."""
    table = pd.concat([found.table for found in slower_machine])
    assert inside(table).mean() >= 0.94
    assert half_width(table).median() < 0.04


def test_what_all_points_share_is_told_with_an_interval(slower_machine) -> None:
    """It holds the true 8 % about as often as it says; a steady machine tells it to 3 %."""
    factors = [common.ratio for found in slower_machine for common in found.common]
    assert np.mean([factor.low <= 1.08 <= factor.high for factor in factors]) >= 0.85
    assert np.median([factor.half_width for factor in factors[: 2 * PAIRS]]) < 0.03


def test_one_slower_point_is_found_under_a_slower_machine() -> None:
    """10 % slower where all are 8 % slower: it alone is called."""
    for seed in range(4):
        before, after = twice(simulated.steady, seed, 1.08)
        found = compared(before, [_slower_point(record, ONE) for record in after])
        called = found.table[found.table["verdict"].isin(CALLED)]
        assert called[["config_id", "threads", "verdict"]].to_numpy().tolist() == [
            [ONE.id, 2, "slower"]
        ]
        assert all(common.ratio.low < 1.08 < common.ratio.high for common in found.common)
        (left,) = called["beyond"]
        assert left == pytest.approx(1.1, abs=0.03)


def _slower_point(record: Record, config: Config) -> Record:
    """`record`, if it is of `config`, with passes on two threads that take a tenth longer."""
    if record.config != config:
        return record
    slow = with_passes(record, lambda passes: [int(1.1 * ns) for ns in passes])
    points = (record.points[0], slow.points[1])
    return record.model_copy(update={"points": points})


def test_all_points_slower_is_a_finding_of_its_own() -> None:
    """No single point is called, and still B is worse; as much faster is not."""
    found = compared(sweep(0), sweep(1, 1.08))
    assert (found.count("same"), verdicts(found), found.has_regressions) == (
        12,
        ["slower"] * 2,
        True,
    )
    found = compared(sweep(1, 1.08), sweep(0))
    assert (found.count("same"), verdicts(found), found.has_regressions) == (
        12,
        ["faster"] * 2,
        False,
    )


def test_all_points_slower_by_less_than_the_threshold_is_none() -> None:
    found = compared(sweep(0), sweep(1, 1.08), threshold=0.2)
    assert all(common.ratio.differs for common in found.common)
    assert (verdicts(found), found.has_regressions) == (["same"] * 2, False)


def test_all_points_of_a_thread_count_slower_are_told_together() -> None:
    """The second CPU of a machine may be slower, while one thread runs as before."""
    after = [_slower_point(record, record.config) for record in sweep(1)]
    found = compared(sweep(0), after)
    assert [(common.where, common.verdict) for common in found.common] == [
        (((1, False),), "same"),
        (((2, False),), "slower"),
    ]
    assert (found.count("same"), found.has_regressions) == (12, True)


def test_one_round_tells_large_common_changes_only() -> None:
    """How much the minutes differ is assumed, and that it is so is said."""
    found = compared(sweep(0, rounds=1), sweep(1, 1.08, rounds=1))
    assert (verdicts(found), found.has_regressions) == (["same"] * 2, False)
    assert any("assumed" in note for note in found.notes)
    assert compared(sweep(0, rounds=1), sweep(1, 1.4, rounds=1)).has_regressions


def test_few_points_of_each_thread_count_are_taken_together() -> None:
    sides = [
        [r for r in records if r.config.optimization == "none"]
        for records in (sweep(0), sweep(1, 1.08))
    ]
    (common,) = compared(*sides).common
    assert (common.where, common.verdict) == (((1, False), (2, False)), "slower")


def test_where_nothing_is_left_to_compare_all_is_lost() -> None:
    after = [
        factories.missing(config, simulated.ON, "failed", "no") for config in simulated.CONFIGS
    ]
    found = compared(sweep(0), after)
    assert (found.count("lost"), found.common, found.has_regressions) == (12, (), True)


def test_where_half_of_the_points_changed_the_others_are_what_is_common() -> None:
    """One of two optimizations that became slower by a tenth is found, and not halved."""
    slower = {config.id: 1.1 for config in simulated.CONFIGS if config.optimization == "script"}
    found = compared(sweep(0), sweep(1, slower)).table
    assert set(found.loc[found["verdict"] == "slower", "optimization"]) == {"script"}
    assert (found["verdict"] == "slower").sum() == 6


def test_only_what_changed_is_called() -> None:
    found = compared(sweep(0), sweep(1, {ONE.id: 1.2, OTHER.id: 0.8}))
    verdicts = found.table.groupby("config_id")["verdict"].unique()
    assert list(verdicts[ONE.id]) == ["slower"]
    assert list(verdicts[OTHER.id]) == ["faster"]
    assert found.count("same") == len(found.table) - 4
    assert found.has_regressions


def test_a_change_below_the_threshold_is_none() -> None:
    """A lower threshold calls it."""
    sides = sweep(0), sweep(1, {ONE.id: 1.2})
    assert not compared(*sides, threshold=0.5).has_regressions
    assert compared(*sides).has_regressions


def test_too_few_points_tell_no_factor() -> None:
    """What is common to two points may be theirs: their latencies are judged as they are."""
    before, after = ([r for r in each if r.config == ONE] for each in (sweep(0), sweep(1, 1.2)))
    found = compared(before, after)
    assert not found.common
    assert (found.table["beyond"] == found.table["ratio"]).all()
    assert (found.count("slower"), found.has_regressions) == (2, True)
    assert set(found.table["why"]) == {"fewer than 4 points alike: what is common is not taken out"}


def test_points_that_shared_no_minutes_do_not_share_their_drift() -> None:
    """What is left of large batches, in slower blocks of their own, is no better known than
    their latencies."""
    before, after = (_in_two_blocks(sweep(seed, rounds=2)) for seed in (0, 1))
    found = compared(before, after)
    drifted = half_width(found.table)[found.table["batch_size"] == 16]
    assert drifted.min() > 3 * half_width(compared(sweep(0), sweep(1)).table).max()
    assert not found.table["verdict"].isin(CALLED).any()


def _in_two_blocks(records: list[Record]) -> list[Record]:
    """The largest batch in blocks of its own, of which the second met a slower machine."""

    def moved(record: Record) -> Record:
        if record.config.batch_size < 16:
            return record
        slow = with_passes(record, lambda passes: [int(ns * 1.1) for ns in passes])
        kept = slow if record.round == 2 else record
        return kept.model_copy(update={"block": f"f{record.block[1:]}"})

    return [moved(record) for record in records]


def test_points_with_many_outliers_get_no_verdict() -> None:
    """A neighbour in 40 % of B's samples: B looks slower, and nobody can know."""
    found = compared(sweep(0), [_hogged(record) for record in sweep(1, 1.1)])
    assert found.count("unclear") == len(found.table)
    assert found.table["why"].str.contains("outliers").all()
    assert not found.has_regressions


def _hogged(record: Record) -> Record:
    """From some time on passes take twice as long."""
    return with_passes(record, lambda passes: [*passes[:9], *(2 * ns for ns in passes[9:])])


def with_passes(record: Record, change: Callable[[list[int]], Iterable[int]]) -> Record:
    """`record` with the passes of each point, in ns, changed; a turn each."""
    points = [
        factories.with_turns(point, factories.turns(change(list(point.samples_ns))))
        for point in record.points
    ]
    return record.model_copy(update={"points": tuple(points)})


def test_too_wide_an_interval_is_no_answer() -> None:
    """Three wild turns cannot tell a slow-down; it says to measure for longer."""
    found = compared(*[_wild(sweep(seed, rounds=1, cycles=3)) for seed in (0, 1)])
    wide = half_width(found.table) > MAX_HALF_WIDTH
    assert wide.any()
    assert (found.table.loc[wide, "verdict"] == "unclear").all()
    assert found.table.loc[wide, "why"].str.contains("too wide.*measure for longer").all()


def test_a_wide_interval_far_from_no_change_is_an_answer() -> None:
    """Three wild turns can tell a latency of ten times as much."""
    sides = [_wild(sweep(seed, rounds=1, cycles=3)) for seed in (0, 1)]
    slow = {ONE.id: 10.0}
    sides[1] = [
        r if r.config != ONE else _wild(sweep(1, slow, rounds=1, cycles=3))[0] for r in sides[1]
    ]
    found = compared(*sides)
    rows = found.table[found.table["config_id"] == ONE.id]
    assert (half_width(rows) > MAX_HALF_WIDTH).all()
    assert (rows["beyond_low"] > 1 + found.threshold).all()
    assert set(rows["verdict"]) == {"slower"}


def test_a_sweep_is_not_compared_with_itself(tmp_path: Path) -> None:
    """But two models of one sweep are."""
    out = factories.save_sweep(tmp_path / "a", factories.small_records([1]))
    with pytest.raises(RequestError, match=r"both are the same sweep, .*: name two"):
        compare(out, tmp_path / "." / "a")
    with pytest.raises(RequestError, match="model-b: B has no model 'gpt2'"):
        compare(out, out, model_a="bert", model_b="gpt2")


def _wild(records: list[Record]) -> list[Record]:
    """Passes that differ by a factor of up to two."""
    random = np.random.default_rng(0)
    return [
        with_passes(record, lambda passes: [int(ns * random.uniform(1, 2)) for ns in passes])
        for record in records
    ]


def test_what_failed_in_b_is_lost() -> None:
    """A change that breaks a config must not pass as one that slowed nothing down."""
    after = [record for record in sweep(1) if record.config != ONE]
    after.append(factories.missing(ONE, simulated.ON, "failed", "no | memory"))
    found = compared(sweep(0), after)
    lost = found.table[found.table["verdict"] == "lost"]
    assert set(lost["config_id"]) == {ONE.id}
    assert list(lost["why"]) == ["failed: no | memory"] * 2
    assert found.has_regressions


def test_a_thread_count_that_b_lacks_is_lost() -> None:
    """Its config was asked for, and measured on one thread only."""
    after = [
        record.model_copy(update={"points": record.points[:1]}) if record.config == ONE else record
        for record in sweep(1)
    ]
    found = compared(sweep(0), after)
    lost = found.table[found.table["verdict"] == "lost"]
    assert lost[["config_id", "threads"]].to_numpy().tolist() == [[ONE.id, 2]]
    assert found.has_regressions


def test_what_b_was_never_asked_for_is_not_lost() -> None:
    """It is named, and so is what B alone has; neither is worse."""
    only = [record for record in sweep(1) if record.config.batch_size == 4]
    found = compared(sweep(0), only)
    assert set(found.table.loc[found.table["verdict"] == "only A", "batch_size"]) == {1, 16}
    assert (found.count("only A"), found.has_regressions) == (8, False)
    assert compared(only, sweep(0)).count("only B") == 8


def test_what_b_was_asked_for_and_has_not_measured_is_lost(tmp_path: Path) -> None:
    """An interrupted sweep, say: its folder holds what was asked for, not a record of each."""
    here, there = (factories.save_sweep(tmp_path / str(n), sweep(n)) for n in (0, 1))
    assert not compare(here, there).has_regressions
    for path in (there / "records").glob(f"{ONE.id}-t*.json"):
        path.unlink()
    found = compare(here, there)
    lost = found.table[found.table["verdict"] == "lost"]
    assert lost[["config_id", "threads", "why"]].to_numpy().tolist() == [
        [ONE.id, threads, "not measured"] for threads in (1, 2)
    ]
    assert found.has_regressions
    assert not compare(there, here).has_regressions


def test_other_software_is_compared_only_when_asked() -> None:
    with pytest.raises(RequestError, match=r"differ in torch 2.6.0 → 2.7.0.*--anyway"):
        compared(sweep(0), _newer(sweep(1)))


def test_the_differences_that_matter_most_are_named_first_and_five_at_most() -> None:
    """Machine, CPU, torch, engines; the message says what they mean."""
    other = simulated.ON.model_copy(update={"cpu_model": "Madeup 5"})
    libraries = {"blas": "b", "dnn": "d", "vector": "AVX2"}
    after = [
        record.model_copy(
            update={
                "machine": other,
                "software": record.software.model_copy(
                    update={
                        "versions": {"numpy": "3", "openvino": "1", "torch": "2.7.0"},
                        "libraries": libraries,
                    }
                ),
            }
        )
        for record in sweep(1)
    ]
    before = [
        record.model_copy(
            update={
                "software": record.software.model_copy(
                    update={
                        "versions": {"numpy": "2", "openvino": "2", "torch": "2.6.0"},
                        "libraries": dict.fromkeys(libraries, "a"),
                    }
                )
            }
        )
        for record in sweep(0)
    ]
    with pytest.raises(RequestError) as error:
        compared(before, after)
    named, _, advice = str(error.value).partition(": differences may come from them; ")
    parts = [part.split()[0] for part in named.partition("differ in ")[2].split("; ")]
    assert parts == ["machine", "vector", "torch", "openvino", "blas", "and"]
    assert named.endswith("and 2 more")
    assert advice == "--anyway compares all the same"


def _newer(records: list[Record]) -> list[Record]:
    software = factories.SOFTWARE.model_copy(
        update={"versions": {"numpy": "2.2.0", "torch": "2.7.0"}}
    )
    return [record.model_copy(update={"software": software}) for record in records]


KNOWN = simulated.ON.model_copy(update={"huge_pages": "madvise", "governor": "performance"})
"""Whose settings are known."""


@pytest.mark.parametrize(
    ("where", "changed", "named"),
    [
        (None, {"model_hash": "b"}, "model's structure and weights a → a, b"),
        ("machine", {"huge_pages": "always"}, "transparent huge pages madvise → always, madvise"),
        ("machine", {"governor": "powersave"}, "governor performance → performance, powersave"),
        ("software", {"environment": {"MKL_CBWR": "ON"}}, "MKL_CBWR none → ON, none"),
    ],
)
def test_what_decides_is_compared_of_every_record(
    where: str | None, changed: dict, named: str
) -> None:
    """One of B's is of another model, or was measured under another setting."""
    usual = {
        "model_hash": "a",
        "machine": KNOWN,
        "software": factories.SOFTWARE.model_copy(update={"environment": {}}),
    }
    before, after = ([r.model_copy(update=usual) for r in sweep(seed)] for seed in (0, 1))
    assert compared(before, after).differences == []
    update = {where: usual[where].model_copy(update=changed)} if where else changed
    after[-1] = after[-1].model_copy(update=update)
    with pytest.raises(
        RequestError, match=f"differ in {named}: differences may come from them; --anyway"
    ):
        compared(before, after)


def test_what_older_records_do_not_hold_is_no_difference() -> None:
    after = [r.model_copy(update={"model_hash": "a", "machine": KNOWN}) for r in sweep(1)]
    assert compared(sweep(0), after).differences == []


def test_another_machine_is_compared_when_asked() -> None:
    other = simulated.ON.model_copy(update={"cpu_model": "Madeup 5"})
    after = [record.model_copy(update={"machine": other}) for record in sweep(1, 2.0)]
    found = compared(sweep(0), after, anyway=True)
    assert "Madeup 9000, 2 cores → Madeup 5, 2 cores" in found.differences[0]
    assert verdicts(found) == ["slower"] * 2


def test_perhaps_another_host_is_said() -> None:
    machines = [simulated.ON.model_copy(update={"identity": name}) for name in ("one", "two")]
    sides = [
        [record.model_copy(update={"machine": machine}) for record in sweep(seed)]
        for seed, machine in enumerate(machines)
    ]
    assert "perhaps another host" in compared(*sides).notes[0]


@pytest.mark.parametrize("weights", ["random", "{}"])
def test_one_model_in_two_folders_is_one(weights: str) -> None:
    """Its weights may lie there, too. Another model of B is left out."""
    before, after = (
        _of_model(sweep(seed, slower), folder, weights.format(folder))
        for seed, slower, folder in ((0, 1.0, "./old/tuned"), (1, 1.2, "./new/tuned"))
    )
    with pytest.raises(RequestError, match="name both with --model-a and --model-b"):
        compared(before, after)
    names = {"model_a": "old/tuned/", "model_b": "./new/tuned"}
    found = compared(before, [*after, *sweep(2)], **names)
    assert set(found.table["model"]) == {"./old/tuned"}
    assert (len(found.table), verdicts(found)) == (12, ["slower"] * 2)
    assert found.differences == ["model's structure and weights ./old/tuned → ./new/tuned"]


def _of_model(records: list[Record], model: str, weights: str) -> list[Record]:
    update = {"model": model, "weights": weights}
    configs = [record.config.model_copy(update=update) for record in records]
    return [
        record.model_copy(update={"config": config, "config_id": config.id, "model_hash": model})
        for record, config in zip(records, configs, strict=True)
    ]


@pytest.mark.parametrize(
    ("names", "complaint"),
    [
        ({"model_a": "bert"}, "model-a and model-b belong together"),
        ({"model_a": "bert", "model_b": "brt"}, "B has no model 'brt'; it has bert"),
    ],
)
def test_a_model_is_named_in_both(names: dict[str, str], complaint: str) -> None:
    with pytest.raises(RequestError, match=complaint):
        compared(factories.small_records(), factories.small_records(), **names)


@pytest.mark.parametrize("threshold", [-0.1, 1.0, float("nan")])
def test_a_threshold_is_a_fraction(tmp_path: Path, threshold: float) -> None:
    with pytest.raises(RequestError, match="threshold: must be at least 0 and below 1"):
        compare(tmp_path, tmp_path, threshold)


def test_sweeps_of_other_configs_are_no_comparison(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="no config in common, so nothing can be compared"):
        compared(factories.small_records([1]), factories.small_records([2]))
    with pytest.raises(RequestError, match="holds no records"):
        compare(tmp_path, tmp_path)


def in_turn(slower: simulated.Slower = 1.0) -> tuple[list[Record], list[Record]]:
    """Two sweeps whose trials shared their blocks on a machine that drifts; the second `slower`."""
    random = np.random.default_rng(0)
    before = simulated.sweep(simulated.steps, 0, rounds=3).records

    def twin(record: Record) -> Record:
        factor = slower if isinstance(slower, float) else slower.get(record.config_id, 1.0)
        own = factor * random.lognormal(0, 0.005)
        return with_passes(record, lambda of: [int(ns * own * random.normal(1, 0.01)) for ns in of])

    return before, [twin(record) for record in before]


def test_two_environments_in_turn_are_told_apart_to_two_per_cent() -> None:
    """The machine drifts by 25 % meanwhile."""
    found = compared(*in_turn(), how=compare_paired)
    assert (found.count("same"), found.has_regressions, found.threshold) == (12, False, 0.02)
    found = compared(*in_turn({ONE.id: 1.05}), how=compare_paired)
    called = found.table[found.table["verdict"].isin(CALLED)]
    assert list(called["config_id"]) == [ONE.id] * 2
    assert found.has_regressions
    found = compared(*in_turn(1.05), how=compare_paired)
    assert (found.count("slower"), found.common) == (12, ())


def test_points_that_took_no_turns_together_are_not_told_apart() -> None:
    """They have latencies, and no ratio."""
    found = compared(sweep(0), sweep(1, 1.5), how=compare_paired)
    assert set(found.table["verdict"]) == {"unclear"}
    assert set(found.table["why"]) == {"not measured together"}
    assert not found.has_regressions


def test_environments_differ_in_software_and_that_is_named() -> None:
    """It is never refused: it is what was asked about."""
    before, after = in_turn()
    assert (
        compared(before, _newer(after), how=compare_paired).differences[0] == "torch 2.6.0 → 2.7.0"
    )


def test_a_row_a_point_is_saved_of_two_environments(tmp_path: Path) -> None:
    save_paired(compared(*in_turn(), how=compare_paired), tmp_path / "against.csv")
    table = pd.read_csv(tmp_path / "against.csv")
    assert len(table) == 12
    last = ["threads", "latency_ms_a", "latency_ms_b", "ratio", "ratio_low", "ratio_high"]
    assert list(table.columns[-8:]) == [*last, "verdict", "why"]
