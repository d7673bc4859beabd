"""Files that are whole or not there, and damage that is noticed."""

import errno
import os
from pathlib import Path

import pytest

from scalebench_lib.files import (
    DamagedError,
    leftovers,
    sealed,
    set_aside,
    unsealed,
    write_atomically,
)
from scalebench_lib.record import Record, load_records
from tests.factories import save_sweep, small_records


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A record's file."""
    save_sweep(tmp_path, small_records(batch_sizes=(1,)))
    return next((tmp_path / "records").glob("*none*"))


def test_a_record_cut_anywhere_is_noticed(saved: Path) -> None:
    whole = saved.read_bytes()
    ends = {len(whole) * percent // 100 for percent in range(100)}
    for end in ends | set(range(len(whole) - 200, len(whole))):
        saved.write_bytes(whole[:end])
        with pytest.raises(DamagedError, match="is damaged"):
            Record.load(saved)


def test_a_record_that_was_edited_is_noticed(saved: Path) -> None:
    whole = saved.read_text()
    for old, new in (('"seq_len": 16', '"seq_len": 17'), ("madeup", "Madeup"), ('": 8', '": 9')):
        if old in whole:
            saved.write_text(whole.replace(old, new, 1))
            with pytest.raises(DamagedError):
                Record.load(saved)
    saved.write_text(whole.replace('"threads": 1,', '"threads": 2,', 1))
    with pytest.raises(DamagedError, match="checksum"):
        Record.load(saved)
    saved.write_text(whole.replace("\n", "\r\n"), newline="")
    with pytest.raises(DamagedError, match="checksum"):
        Record.load(saved)


def test_what_is_damaged_is_left_out_and_the_rest_is_read(saved: Path, caplog) -> None:
    """Only a sweep that runs sets it aside: who merely reads changes nothing."""
    for aside in (False, True, True):
        saved.write_bytes(b"{")
        assert len(load_records(saved.parent.parent, aside)) == 1
        assert saved.exists() != aside
    assert caplog.text.count("is damaged") == 3
    assert len(list(saved.parent.glob("*.invalid"))) == 2


def test_a_record_under_another_name_is_damaged(saved: Path) -> None:
    """A copy would count twice."""
    for name in ("copy of it-t1.json", f"{saved.stem.removesuffix('-t1')}-copy-t1.json"):
        copy = saved.with_name(name)
        copy.write_bytes(saved.read_bytes())
        with pytest.raises(DamagedError, match="it holds"):
            Record.load(copy)


def test_a_seal_comes_off_as_it_was_put_on() -> None:
    """The first records had none, and are read as they are."""
    assert unsealed(sealed('{\n "a": 1\n}').encode()) == b'{\n "a": 1\n}\n'
    assert unsealed(b'{"a": 1}') == b'{"a": 1}'


def test_what_a_kill_leaves_half_written_is_known(tmp_path: Path) -> None:
    for name in ("records/.a.json.x1", "notebooks/.b.ipynb", ".sweep.yaml.y2"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    for name in ("records/a.json", "notebooks/b.ipynb", "sweep.yaml", ".lock"):
        (tmp_path / name).touch()
    found = {str(path.relative_to(tmp_path)) for path in leftovers(tmp_path)}
    assert found == {"records/.a.json.x1", "notebooks/.b.ipynb", ".sweep.yaml.y2"}


def test_where_nothing_can_be_written_damage_is_left_out(tmp_path, monkeypatch, caplog) -> None:
    monkeypatch.setattr(Path, "rename", lambda *_: (_ for _ in ()).throw(PermissionError()))
    set_aside(tmp_path / "x", "x is damaged")
    assert "x is damaged" in caplog.text


def test_records_are_for_whom_the_umask_says(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        save_sweep(tmp_path, small_records(batch_sizes=(1,)))
    finally:
        os.umask(before)
    assert {p.stat().st_mode & 0o077 for p in (tmp_path / "records").iterdir()} == {0}


def test_a_full_disk_names_the_file(tmp_path: Path, monkeypatch) -> None:
    """The system's own error has no name where a write fails."""

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left") as raised:
        write_atomically(tmp_path / "index.html", "page")
    assert raised.value.filename == str(tmp_path / "index.html")
    assert not list(tmp_path.iterdir())
