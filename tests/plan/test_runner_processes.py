"""The processes of a plan, seen from outside: whatever they do, none is left."""

import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from scalebench_lib import allocators
from scalebench_lib.config import Config
from scalebench_lib.errors import MeasurementError, RequestError
from scalebench_lib.plan import runner
from scalebench_lib.plan.runner import Workers
from scalebench_lib.plan.worker import WorkerSpec
from tests.standins import STAND_IN, instances
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]
SPEC = WorkerSpec(config=Config(model="bert-tiny"), cpus=(0,))


def test_workers_compute_from_a_common_start(monkeypatch) -> None:
    """A batch ends with the last worker; the processes end with the context."""
    monkeypatch.setattr(runner, "_COMMAND", STAND_IN)
    with Workers([SPEC] * 3) as three:
        three.answers(30)
        assert len(instances()) == 3
        assert three.run(30) >= 5_000_000
    assert instances() == []


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("raise SystemExit('no luck')", "an instance ended with code 1: no luck"),
        ("import time; time.sleep(60)", "1 of 1 instances did not answer within 0.5 s"),
    ],
)
def test_an_instance_that_never_gets_ready_is_told(code: str, reason: str, monkeypatch) -> None:
    """The message has the last line that it wrote, or its time; and it is ended."""
    command = (sys.executable, "-c", f"{code}  # {STAND_IN[2].splitlines()[0]}")
    monkeypatch.setattr(runner, "_COMMAND", command)
    with Workers([SPEC]) as one, pytest.raises(MeasurementError, match=reason):
        one.answers(30 if "luck" in code else 0.5)
    assert instances() == []


@pytest.mark.slow
def test_instances_end_with_the_command_however_it_ends() -> None:
    """A command that is killed cannot end them: they end by themselves."""
    code = (
        "import os, signal\n"
        "from tests.standins import instances\n"
        "from scalebench_lib.config import Config\n"
        "from scalebench_lib.plan.runner import Workers\n"
        "from scalebench_lib.plan.worker import WorkerSpec\n"
        "workers = Workers([WorkerSpec(config=Config(model='bert-tiny'), cpus=(0,))])\n"
        "workers.answers(60)\n"
        "print(instances()[0].pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    run = [sys.executable, "-c", code]
    pid = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, check=False).stdout
    wait_until(lambda: _has_ended(int(pid)), 10)


def _has_ended(pid: int) -> bool:
    """Whether it is no more, or a zombie: its parent has ended and did not wait for it."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_an_instance_is_started_with_its_allocator(monkeypatch) -> None:
    """A plan that was profiled with tcmalloc is run with it; where that is missing, it fails."""
    look = "import os, sys; sys.exit(os.environ['LD_PRELOAD'])"
    monkeypatch.setattr(runner, "_COMMAND", (sys.executable, "-c", look))
    monkeypatch.setattr(allocators, "library", lambda name: f"/nowhere/lib{name}.so")
    spec = WorkerSpec(config=Config(allocator="tcmalloc"), cpus=(0,))
    with Workers([spec]) as one, pytest.raises(MeasurementError, match=r"/nowhere/libtcmalloc\.so"):
        one.answers(30)
    monkeypatch.undo()
    monkeypatch.setitem(allocators.LIBRARIES, "jemalloc", ("libnowhere.so.9",))
    with pytest.raises(RequestError, match="'jemalloc' is not installed"):
        Workers([WorkerSpec(config=Config(allocator="jemalloc"), cpus=(0,))])
