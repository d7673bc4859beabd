"""Exports on disk: made once, whole, and for the owner alone."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from scalebench_lib.config import Config
from scalebench_lib.errors import MeasurementError
from scalebench_lib.measure.models import build
from scalebench_lib.measure.optimizations.base import Target
from scalebench_lib.measure.optimizations.export_cache import (
    LOOKUPS,
    MANIFEST,
    cache_folder,
    cache_key,
    cache_state,
    export,
)

TINY = Config(model="bert-tiny")


@pytest.fixture(autouse=True)
def folder(monkeypatch, tmp_path: Path) -> Path:
    """A cache of its own for each test."""
    monkeypatch.setenv("SCALEBENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_full_disk_is_blamed_and_not_the_model(folder: Path, monkeypatch) -> None:
    """OpenVINO only says that its stream has failed."""

    def full(_: Path) -> dict[str, str]:
        raise OSError(28, "No space left on device")

    def vague(_: Path) -> dict[str, str]:
        raise RuntimeError("basic_ios::clear: iostream error")

    for exporter, free in ((full, 1 << 40), (vague, 1 << 20)):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: SimpleNamespace(free=free))
        with pytest.raises(MeasurementError, match=rf"^cannot keep exports in {folder} \(No space"):
            export("a-model", exporter)


class Exporter:
    """Writes a file, and counts how often."""

    def __init__(self) -> None:
        self.made = 0

    def __call__(self, draft: Path) -> dict[str, str]:
        """A model of 4 bytes."""
        self.made += 1
        (draft / "model").write_bytes(b"1234")
        return {"fact": "kept"}


def key(model_seed: int = 0, seq_len: int = 16, kind: str = "onnx") -> str:
    """The key of a tiny model's export."""
    config = TINY.model_copy(update={"seed": model_seed, "seq_len": seq_len})
    model = build(config)
    return cache_key(Target(model, model.inputs(2, seed=0), config), kind, "onnx")


def test_an_export_is_made_once() -> None:
    """The second trial takes it from disk, metadata included."""
    make = Exporter()
    assert export("one", make) == export("one", make)
    folder, facts = export("one", make)
    assert make.made == 1
    assert facts == {"fact": "kept"}
    assert (folder / "model").read_bytes() == b"1234"


def flipped(entry: Path) -> None:
    """Same size, other content."""
    (entry / "model").write_bytes(b"1224")


def cut(entry: Path) -> None:
    """As after a full disk."""
    (entry / "model").write_bytes(b"12")


def lost(entry: Path) -> None:
    """A file is gone."""
    (entry / "model").unlink()


def garbled(entry: Path) -> None:
    """The manifest is no JSON."""
    (entry / MANIFEST).write_text("{")


@pytest.mark.parametrize("damage", [flipped, cut, lost, garbled])
def test_a_damaged_export_is_made_again(damage) -> None:
    """Rather than measured, or complained about."""
    make = Exporter()
    entry, _ = export("one", make)
    damage(entry)
    assert (export("one", make)[0] / "model").read_bytes() == b"1234"
    assert make.made == 2


def test_an_export_that_fails_leaves_nothing_behind(folder: Path) -> None:
    """And says in one line why."""

    def broken(draft: Path) -> dict[str, str]:
        (draft / "model").write_bytes(b"12")
        raise ValueError("no such operator\nand much more")

    with pytest.raises(
        MeasurementError, match=r"cannot be exported: ValueError: no such operator$"
    ):
        export("one", broken)
    assert [path.name for path in folder.iterdir()] == ["one.lock"]


def test_the_key_tells_apart_what_differs() -> None:
    """Weights, shapes and kind; the same again is the same."""
    keys = [key(), key(model_seed=1), key(seq_len=32), key(kind="openvino")]
    assert len(set(keys)) == 4
    assert key() == keys[0]
    assert keys[0].startswith("bert-tiny-onnx-")


def test_one_changed_weight_is_another_model() -> None:
    """A folder may be trained on under the same name."""
    model = build(TINY)
    target = Target(model, model.inputs(1, seed=0), TINY)
    before = cache_key(target, "onnx")
    with torch.no_grad():
        next(model.module.parameters())[0, 0] += 1e-3
    assert cache_key(target, "onnx") != before


def test_the_cache_is_where_the_user_keeps_such_things(monkeypatch, tmp_path: Path) -> None:
    """``$SCALEBENCH_CACHE``, else XDG's; nobody else may read it."""
    assert cache_folder().stat().st_mode & 0o777 == 0o700
    monkeypatch.delenv("SCALEBENCH_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "scalebench"


def test_a_cache_that_cannot_be_written_is_named(monkeypatch, tmp_path: Path) -> None:
    """With what to do about it."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("SCALEBENCH_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(MeasurementError, match=r"cannot keep exports in .*set SCALEBENCH_CACHE"):
        export("one", Exporter())


def test_what_the_cache_was_is_told() -> None:
    """Of all exports since a moment; nothing where none was asked for."""
    before = LOOKUPS.copy()
    assert cache_state(before) is None
    export("a-model", Exporter())
    assert cache_state(before) == "empty"
    later = LOOKUPS.copy()
    export("a-model", Exporter())
    assert cache_state(later) == "full"
    assert cache_state(before) == "partly full"
