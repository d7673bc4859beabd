"""Two sweeps, point by point: is B slower than A? With an interval for every answer.

The ratio of a point is B's latency over A's: above 1, B takes longer. The two shared no minutes,
so its 95 % interval comes from the independent errors of both latencies' logarithms.

A point is called faster or slower only when its change is larger than `threshold` and clear of
noise. Many points are compared at once, so clear means more than leaving one interval: the false
discovery rate is held at 5 % (Benjamini and Hochberg). Where nothing has changed, at most 1
comparison in 20 calls any point, and of the points that are called 1 in 20 is by chance.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from scipy import stats

from scalebench_lib.errors import RequestError
from scalebench_lib.record import Record, load_records, require_one_machine
from scalebench_lib.results import MeasuredPoint, PointKey, Results
from scalebench_lib.stats import CONFIDENCE, Ratio

Verdict = Literal["slower", "faster", "same", "not comparable"]

THRESHOLD = 0.05
"""Sweeps of the same thing on a shared machine were seen to differ by 1 % in the median point and
by up to 6 % at worst; what is smaller than this is not worth a red build."""

WIDE, TOO_WIDE = 0.10, 0.20
"""Half of a ratio's interval. From the first on, the point says what could hide in it; beyond the
second a slow-down by a fifth could, and "same" would mean nothing."""

MOST_OUTLIERS = 1 / 3
"""A median holds with up to half of its passes slowed down; this keeps well away from that."""

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

_Points = dict[PointKey, MeasuredPoint]


@dataclass(frozen=True)
class Comparison:
    """What comparing sweep `a` with sweep `b` found.

    `table` has one row a point: its config, ``latency_ms_a`` and ``_b``, ``ratio`` (B over A),
    ``ratio_low`` and ``ratio_high``, ``verdict``, and ``why`` where it needs a word.
    `differences` are what machine and software do not share.
    """

    a: str
    b: str
    machine: str
    threshold: float
    differences: list[str]
    table: pd.DataFrame

    def count(self, verdict: Verdict) -> int:
        """How many points got `verdict`."""
        return int((self.table["verdict"] == verdict).sum())

    @property
    def lost(self) -> pd.DataFrame:
        """The points that A measured and B could not."""
        return self.table[self.table["lost"]]

    @property
    def worse(self) -> bool:
        """Whether any point is slower in B, or was measured in A and failed in B."""
        return self.count("slower") > 0 or not self.lost.empty


def compare(a: Path, b: Path, threshold: float = THRESHOLD, anyway: bool = False) -> Comparison:
    """Compare the sweeps in folders `a` and `b`; a change up to `threshold` is none.

    Raises `RequestError` where there is nothing to compare, and, unless `anyway`, where machine
    or software differ.
    """
    if not 0 <= threshold < 1:
        raise RequestError(f"threshold: must be at least 0 and below 1, not {threshold:g}")
    before, after = _loaded(a, anyway), _loaded(b, anyway)
    both = {r.config_id for r in before} & {r.config_id for r in after}
    shared = [[r for r in side if r.config_id in both] for side in (before, after)]
    if not both:
        raise RequestError(f"{a} and {b} have no config in common, so nothing can be compared")
    differences = list(_differences(*shared))
    if differences and not anyway:
        raise RequestError(
            f"{a} and {b} differ in {'; '.join(differences)}: compare them anyway with --anyway"
        )
    one, other = (Results.of(side).points for side in shared)
    return Comparison(
        a=a.resolve().name,
        b=b.resolve().name,
        machine=_titles(before),
        threshold=threshold,
        differences=differences,
        table=_table(one, other, _reasons(after), _reasons(before), threshold),
    )


def _loaded(out: Path, any_machine: bool) -> list[Record]:
    records = load_records(out)
    if not records:
        raise RequestError(f"{out} holds no records: give the folder of a sweep")
    if not any_machine:
        require_one_machine(records)
    return records


def _titles(records: Iterable[Record]) -> str:
    return "; ".join(dict.fromkeys(record.machine.title for record in records))


def _differences(before: list[Record], after: list[Record]) -> Iterator[str]:
    """What the measured records do not share, as ``torch 2.6.0 → 2.7.0``."""
    sides = [[r for r in side if r.status == "ok"] for side in (before, after)]
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


def _reasons(records: Iterable[Record]) -> dict[str, str]:
    """Why a config was never measured, by its id."""
    return {r.config_id: f"{r.status}: {r.reason}" for r in records if r.status != "ok"}


def _table(
    before: _Points,
    after: _Points,
    gone_after: dict[str, str],
    gone_before: dict[str, str],
    threshold: float,
) -> pd.DataFrame:
    rows = []
    for key in sorted(before.keys() | after.keys(), key=lambda key: _order(key, before, after)):
        one, other = before.get(key), after.get(key)
        row = {**_point(key, one or other), "lost": other is None and key[0] in gone_after}
        if one is None or other is None:
            side, gone = ("B", gone_after) if other is None else ("A", gone_before)
            rows.append({**row, "why": f"{gone.get(key[0], 'not measured')} in {side}"})
        else:
            rows.append({**row, **_ratio(one, other)})
    return _judged(pd.DataFrame(rows, columns=_COLUMNS), threshold)


_COLUMNS = [
    *("config_id", *_WHAT, "batch_size", "threads", "latency_ms_a", "latency_ms_b"),
    *("ratio", "ratio_low", "ratio_high", "chance", "verdict", "why", "note", "lost"),
]


def _order(key: PointKey, *sides: _Points) -> tuple[Any, ...]:
    point = next(side[key] for side in sides if key in side)
    config = point.config
    size = config.seq_len, config.image_size
    return config.model, size, config.optimization, config.smt, config.batch_size, key[1]


def _point(key: PointKey, point: MeasuredPoint | None) -> dict[str, Any]:
    assert point is not None  # noqa: S101 - the key is from one side or the other
    config = point.config.model_dump(include={*_WHAT, "batch_size"})
    return {"config_id": key[0], "threads": key[1], **config, "why": ""}


def _ratio(one: MeasuredPoint, other: MeasuredPoint) -> dict[str, Any]:
    """The ratio of two latencies with its 95 % interval, and how likely it is by chance."""
    a, b = one.latency, other.latency
    ratio = Ratio.around(b.value / a.value, a.variance + b.variance, "not measured together")
    found = {
        "latency_ms_a": a.value / 1e6,
        "latency_ms_b": b.value / 1e6,
        "ratio": ratio.value,
        "ratio_low": ratio.low,
        "ratio_high": ratio.high,
        "chance": ratio.p_value,
    }
    outliers = max(one.outlier.mean(), other.outlier.mean())
    if outliers > MOST_OUTLIERS:
        return {**found, "why": f"{outliers:.0%} of the passes of one side are outliers"}
    half = ratio.half_width
    if not half <= TOO_WIDE:
        return {**found, "why": f"interval too wide: ±{half:.0%}; measure for longer"}
    return {**found, "note": f"wide: ±{half:.0%}" * (half > WIDE)}


def _judged(table: pd.DataFrame, threshold: float) -> pd.DataFrame:
    """`table` with its verdicts; noise is judged over all points that can be compared."""
    table["verdict"] = "not comparable"
    fit = table.index[table["why"] == ""]
    ratio, chance = (table.loc[fit, name].to_numpy(float) for name in ("ratio", "chance"))
    adjusted = stats.false_discovery_control(chance) if chance.size else chance
    clear, large = adjusted <= 1 - CONFIDENCE, np.abs(np.log(ratio)) > np.log1p(threshold)
    called = np.where(ratio > 1, "slower", "faster")
    table.loc[fit, "verdict"] = np.where(clear & large, called, "same")
    unclear = large & ~clear & (chance <= 1 - CONFIDENCE)
    table.loc[fit, "why"] = table.loc[fit, "note"]
    table.loc[fit[unclear], "why"] = f"no clearer than chance among {len(fit)} points"
    return table.drop(columns="note")
