"""Records: written whole or not at all, never changed, read back as they were."""

import json
from datetime import UTC, datetime

import pytest

from scalebench_lib.config import Config, Visit
from scalebench_lib.errors import MeasurementError, ScalebenchError
from scalebench_lib.record import Record, load_records, next_visit, write_atomically
from tests.madeup import machine, measured, save_sweep, small_records

SMALL = machine(cores=2, smt=False)


@pytest.fixture
def record() -> Record:
    """A record of a visit that went well."""
    return measured(Config(batch_size=4), SMALL)


def test_a_record_comes_back_as_it_was(tmp_path, record: Record) -> None:
    """Every sample, every statistic."""
    assert Record.load(record.save(tmp_path)) == record


def test_a_record_is_never_overwritten(tmp_path, record: Record) -> None:
    """A second visit is v2."""
    record.save(tmp_path)
    with pytest.raises(ScalebenchError, match="never changed"):
        record.save(tmp_path)


def test_statistics_are_those_of_the_samples(record: Record) -> None:
    """Computed when the point is made; percentiles only where the samples support them."""
    found = record.points[0].statistics
    assert found.minimum == min(record.points[0].samples_ns)
    assert found.low <= found.median <= found.high
    assert found.p90 is None


@pytest.mark.parametrize(
    "change",
    [
        {"schema_version": 99},
        {"config_id": "other"},
        {"status": "failed"},
        {"surprise": 1},
        {"points": []},
    ],
)
def test_a_record_that_contradicts_itself_is_damaged(tmp_path, record: Record, change) -> None:
    """The message names the file, in one line."""
    path = record.save(tmp_path)
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ScalebenchError, match=f"^{path.name} is damaged") as caught:
        Record.load(path)
    assert "\n" not in str(caught.value)


def test_half_a_record_is_damaged(tmp_path, record: Record) -> None:
    """As after a full disk."""
    path = record.save(tmp_path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ScalebenchError, match="is damaged"):
        Record.load(path)


def test_a_crash_while_writing_leaves_the_old_file(tmp_path, monkeypatch) -> None:
    """And no litter beside it."""
    path = tmp_path / "file"
    write_atomically(path, "old")

    def crash(_: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", crash)
    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_visits_are_counted_from_the_files(tmp_path, record: Record) -> None:
    """The next number is one after the last."""
    assert next_visit(tmp_path, record.config) == 1
    record.save(tmp_path / "records")
    assert next_visit(tmp_path, record.config) == 2
    assert next_visit(tmp_path, Config(batch_size=40)) == 1


def test_records_are_listed_by_batch_size(tmp_path) -> None:
    """As numbers: 4 before 16."""
    save_sweep(tmp_path, small_records(batch_sizes=(16, 1, 4)))
    assert [r.config.batch_size for r in load_records(tmp_path)][:3] == [1, 4, 16]


def test_a_visit_that_never_measured_says_why() -> None:
    """Such a record has no points, and asking it for success raises its reason."""
    visit = Visit(config=Config(), threads=(1,))
    record = Record.without_points(visit, SMALL, "failed", "no luck", datetime.now(UTC))
    with pytest.raises(MeasurementError, match="no luck"):
        record.require_ok()
