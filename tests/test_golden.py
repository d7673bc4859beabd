"""What people see of two made-up sweeps stays as it is: the table, figures, words, a plan.

`tests/golden` holds it. Where a change is meant, write it anew: `python -m tests.test_golden`.
"""

import re
from html import unescape
from pathlib import Path

import pytest
from typer.testing import CliRunner

from scalebench_lib import cli
from tests import simulated
from tests.factories import configs, machine, measured, missing, save_sweep

pytestmark = pytest.mark.usefixtures("undrawn")

GOLDEN = Path(__file__).parent / "golden"
_NUMBER = re.compile(r"\d+\.\d+(?:e-?\d+)?")


def _made_up(folder: Path) -> tuple[Path, Path, Path]:
    """A sweep with SMT, two lengths and a failure, and two of a simulated machine."""
    on = machine(cores=4)
    several = configs(on, [1, 4, 8]) + configs(on, [8], seq_len=128)
    records = [measured(config, on) for config in several]
    failed = configs(on, [16], ["script"])[0]
    records.append(missing(failed, on, "failed", "needs 70 GiB [of memory]"))
    slower = {config.id: 1.2 for config in simulated.CONFIGS if config.batch_size == 16}
    a, b = simulated.sweep(simulated.states, 1), simulated.sweep(simulated.states, 2, slower=slower)
    found = {"smt": records, "a": a.records, "b": b.records}
    smt, one, other = (save_sweep(folder / name, each) for name, each in found.items())
    return smt, one, other


def _said(*words: object) -> str:
    """What the command prints, without what differs from run to run."""
    found = CliRunner().invoke(cli.app, [str(word) for word in words], terminal_width=80)
    assert found.exception is None or isinstance(found.exception, SystemExit), found.exception
    return f"exit code {found.exit_code}\n{found.output}"


def _figures(page: Path) -> str:
    """The figures of a page, and their alternative texts, in order."""
    images = re.findall(r"<img [^>]*>", page.read_text(encoding="utf-8"))
    lines = []
    for image in images:
        source, alt = (re.search(rf'{name}="([^"]*)"', image) for name in ("src", "alt"))
        if source and source[1].startswith("figures/"):
            lines.append(f"{source[1]}: {unescape(alt[1]) if alt else ''}")
    return "\n".join(dict.fromkeys(lines)) + "\n"


def everything(folder: Path) -> dict[str, str]:
    """All that is held, by the name of its file."""
    smt, a, b = _made_up(folder)
    told = {
        "report.txt": _said("report", smt),
        "status.txt": _said("status", smt),
        "compare.txt": _said("compare", a, b),
        "compare.md": _said("compare", a, b, "--markdown"),
        "plan.txt": _said("plan", smt, "--batch-size", 8, "--seq-len", 16),
        "figures.txt": _figures(smt / "index.html"),
        "index.md": (smt / "index.md").read_text(encoding="utf-8"),
        "results.csv": (smt / "results.csv").read_text(encoding="utf-8"),
    }
    _said("report", a)
    told["simulated.csv"] = (a / "results.csv").read_text(encoding="utf-8")
    return {name: text.replace(str(folder), "FOLDER") for name, text in told.items()}


@pytest.fixture(scope="module")
def now(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """All of it as it is today."""
    return everything(tmp_path_factory.mktemp("golden"))


@pytest.mark.parametrize("name", sorted(path.name for path in GOLDEN.glob("*")))
def test_what_people_see_is_as_it_was(name: str, now: dict[str, str]) -> None:
    """But for the last digits, which every version of numpy and scipy has of its own."""
    before = (GOLDEN / name).read_text(encoding="utf-8")
    assert _NUMBER.sub("…", now[name]) == _NUMBER.sub("…", before)
    numbers, as_before = ([float(each) for each in _NUMBER.findall(t)] for t in (now[name], before))
    assert numbers == pytest.approx(as_before, rel=1e-6)


if __name__ == "__main__":
    import tempfile

    GOLDEN.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as made:
        for name, text in everything(Path(made)).items():
            (GOLDEN / name).write_text(text, encoding="utf-8")
