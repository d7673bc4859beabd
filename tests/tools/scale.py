"""How long a large sweep takes to read: ``python tests/tools/scale.py [RECORDS [SAMPLES]]``.

Makes up RECORDS records (10,000) of four points, SAMPLES a point (8), five trials of each config,
with an executed notebook each. Prints wall and CPU seconds and the most memory of ``status``,
resume and the table: each in a process of its own, first without the system's cache of these files,
then with it.
"""

import os
import resource
import sys
import tempfile
import time
from pathlib import Path
from subprocess import run

import nbformat
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

from scalebench_lib import files
from scalebench_lib.config import Config, Sweep
from scalebench_lib.notebook import write
from scalebench_lib.record import Point
from tests.factories import machine, measured, turns

TRIALS = 5
OPTIMIZATIONS = ("none", "script")
GOALS = {"status": 4, "resume": 4, "table": 8}
"""Seconds for 10,000 records; and 1 GB."""

NOTEBOOK_BYTES = 50_000
"""As many as an executed notebook has, most of them its pictures."""


def status(out: Path) -> str:
    """What ``scalebench status`` asks."""
    from scalebench_lib.sweep.schedule import schedules_by_host

    (state,) = schedules_by_host(out).values()
    return f"{len(state.done)} done, {len(state.left)} left"


def resume(out: Path) -> str:
    """What a sweep decides before it goes on, as if this were the machine of the records."""
    from scalebench_lib.config import SPEC
    from scalebench_lib.machine import Machine
    from scalebench_lib.record import Software
    from scalebench_lib.sweep.sweep_run import SweepRun
    from tests.factories import SOFTWARE

    Machine.here = classmethod(lambda cls: machine(4, smt=False))
    Software.here = classmethod(lambda cls, libraries=None: SOFTWARE)
    state = SweepRun.prepare(Sweep.load(out / SPEC), out).schedule
    return f"{len(state.done)} done, {len(state.left)} left"


def table(out: Path) -> str:
    """What ``scalebench report`` draws."""
    from scalebench_lib.results import Results

    return f"{len(Results.load(out).table)} rows"


def make(out: Path, records: int, samples: int) -> None:
    """A sweep of `records` records in folder `out`."""
    sizes = tuple(range(1, records // TRIALS // len(OPTIMIZATIONS) + 1))
    rounds = Sweep(batch_sizes=sizes, optimizations=OPTIMIZATIONS, threads="all", rounds=TRIALS)
    (out / "sweep.yaml").write_text(rounds.dump(), encoding="utf-8")
    noise = np.random.default_rng(0)
    files.os.fsync = lambda handle: None  # nobody waits for the disk each time
    (out / "notebooks").mkdir()
    for size in sizes:
        for optimization in OPTIMIZATIONS:
            one = measured(
                Config(batch_size=size, optimization=optimization), machine(4, smt=False)
            )
            for number in range(1, TRIALS + 1):
                points = tuple(varied(point, samples, noise) for point in one.points)
                block = f"{number:08x}"
                seen = {"trial": number, "round": number, "block": block, "points": points}
                record = one.model_copy(update=seen)
                record.save(out / "records")
                write(notebook(noise), out / "notebooks" / f"{record.name}.ipynb")
    os.sync()


def notebook(noise: np.random.Generator) -> nbformat.NotebookNode:
    """An executed notebook, as far as its size goes."""
    picture = noise.bytes(NOTEBOOK_BYTES // 2).hex()
    return nbformat.v4.new_notebook(cells=[nbformat.v4.new_raw_cell(picture)])


def forget(out: Path) -> None:
    """Drop the files of `out` from the system's cache."""
    for path in out.glob("*/*"):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def varied(point: Point, samples: int, noise: np.random.Generator) -> Point:
    """`point` with `samples` samples, one a turn, of a machine that drifts."""
    middle = point.turns[0].samples_ns[0]
    times = middle * np.exp(np.abs(noise.normal(0, 0.05, samples)) + noise.normal(0, 0.01, samples))
    return Point(**{**dict(point), "turns": turns(times.astype(int).tolist())})


def timed(step: str, out: Path) -> None:
    """Run `step` in this process and tell what it took."""
    wall = time.perf_counter()
    found = globals()[step](out)
    used = resource.getrusage(resource.RUSAGE_SELF)
    print(
        f"{step:7} {time.perf_counter() - wall:6.2f} s, {used.ru_utime + used.ru_stime:6.2f} s of "
        f"CPU with imports, {used.ru_maxrss / 1e6:.2f} GB, goal {GOALS[step]} s: {found}",
        flush=True,
    )


def main(records: int = 10_000, samples: int = 8) -> None:
    """Make the records and time every step, twice."""
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder), records, samples)
        size = sum(path.stat().st_size for path in Path(folder).glob("*/*"))
        print(f"{records} records with their notebooks, {size / 1e6:.0f} MB", flush=True)
        for step in GOALS:
            forget(Path(folder))
            for how in ("cold", "warm"):
                print(how, end=" ", flush=True)
                run([sys.executable, __file__, step, folder], check=True)


if __name__ == "__main__":
    if sys.argv[1:2] and sys.argv[1] in GOALS:
        timed(sys.argv[1], Path(sys.argv[2]))
    else:
        main(*map(int, sys.argv[1:]))
