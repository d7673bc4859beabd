"""Two sweeps, point by point: is B slower than A? With an interval for every answer.

The ratio of a point is B's latency over A's: above 1, B takes longer. Two sweeps share no minutes
(`compare`), so a machine that was slower in B's minutes raises all ratios alike; or all of a
thread count, for as long as one of its CPUs is slower. That is estimated first, as the median
over the points of each thread count. Its interval comes from how latencies differed from round to
round. A point is judged by what is left, its ratio over the common one. From that the minutes are
taken out cycle by cycle: each turn less the median of the other points' turns.

Two environments whose trials shared their blocks met the same minutes (`against`): their ratios
are paired turn by turn, and nothing is taken out.

A point is called faster or slower only when its change is larger than `threshold` and clear of
noise. Many points are compared at once, so clear means more than leaving one interval: the false
discovery rate is held at 5 % (Benjamini and Hochberg). Where nothing has changed, at most 1
comparison in 20 calls any point, and of the points that are called 1 in 20 is by chance.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from scipy import stats

from scalebench_lib.errors import RequestError
from scalebench_lib.machine import perhaps_another_host
from scalebench_lib.record import Record, write_atomically
from scalebench_lib.results import MeasuredPoint, PointKey, Results, twins
from scalebench_lib.stats import (
    ASSUMED_DF,
    CONFIDENCE,
    Interval,
    Ratio,
    Spread,
    Variance,
    median_variance,
)

Verdict = Literal["slower", "faster", "same", "unclear", "lost", "only A", "only B"]
"""`unclear` are points that both sides measured and that cannot be judged, `lost` those that A
measured and B could not; B was never asked for those of ``only A``."""

THRESHOLD = 0.05
"""Sweeps of the same thing on a shared machine were seen to differ by 1 % in the median point and
by up to 6 % at worst; what is smaller than this is not worth a red build."""

THRESHOLD_AGAINST = 0.02
"""Of two environments that took turns: points with themselves differed by 0.7 % in the median."""

WIDE, TOO_WIDE = 0.10, 0.20
"""Half of a ratio's interval. From the first on, the point says what could hide in it; beyond the
second a slow-down by a fifth could, and "same" would mean nothing."""

MOST_OUTLIERS = 1 / 3
"""A median holds with up to half of its passes slowed down; this keeps well away from that."""

MIN_COMMON = 4
"""The median of fewer points is one of them, or close: it would hide the change of that one."""

ASSUMED_DRIFT = 0.05
"""Standard deviation of the logs of all latencies together, from one round to the next, where a
sweep has one round. On a shared machine 1 to 7 % were seen."""

_WHAT = (
    "model",
    "seq_len",
    "image_size",
    "optimization",
    "smt",
    "placement",
    "allocator",
    "device",
)

_COLUMNS = [
    *("config_id", *_WHAT, "batch_size", "threads", "latency_ms_a", "latency_ms_b"),
    *("ratio", "ratio_low", "ratio_high", "beyond", "beyond_low", "beyond_high"),
    *("chance", "verdict", "why"),
]

_Points = Mapping[PointKey, MeasuredPoint]


@dataclass(frozen=True)
class Common:
    """The change common to all points of some thread counts: B's latencies over A's.

    `where` are these counts, each with whether SMT is on.
    """

    where: tuple[tuple[int, bool], ...]
    ratio: Ratio
    verdict: Verdict


@dataclass(frozen=True)
class Comparison:
    """What comparing sweep `a` with sweep `b` found.

    `common` is what was taken out of the ratios. `table` has one row a point of either side: its
    config, ``latency_ms_a`` and ``_b``, ``ratio`` (B over A), what is left of it ``beyond`` the
    common, each with ``_low`` and ``_high``, ``chance`` (the p-value of ``beyond``), ``verdict``,
    and ``why`` where it needs a word. `differences` are what machine and software do not share,
    `notes` whatever else a reader has to know.
    """

    a: str
    b: str
    machine: str
    threshold: float
    differences: list[str]
    table: pd.DataFrame
    common: tuple[Common, ...] = ()
    notes: tuple[str, ...] = ()

    def count(self, verdict: Verdict) -> int:
        """How many points got `verdict`."""
        return int((self.table["verdict"] == verdict).sum())

    @property
    def worse(self) -> bool:
        """Whether any point is slower in B, or all of a thread count are, or B lost any."""
        together = any(each.verdict == "slower" for each in self.common)
        return together or self.count("slower") + self.count("lost") > 0


def compare(
    a: Path,
    b: Path,
    threshold: float = THRESHOLD,
    anyway: bool = False,
    model_a: str | None = None,
    model_b: str | None = None,
) -> Comparison:
    """Compare the sweeps in folders `a` and `b`; a change up to `threshold` is none.

    `model_a` and `model_b` name one model that the two sweeps know by different names, as one in
    two folders; other models are left out. Raises `RequestError` where there is nothing to
    compare, and, unless `anyway`, where machine or software differ.
    """
    if not 0 <= threshold < 1:
        raise RequestError(f"threshold: must be at least 0 and below 1, not {threshold:g}")
    before, after = (_loaded(out, anyway) for out in (a, b))
    if model_a or model_b:
        before, after = _of_one_model(before, after, model_a, model_b)
    _require_common_configs(a, b, before, after)
    changes, common = _changes(before.points, after.points, threshold)
    found = _comparison(a, b, before, after, changes, threshold, common)
    if found.differences and not anyway:
        differences = "; ".join(found.differences)
        raise RequestError(f"{a} and {b} differ in {differences}: compare them with --anyway")
    return found


def against(a: Path, b: Path) -> Comparison:
    """Compare the sweeps in folders `a` and `b`, whose trials shared their blocks.

    Ratios are paired turn by turn. Other software is what was asked about: it is named, and never
    refused. Raises `RequestError` where there is nothing to compare.
    """
    before, after = (_loaded(out, any_machine=False) for out in (a, b))
    _require_common_configs(a, b, before, after)
    ratios = twins(after, before)
    changes = {key: _Change(ratio, ratio) for key, ratio in ratios.items()}
    return _comparison(a, b, before, after, changes, THRESHOLD_AGAINST)


def _loaded(out: Path, any_machine: bool) -> Results:
    found = Results.load(out, any_machine)
    if found.imported:
        raise RequestError(f"{out} is imported: published means cannot be compared point by point")
    return found


def _of_one_model(
    before: Results, after: Results, model_a: str | None, model_b: str | None
) -> tuple[Results, Results]:
    """Both sides' records of one model, those of `after` by the name that it has in `before`."""
    if not (model_a and model_b):
        raise RequestError("model-a and model-b belong together: name the model in both sweeps")
    ours = _of_model(before, model_a, "A")
    name = ours[0].config.model
    theirs = (_renamed(record, name) for record in _of_model(after, model_b, "B"))
    return Results.of(ours), Results.of(theirs)


def _of_model(side: Results, model: str, name: str) -> list[Record]:
    """Raises `RequestError` where there is no record of `model`, naming the models there are."""
    found = [r for r in side.records if r.config.model in (model, f"./{model}")]
    if not found:
        models = ", ".join(sorted({record.config.model for record in side.records}))
        raise RequestError(f"model-{name.lower()}: {name} has no model {model!r}; it has {models}")
    return found


def _renamed(record: Record, model: str) -> Record:
    config = record.config.model_copy(update={"model": model})
    return record.model_copy(update={"config": config, "config_id": config.id})


def _require_common_configs(a: Path, b: Path, before: Results, after: Results) -> None:
    if _asked(before) & _asked(after):
        return
    ours, theirs = ({record.config.model for record in side.records} for side in (before, after))
    hint = ": if a model lies in two folders, name both with --model-a and --model-b"
    raise RequestError(
        f"{a} and {b} have no config in common, so nothing can be compared"
        f"{'' if ours & theirs else hint}"
    )


def _asked(side: Results) -> set[str]:
    return {record.config_id for record in side.records}


def _comparison(
    a: Path,
    b: Path,
    before: Results,
    after: Results,
    changes: Mapping[PointKey, _Change],
    threshold: float,
    common: tuple[Common, ...] = (),
) -> Comparison:
    return Comparison(
        a=a.resolve().name,
        b=b.resolve().name,
        machine=_titles(before.records),
        threshold=threshold,
        differences=list(_differences(before, after)),
        table=_table(before, after, changes, threshold),
        common=common,
        notes=tuple(_notes(before, after)),
    )


def _titles(records: Iterable[Record]) -> str:
    return "; ".join(dict.fromkeys(record.machine.title for record in records))


def _differences(before: Results, after: Results) -> Iterator[str]:
    """What the records of configs that both measured do not share: ``torch 2.6.0 → 2.7.0``."""
    both = _asked(before) & _asked(after)
    sides = [
        [r for r in side.records if r.status == "ok" and r.config_id in both]
        for side in (before, after)
    ]
    if what := _other_machine(*sides):
        titles = [_titles(side) for side in sides]
        yield f"machine ({what}) {titles[0]} → {titles[1]}"
    facts = [_facts(side) for side in sides]
    for name in sorted(facts[0].keys() | facts[1].keys()):
        values = [", ".join(sorted(side.get(name, {"none"}))) for side in facts]
        if values[0] != values[1] and all(sides):
            yield f"{name} {values[0]} → {values[1]}"


def _other_machine(before: list[Record], after: list[Record]) -> str | None:
    one, other = ({record.machine for record in side} for side in (before, after))
    return next((what for x, y in product(one, other) if (what := x.differs_from(y))), None)


def _facts(records: Iterable[Record]) -> dict[str, set[str]]:
    """Every value of each fact about the software, the kernel and its governor."""
    found: dict[str, set[str]] = {}
    for record in records:
        told: dict[str, object] = {
            "OS kernel": record.machine.kernel,
            "governor": record.machine.governor,
        }
        for name, value in record.software.model_dump().items():
            told |= value if isinstance(value, dict) else {name: value}
        for name, value in told.items():
            found.setdefault(name, set()).add(str(value))
    return found


def _notes(before: Results, after: Results) -> Iterator[str]:
    sides = ([record.machine for record in side.records] for side in (before, after))
    if told := perhaps_another_host(*sides):
        yield told
    if before.assumed_spread or after.assumed_spread:
        yield "without a second round on both sides it is assumed how much rounds differ"


@dataclass(frozen=True)
class _Change:
    """How much longer a point takes in B: its `ratio`, and what of it is `beyond` the common."""

    ratio: Ratio
    beyond: Ratio


def _changes(
    before: _Points, after: _Points, threshold: float
) -> tuple[dict[PointKey, _Change], tuple[Common, ...]]:
    """The change of each point that both sides have, and what is common to many."""
    ratios = {key: _apart(before[key], after[key]) for key in before if key in after}
    changes = {key: _Change(ratio, ratio) for key, ratio in ratios.items()}
    told = [key for key in ratios if _most_outliers(before[key], after[key]) <= MOST_OUTLIERS]
    kinds, factors = list(_kinds(before, told)), list[Ratio]()
    for kind in kinds:
        sides = (_levels({key: side[key] for key in kind}) for side in (before, after))
        factor, beyond = _split(*sides)
        factors.append(factor)
        changes |= {key: _Change(ratios[key], left) for key, left in beyond.items()}
    values, chance = ([each.value for each in factors], [each.p_value for each in factors])
    verdicts, _ = _called(np.array(values), np.array(chance), threshold)
    where = [tuple(sorted({(key[1], before[key].config.smt) for key in kind})) for kind in kinds]
    return changes, tuple(map(Common, where, factors, verdicts.tolist()))


def _kinds(points: _Points, keys: Iterable[PointKey]) -> Iterator[list[PointKey]]:
    """The points that a state of the machine changes together: those of one thread count.

    Counts of fewer than `MIN_COMMON` points are put together; what is fewer still is left out.
    """
    found: dict[tuple[int, bool], list[PointKey]] = defaultdict(list)
    for key in keys:
        found[key[1], points[key].config.smt].append(key)
    rest = [key for kind in found.values() if len(kind) < MIN_COMMON for key in kind]
    for kind in (*(kind for kind in found.values() if len(kind) >= MIN_COMMON), rest):
        if len(kind) >= MIN_COMMON:
            yield kind


def _apart(one: MeasuredPoint, other: MeasuredPoint) -> Ratio:
    """The ratio of two latencies whose errors are independent."""
    a, b = one.latency, other.latency
    return _ratio(math.log(b.value / a.value), a.variance + b.variance)


def _ratio(log: float, variance: Variance) -> Ratio:
    return Ratio(math.exp(log), variance, "not measured together")


def _most_outliers(one: MeasuredPoint, other: MeasuredPoint) -> float:
    return max(float(point.outlier.mean()) for point in (one, other))


@dataclass(frozen=True)
class _Levels:
    """The logs of latencies of a sweep, without what the turns of a cycle had in common.

    `common` is the variance of the mean of all `logs`, by the minutes that they were measured in;
    `noise` that of each beside it.
    """

    logs: dict[PointKey, float]
    noise: dict[PointKey, Variance]
    common: Variance


def _split(before: _Levels, after: _Levels) -> tuple[Ratio, dict[PointKey, Ratio]]:
    """The factor common to the points of both levels, and what is left of each point's ratio."""
    change = {key: after.logs[key] - before.logs[key] for key in before.logs}
    noise = {key: before.noise[key] + after.noise[key] for key in change}
    middle = _middle(list(change.values()))
    doubt = _doubt(list(noise.values()), processes=len({key[0] for key in change}))
    factor = _ratio(middle, before.common + after.common + doubt)
    return factor, {key: _ratio(change[key] - middle, noise[key] + doubt) for key in change}


def _middle(changes: Sequence[float]) -> float:
    """The median; of the two in the middle the one nearer to 0.

    Where half of the points changed, the factor is that of the others, not one between.
    """
    ordered, half = sorted(changes), len(changes) // 2
    return min(ordered[half], ordered[-half - 1], key=abs)


def _doubt(noise: Sequence[Variance], processes: int) -> Variance:
    """The variance of a median of points of this `noise`; those of a process count as one."""
    typical = sorted(noise, key=lambda each: each.value)[len(noise) // 2]
    return typical * (math.pi / 2 / processes)


def _levels(points: _Points) -> _Levels:
    """The levels of `points`: of one sweep, and such as share the states of the machine.

    A point that was alone in its blocks keeps its latency, and the error of that.
    """
    logs = {key: math.log(point.latency.value) for key, point in points.items()}
    shares, alone = _shares(points), _errors(points)
    minutes, mean = _of_a_block(alone, shares), defaultdict[str, float](float)
    for block, share in (item for each in shares.values() for item in each.items()):
        mean[block] += share / len(points)
    common = sum(share**2 for share in mean.values())
    beside, noise = _beside_others(points), dict(alone)
    spread = Spread.of(beside.values(), _contrasts(points))
    for key, parts in beside.items():
        own = sum(share * (share - 2 * mean[block]) for block, share in shares[key].items())
        logs[key] += float(np.median(np.concatenate(parts)))
        noise[key] = median_variance(parts, spread) + minutes * max(own + common, 0.0)
    return _Levels(logs, noise, minutes * common)


def _errors(points: _Points) -> dict[PointKey, Variance]:
    """The variance of each point's log latency, with all that its minutes did to it."""
    blocks = {block for point in points.values() for block in point.by_block}
    drift = Spread.of((point.parts for point in points.values()), len(blocks))
    if drift.assumed:
        drift = replace(drift, between=Variance(ASSUMED_DRIFT**2, ASSUMED_DF))
    return {key: median_variance(point.parts, drift) for key, point in points.items()}


def _of_a_block(
    errors: Mapping[PointKey, Variance], shares: Mapping[PointKey, Mapping[str, float]]
) -> Variance:
    """The variance that the minutes of one block bring, from that of a typical point's latency."""
    key = sorted(errors, key=lambda key: errors[key].value)[len(errors) // 2]
    return errors[key] * (1 / sum(share**2 for share in shares[key].values()))


def _beside_others(points: _Points) -> dict[PointKey, list[np.ndarray]]:
    """The turns of each point less the median of the other points' in the same cycle, by block.

    All are logs over their point's latency.
    """
    found: dict[PointKey, list[np.ndarray]] = defaultdict(list)
    blocks: dict[str, dict[PointKey, np.ndarray]] = defaultdict(dict)
    for key, point in points.items():
        for block, logs in point.by_block.items():
            blocks[block][key] = logs - math.log(point.latency.value)
    for members in blocks.values():
        turns = pd.DataFrame([logs.tolist() for logs in members.values()])
        for place, key in enumerate(members if len(members) > 1 else ()):
            beside = (turns.loc[place] - turns.drop(index=place).median()).dropna()
            if not beside.empty:
                found[key].append(beside.to_numpy(float))
    return found


def _shares(points: _Points) -> dict[PointKey, dict[str, float]]:
    """The share of each block in the turns of each point."""
    turns = {
        key: {block: int(np.isfinite(logs).sum()) for block, logs in point.by_block.items()}
        for key, point in points.items()
    }
    return {
        key: {block: count / sum(of.values()) for block, count in of.items()}
        for key, of in turns.items()
    }


def _contrasts(points: _Points) -> int:
    """A process has its own speed: the configs of each block less 1."""
    trials = {(block, key[0]) for key, point in points.items() for block in point.by_block}
    return len(trials) - len({block for block, _ in trials})


def _table(
    before: Results, after: Results, changes: Mapping[PointKey, _Change], threshold: float
) -> pd.DataFrame:
    points = {**after.points, **before.points}
    keys = sorted(points, key=lambda key: _order(points[key]))
    rows = [
        {
            **_identity(key, points[key]),
            **_latency("latency_ms_a", before.points.get(key)),
            **_latency("latency_ms_b", after.points.get(key)),
            **_found(key, before, after, changes.get(key)),
        }
        for key in keys
    ]
    return _judged(pd.DataFrame(rows, columns=_COLUMNS), threshold)


def _order(point: MeasuredPoint) -> tuple[Any, ...]:
    config = point.config
    size = config.seq_len, config.image_size
    return config.model, size, config.optimization, config.smt, config.batch_size, point.threads


def _identity(key: PointKey, point: MeasuredPoint) -> dict[str, Any]:
    config = point.config.model_dump(include={*_WHAT, "batch_size"})
    return {"config_id": key[0], "threads": key[1], **config}


def _latency(name: str, point: MeasuredPoint | None) -> dict[str, float]:
    return {name: point.latency.value / 1e6 if point else math.nan}


def _found(
    key: PointKey, before: Results, after: Results, change: _Change | None
) -> dict[str, str | float]:
    """What is known of a point before all are judged; its verdict is empty where it is to be."""
    one, other = before.points.get(key), after.points.get(key)
    if one is None:
        return {"verdict": "only B", "why": _missing(key, before) or ""}
    if other is None:
        why = _missing(key, after)
        return {"verdict": "only A" if why is None else "lost", "why": why or ""}
    if change is None:
        return {"verdict": "unclear", "why": "not measured together"}
    verdict, why = _reading(_most_outliers(one, other), change)
    ratios = {**_limits("ratio", change.ratio), **_limits("beyond", change.beyond)}
    return {**ratios, "chance": change.beyond.p_value, "verdict": verdict, "why": why}


def _missing(key: PointKey, side: Results) -> str | None:
    """Why a `side` that was asked for the point's config has no such point; None: it was not."""
    record = next((r for r in reversed(side.records) if r.point_key == key[0]), None)
    if record is None:
        return None
    return f"{record.status}: {record.reason}" if record.reason else "not at this thread count"


def _reading(outliers: float, change: _Change) -> tuple[str, str]:
    """The verdict of a point that cannot be judged, else an empty one; and what to say of it."""
    if outliers > MOST_OUTLIERS:
        return "unclear", "more than a third of the passes of one side are outliers"
    if not change.beyond.half_width <= TOO_WIDE:
        return "unclear", f"interval too wide, beyond ±{TOO_WIDE:.0%}: measure for longer"
    if change.beyond.half_width > WIDE:
        return "", f"interval wide, beyond ±{WIDE:.0%}: smaller changes would not show"
    if change.beyond is change.ratio and change.ratio.how == "not measured together":
        return "", f"fewer than {MIN_COMMON} points alike: what is common is not taken out"
    return "", ""


def _limits(name: str, found: Interval) -> dict[str, float]:
    return {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}


def _judged(table: pd.DataFrame, threshold: float) -> pd.DataFrame:
    """`table` with its verdicts; noise is judged over all points that can be compared."""
    fit = table.index[table["verdict"] == ""]
    beyond, chance = (table.loc[fit, name].to_numpy(float) for name in ("beyond", "chance"))
    verdict, large = _called(beyond, chance, threshold)
    table.loc[fit, "verdict"] = verdict
    unclear = large & (verdict == "same") & (chance <= 1 - CONFIDENCE)
    table.loc[fit[unclear], "why"] = f"no clearer than chance among {len(fit)} points"
    return table


def _called(ratios: np.ndarray, chance: np.ndarray, threshold: float) -> tuple[np.ndarray, ...]:
    """The verdict on each of several `ratios` of some p-values, and whether it is large."""
    adjusted = stats.false_discovery_control(chance) if chance.size else chance
    large: np.ndarray = np.abs(np.log(ratios)) > np.log1p(threshold)
    called = np.where(ratios > 1, "slower", "faster")
    return np.where((adjusted <= 1 - CONFIDENCE) & large, called, "same"), large


def save_against(found: Comparison, path: Path) -> None:
    """Write what `against` found as CSV, a row a point."""
    apart = ["beyond", "beyond_low", "beyond_high", "chance"]  # of two sweeps apart
    write_atomically(path, found.table.drop(columns=apart).to_csv(index=False))
