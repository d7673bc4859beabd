"""Compare two sweeps point by point: is B slower than A? With an interval for every answer.

The ratio of a point is B's latency over A's: above 1, B takes longer. Two sweeps were not
measured at the same time (`compare`), so a machine that was slower during B raises all ratios, or
all of a thread count while one of its CPUs is slower. That common change is estimated first, as the
median over the points of each thread count; its interval comes from the differences between rounds.
A point is judged by its ratio over the common one. Before that the state of the machine is removed
cycle by cycle: each turn less the median of the other points' turns.

Two environments whose trials shared their blocks (`compare_paired`) were: their ratios are paired
by cycle, and nothing is removed.

A point is called faster or slower only when its change is larger than `threshold`, at a false
discovery rate of 5 % over all points (Benjamini and Hochberg). Where nothing has changed, at most 1
comparison in 20 calls any point, and of the points that are called 1 in 20 is by chance.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice, product
from os.path import normpath
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import false_discovery_control

from scalebench_lib import stats
from scalebench_lib.config import AXES, SPEC, Sweep
from scalebench_lib.errors import RequestError
from scalebench_lib.files import write_atomically
from scalebench_lib.machine import another_host_warning
from scalebench_lib.optimizations import OPTIMIZATIONS
from scalebench_lib.record import CONFIG_ORDER, Record, conditions
from scalebench_lib.results import MeasuredPoint, PointKey, Results, paired_ratio_by_point

Verdict = Literal["slower", "faster", "same", "unclear", "lost", "only A", "only B"]
"""An `unclear` point was measured by both sides and cannot be judged. A `lost` one was measured by
A alone, though B was asked for it; B was never asked for those of ``only A``."""

THRESHOLD = 0.05
"""Equal sweeps on a shared machine differed by 1 % in the median point, and by up to 6 %."""

THRESHOLD_AGAINST = 0.02
"""Equal environments that took turns differed by 0.7 % in the median point."""

WARN_HALF_WIDTH, MAX_HALF_WIDTH = 0.10, 0.20
"""A note warns of an unchanged point whose interval is beyond the first; one beyond the second, in
which a slow-down by a fifth could hide, is `unclear` if it reaches into ± the threshold."""

MAX_OUTLIERS = 1 / 3
"""A median holds with less than half of its passes slowed down."""

MIN_COMMON = 4
"""The median of fewer points would hide the change of one of them."""

ASSUMED_DRIFT = 0.05
"""Standard deviation of the logs of all latencies together between rounds, assumed for a sweep of
one round. On a shared machine it was 1 to 7 %."""

_MOST_NAMED = 5  # differences in a message
_ENGINES = {package for one in OPTIMIZATIONS.values() for package in one.needs}
_FIRST = ["vector", "governor", "torch", *sorted(_ENGINES)]  # vector: torch's name for the CPU's

_BEYOND = ["beyond", "beyond_low", "beyond_high", "chance"]
_COLUMNS = [
    *("config_id", *CONFIG_ORDER, "threads", "latency_ms_a", "latency_ms_b"),
    *("ratio", "ratio_low", "ratio_high", *_BEYOND, "verdict", "why"),
]


@dataclass(frozen=True)
class CommonChange:
    """The change common to all points of some thread counts: B's latencies over A's.

    `where` holds the counts, and whether SMT is on.
    """

    where: tuple[tuple[int, bool], ...]
    ratio: stats.Ratio
    verdict: Verdict


class Change(NamedTuple):
    """A point's latency in B over A, with the common change (`ratio`), and without (`beyond`)."""

    ratio: stats.Ratio
    beyond: stats.Ratio


@dataclass(frozen=True, eq=False)
class Comparison:
    """The sweep in folder `out_b` compared with that in `out_a`, point by point.

    `before` are the results of A, `after` those of B. `changes` are those of the points that can be
    compared, `common` those of all of them. A change up to `threshold` counts as none.
    """

    out_a: Path
    out_b: Path
    before: Results
    after: Results
    threshold: float
    changes: Mapping[PointKey, Change]
    common: tuple[CommonChange, ...] = ()

    @property
    def names(self) -> tuple[str, str]:
        return self.out_a.resolve().name, self.out_b.resolve().name

    def count(self, verdict: Verdict) -> int:
        return int((self.table["verdict"] == verdict).sum())

    @property
    def moved_together(self) -> bool:
        """True if the common change is beyond `threshold`: verdicts are then against the rest."""
        return any(_is_large(each.ratio.value, self.threshold) for each in self.common)

    @property
    def has_regressions(self) -> bool:
        """True if a point is slower in B, all of a thread count are, or B lost a point."""
        together = any(each.verdict == "slower" for each in self.common)
        return together or self.count("slower") + self.count("lost") > 0

    @cached_property
    def table(self) -> pd.DataFrame:
        """One row a point of either side: its config, ``latency_ms_a`` and ``_b``, and verdict.

        ``ratio`` is B over A, ``beyond`` the ratio over the common one, each with ``_low`` and
        ``_high``; ``chance`` is the p-value of ``beyond``; ``why`` explains some verdicts.
        """
        points = {**self.after.points, **self.before.points}
        rows = [
            {
                "config_id": key[0],
                "threads": key[1],
                **point.config.model_dump(include={"model", *AXES}),
                **self._cells(key),
            }
            for key, point in points.items()
        ]
        table = pd.DataFrame(rows, columns=_COLUMNS)
        table = table.sort_values([*CONFIG_ORDER, "threads"], kind="stable", ignore_index=True)
        return _with_verdicts(table, self.threshold)

    def _cells(self, key: PointKey) -> dict[str, Any]:
        """Return the cells of a point's row; `_with_verdicts` fills in verdicts left empty."""
        one, other = self.before.points.get(key), self.after.points.get(key)
        a, b = (side.latency.value / 1e6 if side else math.nan for side in (one, other))
        cells: dict[str, Any] = {"latency_ms_a": a, "latency_ms_b": b}
        if one is None or other is None:
            verdict, why = self._one_sided(key[0], only_b=one is None)
        elif change := self.changes.get(key):
            verdict, why = self._preliminary_verdict(_outlier_share(one, other), change)
            cells["chance"] = change.beyond.p_value
            for name, ratio in change._asdict().items():
                cells |= {name: ratio.value, f"{name}_low": ratio.low, f"{name}_high": ratio.high}
        else:
            verdict, why = "unclear", "not measured together"
        return {**cells, "verdict": verdict, "why": why}

    def _preliminary_verdict(self, outliers: float, change: Change) -> tuple[str, str]:
        """Return the verdict of a point that cannot be judged, else an empty one, and why."""
        band = 1 + self.threshold
        near = change.beyond.low <= band and change.beyond.high >= 1 / band
        if outliers > MAX_OUTLIERS:
            return "unclear", "more than a third of the passes of one side are outliers"
        if near and not change.beyond.half_width <= MAX_HALF_WIDTH:
            return "unclear", f"interval too wide, beyond ±{MAX_HALF_WIDTH:.0%}: measure for longer"
        if change.beyond is change.ratio and change.ratio.how == "not measured together":
            return "", f"fewer than {MIN_COMMON} points alike: what is common is not taken out"
        return "", ""

    def _one_sided(self, name: str, only_b: bool) -> tuple[str, str]:
        """Return the verdict on the point of a config that a side lacks, and the reason."""
        records = (self.before if only_b else self.after).records
        record = next((record for record in reversed(records) if record.config_key == name), None)
        if record:
            reason = record.reason and f"{record.status}: {record.reason}"
            why = reason or "not at this thread count"
        else:
            why = "not measured" * (name.partition("@")[0] in self._asked and not only_b)
        return "only B" if only_b else "lost" if why else "only A", why

    @cached_property
    def _asked(self) -> set[str]:
        """The ids of the configs that B was asked for."""
        if not (self.out_b / SPEC).exists():
            return set()
        config = self.after.records[0].config  # its model may have the name of A's
        named = {"model": config.model, "weights": config.weights}
        sweep = Sweep.load(self.out_b / SPEC).model_copy(update=named)
        machines = {record.machine for record in self.after.records}
        return {config.id for machine in machines for config in sweep.configs(machine)}

    @cached_property
    def differences(self) -> list[str]:
        """The conditions of common configs that differ: ``torch 2.6.0 → 2.7.0``."""
        both = _config_ids(self.before) & _config_ids(self.after)
        one, other = (
            [r for r in side.records if r.status == "ok" and r.config_id in both]
            for side in (self.before, self.after)
        )
        if not (one and other):
            return []
        return [*_other_machine(one, other), *_other_conditions(one, other)]

    @property
    def notes(self) -> list[str]:
        sides = (self.before, self.after)
        machines = ([record.machine for record in side.records] for side in sides)
        notes = [note] if (note := another_host_warning(*machines)) else []
        if any(side.assumed_spread for side in sides):
            notes.append(
                "without a second round on both sides it is assumed how much rounds differ"
            )
        return notes


def compare(
    a: Path,
    b: Path,
    threshold: float = THRESHOLD,
    anyway: bool = False,
    model_a: str | None = None,
    model_b: str | None = None,
) -> Comparison:
    """Compare the sweeps in folders `a` and `b`; a change up to `threshold` counts as none.

    `model_a` and `model_b` are the names of one model in two folders; other models are left out.
    Raises `RequestError` where there is nothing to compare, and, unless `anyway`, where machine or
    software differ.
    """
    if not 0 <= threshold < 1:
        raise RequestError(f"threshold: must be at least 0 and below 1, not {threshold:g}")
    before, after = _load(a, b, anyway, model_a, model_b)
    if a.resolve() == b.resolve() and model_a == model_b:
        raise RequestError(f"both are the same sweep, {a}: name two")
    changes, common = _changes(before, after, threshold)
    found = Comparison(a, b, before, after, threshold, changes, common)
    asked = ("model's",) if model_a else ()  # they are meant to differ
    differences = [one for one in found.differences if not one.startswith(asked)]
    if differences and not anyway:
        named, more = "; ".join(differences[:_MOST_NAMED]), len(differences) - _MOST_NAMED
        others = f"; and {more} more" * (more > 0)
        raise RequestError(
            f"{a} and {b} differ in {named}{others}: differences may come from them; --anyway "
            "compares all the same"
        )
    return found


def compare_paired(a: Path, b: Path) -> Comparison:
    """Compare the sweeps in folders `a` and `b`, whose trials shared their blocks.

    Ratios are paired turn by turn. Other software is named, and never refused. Raises
    `RequestError` where there is nothing to compare.
    """
    before, after = _load(a, b)
    changes = {
        key: Change(ratio, ratio) for key, ratio in paired_ratio_by_point(after, before).items()
    }
    return Comparison(a, b, before, after, THRESHOLD_AGAINST, changes)


def save_paired(found: Comparison, path: Path) -> None:
    """Write what `compare_paired` found as CSV, a row a point."""
    write_atomically(path, found.table.drop(columns=_BEYOND).to_csv(index=False))


def _load(
    a: Path,
    b: Path,
    any_machine: bool = False,
    model_a: str | None = None,
    model_b: str | None = None,
) -> tuple[Results, Results]:
    """Return the results of both sides, which have configs in common, or of one model."""
    before, after = (Results.load(out, any_machine) for out in (a, b))
    for out in [out for out, side in ((a, before), (b, after)) if side.imported]:
        raise RequestError(f"{out} is imported: published means cannot be compared point by point")
    if model_a or model_b:
        before, after = _of_one_model(before, after, model_a, model_b)
    if not _config_ids(before) & _config_ids(after):
        raise RequestError(
            f"{a} and {b} have no config in common, so nothing can be compared: if a model lies in "
            "two folders, name both with --model-a and --model-b"
        )
    return before, after


def _of_one_model(
    before: Results, after: Results, model_a: str | None, model_b: str | None
) -> tuple[Results, Results]:
    """Return both sides' records of one model, by the name that it has in `before`."""
    if not (model_a and model_b):
        raise RequestError("model-a and model-b belong together: name the model in both sweeps")
    ours, theirs = _of_model(before, model_a, "A"), _of_model(after, model_b, "B")
    first, renamed = ours[0].config, []
    for record in theirs:
        # Weights other than these are a folder or hub id, as the model is.
        own = {first.weights, record.config.weights}.isdisjoint(("random", "pretrained"))
        named = {"model": first.model, **({"weights": first.weights} if own else {})}
        config = record.config.model_copy(update=named)
        renamed.append(record.model_copy(update={"config": config, "config_id": config.id}))
    return Results(ours), Results(renamed)


def _of_model(side: Results, model: str, name: str) -> list[Record]:
    """Return the records of `model`; raise `RequestError`, with the others, where it has none."""
    names = (model, normpath(model), f"./{normpath(model)}")
    found = [r for r in side.records if r.config.model in names]
    if not found:
        models = ", ".join(sorted({record.config.model for record in side.records}))
        raise RequestError(f"model-{name.lower()}: {name} has no model {model!r}; it has {models}")
    return found


def _config_ids(side: Results) -> set[str]:
    return {record.config_id for record in side.records}


def _other_machine(before: list[Record], after: list[Record]) -> Iterator[str]:
    one, other = (list({record.machine: None for record in side}) for side in (before, after))
    differing = (what for x, y in product(one, other) if (what := x.differs_from(y)))
    titles = ["; ".join(dict.fromkeys(machine.title for machine in side)) for side in (one, other)]
    for what in islice(differing, 1):
        yield f"machine ({what}) {titles[0]} → {titles[1]}"


def _other_conditions(*sides: list[Record]) -> Iterator[str]:
    """Yield the conditions and libraries in which the records differ, with all values.

    They are in the order of their importance.
    """
    one, other = (conditions(side) | _libraries(side) for side in sides)
    rest = sorted((one.keys() | other.keys()) - set(_FIRST))
    for name in (*_FIRST, *rest):
        values = [side.get(name, {"none"}) for side in (one, other)]
        if all(values) and values[0] != values[1]:
            yield f"{name} {' → '.join(', '.join(sorted(each)) for each in values)}"


def _libraries(records: list[Record]) -> dict[str, set[str]]:
    pairs = [pair for record in records for pair in record.software.libraries.items()]
    return {name: {value for other, value in pairs if other == name} for name, _ in pairs}


def _changes(
    before: Results, after: Results, threshold: float
) -> tuple[dict[PointKey, Change], tuple[CommonChange, ...]]:
    """Return the changes of the points that both sides have, and those common to many."""
    pairs = {
        key: (before.points[key], after.points[key]) for key in before.points if key in after.points
    }
    ratios = {key: stats.unpaired(b.latency, a.latency) for key, (a, b) in pairs.items()}
    changes = {key: Change(ratio, ratio) for key, ratio in ratios.items()}
    usable = {key: pair for key, pair in pairs.items() if _outlier_share(*pair) <= MAX_OUTLIERS}
    groups, factors = list(_by_thread_count(usable)), list[stats.Ratio]()
    for keys in groups:
        factor, beyond = _common_and_beyond(*zip(*(pairs[key] for key in keys), strict=True))
        factors.append(factor)
        changes |= {key: Change(ratios[key], left) for key, left in zip(keys, beyond, strict=True)}
    values, p_values = ([each.value for each in factors], [each.p_value for each in factors])
    verdicts, _ = _verdicts(np.array(values), np.array(p_values), threshold)
    where = [
        sorted({(pairs[key][0].threads, pairs[key][0].config.smt) for key in keys})
        for keys in groups
    ]
    return changes, tuple(map(CommonChange, map(tuple, where), factors, verdicts.tolist()))


def _outlier_share(*points: MeasuredPoint) -> float:
    return max(float(point.outlier.mean()) for point in points)


def _by_thread_count(
    pairs: Mapping[PointKey, tuple[MeasuredPoint, MeasuredPoint]],
) -> Iterator[list[PointKey]]:
    """Yield the points of each thread count, which a state of the machine changes together.

    Counts of fewer than `MIN_COMMON` points are merged, and left out where they are still fewer.
    """
    by_count: dict[tuple[int, bool], list[PointKey]] = defaultdict(list)
    for key, (point, _) in pairs.items():
        by_count[point.threads, point.config.smt].append(key)
    rest = [key for keys in by_count.values() if len(keys) < MIN_COMMON for key in keys]
    yield from (keys for keys in (*by_count.values(), rest) if len(keys) >= MIN_COMMON)


def _common_and_beyond(
    before: Sequence[MeasuredPoint], after: Sequence[MeasuredPoint]
) -> tuple[stats.Ratio, list[stats.Ratio]]:
    """Return the factor common to the points of both sides, and each point's ratio over it."""
    (logs_a, noise_a, common_a), (logs_b, noise_b, common_b) = map(_latencies, (before, after))
    changes, noise = logs_b - logs_a, [x + y for x, y in zip(noise_a, noise_b, strict=True)]
    middle = _middle(changes.tolist())
    processes = len({point.key[0] for point in before})  # the points of one count as one
    of_median = noise[_median_index(noise)] * (math.pi / 2 / processes)
    logs = [middle, *(changes - middle)]
    variances = [common_a + common_b + of_median, *(own + of_median for own in noise)]
    factor, *left = (
        stats.Ratio(math.exp(log), variance, "not measured together")
        for log, variance in zip(logs, variances, strict=True)
    )
    return factor, left


def _middle(changes: Sequence[float]) -> float:
    """Return the median; of two middle values the one nearer to 0.

    Where half of the points changed, the factor is that of the others, not one between.
    """
    ordered, half = sorted(changes), len(changes) // 2
    return min(ordered[half], ordered[-half - 1], key=abs)


def _median_index(variances: Sequence[stats.VarianceEstimate]) -> int:
    order = np.argsort([variance.value for variance in variances], kind="stable")
    return int(order[len(order) // 2])


def _latencies(
    points: Sequence[MeasuredPoint],
) -> tuple[np.ndarray, list[stats.VarianceEstimate], stats.VarianceEstimate]:
    """Return the logs of latencies less the common state of the machine in each cycle.

    Then the variance of each, and that of their mean that is due to the blocks. A point that was
    alone in its blocks keeps its latency.
    """
    logs, noise = np.log([point.latency.value for point in points]), _latency_variances(points)
    # The logs of turns over latency: a row a point, a column a block and cycle.
    turns = pd.DataFrame(
        [
            pd.concat({n: pd.Series(each) for n, each in point.logs_by_block.items()})
            for point in points
        ]
    ).sub(logs, axis=0)
    counts = turns.notna().T.groupby(level=0).sum().T.to_numpy(float)
    shares = counts / counts.sum(axis=1, keepdims=True)  # of blocks (columns) in points
    typical, mean = _median_index(noise), shares.mean(axis=0)
    apart = ((shares - mean) ** 2).sum(axis=1)  # blocks without the others
    of_a_block = noise[typical] * (1 / (shares[typical] ** 2).sum())
    # A process has its own speed: the configs of each block less 1 are compared.
    trials = {(block, point.key[0]) for point in points for block in point.logs_by_block}
    relative = {place: _relative_to_others(turns, place) for place in turns.index}
    components = stats.VarianceComponents.of(relative.values(), len(trials) - len(mean))
    for place, parts in relative.items():
        if parts:
            logs[place] += np.median(np.concatenate(parts))
            noise[place] = stats.median_variance(parts, components) + of_a_block * apart[place]
    return logs, noise, of_a_block * (mean**2).sum()


def _latency_variances(points: Sequence[MeasuredPoint]) -> list[stats.VarianceEstimate]:
    """Return the variance of each point's log latency, with the machine's drift between rounds."""
    blocks = {block for point in points for block in point.logs_by_block}
    drift = stats.VarianceComponents.of((point.logs_by_trial for point in points), len(blocks))
    if drift.assumed:
        drift = replace(drift, between=stats.VarianceEstimate(ASSUMED_DRIFT**2, stats.ASSUMED_DF))
    return [stats.median_variance(point.logs_by_trial, drift) for point in points]


def _relative_to_others(turns: pd.DataFrame, place: int) -> list[np.ndarray]:
    """Return the turns of a point less the median of others in the same cycle, by block."""
    relative = (turns.loc[place] - turns.drop(index=place).median()).dropna()
    return [part.to_numpy(float) for _, part in relative.groupby(level=0)]


def half_widths(table: pd.DataFrame) -> pd.Series:
    """Return half the widths of the intervals of ``beyond``, over it."""
    return (table["beyond_high"] - table["beyond_low"]) / 2 / table["beyond"]


def _with_verdicts(table: pd.DataFrame, threshold: float) -> pd.DataFrame:
    """Return `table` with verdicts at one false discovery rate over all points."""
    fit = table.index[table["verdict"] == ""]
    beyond, p_values = (table.loc[fit, name].to_numpy(float) for name in ("beyond", "chance"))
    verdict, large = _verdicts(beyond, p_values, threshold)
    table.loc[fit, "verdict"] = verdict
    half_width, same = half_widths(table.loc[fit]).to_numpy(float), verdict == "same"
    wide = f"interval wide, beyond ±{WARN_HALF_WIDTH:.0%}: smaller changes would not show"
    table.loc[fit[same & (half_width > WARN_HALF_WIDTH)], "why"] = wide
    by_chance = same & large & (p_values <= 1 - stats.CONFIDENCE)
    table.loc[fit[by_chance], "why"] = f"no clearer than chance among {len(fit)} points"
    table.loc[fit[same & (half_width > MAX_HALF_WIDTH)], "verdict"] = "unclear"
    return table


def _is_large(ratios: np.ndarray | float, threshold: float) -> np.ndarray:
    large: np.ndarray = np.abs(np.log(ratios)) > np.log1p(threshold)
    return large


def _verdicts(
    ratios: np.ndarray, p_values: np.ndarray, threshold: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return the verdict on each of several `ratios`, and whether it is beyond `threshold`."""
    adjusted = false_discovery_control(p_values) if p_values.size else p_values
    large = _is_large(ratios, threshold)
    called = np.where(ratios > 1, "slower", "faster")
    return np.where((adjusted <= 1 - stats.CONFIDENCE) & large, called, "same"), large
