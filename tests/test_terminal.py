"""What a terminal of 80 columns shows, read as people read it; and that a pipe gets whole lines."""

from pathlib import Path

import pytest

from scalebench_lib import cli
from scalebench_lib.config import Config, Trial
from scalebench_lib.sweep import progress
from scalebench_lib.sweep.block import Block
from scalebench_lib.sweep.runner import SweepProgress
from scalebench_lib.sweep.sweep_run import SweepRun
from tests import simulated
from tests.factories import configs, disturbed, machine, measured, missing, save_sweep
from tests.fake_workers import FakeTrials
from tests.sweep.test_progress import SWEEP

pytestmark = pytest.mark.usefixtures("undrawn")

REASON = "needs 70 GiB of memory, and this machine has only 23 GiB for all its processes together"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sweeps of a simulated machine, and one with long names and a failure."""
    made, on = tmp_path_factory.mktemp("sweeps"), machine(cores=4)
    names = ("none", "onnxruntime-int8", "openvino-bf16")
    several = configs(on, [1, 8], names)
    records = [measured(config, on) for config in several]
    records.append(missing(configs(on, [16], ["script"])[0], on, "failed", REASON))
    save_sweep(made / "long", records)
    for seed, name in enumerate("ab", 1):
        save_sweep(made / name, simulated.sweep(simulated.states, seed).records)
    return made


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Standard output is a terminal of 80 columns without colours."""
    for name, value in {"force_terminal": True, "width": 80, "height": 25}.items():
        monkeypatch.setattr(cli.console, f"_{name}", value)
    monkeypatch.setattr(cli.console, "_color_system", None)


def read(printed: str) -> str:
    """The words, in one line; none is cut, and only links and commands are longer than a line."""
    assert "…" not in printed.replace(" … ", ""), printed
    for line in printed.splitlines():
        assert len(line) <= 80 or "://" in line or "taskset" in line, line
    return " ".join(printed.split())


@pytest.mark.usefixtures("terminal")
def test_each_command_is_read_at_80_columns(scalebench, folder: Path) -> None:
    """Status, the end of a report, a plan, a comparison."""
    assert REASON in read(scalebench("status", folder / "long")[1])
    report = read(scalebench("report", folder / "long")[1])
    assert "Largest speed-up: " in report
    assert report.endswith(f"page: {(folder / 'long' / 'index.html').as_uri()}")
    plan = read(scalebench("plan", folder / "long", "--batch-size", 8)[1])
    assert "To run it, start your own server once for each instance" in plan
    compared = read(scalebench("compare", folder / "a", folder / "b")[1])
    assert "about 1 in 20 may be chance." in compared


@pytest.mark.usefixtures("terminal")
def test_progress_and_summary_are_read_at_80_columns(tmp_path: Path, capsys) -> None:
    """With the longest names of a trial that is being set up, and what disturbed."""
    cli.console._file = None
    longest = Config(optimization="onnxruntime-int8", allocator="tcmalloc", placement="interleave")
    trial = Trial(config=longest, threads=(1, 128))
    block = Block("0000000e")
    block.add(FakeTrials()(trial, Path(), None, None, lambda: False), longest.group)
    for _ in range(6):
        block.take_cycle()
    step = SweepProgress(2, f"setting up {trial}", block, done=3, total=128, seconds_left=24000)
    cli.console.print(progress._drawn(step))
    shown = read(capsys.readouterr().out)
    for words in ("128 threads", f"setting up {trial}", "3/128 trials of round 2 about 6.7 h left"):
        assert words in shown
    record = disturbed(measured(longest, machine(2)), 6, waited=0.5)
    run = SweepRun(SWEEP, machine(2), tmp_path, [record], None)
    progress.announce([run], cli.console)
    progress.print_summary(run, cli.console)
    said = read(capsys.readouterr().out)
    assert "configs left: the same command goes on from here" in said
    assert "Something else was computing here: it shared 6 of 16 turns" in said


def test_a_pipe_gets_a_line_each(scalebench, folder: Path, monkeypatch) -> None:
    """Whatever COLUMNS says, for programs that read lines."""
    monkeypatch.setenv("COLUMNS", "40")
    lines = scalebench("status", folder / "long")[1].splitlines()
    assert any(line.endswith(REASON) for line in lines)
    plan = scalebench("plan", folder / "long", "--batch-size", 8)[1]
    assert "…" not in plan.replace(" … ", "")


@pytest.mark.slow
def test_the_page_is_opened_where_there_is_a_browser(scalebench, folder: Path, monkeypatch) -> None:
    """And where there is none, that is said: it was asked for."""
    opened: list[str] = []
    for there in (True, False):
        monkeypatch.setattr(cli.webbrowser, "open", lambda at, ok=there: opened.append(at) or ok)
        code, printed, complaint = scalebench("report", folder / "a", "--open")
        assert code == 0
        assert opened[-1] in printed
        assert bool(complaint) != there
    assert opened == [(folder / "a" / "index.html").as_uri()] * 2
