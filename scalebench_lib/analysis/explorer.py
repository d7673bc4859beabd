"""The explorer: widgets that choose a figure of the sweeps of a folder.

It offers the `VIEWS` and choices of the page; axes that a view does not choose can be filtered.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache, partial
from itertools import count
from pathlib import Path
from typing import Any

import ipywidgets
import pandas as pd
from IPython.display import display

from scalebench_lib import widgets
from scalebench_lib.analysis import figures, tables
from scalebench_lib.analysis.draw import draw
from scalebench_lib.charts import Chart, share_y_axis
from scalebench_lib.errors import RequestError, ScalebenchError
from scalebench_lib.notebook import OUTPUTS, WIDGET, is_interactive, say, sweeps
from scalebench_lib.results import Results

EXPLORED = "explored"
"""The subfolder of a sweep for saved files."""

_DPI = 100
"""Less than on the page, to be faster."""

_FILTERS = {name: title for name, title in tables.CONTEXT.items() if name != "machine"}
"""Columns with one value in a picture, but for the machine, of which a sweep has one."""

_SOME = {
    "batch_size": "Batch sizes",
    "optimization": "Optimizations",
    "smt": "SMT off, on",
    "threads": "Thread counts",
}
"""Columns that can be filtered in a view that does not choose one value."""

_BESIDE = {"flex": "1 1 30rem", "max_width": "840px", "min_width": "0"}
"""Of each picture: where there is room they stand side by side, else one under the other."""


def show_view(view: str, *results: Results, **chosen: Any) -> None:
    """Show a figure of each of `results`, on one axis, and sentences computed from them.

    `view` is one of `VIEWS`. `chosen` are fields of `Choices`, or columns such as ``seq_len``, by
    default the first value of the sweep.
    """
    shown = []
    for sweep in results:
        try:
            shown.append((sweep, *_chart_of(view, sweep, chosen)))
        except RequestError as error:
            say(f"{error}.")
    for chart in share_y_axis([chart for _, chart, _ in shown]):
        display(draw(chart))
    say(*(figures.VIEWS[view].sentence(*each) for each in shown))


def _chart_of(view: str, results: Results, chosen: dict[str, Any]) -> tuple[Chart, figures.Choices]:
    found, rows = figures.VIEWS[view], results.table
    for name in chosen.keys() - figures.CONTROLS.keys():
        rows = rows[rows[name] == chosen[name]]
    context, rows = next(tables.by_context(tables.succeeded_rows(rows)))
    if not found.needs(rows):
        raise RequestError(f"{found.title}: nothing of it is known of this sweep")
    first = {name: offered[0][1] for name, offered in figures.options(rows).items()}
    first["optimization"] = tables.default_optimization(rows)
    choices = figures.Choices(**{name: chosen.get(name, first[name]) for name in first})
    if found.of_samples:
        rows = tables.select(figures.samples_table(results), **context)
    return replace(found.chart(rows, choices), source=results.source), choices


def save_explored(out: Path, title: str, ending: str, content: bytes) -> Path:
    """Write `content` into a new file in ``explored/`` of sweep `out`, named by `title`.

    Raises OSError where that cannot be written.
    """
    folder = out / EXPLORED
    folder.mkdir(exist_ok=True)
    name = re.sub(r"[^\w.]+", "-", title.lower()).strip("-")
    paths = (folder / f"{name}{f'-{i}' * (i > 1)}{ending}" for i in count(1))
    path = next(path for path in paths if not path.exists())
    path.write_bytes(content)
    return path


class Explorer(ipywidgets.Box):  # type: ignore[misc]
    """Controls that choose a view of the sweep in `out`, next to others in `outputs`.

    `picture` shows it; `message` is a sentence on it, or why it is missing. Two buttons save
    picture and data into the sweep's folder ``explored/``.
    """

    def __init__(self, out: Path, outputs: Path = OUTPUTS) -> None:
        self._folders = list(dict.fromkeys(p.resolve() for p in (out, *sweeps(outputs))))
        self._load = cache(Results.load)
        self._samples = cache(lambda folder: figures.samples_table(self._load(folder)))
        self._quiet, self._shown = False, dict[Path, Chart]()
        self._make_controls()
        self.message, self.saved = ipywidgets.HTML(), ipywidgets.HTML()
        self.picture = widgets.PngImage(format="png", layout=_BESIDE)
        self.pictures = ipywidgets.Box([self.picture], layout={"flex_flow": "row wrap"})
        saving = [ipywidgets.HBox([self.save_picture, self.save_data]), self.saved]
        left = ipywidgets.VBox([*self.controls, *saving])
        right = ipywidgets.VBox([self.message, self.pictures], layout=widgets.RIGHT)
        super().__init__([left, right], layout={"flex_flow": "row wrap"})
        self.add_class("scalebench-explorer")
        self._choose_sweep()
        self._listen()

    def _make_controls(self) -> None:
        self.sweep = widgets.dropdown("Sweep", [(path.name, path) for path in self._folders])
        self.beside = widgets.several("Beside it")
        self.filters = {name: widgets.dropdown(title) for name, title in _FILTERS.items()}
        self.view = widgets.dropdown("View")
        buttons, menu = widgets.buttons, widgets.dropdown
        makers = (buttons, widgets.slider, menu, buttons, menu)
        titles = figures.CONTROLS.items()
        self.choices = {
            name: make(title) for (name, title), make in zip(titles, makers, strict=True)
        }
        self.some = {name: widgets.several(title) for name, title in _SOME.items()}
        self.scale = buttons("Scale", ["auto", "linear", "log"])
        where = [self.sweep, self.beside, *self.filters.values(), self.view]
        self.controls = [*where, *self.choices.values(), *self.some.values(), self.scale]
        self.save_picture = ipywidgets.Button(description="Save picture (PNG)")
        self.save_data = ipywidgets.Button(description="Save data (CSV)")

    def _listen(self) -> None:
        """Update the options after a new sweep or filter; after other changes only the picture."""
        reactions = {self.sweep: self._choose_sweep}
        reactions |= dict.fromkeys(self.filters.values(), self._choose_context)
        for control in self.controls:
            control.observe(partial(self._react, reactions.get(control, self._redraw)), "value")
        self.save_picture.on_click(lambda _: self._save(".png"))
        self.save_data.on_click(lambda _: self._save(".csv"))

    def _react(self, action: Callable[[], None], _change: object) -> None:
        if not self._quiet:
            action()

    @contextmanager
    def _quietly(self) -> Iterator[None]:
        """Suspend the reactions to changes."""
        self._quiet = True
        try:
            yield
        finally:
            self._quiet = False

    def _choose_sweep(self) -> None:
        with self._quietly():
            others = [path for path in self._folders if path != self.sweep.value]
            widgets.set_several(self.beside, [(path.name, path) for path in others])
            self.beside.value = ()
        try:
            self._choose_context()
        except ScalebenchError as error:
            self._show({}, str(error))

    def _choose_context(self) -> None:
        """Set the options to measured values; each filter limits those of the next."""
        rows = self._load(self.sweep.value).table
        with self._quietly():
            for column, control in self.filters.items():
                widgets.set_options(control, tables.values_of(rows, column))
                if control.value == tables.ALL:
                    rows = tables.merge_axis(rows, column)
                rows = rows[rows[column] == control.value]
            offered = figures.options(rows)
            views = figures.views_of(rows).items()
            widgets.set_options(self.view, [(view.title, name) for name, view in views])
            for name, control in self.choices.items():
                default = tables.default_optimization(rows) if name == "optimization" else None
                widgets.set_options(control, offered[name], default)
            for name, control in self.some.items():
                known = [option for option in offered[name] if option[1] is not None]
                widgets.set_several(control, known)
        self._redraw()

    @property
    def _view(self) -> figures.View:
        return figures.VIEWS[self.view.value]

    def _redraw(self) -> None:
        widgets.show_applying(self.controls, self._applying())
        self.beside.layout.display = "flex" if self.beside.options else "none"
        self.saved.value, charts, complaints = "", dict[Path, Chart](), []
        chosen = [self.sweep.value, *self.beside.value]
        for folder in chosen:
            try:
                charts[folder] = self._chart(folder)
            except ScalebenchError as error:
                complaints.append(f"{folder.name}: {error}" if len(chosen) > 1 else str(error))
        self._show(charts, " ".join(complaints))

    def _applying(self) -> list[Any]:
        """Return the controls that apply to this view."""
        controls = self._view.controls
        some = [control for name, control in self.some.items() if name not in controls]
        one = [self.choices[name] for name in controls]
        scale = [] if self.view.value in ("heat", *figures.STACKED_BARS) else [self.scale]
        return [self.sweep, *self.filters.values(), self.view, *one, *some, *scale]

    def _chart(self, folder: Path) -> Chart:
        results = self._load(folder)
        rows = self._samples(folder) if self._view.of_samples else results.table
        chart = self._view.chart(self._chosen(rows), self._choices())
        scale = chart.scale if self.scale.value == "auto" else self.scale.value
        several = f"{folder.name} · " if self.beside.value else ""
        return replace(chart, scale=scale, source=f"{several}{results.source}")

    def _choices(self) -> figures.Choices:
        return figures.Choices(**{name: control.value for name, control in self.choices.items()})

    def _chosen(self, rows: pd.DataFrame) -> pd.DataFrame:
        """Return the rows that the filters and lists of this view choose, and those that failed."""
        wanted = {name: [control.value] for name, control in self.filters.items()}
        for column in (name for name in tables.MERGED if wanted[name] == [tables.ALL]):
            rows = tables.merge_axis(rows, column)
            del wanted[column]
        lists = self.some.items()
        some = {n: list(each.value) for n, each in lists if n not in self._view.controls}
        if not all(some.values()):
            raise RequestError("Nothing is chosen: choose at least one of each list.")
        counts = some.pop("threads", rows["threads"].unique())
        rows = tables.select(rows, **wanted, **some)
        return rows[rows["threads"].isin(counts) | rows["threads"].isna()]

    def _show(self, charts: dict[Path, Chart], complaint: str) -> None:
        """Replace the pictures in place, and the sentences on them."""
        self._shown = charts
        while len(self.pictures.children) < len(charts):
            self.pictures.children += (widgets.PngImage(format="png", layout=_BESIDE),)
        self.pictures.children = self.pictures.children[: max(1, len(charts))]
        for image, chart in zip(
            self.pictures.children, share_y_axis([*charts.values()]), strict=False
        ):
            with image.hold_sync():  # each message would load the picture anew
                image.value, image.tooltip = draw(chart).png(_DPI), chart.title
        self.message.value = widgets.status_html(" ".join([*self._sentences(), complaint]).strip())
        self.pictures.layout.display = "" if charts else "none"
        self.save_picture.disabled = self.save_data.disabled = not charts

    def _sentences(self) -> Iterator[str]:
        for folder, chart in self._shown.items():
            name = f"{folder.name}: " if len(self._shown) > 1 else ""
            yield name + self._view.sentence(self._load(folder), chart, self._choices())

    def _save(self, ending: str) -> None:
        shown = self._shown.items()
        data = pd.concat([chart.rows.assign(sweep=folder.name) for folder, chart in shown])
        pictures = [image.value for image in self.pictures.children]
        contents = pictures if ending == ".png" else [data.to_csv(index=False).encode()]
        title = next(iter(self._shown.values())).title
        try:
            paths = [
                save_explored(self.sweep.value, title, ending, content) for content in contents
            ]
        except OSError as error:
            self.saved.value = widgets.status_html(f"Not saved: {error}")
            return
        names = ", ".join("/".join(path.parts[-3:]) for path in paths)
        self.saved.value = widgets.status_html(f"Saved: {names}")

    def _repr_mimebundle_(self, **options: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """Show the controls with the picture, or, headless, the picture alone."""
        data: dict[str, Any] = super()._repr_mimebundle_(**options)
        if not is_interactive():
            del data[WIDGET]
        titles = (f"{folder.name}: {chart.title}" for folder, chart in self._shown.items())
        data["text/plain"] = "; ".join(titles)
        if self._shown:
            data["image/png"] = b64encode(self.picture.value).decode("ascii")
        return data, {"image/png": {"alt": data["text/plain"]}}
