"""Made-up records: what a sweep would leave on machines that we do not have.

Deterministic, with latencies from a plausible formula, so that figures and pages can be tested
(and looked at) where there are neither 16 cores nor hyper-threading.
"""

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np

from scalebench_lib.config import PAGE_BATCH_SIZES, Config, Sweep
from scalebench_lib.machine import Core, Machine
from scalebench_lib.operators import OperatorTimes
from scalebench_lib.record import Point, Record, Setup, Software, Turn

START = datetime(2025, 3, 1, 9, 30, tzinfo=UTC)
SOFTWARE = Software(
    python="3.12.9",
    scalebench="0.1.0",
    versions={"numpy": "2.2.0", "torch": "2.6.0", "transformers": "4.50.0"},
    libraries={"openmp": "libgomp"},
    environment={"OMP_NUM_THREADS": "16"},
)
BLOCK = "0000000a"
"""All made-up records took turns with each other."""

SCRIPT_SPEEDUP = 1.12
SMT_SPEEDUP = 1.18


def machine(cores: int = 16, smt: bool = True) -> Machine:
    """A one-socket machine; with SMT, core i holds CPUs i and i + `cores`."""
    return Machine(
        cpu_model="Madeup 9000",
        cores=tuple(Core(cpus=(i, i + cores) if smt else (i,)) for i in range(cores)),
        memory_bytes=64 * 2**30,
        system="Linux",
        kernel="6.1.0",
        architecture="x86_64",
    )


def latency_ms(config: Config, threads: int) -> float:
    """Amdahl's law, with a cost for each thread that takes part; two threads share a core."""
    power = threads if not config.smt else threads // 2 * SMT_SPEEDUP + threads % 2
    work = 30.0 * config.batch_size * config.seq_len / 16
    speedup = SCRIPT_SPEEDUP if config.optimization == "script" else 1.0
    return (6.0 + work * (0.02 + 0.98 / power)) / speedup + 0.1 * threads


def samples_ns(config: Config, threads: int) -> tuple[int, ...]:
    """8 noisy samples, one a turn, or 3 of a pass that takes longer than two seconds."""
    seed = [config.batch_size, config.seq_len, threads, *config.id.encode()]
    middle = latency_ms(config, threads)
    noise = np.random.default_rng(seed).normal(0, 0.015, size=3 if middle > 2000 else 8)
    return tuple(int(ns) for ns in middle * 1e6 * np.exp(noise))


def turns(samples: Iterable[int]) -> tuple[Turn, ...]:
    """A turn for each of `samples`, one after another, in cycles 1, 2, …"""
    times = tuple(samples)
    starts = np.cumsum((0, *times[:-1])).tolist()
    return tuple(
        Turn(cycle=cycle, start_ns=start, samples_ns=(ns,))
        for cycle, (start, ns) in enumerate(zip(starts, times, strict=True), start=1)
    )


def point(config: Config, on: Machine, threads: int, pinned: bool = True) -> Point:
    """A point of `config` at `threads` threads."""
    samples = samples_ns(config, threads)
    return Point(
        threads=threads,
        cores=on.cores_of(threads, config.smt),
        cpus=on.cpus_for(threads, config.smt, config.placement) if pinned else (),
        pinned=pinned,
        turns=turns(samples),
        warmup_ns=samples[:1],
    )


def with_turns(point: Point, turns: Iterable[Turn]) -> Point:
    """`point` with other turns; a plain copy would keep the samples that it remembers."""
    values = {name: getattr(point, name) for name in Point.model_fields}
    return Point.model_construct(**{**values, "turns": tuple(turns)})


def measured(config: Config, on: Machine, pinned: bool = True) -> Record:
    """The record of a trial of `config` that went well, at every thread count."""
    counts = on.thread_counts("all", config.smt)
    return Record(
        status="ok",
        ended_by="target_ci",
        points=tuple(point(config, on, threads, pinned) for threads in counts),
        peak_memory_bytes=(900 + 12 * config.batch_size) * 10**6,
        resident_bytes=(700 + 10 * config.batch_size) * 10**6,
        setup=setup(config),
        operators=operators(config, counts[-1]),
        flops=config.batch_size * config.seq_len * 170_000_000,
        **_identity(config, on),
    )


def setup(config: Config) -> Setup:
    """Seconds of a set-up: what is not eager was taken from disk."""
    ready_s = 0.0 if config.optimization == "none" else 4.0
    state = None if config.optimization == "none" else "full"
    first_s = latency_ms(config, 1) / 1e3
    return Setup(
        build_s=1.5,
        optimize_s=2 * ready_s,
        first_pass_s=first_s,
        ready_s=ready_s,
        export_cache=state,
    )


def operators(config: Config, threads: int) -> OperatorTimes:
    """Five passes under torch's profiler: the larger the batch, the more of it are products."""
    size = config.batch_size
    ms = {"addmm": 20 * size, "bmm": 2 * size, "native_layer_norm": size, "gelu": size}
    ms |= {"embedding": 1, "_to_copy": 1}
    self_ns = {f"aten::{name}": 10**6 * time for name, time in ms.items()}
    wall_ns = sum(self_ns.values()) + 5 * 10**6
    return OperatorTimes(threads=threads, passes=5, wall_ns=wall_ns, self_ns=self_ns)


def disturbed(record: Record, first: int = 0, threads: int = 2, **had: float) -> Record:
    """`record`, undisturbed; but the `first` turns at that many threads have `had`: see `_had`."""
    points = []
    for point in record.points:
        many = first if point.threads == threads else 0
        turns = [_had(turn, point.threads, **had) for turn in point.turns[:many]]
        turns += [_had(turn, point.threads) for turn in point.turns[many:]]
        points.append(with_turns(point, turns))
    return record.model_copy(update={"points": tuple(points)})


def _had(
    turn: Turn, threads: int, waited: float = 0, stolen: float = 0, throttled: int = 0
) -> Turn:
    """`turn` of which these shares were waited and stolen, in so many throttled periods."""
    (ns,) = turn.samples_ns
    told = {"waited_ns": round(waited * ns), "stolen_ns": round(stolen * ns)}
    return turn.model_copy(update={"cpu_ns": threads * ns, "throttled": throttled, **told})


def missing(config: Config, on: Machine, status: str, reason: str) -> Record:
    """The record of a config that failed or was skipped."""
    return Record(status=status, reason=reason, **_identity(config, on))


def _identity(config: Config, on: Machine) -> dict:
    return {
        "config": config,
        "config_id": config.id,
        "trial": 1,
        "round": 1,
        "block": BLOCK,
        "started": START,
        "finished": START + timedelta(minutes=5),
        "machine": on,
        "software": SOFTWARE,
    }


def configs(
    on: Machine,
    batch_sizes: Iterable[int] = PAGE_BATCH_SIZES,
    optimizations: Iterable[str] = ("none", "script"),
    **fixed: object,
) -> list[Config]:
    """Every combination of `batch_sizes`, `optimizations` and the SMT that `on` has."""
    sweep = Sweep(batch_sizes=tuple(batch_sizes), optimizations=tuple(optimizations))
    return [trial.config.model_copy(update=fixed) for trial in sweep.trials(on)]


def full_records() -> list[Record]:
    """The whole page of a machine with 16 cores and 32 hardware threads."""
    return [measured(config, machine()) for config in configs(machine())]


def small_records(batch_sizes: Iterable[int] = (1, 4, 16), **fixed: object) -> list[Record]:
    """A quick sweep of a machine with 2 cores and no SMT."""
    small = machine(cores=2, smt=False)
    return [measured(config, small) for config in configs(small, batch_sizes, **fixed)]


def save_sweep(out: Path, records: Iterable[Record]) -> Path:
    """Write `records` and a ``sweep.yaml`` into folder `out`, and return it."""
    records = list(records)
    for record in records:
        record.save(out / "records")
    sizes = tuple(sorted({record.config.batch_size for record in records}))
    sweep = Sweep(batch_sizes=sizes, rounds=1)
    (out / "sweep.yaml").write_text(sweep.dump(), encoding="utf-8")
    return out
