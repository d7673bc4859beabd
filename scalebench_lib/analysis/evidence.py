"""Pictures and sentences for `notebooks/trust.ipynb`: what each experiment has shown."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from scalebench_lib.analysis.picture import STYLE, Picture


def _axes(title: str, x_axis: str, height: float = 3.2) -> tuple[Picture, Axes]:
    figure = Picture(figsize=(8.4, height))
    figure.alt = title
    axes = figure.add_subplot(xlabel=x_axis)
    axes.set_title(title, loc="left", fontsize=11, weight="bold")
    figure.subplots_adjust(left=0.2, right=0.97, bottom=0.17, top=0.88)
    return figure, axes


def ratios(compared: dict[str, pd.DataFrame]) -> Picture:
    """Ratios of our medians to those of others, by point; bars span the single turns."""
    colours = sns.color_palette("colorblind", len(compared)).as_hex()
    with rc_context(STYLE):
        figure, axes = _axes("Recorded raw median over that of others", "ratio", 3.8)
        for offset, (colour, (name, table)) in enumerate(
            zip(colours, compared.items(), strict=True)
        ):
            places = np.arange(len(table)) + 0.2 * offset
            reach = np.abs(table[["lowest turn", "highest turn"]].T - table["ratio"])
            axes.errorbar(table["ratio"], places, xerr=reach, fmt="o", color=colour, label=name)
        axes.axvline(1, color="0.4", linewidth=1)
        axes.axvspan(0.95, 1.05, color="0.9")
        labels = [f"batch {row.batch_size}, {row.threads} threads" for row in table.itertuples()]
        axes.set_yticks(np.arange(len(labels)) + 0.1, labels)
        axes.invert_yaxis()
        axes.legend(frameon=False)
        sns.despine(ax=axes)
    return figure


def about_ratios(name: str, table: pd.DataFrame) -> str:
    """The median and the extremes of the points' ratios."""
    found = table["ratio"]
    return (
        f"against {name}: ratio {found.median():.3f} in the median of {len(found)} points, "
        f"{found.min():.3f} to {found.max():.3f}"
    )


def about_kernels(table: pd.DataFrame) -> str:
    """What warm kernels changed: latency, and the time beside sampling."""
    by_kind = table.groupby("kind")[["latency_ms", "beside_s"]].median()
    warm, fresh = by_kind.loc["warm"], by_kind.loc["fresh"]
    return (
        f"warm over fresh: latency {warm['latency_ms'] / fresh['latency_ms']:.3f}; beside sampling "
        f"{warm['beside_s']:.2f} s against {fresh['beside_s']:.2f} s a visit"
    )


def hogs(table: pd.DataFrame) -> Picture:
    """What each estimate made of a disturbed visit, as change against the quiet one."""
    long = table.melt(["hog", "threads"], ["mean", "raw median", "headline"], "estimate")
    long["visit"] = long["hog"] + ", " + long["threads"].astype(str) + " threads"
    with rc_context(STYLE):
        figure, axes = _axes("Change against the quiet visit", "")
        sns.barplot(long, y="visit", x="value", hue="estimate", palette="colorblind", ax=axes)
        axes.set(xlabel="change", ylabel="")
        axes.axvspan(-0.05, 0.05, color="0.9", zorder=0)
        axes.xaxis.set_major_formatter(PercentFormatter(1))
        axes.legend(frameon=False)
        sns.despine(ax=axes)
    return figure


def about_hogs(table: pd.DataFrame) -> str:
    """The largest change of each estimate, and how much was flagged where nothing ran."""
    hogged, quiet = table[table["hog"] != "quiet"], table[table["hog"] == "quiet"]
    worst = {name: hogged[name].abs().max() for name in ("mean", "raw median", "headline")}
    changes = ", ".join(f"{name} {change:.1%}" for name, change in worst.items())
    return (
        f"largest change with a hog: {changes}; flagged as disturbed: "
        f"{hogged['disturbed'].max():.0%} of a hogged visit, {quiet['disturbed'].max():.0%} quiet"
    )


def differences(table: pd.DataFrame) -> Picture:
    """How far the points of two sweeps differ, sorted: the headline and the raw median."""
    with rc_context(STYLE):
        figure, axes = _axes("The same point in two sweeps", "difference")
        for name, colour in zip(
            ("headline", "raw"), sns.color_palette("colorblind", 2).as_hex(), strict=True
        ):
            sns.ecdfplot(table[name], color=colour, ax=axes, label=name)
        axes.set(xlabel="difference", ylabel="share of points")
        axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.legend(frameon=False)
        sns.despine(ax=axes)
    return figure


def about_differences(table: pd.DataFrame, tables: Sequence[pd.DataFrame]) -> str:
    """Median and worst difference, compatible intervals, and what was flagged."""
    headline, raw = table["headline"], table["raw"]
    samples = sum(one["samples"].sum() for one in tables)
    disturbed = sum(one["disturbed"].sum() for one in tables)
    return (
        f"{len(table)} pairs of a point. Headline: median {headline.median():.1%}, "
        f"worst {headline.max():.1%}; raw median: {raw.median():.1%}, {raw.max():.1%}. "
        f"Intervals compatible in {table['compatible'].mean():.0%}; "
        f"{disturbed / samples:.1%} of the samples flagged as disturbed."
    )
