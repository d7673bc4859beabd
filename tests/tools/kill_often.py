"""Kill a sweep again and again, at random moments, and go on with it each time. Run by hand:

    python -m tests.tools.kill_often FOLDER [--kills 100] [--seed 0] [--configs 20]

A sweep of 20 configs of bert-tiny is started, killed with SIGKILL after a random time, and looked
at: is a record lost, changed, doubled or half there? Does every trial share its block with its
base? How many trials were begun for nothing? When it is done, the next one starts, until there were
kills enough. A few kills are a slow test.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from scalebench_lib import cli
from scalebench_lib.config import Trial
from scalebench_lib.errors import ScalebenchError
from scalebench_lib.protocol import TURN_S
from scalebench_lib.record import Record, load_records
from scalebench_lib.sweep import runner
from scalebench_lib.sweep.trial_process import TrialProcess

SWEEP = (
    *("--model", "bert-tiny", "--optimizations", "none,script", "--threads", "1"),
    *("--rounds", "1", "--max-seconds", "0.2", "--target-ci", "0.2"),
)
BLOCK = 5
"""Trials in a block, so that kills meet blocks in all of their phases."""


def sweep(out: Path, configs: int) -> None:
    """The command, with blocks of `BLOCK` trials; each one is noted in a file when it begins."""
    begin = TrialProcess.__init__

    def noted(self: TrialProcess, trial: Trial, *rest: object) -> None:
        with (out.parent / "begun").open("a") as file:
            file.write(trial.name + "\n")
        begin(self, trial, *rest)  # type: ignore[arg-type]

    TrialProcess.__init__ = noted  # type: ignore[method-assign,assignment]
    runner.BLOCK_S = BLOCK * TURN_S
    sizes = ",".join(map(str, range(1, configs // 2 + 1)))
    sys.argv = ["scalebench", "sweep", str(out), *SWEEP, "--batch-sizes", sizes]
    cli.main()


def contents(out: Path) -> dict[str, bytes]:
    """The records in the folder, by name."""
    return {path.stem: path.read_bytes() for path in (out / "records").glob("*.json")}


def config(name: str) -> str:
    """The config's id in the name of a trial."""
    return name.rpartition("-t")[0]


def unpaired(out: Path) -> list[Record]:
    """The trials that do not share their block with their base."""
    records = load_records(out)
    bases = {(r.block, r.config.group) for r in records if r.config.optimization == "none"}
    return [record for record in records if (record.block, record.config.group) not in bases]


def whole(path: Path) -> bool:
    """Whether the record at `path` can be read, and is one of a success."""
    try:
        return Record.load(path).status == "ok"
    except ScalebenchError:
        return False


def look(counts: Counter, out: Path, before: dict[str, bytes]) -> None:
    """Compare the folder with what was in it before the run that has just ended."""
    now = contents(out)
    begun, bases = (out.parent / "begun").read_text().split(), {n for n in now if "-none-" in n}
    done = {config(name) for name in before}
    counts["lost"] += sum(name not in now for name in before)
    counts["changed"] += sum(now.get(name, text) != text for name, text in before.items())
    counts["half"] += sum(not whole(out / "records" / f"{name}.json") for name in now)
    counts["half"] += len(list(out.glob("*/*.invalid")))
    counts["doubled"] += len(now.keys() - bases) - len(
        {config(name) for name in now.keys() - bases}
    )
    counts["done trials begun again"] += sum("-none-" not in n and config(n) in done for n in begun)
    counts["bases again"] += len(bases) - len({config(name) for name in bases})
    counts["unpaired"] += len(unpaired(out))
    read_status = sum(name not in now for name in begun)
    counts["redone"] += read_status
    counts["most redone after a kill"] = max(read_status, counts["most redone after a kill"])


def one_sweep(
    out: Path, configs: int, kills: int, longest_s: float, draw: random.Random, counts: Counter
) -> None:
    """Start, kill and go on until the sweep of `configs` in `out` is done."""
    command = [
        sys.executable,
        "-m",
        "tests.tools.kill_often",
        "--run",
        "--configs",
        str(configs),
        out,
    ]
    out.parent.mkdir(parents=True)
    code = None
    while code != 0:
        before = contents(out)
        (out.parent / "begun").write_text("")
        run = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
        try:
            code = run.wait(draw.uniform(0, longest_s) if counts["kills"] < kills else 600)
        except subprocess.TimeoutExpired:
            run.send_signal(signal.SIGKILL)
            code = run.wait()
            counts["kills"] += 1
            counts["kills between the first record and the last"] += bool(contents(out))
            time.sleep(draw.choice([0, 0, 2]))
        counts["refused"] += code not in (0, -signal.SIGKILL)
        look(counts, out, before)
    counts["sweeps"] += 1
    counts["configs missing"] += configs - len({config(name) for name in contents(out)})
    counts["litter"] += sum(path.name.startswith(".") for path in out.glob("*/*"))


def main() -> None:
    """Kill, look, go on; print the figures as JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--run", action="store_true")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--longest", type=float, default=20.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--configs", type=int, default=20)
    asked = parser.parse_args()
    if asked.run:
        sweep(asked.folder, asked.configs)
    os.environ.setdefault("SCALEBENCH_RUNTIME_DIR", str(asked.folder))
    draw, counts = random.Random(asked.seed), Counter()  # noqa: S311
    while counts["kills"] < asked.kills:
        out = asked.folder / str(counts["sweeps"]) / "sweep"
        one_sweep(out, asked.configs, asked.kills, asked.longest, draw, counts)
        print(json.dumps(counts), flush=True)


if __name__ == "__main__":
    main()
