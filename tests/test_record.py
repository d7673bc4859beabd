"""Records: written whole or not at all, never changed, read back as they were."""

import errno
import json
from pathlib import Path

import pytest

from scalebench_lib.config import Config, Sweep, Trial
from scalebench_lib.errors import MeasurementError, RequestError, ScalebenchError
from scalebench_lib.files import write_atomically
from scalebench_lib.record import (
    Point,
    Record,
    Turn,
    Verification,
    conditions,
    load_records,
    next_trial_number,
    require_one_machine,
)
from scalebench_lib.sweep.sweep_run import SweepRun
from tests.factories import SOFTWARE, START, machine, measured, save_sweep, small_records

SMALL = machine(cores=2, smt=False)
OLD_SWEEP = Path(__file__).parent / "old_sweep"


@pytest.fixture
def record() -> Record:
    """A record of a trial that went well."""
    return measured(Config(batch_size=4), SMALL)


def test_a_record_comes_back_as_it_was(tmp_path, record: Record) -> None:
    assert Record.load(record.save(tmp_path)) == record


def test_a_record_is_never_overwritten(tmp_path, record: Record) -> None:
    assert record.save(tmp_path).name == f"{record.config_id}-t1.json"
    with pytest.raises(ScalebenchError, match="never changed"):
        record.save(tmp_path)


def test_a_point_tells_what_its_turns_add_up_to() -> None:
    turns = (
        Turn(cycle=1, start_ns=0, samples_ns=(100, 200), cpu_ns=500),
        Turn(cycle=3, start_ns=900, samples_ns=(300,), cpu_ns=700),
    )
    point = Point(threads=2, cores=2, cpus=(0, 1), pinned=True, passes_per_sample=2, turns=turns)
    assert point.samples_ns == (100, 200, 300)
    assert point.median_ns == 200
    assert [turn.median_ns for turn in point.turns] == [150, 300]
    assert (point.wall_ns, point.cpu_ns, point.cpus_utilized) == (1200, 1200, 1.0)
    assert "median 0.0002000 ms of 3 means of 2 passes in 2 turns" in str(point)
    unknown = point.model_copy(update={"turns": (turns[0].model_copy(update={"cpu_ns": None}),)})
    assert unknown.cpu_ns is None


def point_of(turns: list[tuple], passes_per_sample: int = 1) -> Point:
    """A point of turns of one sample each: its ns, CPU time, and longest wait."""
    made = [
        Turn(cycle=cycle, start_ns=0, samples_ns=(ns,), cpu_ns=cpu_ns, waited_ns=waited_ns)
        for cycle, (ns, cpu_ns, waited_ns) in enumerate(turns, start=1)
    ]
    return Point(
        threads=2,
        cores=2,
        cpus=(0, 1),
        pinned=True,
        passes_per_sample=passes_per_sample,
        turns=tuple(made),
    )


def test_a_turn_is_shared_where_a_thread_waited_for_long() -> None:
    """Long is more than a tenth of the turn's time."""
    assert point_of([(1000, 2000, 100), (1000, 2000, 101)]).shared == (False, True)
    assert point_of([(1000, 2000, 300), (1000, 2000, 301)], 3).shared == (False, True)
    assert point_of([(10**10, 10**10, 2 * 10**9)]).shared == (True,)


def test_a_turn_is_shared_where_it_got_less_cpu_time_than_is_usual() -> None:
    """Usual is a rate of the wall time, which two turns do not have."""
    usual = [(1000, 1900, 0), (2000, 3800, 0), (1000, 1900, 0)]
    assert point_of([*usual, (1000, 1720, 0)]).shared == (False,) * 4
    assert point_of([*usual, (1000, 1700, 0)]).shared == (False, False, False, True)
    assert point_of([(1000, 1900, 0), (1000, 500, 0)]).shared == (False, False)


def test_what_the_system_does_not_tell_of_a_turn_is_unknown() -> None:
    """Too little CPU time can be seen all the same."""
    assert point_of([(1000, None, None)] * 4).shared == (None,) * 4
    assert point_of([(1000, None, 0)] * 4).shared == (False,) * 4
    assert point_of([*[(1000, 2000, None)] * 3, (1000, 500, None)]).shared == (*[None] * 3, True)
    assert point_of([*[(1000, 2000, 0)] * 3, (1000, None, 0)]).shared == (False,) * 4


@pytest.mark.parametrize(
    "change",
    [
        {"schema_version": 99},
        {"config_id": "other"},
        {"status": "failed"},
        {"surprise": 1},
        {"points": []},
        {"block": "not hex!"},
        {"ended_by": "boredom"},
        {"trial": 0},
    ],
)
def test_a_record_that_contradicts_itself_is_damaged(tmp_path, record: Record, change) -> None:
    """The message names the file, in one line."""
    path = record.save(tmp_path)
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ScalebenchError, match=f"^{path.name} is damaged") as caught:
        Record.load(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("turn", [{"samples_ns": []}, {"samples_ns": [0]}, {"cycle": 0}])
def test_a_turn_without_a_pass_is_damage(tmp_path, record: Record, turn: dict) -> None:
    path = record.save(tmp_path)
    values = json.loads(path.read_text())
    values["points"][0]["turns"][0] |= turn
    path.write_text(json.dumps(values))
    with pytest.raises(ScalebenchError, match="is damaged"):
        Record.load(path)


def test_half_a_record_is_damaged(tmp_path, record: Record) -> None:
    path = record.save(tmp_path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ScalebenchError, match="is damaged"):
        Record.load(path)


def test_a_crash_while_writing_leaves_the_old_file(tmp_path, monkeypatch) -> None:
    """The temporary file is removed."""
    path = tmp_path / "file"
    write_atomically(path, "old")

    def crash(_: int) -> None:
        raise OSError(errno.ENOSPC, "disk full")

    monkeypatch.setattr("os.fsync", crash)
    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_trials_are_counted_from_the_files(tmp_path, record: Record) -> None:
    """The next number is one after the last."""
    assert next_trial_number(tmp_path, record.config) == 1
    record.save(tmp_path / "records")
    assert next_trial_number(tmp_path, record.config) == 2
    assert next_trial_number(tmp_path, Config(batch_size=40)) == 1


def test_records_are_listed_by_batch_size(tmp_path) -> None:
    save_sweep(tmp_path, small_records(batch_sizes=(16, 1, 4)))
    assert [r.config.batch_size for r in load_records(tmp_path)][:3] == [1, 4, 16]


def test_a_trial_that_never_measured_says_why() -> None:
    """Such a record has no points, and asking it for success raises its reason."""
    trial = Trial(config=Config(), threads=(1,), round=2, block="0a1b2c3d")
    record = Record.of(
        trial, machine=SMALL, software=SOFTWARE, status="failed", reason="no luck", started=START
    )
    assert (record.round, record.block, record.ended_by) == (2, "0a1b2c3d", None)
    with pytest.raises(MeasurementError, match="no luck"):
        record.require_ok()


def test_records_of_the_old_schema_are_read_as_trials_that_never_met() -> None:
    """Samples are in turns by the time between them, and keep their CPU time."""
    records = load_records(OLD_SWEEP)
    assert len(records) == 4
    assert {(r.schema_version, r.block, r.ended_by) for r in records} == {(1, None, None)}
    for record in records:
        values = json.loads((OLD_SWEEP / "records" / f"{record.name}.json").read_text())
        assert record.name.endswith(f"-v{record.trial}")
        assert record.round == record.trial == values["visit"]
        for point, old in zip(record.points, values["points"], strict=True):
            assert list(point.samples_ns) == old["samples_ns"]
            starts = [turn.start_ns for turn in point.turns]
            assert starts == sorted(starts)
            assert set(starts) <= set(old["started_ns"])
            assert [turn.cycle for turn in point.turns] == list(range(1, len(starts) + 1))
            assert set(point.shared) == {None}
            if old.get("cpu_ns") is not None:
                assert point.cpu_ns == pytest.approx(old["cpu_ns"], abs=len(starts))


def test_an_old_record_is_written_as_what_it_is() -> None:
    record = load_records(OLD_SWEEP)[0]
    assert Record.model_validate_json(record.model_dump_json()) == record


def test_a_sweep_does_not_go_on_into_a_folder_of_the_old_schema() -> None:
    with pytest.raises(RequestError, match="measured by an older scalebench") as caught:
        SweepRun.prepare(Sweep.load(OLD_SWEEP / "sweep.yaml"), OLD_SWEEP)
    assert "report" in str(caught.value)
    assert "another folder" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_records_of_several_machines_are_told(record: Record) -> None:
    other = record.model_copy(update={"machine": machine(cores=4)})
    require_one_machine([record, record])
    with pytest.raises(RequestError, match=r"records of several machines.*differ in cores"):
        require_one_machine([record, other])


def test_a_decoder_s_head_is_no_other_model() -> None:
    """A forward pass may be of the body alone: that is not a condition in which records differ."""
    digests = {"forward": "a", "decode": "b"}
    found = conditions(
        measured(Config(model="gpt2", phase=phase), SMALL).model_copy(update={"model_hash": digest})
        for phase, digest in digests.items()
    )
    assert found["model's structure and weights"] == {"a"}
    assert found["generating model's structure and weights"] == {"b"}


def test_a_verification_tells_its_error_as_the_page_does() -> None:
    found = Verification(
        max_abs_error=1e-6, items=4, sqnr_db=132.4, required_db=90, reference="fp64"
    )
    assert str(found) == (
        "error −132 dB against fp64 (fp32 must have −90 or less), worst of 4 items; "
        "outputs differ from eager's by at most 1e-06"
    )
