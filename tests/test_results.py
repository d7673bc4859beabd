"""Results: points with all their trials, how two compare, and the table."""

import statistics
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

from scalebench_lib.config import Config
from scalebench_lib.errors import RequestError
from scalebench_lib.operators import SHARES
from scalebench_lib.record import Record, Turn
from scalebench_lib.results import COLUMNS, RATIO_COLUMNS, Results, paired_ratio_by_point
from tests import factories, simulated
from tests.factories import (
    disturbed,
    machine,
    measured,
    missing,
    save_sweep,
    small_records,
    with_turns,
)
from tests.simulated import only_cycles

SMALL = machine(cores=2, smt=False)
NONE, SCRIPT = (Config(batch_size=4, optimization=name) for name in ("none", "script"))
BF16 = Config(batch_size=4, optimization="bf16")


def again(record: Record, block: str = "0000000b", **changed: object) -> Record:
    """The same once more, in another block, a round later."""
    later = {"trial": 2, "round": 2, "block": block}
    return record.model_copy(update={**later, **changed})


def in_block(record: Record, block: str | None) -> Record:
    """`record`, as if it had been measured in `block`."""
    return record.model_copy(update={"block": block})


def key(config: Config, threads: int = 2) -> tuple[str, int]:
    """A point's name."""
    return config.id, threads


def with_samples(turn: Turn, samples: Iterable[float]) -> Turn:
    """`turn` with other samples."""
    return turn.model_copy(update={"samples_ns": tuple(map(int, samples))})


def slower(record: Record, factor: float) -> Record:
    """The same turns, each `factor` times as long."""
    points = [
        with_turns(
            point,
            [with_samples(turn, [ns * factor for ns in turn.samples_ns]) for turn in point.turns],
        )
        for point in record.points
    ]
    return record.model_copy(update={"points": tuple(points)})


def test_one_row_a_point_with_all_columns() -> None:
    results = Results(small_records())
    assert len(results.csv) == len(results.table) == 12
    assert tuple(results.csv.columns) == COLUMNS
    assert {*COLUMNS, *RATIO_COLUMNS, "is_base"} - {"paired"} == set(results.table.columns)
    assert not results.table["latency_ms"].isna().any()


def test_trials_of_a_point_are_one_row() -> None:
    """A later trial sharpens the point; it is not a row of its own."""
    first = measured(NONE, SMALL)
    table = Results([first, again(first)]).table
    assert list(table["trials"]) == [2, 2]
    assert list(table["samples"]) == [16, 16]
    point = Results([first, again(first)]).points[key(NONE)]
    assert (point.samples_ns.size, point.outlier.size) == (16, 16)


def test_latency_and_throughput_belong_together() -> None:
    """Latency is the median of all samples; throughput is batch size over it, in inferences/s."""
    table = Results([measured(NONE, SMALL)]).table
    samples = measured(NONE, SMALL).points[0].samples_ns
    row = table.iloc[0]
    assert row["latency_ms"] == pytest.approx(statistics.median(samples) / 1e6)
    assert row["throughput"] == pytest.approx(4 / row["latency_ms"] * 1e3)
    assert row["latency_ms_low"] <= row["latency_ms"] <= row["latency_ms_high"]


def test_points_of_three_turns_are_coarse_and_have_an_interval() -> None:
    table = Results(small_records(batch_sizes=(1, 4, 512))).table
    coarse = table[table["coarse"]]
    assert set(coarse["batch_size"]) == {512}
    width = (coarse["latency_ms_high"] - coarse["latency_ms_low"]) / coarse["latency_ms"]
    assert (width < 0.2).all()


def test_a_second_round_replaces_what_was_assumed() -> None:
    """One repeated trial is enough."""
    records = small_records()
    assert Results(records).assumed_spread
    both = Results([*records, *map(again, records)])
    assert not both.assumed_spread


def test_speedups_are_over_the_base_at_its_best_thread_count() -> None:
    table = Results(small_records([4])).table.set_index(["optimization", "threads"])
    base = table.loc[("none", 2)]
    assert tuple(base[["speedup", "speedup_low", "speedup_high"]]) == (1, 1, 1)
    faster = table.loc[("script", 2)]
    assert faster["speedup_low"] < factories.SCRIPT_SPEEDUP < faster["speedup_high"]
    assert table.loc[("none", 1), "speedup"] < 0.6
    assert set(table["speedup_paired"]) == {"paired"}


def test_scaling_is_over_the_own_single_thread() -> None:
    found = measured(SCRIPT, SMALL)
    table = Results([found]).table.set_index("threads")
    assert table.loc[1, "scaling"] == 1
    assert 1.5 < table.loc[2, "scaling"] < 2
    only_two = found.model_copy(update={"points": found.points[1:]})
    assert Results([only_two]).table["scaling"].isna().all()


def test_rows_of_the_table_are_compared_as_their_points_are() -> None:
    results = Results(small_records())
    rows = {(row["config_id"], row["threads"]): row for row in results.table.to_dict("records")}
    there = results.row_ratio(rows[key(NONE, 1)], rows[key(SCRIPT, 1)])
    assert there == results.ratio(key(NONE, 1), key(SCRIPT, 1))
    assert rows[key(SCRIPT, 1)]["same_threads"] == there.value


def test_a_point_with_itself_is_exactly_one() -> None:
    found = Results(small_records()).ratio(key(NONE), key(NONE))
    assert (found.value, found.low, found.high, found.how) == (1, 1, 1, "paired")


def test_the_other_way_round_is_the_inverse() -> None:
    results = Results(small_records())
    there, back = results.ratio(key(NONE), key(SCRIPT)), results.ratio(key(SCRIPT), key(NONE))
    assert there.value == pytest.approx(1 / back.value)
    assert there.low == pytest.approx(1 / back.high)


def test_what_never_met_is_compared_via_the_base() -> None:
    """Each was in a block with the base: the machine was twice as slow in the second."""
    base = measured(NONE, SMALL)
    first = [base, measured(SCRIPT, SMALL)]
    second = [slower(again(found), 2) for found in (base, measured(BF16, SMALL))]
    second[1] = second[1].model_copy(update={"trial": 1})
    found = Results([*first, *second]).ratio(key(SCRIPT), key(BF16))
    assert found.label == "via none"
    assert found.value == pytest.approx(1 / factories.SCRIPT_SPEEDUP, rel=0.03)
    direct = Results([*first, *second]).ratio(key(SCRIPT), key(NONE))
    assert found.std_error > direct.std_error


def test_without_a_base_latencies_are_compared() -> None:
    records = [measured(SCRIPT, SMALL), in_block(measured(BF16, SMALL), "0000000c")]
    results = Results(records)
    found = results.ratio(key(SCRIPT), key(BF16))
    assert found.how == "not measured together"
    a, b = (results.points[key(config)].latency for config in (SCRIPT, BF16))
    assert found.value == a.value / b.value
    assert found.std_error == pytest.approx(np.hypot(a.std_error, b.std_error))


def test_groups_of_one_block_are_paired_and_others_are_not() -> None:
    one, four = measured(Config(batch_size=1), SMALL), measured(NONE, SMALL)
    assert Results([one, four]).ratio((one.config_id, 2), key(NONE)).how == "paired"
    apart = Results([one, in_block(four, "0000000c")])
    assert apart.ratio((one.config_id, 2), key(NONE)).how == "not measured together"


@pytest.mark.parametrize("status", ["failed", "skipped"])
def test_a_base_that_failed_gives_no_speedup(status: str) -> None:
    """No other config takes its place."""
    records = [missing(NONE, SMALL, status, "no luck"), measured(SCRIPT, SMALL)]
    results = Results(records)
    assert results.table["speedup"].isna().all()
    assert results.table.loc[results.table["is_base"], "status"].tolist() == [status]
    assert results.csv["paired"].isna().all()
    assert results.base(key(SCRIPT)) is None


def test_a_group_without_eager_refers_to_the_first_known_and_has_no_speedup() -> None:
    results = Results([measured(SCRIPT, SMALL), measured(BF16, SMALL)])
    assert results.base(key(BF16)) == key(SCRIPT)
    assert results.table["speedup"].isna().all()
    assert not results.table["is_base"].any()


def test_hosts_are_groups_of_their_own() -> None:
    """The base of one says nothing of another."""
    here, there = (measured(NONE, SMALL).model_copy(update={"host": name}) for name in "ab")
    results = Results([here, in_block(there, "0000000c")])
    assert results.base((f"{NONE.id}@a", 1)) == (f"{NONE.id}@a", 2)
    assert results.base((f"{NONE.id}@b", 1)) == (f"{NONE.id}@b", 2)


def ratio_of(records: Iterable[Record]) -> float:
    """Of none over script."""
    return Results(records).ratio(key(NONE), key(SCRIPT)).value


def test_a_half_written_block_leaves_nothing_wrong() -> None:
    """Of the second block only the base was saved: the pairs are those of the first."""
    first = [measured(NONE, SMALL), measured(SCRIPT, SMALL)]
    assert ratio_of([*first, slower(again(first[0]), 2)]) == ratio_of(first)


def test_a_missing_cycle_leaves_nothing_wrong() -> None:
    """What one of the two did in it has no pair."""
    odd = (1, 5)
    none, script = measured(NONE, SMALL), measured(SCRIPT, SMALL)
    short = only_cycles(script, lambda cycle: cycle not in odd)
    points = [
        with_turns(
            point,
            [
                with_samples(turn, [10 * ns for ns in turn.samples_ns])
                if turn.cycle in odd
                else turn
                for turn in point.turns
            ],
        )
        for point in none.points
    ]
    found = ratio_of([none.model_copy(update={"points": tuple(points)}), short])
    assert found == ratio_of([none, short])


def test_old_records_are_never_paired() -> None:
    """Even their own thread counts took no turns."""
    old = {"schema_version": 1, "block": None}
    records = [measured(config, SMALL).model_copy(update=old) for config in (NONE, SCRIPT)]
    results = Results(records)
    assert results.ratio(key(NONE), key(SCRIPT)).how == "not measured together"
    assert results.ratio(key(NONE, 1), key(NONE, 2)).how == "not measured together"


def test_thread_counts_of_a_trial_alone_are_paired() -> None:
    """In a notebook run by hand they take turns with each other, and with nobody else."""
    alone = [in_block(measured(config, SMALL), None) for config in (NONE, SCRIPT)]
    results = Results(alone)
    assert results.ratio(key(NONE, 1), key(NONE, 2)).how == "paired"
    assert results.ratio(key(NONE), key(SCRIPT)).how == "not measured together"


def test_twins_of_two_sweeps_are_paired() -> None:
    """Nine of ten intervals of A/A hold 1, with every config twice in each block."""
    held = []
    for seed in range(6):
        random = np.random.default_rng(seed)
        on, sides = simulated.states(random), ([], [])
        for number in (1, 2):
            both = simulated.block(on, random, number, 1000.0 * number, 15)
            other = simulated.block(on, random, number, 1000.0 * number, 15)
            sides[0].extend(both)
            sides[1].extend(other)
        found = paired_ratio_by_point(*map(Results, sides))
        assert len(found) == 12
        held += [one.low <= 1 <= one.high for one in found.values()]
    assert np.mean(held) >= 0.9


def test_percentiles_are_of_single_passes() -> None:
    """Means of several timed at once have no tail, neither above nor below."""
    many = measured(NONE, SMALL)
    turns = [with_samples(turn, 9 * turn.samples_ns) for turn in many.points[0].turns]
    point = with_turns(many.points[0], turns)
    of_means = point.model_copy(update={"passes_per_sample": 3})
    single, means = (many.model_copy(update={"points": (one,)}) for one in (point, of_means))
    for records, known in (([single], True), ([means], False), ([single, again(means)], False)):
        row = Results(records).table.notna().iloc[0]
        assert (row["latency_ms_min"], row["latency_ms_p90"]) == (known, known)
        assert not row["latency_ms_p99"]


def test_outliers_are_counted_and_kept() -> None:
    """They are outliers of their own trial: a slow round is none."""
    first = measured(NONE, SMALL)
    point = first.points[0]
    spiked = with_samples(point.turns[0], [2 * point.median_ns])
    points = (with_turns(point, (spiked, *point.turns[1:])), first.points[1])
    one = first.model_copy(update={"points": points})
    table = Results([one, slower(again(first), 2)]).table
    assert list(table["outliers"]) == [1, 0]
    assert list(table["samples"]) == [16, 16]


def test_what_disturbed_a_point_is_counted() -> None:
    """Turns, periods and the share of time add up over all trials; what is not known is empty."""
    untold = Results([measured(NONE, SMALL)]).table
    assert list(untold["turns"]) == [8, 8]
    assert untold[["shared", "throttled", "stolen"]].isna().all(axis=None)
    one = disturbed(measured(NONE, SMALL), 2, waited=0.5, throttled=3, stolen=0.2)
    table = Results([one, again(disturbed(measured(NONE, SMALL)))]).table.set_index("threads")
    assert tuple(table.loc[1, ["turns", "shared", "throttled", "stolen"]]) == (16, 0, 0, 0)
    assert tuple(table.loc[2, ["turns", "shared", "throttled"]]) == (16, 2, 6)
    assert 0.01 < table.loc[2, "stolen"] < 0.02


def test_what_failed_is_a_row_with_its_reason() -> None:
    failed = missing(NONE, SMALL, "failed", "no luck")
    table = Results([failed]).table
    assert (table.loc[0, "status"], table.loc[0, "reason"]) == ("failed", "no luck")
    assert table.loc[0, "samples"] == 0
    retried = measured(NONE, SMALL).model_copy(update={"trial": 2})
    assert set(Results([failed, retried]).table["status"]) == {"ok"}


def test_no_records_have_an_empty_table() -> None:
    assert tuple(Results([]).csv.columns) == COLUMNS
    assert not Results([]).assumed_spread


def test_a_folder_without_records_says_what_to_do(tmp_path) -> None:
    with pytest.raises(RequestError, match="holds no records: measure first"):
        Results.load(tmp_path)


def test_what_is_no_sweep_is_told_with_the_sweeps_around_it(tmp_path, monkeypatch) -> None:
    """Those in it, those next to it, or the one that it belongs to."""
    for name in ("outputs/quick", "outputs/bert", "outputs/turn/a"):
        save_sweep(tmp_path / name, [measured(NONE, SMALL)])
    monkeypatch.chdir(tmp_path)
    names = "bert, quick, turn/a"
    for out, said in {
        "outputs": f"outputs is no sweep; sweeps in outputs: {names}",
        ".": ". is no sweep; sweeps in .: outputs/bert, outputs/quick",
        "outputs/turn": "outputs/turn is no sweep; sweeps in outputs/turn: a",
        "outputs/nope": f"outputs/nope does not exist; sweeps in outputs: {names}",
        "no/where": "no/where does not exist: measure first, with 'scalebench sweep no/where'",
        "outputs/quick/records": "outputs/quick/records is no sweep: did you mean outputs/quick?",
        "outputs/bert/x.html": "outputs/bert/x.html is no sweep: did you mean outputs/bert?",
    }.items():
        with pytest.raises(RequestError) as error:
            Results.load(Path(out))
        assert str(error.value) == said


def test_records_of_two_machines_are_refused(tmp_path) -> None:
    other = again(measured(NONE, machine(cores=4, smt=False)))
    save_sweep(tmp_path, [measured(NONE, SMALL), other])
    with pytest.raises(RequestError, match="several machines"):
        Results.load(tmp_path)
    assert len(Results.load(tmp_path, any_machine=True).records) == 2


def test_two_thousand_points_take_seconds() -> None:
    on = machine()
    configs = factories.configs(on, optimizations=("none", "script", "bf16", "openvino"))
    records = [measured(config, on) for config in configs]
    records += [again(record) for record in records]
    began = time.process_time()
    assert len(Results(records).table) == 2112
    assert time.process_time() - began < 8


def test_a_cold_start_from_disk_is_told_from_one_that_exports() -> None:
    """Medians over the trials of each; of older records the first is not known."""
    (record, *_) = factories.small_records([1])
    states = {"empty": 9.0, "full": 3.0, "partly full": 7.0}
    trials = [
        record.model_copy(
            update={
                "trial": number,
                "setup": record.setup.model_copy(
                    update={"export_cache": state, "ready_s": ready_s}
                ),
            }
        )
        for number, (state, ready_s) in enumerate(states.items(), start=1)
    ]
    row = Results(trials).table.iloc[0]
    assert (row["optimize_s"], row["optimize_anew_s"], row["build_s"]) == (3.0, 8.0, 1.5)
    old = record.setup.model_copy(update={"ready_s": None})
    row = Results([record.model_copy(update={"setup": old})]).table.iloc[0]
    assert row[["optimize_s", "optimize_anew_s"]].isna().all()


def test_shares_stand_at_the_thread_count_that_was_profiled() -> None:
    table = Results(factories.small_records([4])).table.set_index(["optimization", "threads"])
    shares = table.loc[("script", 2), list(SHARES.values())]
    assert shares.sum() == pytest.approx(1)
    assert shares["share_matrix_products"] > 0.5
    assert table.loc[("script", 1), list(SHARES.values())].isna().all()
