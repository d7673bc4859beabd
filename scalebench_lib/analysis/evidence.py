"""Pictures and sentences for `notebooks/trust.ipynb`: what each experiment has shown."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, PercentFormatter

from scalebench_lib.analysis.picture import STYLE, Picture, log_y
from scalebench_lib.numerals import counted


def _axes(title: str, x_axis: str, height: float = 3.2) -> tuple[Picture, Axes]:
    figure = Picture(figsize=(8.4, height))
    figure.alt = title
    axes = figure.add_subplot(xlabel=x_axis)
    axes.set_title(title, loc="left", fontsize=11, weight="bold")
    figure.subplots_adjust(left=0.2, right=0.97, bottom=0.17, top=0.88)
    return figure, axes


def ratios(compared: dict[str, pd.DataFrame], title: str = "Ratio of raw medians") -> Picture:
    """Ratios by point, a series for each entry of `compared`; bars are their 95 % intervals."""
    colours = sns.color_palette("colorblind", len(compared)).as_hex()
    first = next(iter(compared.values()))
    with rc_context(STYLE):
        figure, axes = _axes(title, "ratio", 1.4 + 0.4 * len(first))
        for offset, (colour, (name, table)) in enumerate(
            zip(colours, compared.items(), strict=True)
        ):
            places = np.arange(len(table)) + 0.2 * offset
            reach = np.abs(table[["low", "high"]].T - table["ratio"])
            axes.errorbar(table["ratio"], places, xerr=reach, fmt="o", color=colour, label=name)
        axes.axvline(1, color="0.4", linewidth=1)
        axes.axvspan(0.95, 1.05, color="0.9", zorder=0)
        points = zip(first["batch_size"], first["threads"], strict=True)
        labels = [f"batch {size}, {counted(threads, 'thread')}" for size, threads in points]
        axes.set_yticks(np.arange(len(labels)) + 0.1 * (len(compared) - 1), labels)
        axes.invert_yaxis()
        axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
        sns.despine(ax=axes)
        figure.subplots_adjust(right=0.76)
    return figure


def about_ratios(table: pd.DataFrame) -> str:
    """The median and the extremes of the points' ratios, and how many differ from 1."""
    found = table["ratio"]
    differing = ((table["low"] > 1) | (table["high"] < 1)).sum()
    return (
        f"ratio {found.median():.3f} in the median of {len(found)} points, {found.min():.3f} to "
        f"{found.max():.3f}; the interval leaves out 1 at {differing} of them"
    )


def costs(per_sample_us: np.ndarray) -> Picture:
    """What the timing loop adds to each sample, repeated."""
    with rc_context(STYLE):
        figure, axes = _axes("What the harness adds to a sample", "")
        sns.histplot(x=per_sample_us, ax=axes, color=sns.color_palette("colorblind").as_hex()[0])
        axes.set(xlabel="µs", ylabel="repeats")
        axes.set_xlim(left=0)
        sns.despine(ax=axes)
    return figure


def beside(table: pd.DataFrame) -> Picture:
    """Seconds of each visit that were not sampling, by kind of kernel."""
    with rc_context(STYLE):
        figure, axes = _axes("A visit beside its sampling", "", 2.4)
        sns.stripplot(table, x="beside_s", y="model", hue="kind", palette="colorblind", ax=axes)
        axes.set(xlabel="s", ylabel="")
        axes.set_xlim(left=0)
        sns.despine(ax=axes)
    return figure


def about_beside(table: pd.DataFrame) -> str:
    """The medians of both kinds."""
    found = table.groupby(["model", "kind"], sort=False, as_index=False)["beside_s"]
    kinds = [
        f"{row['model']}, {row['kind']}: {row['median']:.2f} s ({row['size']:.0f} visits)"
        for row in found.agg(["median", "size"]).to_dict("records")
    ]
    return f"Beside sampling, in the median: {'; '.join(kinds)}."


def hogs(table: pd.DataFrame) -> Picture:
    """What each estimate made of a disturbed visit, as change against the quiet one."""
    hogged = table[table["hog"] != "quiet"]
    long = hogged.melt(["hog", "threads"], ["mean", "raw median", "headline"], "estimate")
    visits = zip(long["hog"], long["threads"], strict=True)
    long["visit"] = [f"{kind}, {counted(threads, 'thread')}" for kind, threads in visits]
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


def passes(table: pd.DataFrame) -> Picture:
    """Every pass of each visit under a hog, by time; those that are flagged are crosses."""
    kinds = list(table["hog"].unique())
    with rc_context(STYLE):
        figure = Picture(figsize=(8.4, 2.0 * len(kinds)))
        figure.alt = "Every pass of each visit"
        rows = figure.subplots(len(kinds), 1, sharex=True, squeeze=False)[:, 0]
        for axes, kind in zip(rows, kinds, strict=True):
            some = table[table["hog"] == kind]
            sns.scatterplot(
                some,
                x="seconds",
                y="latency_ms",
                hue="threads",
                style="disturbed",
                markers={False: "o", True: "X"},
                palette="colorblind",
                s=18,
                linewidth=0,
                ax=axes,
                legend="auto" if kind == kinds[0] else False,
            )
            axes.set_title(kind, loc="left", fontsize=10)
            axes.set(ylabel="latency (ms)", xlabel="seconds into the visit")
            log_y(axes, some["latency_ms"].min(), some["latency_ms"].max())
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5)))  # the rows are low
            sns.despine(ax=axes)
        rows[0].legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=8)
        figure.subplots_adjust(left=0.1, right=0.84, bottom=0.1, top=0.94, hspace=0.35)
    return figure


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
