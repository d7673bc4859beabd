"""The seam between a sweep and its trials: real kernels, stopped, killed, hanging, orphaned."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nbformat
import psutil
import pytest

from scalebench_lib.config import Config, Trial
from scalebench_lib.errors import MeasurementError
from scalebench_lib.machine import Machine
from scalebench_lib.record import Record, Software, load_records
from scalebench_lib.sweep import trial_process
from scalebench_lib.sweep.kernels import Kernels
from scalebench_lib.sweep.locks import RUNTIME_DIR
from scalebench_lib.sweep.trial_process import StoppedError, TrialProcess
from tests.factories import SOFTWARE, START
from tests.waiting import wait_until

pytestmark = pytest.mark.skipif(not Path("/proc").exists(), reason="needs /proc")

MACHINE = Machine.here()
COUNTS = MACHINE.thread_counts("auto")[:2]
ENVIRONMENT = Software.here().environment


def trial(optimization: str = "none", **more: object) -> Trial:
    """A trial of the tiny model, in a block."""
    config = Config(model="bert-tiny", optimization=optimization)
    update = {"threads": COUNTS, "block": "0000000d", "thorough": False, **more}
    return Trial(config=config, **update)


@contextmanager
def started(
    out: Path, kernels: Kernels, optimization: str = "none", **more: object
) -> Iterator[TrialProcess]:
    """A trial that is set up; in the end nothing of it is left."""
    process = TrialProcess.start(trial(optimization), out, kernels, **more)
    try:
        yield process
    finally:
        process.kill()
        wait_until(lambda: not psutil.pid_exists(process.pid), seconds=20)
        assert process.server.fileno() == -1


def state(pid: int) -> str:
    """``T``: it stands still; ``S``, ``R``: it does not."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def wanted_dead(pid: int) -> int:
    """How much the system would like to kill it, where memory runs out."""
    return int(Path(f"/proc/{pid}/oom_score_adj").read_text())


def test_a_trial_takes_turns_stands_still_between_them_and_leaves_a_record(
    warm: Kernels, tmp_path: Path
) -> None:
    """With the names of its block and the environment as the sweep has it."""
    with started(tmp_path, warm) as one, started(tmp_path, warm, "script") as other:
        for process in (one, other):
            wait_until(lambda pid=process.pid: state(pid) == "T", seconds=5)
            assert process.setup_s > process.first_pass_s > 0
            assert process.peak_bytes > 50e6
            assert wanted_dead(process.pid) == 0
        for cycle in (1, 2):
            for threads in reversed(COUNTS):
                for process in (one, other):
                    answer = process.turn(cycle, threads, 0.05)
                    assert answer.median_ns > 0
                    wait_until(lambda pid=process.pid: state(pid) == "T", seconds=5)
        cpu = [psutil.Process(process.pid).cpu_times() for process in (one, other)]
        time.sleep(0.1)
        assert cpu == [psutil.Process(process.pid).cpu_times() for process in (one, other)]
        records = [one.end("max_seconds"), other.end("interrupted")]
    assert [r.status for r in records] == ["ok", "ok"], records[0].reason
    assert [r.ended_by for r in records] == ["max_seconds", "interrupted"]
    assert {record.block for record in records} == {"0000000d"}
    for record in records:
        assert [[t.cycle for t in p.turns] for p in record.points] == [[1, 2]] * len(COUNTS)
        assert record.software.environment == ENVIRONMENT
        assert record.kernel == "warm"
    turns = sorted(
        (t.start_ns, sum(t.samples_ns)) for r in records for p in r.points for t in p.turns
    )
    ends = [start + took for start, took in turns]
    assert all(end <= start for end, (start, _) in zip(ends, turns[1:], strict=False))
    assert load_records(tmp_path) == records
    assert len(list((tmp_path / "notebooks").glob("*.ipynb"))) == 2


@pytest.mark.slow
def test_a_trial_in_a_kernel_started_afresh_does_the_same(tmp_path: Path) -> None:
    """It only takes longer to set up."""
    with Kernels(warm=False) as kernels, started(tmp_path, kernels) as process:
        wait_until(lambda: state(process.pid) == "T", seconds=5)
        process.turn(1, COUNTS[0], 0.05)
        for threads in COUNTS[1:]:
            process.turn(1, threads, 0.05)
        record = process.end("max_seconds")
    assert (record.status, record.kernel) == ("ok", "fresh")
    assert record.software.environment == ENVIRONMENT


def test_a_trial_that_fails_while_it_is_set_up_says_why(warm: Kernels, tmp_path: Path) -> None:
    """In its record, and here."""
    config = Config(model="bert-tiny", weights="pretrained")
    failing = trial().model_copy(update={"config": config})
    with pytest.raises(MeasurementError, match="has no published ones"):
        TrialProcess.start(failing, tmp_path, warm)
    [record] = load_records(tmp_path)
    assert record.status == "failed"


@pytest.mark.parametrize("when", ["in its set-up", "in a turn", "while it stands still"])
def test_a_trial_that_is_killed_is_told_at_once(warm, tmp_path: Path, notebook, when: str) -> None:
    """By its signal; the others go on."""
    notebook(**{{"in its set-up": "ready", "in a turn": "turn"}.get(when, "end"): KILL})
    killed = pytest.raises(MeasurementError, match=r"^killed by signal 9 \(SIGKILL\)$")
    with killed, started(tmp_path, warm) as process:
        if when == "while it stands still":
            os.kill(process.pid, signal.SIGKILL)
        process.turn(1, 1, 0.05)
    assert load_records(tmp_path) == []


KILL = "os.kill(os.getpid(), signal.SIGKILL)"
HANG = "time.sleep(600)"
SAY = "print(json.dumps({answer}), file=stream, flush=True)"
ANSWER = SAY.format(answer={"median_ns": 1e6, "half_width": None, "spent_s": 0.1})


@pytest.fixture
def notebook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A notebook in the place of ``measure.ipynb`` that takes turns without a model.

    `setup`, `ready`, `turn` and `end` are what it does before each, and `answer` is how it answers.
    """

    def write(
        setup: str = "", ready: str = "", turn: str = "", end: str = "", answer: str = ANSWER
    ) -> None:
        code = (
            "import json, os, signal, socket, time\n"
            f"open('begun', 'a').write(str(os.getpid()) + '\\n')\n{setup}\n"
            "connection = socket.socket(socket.AF_UNIX)\n"
            "connection.connect(os.environ['SCALEBENCH_RUNNER'])\n"
            f"stream = connection.makefile('rw')\n{ready}\n"
            f"{SAY.format(answer={'first_pass_s': 0.001})}\n"
            "for line in stream:\n"
            "    if 'end' in json.loads(line):\n"
            f"        {end or 'pass'}\n"
            "        break\n"
            f"    {turn or 'pass'}\n"
            f"    {answer}\n"
        )
        first = nbformat.v4.new_code_cell("out = ''", metadata={"tags": ["parameters"]})
        book = nbformat.v4.new_notebook(cells=[first, nbformat.v4.new_code_cell(code)])
        book.metadata["kernelspec"] = {"name": "x", "language": "python", "display_name": "x"}
        (tmp_path / "source").mkdir(exist_ok=True)
        nbformat.write(book, tmp_path / "source" / "measure.ipynb")
        monkeypatch.setattr(trial_process, "NOTEBOOKS", tmp_path / "source")
        monkeypatch.chdir(tmp_path)

    return write


@pytest.mark.parametrize(
    "where",
    [
        pytest.param({"setup": HANG}, marks=pytest.mark.slow),
        pytest.param({"ready": HANG}, marks=pytest.mark.slow),
        {"turn": HANG},
        pytest.param({"end": HANG}, marks=pytest.mark.slow),
    ],
    ids=lambda where: next(iter(where)),
)
def test_a_trial_that_hangs_is_ended_at_its_limit(warm, tmp_path, notebook, where: dict) -> None:
    """In set-up, in a turn or at its end, with the words that say what to do."""
    notebook(**where)
    limit_s = 3.0
    too_slow = pytest.raises(MeasurementError, match=f"^not done after {limit_s:.0f} s, its time")
    with too_slow, started(tmp_path, warm, limit_s=limit_s) as process:
        process.turn(1, 1, 0.05)
        process.end("max_seconds")
    pid = int((tmp_path / "begun").read_text())
    wait_until(lambda: not psutil.pid_exists(pid), seconds=20)


@pytest.mark.slow
def test_a_turn_may_take_as_long_as_its_first_pass_lets_expect(
    warm, tmp_path, notebook, monkeypatch
) -> None:
    """Without a limit of the user's."""
    monkeypatch.setattr(trial_process, "TURN_LIMIT_S", 0.5)
    notebook(turn="time.sleep(1.5)")
    with pytest.raises(MeasurementError, match="its time limit"), started(tmp_path, warm) as one:
        one.turn(1, 1, 0.05)
    with started(tmp_path, warm) as one:
        one.first_pass_s = 0.2
        assert one.turn(1, 1, 0.05).median_ns == 1e6


@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        (SAY.format(answer="'noise'"), "the other side said"),
        (SAY.format(answer={"first_pass_s": 0.1}), "the other side said"),
        ("raise ValueError('no luck\\nat all')", "^ValueError: no luck$"),
        ("raise MemoryError()", "^out of memory"),
        ("break", "^the notebook wrote no record$"),
    ],
)
def test_a_trial_that_answers_wrongly_fails(warm, tmp_path, notebook, answer, complaint) -> None:
    """With what it said last."""
    notebook(answer=answer)
    with pytest.raises(MeasurementError, match=complaint) as caught, started(tmp_path, warm) as one:
        one.turn(1, 1, 0.05)
    assert "\n" not in str(caught.value)


def test_a_trial_that_leaves_no_record_at_its_end_has_failed(warm, tmp_path, notebook) -> None:
    """Whatever papermill says of it."""
    notebook()
    with started(tmp_path, warm) as process:
        process.turn(1, 1, 0.05)
        with pytest.raises(MeasurementError, match="the notebook wrote no record"):
            process.end("max_seconds")


def test_a_record_counts_whatever_comes_after_it(warm, tmp_path: Path, notebook) -> None:
    """A notebook that fails in its drawing has measured; half a record has not."""
    path = tmp_path / "records" / f"{trial().name}.json"
    text = json.dumps(
        Record.of(
            trial(), machine=MACHINE, software=SOFTWARE, status="failed", reason="x", started=START
        ).model_dump_json()
    )
    write = f"os.makedirs('records'); open({str(path)!r}, 'w').write({text}); 1/0"
    notebook(end=write)
    with started(tmp_path, warm) as process:
        process.turn(1, 1, 0.05)
        assert process.end("max_seconds").reason == "x"
    path.write_text("{")
    notebook()
    with started(tmp_path, warm) as process:
        process.turn(1, 1, 0.05)
        with pytest.raises(MeasurementError, match="is damaged"):
            process.end("max_seconds")


def test_a_stop_while_a_trial_is_set_up_does_not_wait_for_it(warm, tmp_path, notebook) -> None:
    """It is ended at once."""
    notebook(setup=HANG)
    with pytest.raises(StoppedError):
        TrialProcess.start(trial(), tmp_path, warm, stopping=(tmp_path / "begun").exists)
    pid = int((tmp_path / "begun").read_text())
    wait_until(lambda: not psutil.pid_exists(pid), seconds=20)


def test_the_system_kills_the_trial_that_works_where_memory_runs_out(
    warm, tmp_path, notebook
) -> None:
    """Not those that stand still, nor the runner."""
    seen = "open('seen', 'w').write(open('/proc/self/oom_score_adj').read())"
    notebook(turn=seen)
    with started(tmp_path, warm) as process:
        assert wanted_dead(process.pid) == 0
        process.turn(1, 1, 0.05)
        assert (tmp_path / "seen").read_text().strip() == "1000"
        assert wanted_dead(process.pid) == 0


@pytest.mark.slow
def test_a_fork_server_that_dies_takes_its_trials_along_and_the_next_is_fresh(
    light_fork_server, tmp_path: Path, notebook
) -> None:
    """They fail, by a reason that says nothing against larger batches."""
    notebook()
    with Kernels(warm=True) as kernels:
        with started(tmp_path, kernels) as one, started(tmp_path, kernels, "script") as other:
            (fork_server,) = kernels._fork_servers.values()
            fork_server.process.kill()
            fork_server.process.wait()
            for process in (one, other):
                with pytest.raises(MeasurementError, match=r"^the process that kernels"):
                    process.turn(1, 1, 0.05)
        with started(tmp_path, kernels) as fresh:
            assert fresh.turn(1, 1, 0.05).median_ns == 1e6
            assert kernels.kind == "fresh"
            assert "does not answer" in kernels.warning


@pytest.mark.slow
def test_a_kernel_that_cannot_be_forked_is_started_afresh(
    light_fork_server, tmp_path: Path, notebook, monkeypatch
) -> None:
    """A trial that had not begun is not lost."""
    notebook(setup="assert 'SCALEBENCH_KERNEL' not in os.environ")
    broken = light_fork_server[1].replace(
        "forkserver.main", "forkserver._answer_requests = None; forkserver.main"
    )
    monkeypatch.setattr("scalebench_lib.sweep.kernels.COMMAND", ["-c", broken])
    with Kernels(warm=True) as kernels:
        with started(tmp_path, kernels) as process:
            process.turn(1, 1, 0.05)
        assert "the fork server does not answer" in kernels.warning


@pytest.mark.parametrize("kind", [pytest.param("fresh", marks=pytest.mark.slow), "warm"])
def test_a_runner_that_is_killed_leaves_no_trial_behind(
    light_fork_server, tmp_path: Path, notebook, kind: str
) -> None:
    """Not even those that stand still; with warm kernels, no socket either."""
    before = {*Path(os.environ[RUNTIME_DIR]).iterdir()}
    notebook()
    code = (
        "import sys, time; from pathlib import Path; from scalebench_lib.sweep import kernels\n"
        f"kernels.COMMAND = {light_fork_server}\n"
        "from scalebench_lib.sweep import trial_process\n"
        "from scalebench_lib.sweep.kernels import Kernels\n"
        "from scalebench_lib.config import Config, Trial\n"
        f"trial_process.NOTEBOOKS = Path({str(tmp_path / 'source')!r})\n"
        f"kernels, processes = Kernels({kind == 'warm'}), []\n"
        "for name in ('none', 'script'):\n"
        "    trial = Trial(config=Config(optimization=name), threads=(1,))\n"
        "    start = trial_process.TrialProcess.start\n"
        "    processes.append(start(trial, Path('out'), kernels))\n"
        "    processes[-1].turn(1, 1, 0.05)\n"
        "print('ready', flush=True); time.sleep(600)"
    )
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as runner:
        assert runner.stdout.readline() == "ready\n"
        family = psutil.Process(runner.pid).children(recursive=True)
        trials = [psutil.Process(int(pid)) for pid in (tmp_path / "begun").read_text().split()]
        wait_until(lambda: [state(one.pid) for one in trials] == ["T", "T"], seconds=5)
        assert set(trials) <= set(family)
        runner.send_signal(signal.SIGKILL)
    assert psutil.wait_procs(family, timeout=20)[1] == []
    assert kind == "fresh" or {*Path(os.environ[RUNTIME_DIR]).iterdir()} <= before
