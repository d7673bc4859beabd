"""Before a sweep its model is built and run once, in a process of its own."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from scalebench_lib.config import Sweep
from scalebench_lib.errors import RequestError
from scalebench_lib.record import Record
from scalebench_lib.sweep import sweep_run as run_module
from scalebench_lib.sweep.interpreter import Interpreter
from scalebench_lib.sweep.sweep_run import SweepRun
from tests.factories import configs, machine, measured, missing

SMALL = machine(cores=2, smt=False)
SWEEP = Sweep(model="bert-tiny", batch_sizes=(1, 2), seq_lens=(32, 16, 64))

Prepared = Callable[..., SweepRun]


@pytest.fixture
def prepared(tmp_path: Path) -> Prepared:
    """A sweep whose Python writes what it is asked to ``asked``, and runs a `script`."""

    def prepare(script: str, *records: Record) -> SweepRun:
        python = tmp_path / "python"
        python.write_text(f"#!/bin/sh\ncat > {tmp_path}/asked\n{script}\n", encoding="utf-8")
        python.chmod(0o755)
        here = Interpreter.here().model_copy(update={"executable": str(python)})
        return SweepRun(SWEEP, SMALL, tmp_path / "out", list(records), here)

    return prepare


def lengths_asked(folder: Path) -> list[int]:
    return [config["seq_len"] for config in json.loads((folder / "asked").read_text())]


def test_each_size_of_the_model_is_asked_for_once_smallest_first(
    prepared: Prepared, tmp_path: Path
) -> None:
    prepared("echo progress; echo null").require_measurable()
    assert lengths_asked(tmp_path) == [16, 32, 64]
    assert not (tmp_path / "out").exists()


def test_what_a_record_shows_to_be_measurable_is_not_asked_for(
    prepared: Prepared, tmp_path: Path
) -> None:
    one, other = (
        configs(SMALL, (1,), ("none",), model="bert-tiny", seq_len=length)[0] for length in (16, 32)
    )
    prepared(
        "echo null", measured(one, SMALL), missing(other, SMALL, "failed", "no luck")
    ).require_measurable()
    assert lengths_asked(tmp_path) == [32, 64]


def test_nothing_is_started_where_nothing_is_left(prepared: Prepared, tmp_path: Path) -> None:
    run = prepared("exit 1")
    run.records += [
        measured(trial.config, SMALL).model_copy(update={"round": number, "block": f"{number:08x}"})
        for trial in SWEEP.trials(SMALL)
        for number in (1, 2)
    ]
    assert not run.schedule.left
    run.require_measurable()
    assert not (tmp_path / "asked").exists()


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("echo '\"model: no\"'", "^model: no$"),
        (
            "echo Traceback >&2; echo 'OSError: x' >&2; exit 1",
            "cannot be built and run: OSError: x",
        ),
        ("kill -KILL $$", r"'bert-tiny' cannot be built and run: .*SIGKILL|out of memory"),
        ("exec sleep 60", "'bert-tiny' is not built and run within 1 s"),
    ],
)
def test_why_it_cannot_be_measured_is_told_in_one_line(
    prepared: Prepared, script: str, reason: str
) -> None:
    run = prepared(script)
    run.trial_timeout = 1.0
    with pytest.raises(RequestError, match=reason) as told:
        run.require_measurable()
    assert "\n" not in str(told.value)


def test_a_model_that_hangs_is_given_up_after_a_time(prepared: Prepared, monkeypatch) -> None:
    """People's own code may wait for ever."""
    monkeypatch.setattr(run_module, "SETUP_LIMIT_S", 0.5)
    with pytest.raises(RequestError, match="'bert-tiny' is not built and run within 0 s"):
        prepared("exec sleep 3").require_measurable()


def test_each_phase_is_asked_for(prepared: Prepared, tmp_path: Path) -> None:
    run = prepared("echo null")
    run.sweep = Sweep(model="gpt2", batch_sizes=(1,), phases=("forward", "decode"))
    run.require_measurable()
    asked = json.loads((tmp_path / "asked").read_text())
    assert [config["phase"] for config in asked] == ["decode", "forward"]
