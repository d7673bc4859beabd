"""Pictures of the experiments: ratios with their intervals, changes, and the machine's states."""

from __future__ import annotations

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from scalebench_lib.analysis.draw import STYLE, Picture

BAND = 0.05
"""Grey: how far from what it should be a number may lie."""


def ratios(title: str, tables: dict[str, pd.DataFrame]) -> Picture:
    """Ratios by point, a series for each of `tables`; bars are 95 % intervals."""
    names = list(dict.fromkeys(name for table in tables.values() for name in table["name"]))
    with rc_context(STYLE):
        figure, axes = _axes(title, "ratio", 1.3 + 0.34 * len(names))
        axes.axvspan(1 - BAND, 1 + BAND, color="0.93", zorder=0)
        axes.axvline(1, color="0.4", linewidth=1)
        for number, (series, table) in enumerate(tables.items()):
            places = [names.index(name) + 0.22 * number for name in table["name"]]
            reach = np.abs(table[["low", "high"]].T - table["ratio"])
            axes.errorbar(table["ratio"], places, xerr=reach, fmt="o", label=series, markersize=4)
        _name_rows(axes, names)
        axes.legend(frameon=False, loc="lower right", bbox_to_anchor=(1, 1), ncols=len(tables))
    return figure


def found_and_true(title: str, table: pd.DataFrame) -> Picture:
    """What was recorded, with its 95 % interval, and what bare loops say, by point."""
    with rc_context(STYLE):
        figure, axes = _axes(title, "ratio", 1.3 + 0.34 * len(table))
        places, reach = np.arange(len(table)), np.abs(table[["low", "high"]].T - table["ratio"])
        axes.errorbar(table["ratio"], places, xerr=reach, fmt="o", label="recorded", markersize=4)
        axes.plot(table["bare"], places, "x", color="0.2", label="bare loops")
        _name_rows(axes, list(table["name"]))
        axes.legend(frameon=False, loc="lower right", bbox_to_anchor=(1, 1), ncols=2)
    return figure


def changes(title: str, table: pd.DataFrame) -> Picture:
    """By point, the change of each column but ``name``."""
    long = table.melt("name", var_name="estimate", value_name="change")
    with rc_context(STYLE):
        figure, axes = _axes(title, "change", 1.3 + 0.34 * len(table))
        axes.axvspan(-BAND, BAND, color="0.93", zorder=0)
        sns.barplot(long, y="name", x="change", hue="estimate", palette="colorblind", ax=axes)
        axes.set_ylabel("")
        axes.xaxis.set_major_formatter(PercentFormatter(1))
        axes.legend(frameon=False, loc="lower right", bbox_to_anchor=(1, 1), ncols=2)
    return figure


def states(title: str, tables: dict[str, pd.DataFrame]) -> Picture:
    """The machine's speed over the minutes, a row for each sweep, a line for each thread count."""
    with rc_context(STYLE):
        figure = Picture(figsize=(8.4, 0.7 + 1.7 * len(tables)))
        figure.alt = title
        rows = figure.subplots(len(tables), sharey=True, squeeze=False).ravel()
        for axes, (series, table) in zip(rows, tables.items(), strict=True):
            sns.lineplot(
                table, x="minute", y="speed", hue="threads", style="threads",
                units="block", estimator=None, palette="colorblind", ax=axes,
            )  # fmt: skip
            axes.axhline(1, color="0.4", linewidth=1)
            axes.set(title=f"{title}: {series}", xlabel="minute", ylabel="speed")
            axes.title.set(ha="left", x=0, weight="bold", size=11)
        figure.tight_layout()
    return figure


def _axes(title: str, x_axis: str, height: float) -> tuple[Picture, Axes]:
    figure = Picture(figsize=(8.4, height))
    figure.alt = title
    axes = figure.add_subplot(xlabel=x_axis)
    figure.text(0.02, 1 - 0.1 / height, title, va="top", weight="bold", size=11)
    figure.subplots_adjust(left=0.3, right=0.97, bottom=0.5 / height, top=1 - 0.6 / height)
    sns.despine(ax=axes)
    return figure, axes


def _name_rows(axes: Axes, names: list[str]) -> None:
    axes.set_yticks(np.arange(len(names)), names, fontsize=9)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")
