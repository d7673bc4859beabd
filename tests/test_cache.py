"""The cache saves time and nothing else: what it says is what the records say."""

from pathlib import Path

import nbformat
import pytest

from scalebench_lib import cache
from scalebench_lib.files import sealed
from scalebench_lib.record import Record, load_records
from scalebench_lib.rendered import write
from tests.madeup import measured, missing, save_sweep, small_records


@pytest.fixture
def out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A sweep, one config of it failed, that is worth a cache."""
    monkeypatch.setattr(cache, "WORTH_KEEPING", 2)
    *good, last = small_records()
    return save_sweep(tmp_path / "s", [*good, missing(last.config, last.machine, "failed", "died")])


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the records that are read from their own files."""
    names = list[str]()
    load = Record.load.__func__

    def spy(cls: type[Record], path: Path) -> Record:
        names.append(path.name)
        return load(cls, path)

    monkeypatch.setattr(Record, "load", classmethod(spy))
    return names


def test_records_are_the_same_from_the_cache(out: Path, read: list[str]) -> None:
    """And none of their files is opened a second time."""
    first = load_records(out)
    assert len(read) == len(first) == 6
    assert load_records(out) == first
    assert len(read) == 6
    assert [r.model_dump_json() for r in load_records(out)] == [r.model_dump_json() for r in first]


def test_a_file_that_changed_is_read_again(out: Path, read: list[str]) -> None:
    """And set aside where it is damaged; one that was added is read, one that is gone forgotten."""
    first = load_records(out)
    edited, gone, *_ = [out / "records" / f"{one.name}.json" for one in first]
    edited.write_text(edited.read_text().replace("Madeup", "Xadeup"))
    gone.unlink()
    more = measured(first[0].config, first[0].machine).model_copy(update={"visit": 2})
    more.save(out / "records")
    del read[:]
    assert load_records(out) == [more, *first[2:]]
    assert sorted(read) == sorted([edited.name, f"{more.name}.json"])
    assert not edited.exists()


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.6, 0.9, 0.999])
def test_a_damaged_cache_is_made_anew(out: Path, read: list[str], share: float) -> None:
    """Cut, or with a byte changed."""
    first, path = load_records(out), out / cache.FILE
    whole = path.read_bytes()
    at = int(share * len(whole))
    changed = whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :]
    for damaged in (whole[:at], changed):
        path.write_bytes(damaged)
        assert load_records(out) == first
    assert len(read) in (12, 18)  # a change between the parts of an archive changes nothing
    assert cache.recall(out)


def test_a_cache_cannot_hold_what_no_record_may(out: Path) -> None:
    """Its content is checked as theirs."""
    load_records(out)
    known = cache.recall(out)
    name, (seen, one) = next(iter(known.items()))
    cache.keep(out, {name: (seen, one.model_copy(update={"status": "skipped"}))})
    assert cache.recall(out) == {}


def test_small_sweeps_have_none(tmp_path: Path) -> None:
    """Nor is one needed where the folder cannot be written."""
    out = save_sweep(tmp_path / "s", small_records())
    assert len(load_records(out)) == 6
    assert not (out / cache.FILE).exists()
    (out / ".cache").write_text(sealed("{}"))
    cache.keep(out, {})
    assert len(load_records(out)) == 6


def test_notebooks_that_were_whole_and_have_not_changed_are_not_read_again(out: Path) -> None:
    """One that was edited is, whatever is kept; what is kept may be damaged."""
    folder = out / "notebooks"
    folder.mkdir()
    for name in "abc":
        write(nbformat.v4.new_notebook(), folder / f"{name}.ipynb")
    assert cache.damaged_notebooks(out) == []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cache, "is_whole_notebook", lambda path: pytest.fail(f"{path} is read"))
        assert cache.damaged_notebooks(out) == []
    edited = folder / "b.ipynb"
    edited.write_text(edited.read_text().replace('"cells"', '"Cells"'))
    for kept in (None, "", "[1]", '{"a.ipynb": 1}', "[" * 100_000):
        if kept is not None:
            (out / cache.NOTEBOOKS).write_text(kept)
        assert cache.damaged_notebooks(out) == [edited]
