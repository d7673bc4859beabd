"""What the page's script draws from: the results table, its samples and its looks, as JSON."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup

from scalebench_lib.analysis.looks import batch_colour, look
from scalebench_lib.analysis.plates import ordered_optimizations
from scalebench_lib.analysis.ratios import RATIO_COLUMNS
from scalebench_lib.analysis.selection import (
    SETTING,
    Measured,
    beside_each_other,
    errors_db,
    model_title,
)

FIELDS = (
    *("model", *SETTING, "optimization", "smt", "batch_size", "threads", "cores", "status"),
    *("reason", "samples", "outliers", "trials", "latency_ms", "latency_ms_low"),
    *("latency_ms_high", "peak_fraction", "sqnr_db", "coarse", "item", "cpus_utilized"),
    *("turns", "shared", "throttled", "stolen"),
    *("is_base", *RATIO_COLUMNS),
)
"""The columns of the table that the page has."""

_NOTES = "bands and bars: 95 % interval, of these rounds; hollow: coarse"

MOST_SAMPLES = 200
"""Of each point; more would make the page large, and are thinned evenly."""


def payload(measured: Measured) -> dict[str, Any]:
    """The sweep for the browser: columns of equal length, samples by row, colours by name."""
    table = measured.table.assign(sqnr_db=errors_db(measured.table))
    named = pd.concat([table, beside_each_other(table)])
    return {
        "columns": {name: [_plain(value) for value in table[name]] for name in FIELDS},
        "setting": ["model", *SETTING],
        "samples": _samples(measured),
        "looks": {name: look(named, name) for name in ordered_optimizations(named)},
        "batches": {
            str(size): [batch_colour(size), batch_colour(size, dark=True)]
            for size in sorted({int(size) for size in table["batch_size"]})
        },
        "titles": {name: model_title(name) for name in table["model"].unique()},
        "source": measured.source,
        "notes": "" if measured.imported else _NOTES,
    }


def as_json(value: Any) -> Markup:
    """`value` as JSON that is inert in HTML, whatever its strings hold."""
    text = json.dumps(value, allow_nan=False, ensure_ascii=True, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)  # noqa: S704 - escaped just above


def _samples(measured: Measured) -> dict[str, list[Any]]:
    """By row of the table: latencies in ms, and which of them are outliers."""
    named = measured.table[["machine", "config_id", "threads"]].itertuples(index=False, name=None)
    rows = {key: row for row, key in enumerate(named)}
    found: dict[str, list[Any]] = {}
    for point in measured.results.points.values():
        key = (point.trials[0][0].machine_name, point.config.id, point.threads)
        thin = slice(None, None, -(-len(point.samples_ns) // MOST_SAMPLES))
        values = [_short(ns / 1e6) for ns in point.samples_ns[thin]]
        found[str(rows[key])] = [values, np.flatnonzero(point.outlier[thin]).tolist()]
    return found


def _plain(value: Any) -> Any:
    if pd.isna(value):
        return None
    if isinstance(value, bool | np.bool_):
        return bool(value)
    if isinstance(value, int | np.integer):
        return int(value)
    return _short(value) if isinstance(value, float | np.floating) else str(value)


def _short(value: Any) -> float:
    return float(f"{value:.5g}")
