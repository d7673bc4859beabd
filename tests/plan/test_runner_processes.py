"""The processes of a plan, seen from outside: whatever they do, none is left."""

import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from scalebench_lib.allocators import LIBRARIES
from scalebench_lib.config import Config
from scalebench_lib.errors import MeasurementError, RequestError
from scalebench_lib.plan import runner
from scalebench_lib.plan.runner import Workers
from scalebench_lib.plan.worker import WorkerSpec
from tests.standins import STAND_IN, instances
from tests.test_allocators import installed
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]
ROLE = WorkerSpec(config=Config(model="bert-tiny"), cpus=(0,))


def test_a_crew_computes_from_a_common_start(monkeypatch) -> None:
    """The batch ends with the last one; the processes end with the workers."""
    monkeypatch.setattr(runner, "_COMMAND", STAND_IN)
    with Workers([ROLE] * 3) as three:
        three.ready(30)
        assert len(instances()) == 3
        assert three.run(30) >= 5_000_000
    assert instances() == []


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("raise SystemExit('no luck')", "an instance ended with code 1: no luck"),
        ("import time; time.sleep(60)", "1 of 1 instances did not answer within 0.5 s"),
    ],
)
def test_an_instance_that_never_gets_ready_is_told(code: str, told: str, monkeypatch) -> None:
    """With its last words, or after its time; and it is ended."""
    command = (sys.executable, "-c", f"{code}  # {STAND_IN[2].splitlines()[0]}")
    monkeypatch.setattr(runner, "_COMMAND", command)
    with Workers([ROLE]) as one, pytest.raises(MeasurementError, match=told):
        one.ready(30 if "luck" in code else 0.5)
    assert instances() == []


def test_instances_end_with_the_command_however_it_ends() -> None:
    """Killed at once, it cannot end them: they must."""
    code = (
        "import os, signal\n"
        "from tests.standins import instances\n"
        "from tests.plan.test_runner_processes import ROLE, Workers\n"
        "workers = Workers([ROLE])\n"
        "workers.ready(60)\n"
        "print(instances()[0].pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    run = [sys.executable, "-c", code]
    told = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, check=False).stdout
    wait_until(lambda: _has_ended(int(told)), 10)


def _has_ended(pid: int) -> bool:
    """Its parent has gone: nobody may have taken notice of its end yet."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_an_instance_is_started_with_its_allocator(monkeypatch) -> None:
    """What was profiled with tcmalloc is run with it; where it is missing, that is told."""
    look = "import os, sys; sys.exit(os.environ['LD_PRELOAD'])"
    monkeypatch.setattr(runner, "_COMMAND", (sys.executable, "-c", look))
    for name in installed():
        role = WorkerSpec(config=Config(allocator=name), cpus=(0,))
        with Workers([role]) as one, pytest.raises(MeasurementError, match=f"lib{name}"):
            one.ready(30)
    monkeypatch.setitem(LIBRARIES, "jemalloc", ("libnowhere.so.9",))
    with pytest.raises(RequestError, match="'jemalloc' is not installed"):
        Workers([WorkerSpec(config=Config(allocator="jemalloc"), cpus=(0,))])
