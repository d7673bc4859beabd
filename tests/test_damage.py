"""Damaged folders: no command answers with a traceback, whatever lies where its files were."""

import shutil
from pathlib import Path

import pytest

from scalebench_lib.analysis import page
from tests.factories import save_sweep, small_records

pytestmark = pytest.mark.usefixtures("undrawn")

DAMAGE = {
    "nothing": b"",
    "noise": bytes(range(256)),
    "a list": b"[1, 2]",
    "another schema": b'{"schema_version": 3, "seed": NaN}',
    "numbers for keys": b"1: 2",
    "no date": b"seed: 2020-13-45",
    "depth": b"[" * 100_000,
    "a folder": None,
}
RECORD = "records/one-t1.json"
FILES = (RECORD, "sweep.yaml", "source.json", "interference.json")
COMMANDS = (
    ("status", "OUT"),
    ("report", "OUT"),
    ("plan", "OUT", "--batch-size", "4"),
    ("compare", "OUT", "OUT"),
    ("sweep", "OUT", "--dry-run", "--threads", "1"),
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep."""
    return save_sweep(tmp_path_factory.mktemp("whole"), small_records((1, 4)))


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", FILES)
def test_whatever_is_damaged_is_told_in_a_line(
    scalebench, monkeypatch, whole: Path, tmp_path: Path, name: str, damage: str
) -> None:
    """Figures are not drawn here, which takes seconds."""
    monkeypatch.setattr(page, "figure_specs", lambda _: [])
    monkeypatch.setattr(page, "overview_specs", lambda _: [])
    for number, arguments in enumerate(COMMANDS):
        out = Path(shutil.copytree(whole, tmp_path / str(number)))
        spoil(out / name, DAMAGE[damage])
        code, _, errors = scalebench(*(str(out) if a == "OUT" else a for a in arguments))
        assert code in (0, 1, 2)
        assert len(errors.splitlines()) == (code > 0), errors


def spoil(path: Path, content: bytes | None) -> None:
    """Put `content` where `path` is, or a folder."""
    path.unlink(missing_ok=True)
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)
