"""Records of simulated machines, whose true ratios are known.

A block is a process for each config, alive together; cycle by cycle each of their points has a
turn, in shuffled order. What a turn meets is its point's latency, its process's own speed, the
machine at that moment, and noise. Machines have steps, ramps, or states; some have processes
that are slower, or passes far out.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations

import numpy as np

from scalebench_lib.config import Config
from scalebench_lib.record import Record, Turn
from scalebench_lib.results import PointKey
from tests import factories

ON = factories.machine(cores=2, smt=False)
CONFIGS = tuple(factories.configs(ON, [1, 4, 16]))
THREADS = (1, 2)
HORIZON_S = 20_000.0
TURN_S = 0.35

Speed = Callable[[np.ndarray, int], np.ndarray]
"""How slow the machine is, as a log, at moments in s, for a point by its number."""


@dataclass(frozen=True)
class Machine:
    """A machine's `speed` over time, and the noise of processes and turns on it, as logs."""

    speed: Speed
    process_sd: float = 0.008
    noise_sd: float = 0.01
    outliers: float = 0.0
    slow_process: float = 0.0


def steady(random: np.random.Generator) -> Machine:
    """A machine that keeps its speed."""
    return Machine(lambda at, _: np.zeros_like(at))


def steps(random: np.random.Generator) -> Machine:
    """A machine that goes from one speed to another every 40 s, by up to 25 %."""
    edges = np.sort(random.uniform(0, HORIZON_S, int(HORIZON_S / 40)))
    levels = random.uniform(0, 0.25, edges.size + 1)
    return Machine(lambda at, _: levels[np.searchsorted(edges, at)])


def ramps(random: np.random.Generator) -> Machine:
    """A machine that drifts for minutes on end, by up to 30 %."""
    corners = np.arange(0, HORIZON_S + 300, 150.0)
    levels = random.uniform(0, 0.3, corners.size)
    return Machine(lambda at, _: np.interp(at, corners, levels))


def states(random: np.random.Generator) -> Machine:
    """A machine whose second CPU is slower for 30 s, by what differs from point to point.

    Points of one thread do not notice.
    """
    edges = np.cumsum(random.exponential(30, int(HORIZON_S / 15)))
    slow = np.abs(random.normal(0, 0.5, edges.size + 1))
    felt = np.where(np.arange(len(CONFIGS) * 2) % 2, random.uniform(0.02, 0.15, 12), 0.0)
    return Machine(lambda at, point: slow[np.searchsorted(edges, at)] * felt[point])


def far_out(random: np.random.Generator) -> Machine:
    """A machine that takes twice the time for one turn in 20."""
    return Machine(lambda at, _: np.zeros_like(at), outliers=0.05)


def one_slower(random: np.random.Generator) -> Machine:
    """A machine on which one process of each block is 3 % slower than it should be."""
    return Machine(lambda at, _: np.zeros_like(at), slow_process=0.03)


Slower = Mapping[str, float] | float
"""A factor on the latencies of all configs, or of some by their id."""

MACHINES = (steady, steps, ramps, states, far_out, one_slower)


@dataclass(frozen=True)
class Sweep:
    """A sweep of `CONFIGS` on a simulated machine, a block a round."""

    machine: Machine
    records: list[Record]
    slower: Slower = 1.0

    @cached_property
    def truth(self) -> dict[PointKey, np.ndarray]:
        """The log of each point's latency over the whole life of the machine, without noise."""
        at = np.linspace(0, HORIZON_S, 20_000)
        return {
            key: _log_ns(config, threads, self.slower) + self.machine.speed(at, number)
            for number, (key, config, threads) in enumerate(_points(CONFIGS))
        }

    def true_ratio(self, one: PointKey, other: PointKey) -> float:
        """What endless turns of both would give."""
        return float(np.exp(np.median(self.truth[one] - self.truth[other])))

    def true_latency_ns(self, key: PointKey) -> float:
        """The median over the whole life of the machine."""
        return float(np.exp(np.median(self.truth[key])))

    @property
    def pairs(self) -> list[tuple[PointKey, PointKey]]:
        """All pairs of points."""
        return list(combinations(self.truth, 2))


def sweep(
    kind: Callable[[np.random.Generator], Machine],
    seed: int,
    rounds: int = 2,
    cycles: int = 15,
    gap_s: float = 300.0,
    slower: Slower = 1.0,
) -> Sweep:
    """Measure `CONFIGS` on a machine of some `kind`, in rounds minutes apart.

    Sweeps of unequal seeds share no block.
    """
    random = np.random.default_rng(seed)
    machine, records = kind(random), list[Record]()
    now = random.uniform(0, 0.7 * HORIZON_S)
    for number in range(1, rounds + 1):
        name = f"{seed % 2**24:06x}{number:02x}"
        records += block(machine, random, number, now, cycles, slower, name)
        turns = len(CONFIGS) * len(THREADS) * cycles
        now += turns * TURN_S + random.uniform(0.2, 1.8) * gap_s
    return Sweep(machine, records, slower)


def block(
    machine: Machine,
    random: np.random.Generator,
    number: int,
    now_s: float,
    cycles: int,
    slower: Slower = 1.0,
    name: str = "",
) -> list[Record]:
    """The records of one block: every config in a process of its own, all in turn."""
    names, count = list(_points(CONFIGS)), len(CONFIGS) * len(THREADS)
    order = random.permuted(np.tile(np.arange(count), (cycles, 1)), axis=1)
    starts = np.empty((cycles, count))
    np.put_along_axis(starts, order, now_s + TURN_S * np.arange(order.size).reshape(order.shape), 1)
    own = np.repeat(random.normal(0, machine.process_sd, len(CONFIGS)), len(THREADS))
    slow = len(THREADS) * random.integers(len(CONFIGS))
    own[slow : slow + len(THREADS)] += machine.slow_process
    logs = own + random.normal(0, machine.noise_sd, starts.shape)
    logs += np.log(2) * (random.random(starts.shape) < machine.outliers)
    for point, (_, config, threads) in enumerate(names):
        logs[:, point] += _log_ns(config, threads, slower)
        logs[:, point] += machine.speed(starts[:, point], point)
    found = {key: (starts[:, i], logs[:, i]) for i, (key, _, _) in enumerate(names)}
    return [record(config, number, name or f"{number:08x}", found) for config in CONFIGS]


def record(
    config: Config,
    number: int,
    block_name: str,
    found: Mapping[PointKey, tuple[np.ndarray, np.ndarray]],
) -> Record:
    """The record of a trial in round `number`: starts in s and logs of ns by point."""
    points = (
        factories.with_turns(
            factories.point(config, ON, threads), _turns(*found[config.id, threads])
        )
        for threads in THREADS
    )
    update = {"trial": number, "round": number, "block": block_name, "points": tuple(points)}
    return factories.measured(config, ON).model_copy(update=update)


def only_cycles(found: Record, keep: Callable[[int], bool]) -> Record:
    """`found` without the turns of cycles that are not to `keep`."""
    points = [
        factories.with_turns(point, (turn for turn in point.turns if keep(turn.cycle)))
        for point in found.points
    ]
    return found.model_copy(update={"points": tuple(points)})


def _log_ns(config: Config, threads: int, slower: Slower) -> float:
    factor = slower if isinstance(slower, float) else slower.get(config.id, 1.0)
    return float(np.log(1e6 * factor * factories.latency_ms(config, threads)))


def _turns(starts_s: np.ndarray, logs: np.ndarray) -> tuple[Turn, ...]:
    values = zip(starts_s, np.exp(logs), strict=True)
    return tuple(
        Turn.model_construct(cycle=cycle, start_ns=int(at * 1e9), samples_ns=(int(ns),))
        for cycle, (at, ns) in enumerate(values, start=1)
    )


def _points(configs: Sequence[Config]) -> Iterable[tuple[PointKey, Config, int]]:
    for config in configs:
        for threads in THREADS:
            yield (config.id, threads), config, threads
