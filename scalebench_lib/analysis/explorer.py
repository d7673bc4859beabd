"""Controls for looking around in the sweeps of a folder; the picture follows."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from html import escape
from pathlib import Path
from typing import Any

import ipywidgets as widgets
import pandas as pd
from IPython.display import display

from scalebench_lib.analysis.axis import Span
from scalebench_lib.analysis.controls import (
    Checks,
    PngImage,
    buttons,
    choosable,
    dropdown,
    offer,
    offer_range,
    range_slider,
    show_only,
    slider,
)
from scalebench_lib.analysis.picture import Picture
from scalebench_lib.analysis.plates import By, ordered_optimizations, plates, shown_optimizations
from scalebench_lib.analysis.saving import save, stacked
from scalebench_lib.analysis.selection import (
    METRICS,
    SETTING,
    Measured,
    MetricName,
    choices,
    chosen,
)
from scalebench_lib.analysis.views import VIEWS, Asked, rows_of, seen, table_of
from scalebench_lib.errors import RequestError, ScalebenchError
from scalebench_lib.imported import FILE as IMPORTED
from scalebench_lib.notebook import OUTPUTS, somebody_watches
from scalebench_lib.rendered import WIDGET

_DPI = 100
"""Less than on the page, for a quicker answer."""

_SMT = {False: "off", True: "on"}
_BEST = "each at its best thread count"

_FILTERS = ("model", *(name for name in SETTING if name != "machine"))
"""What one picture holds one of. A sweep is of one machine; others are laid beside it."""

_BESIDE = {"flex": "1 1 34rem", "max_width": "840px", "min_width": "0"}
"""Of each picture: where there is room they stand side by side, else one under the other."""


def sweeps(outputs: Path = OUTPUTS) -> list[Path]:
    """The folders of `outputs` that hold records or an import, the one written last first."""
    written = {path.parent for path in outputs.glob("*/records/*.json")}
    written |= set(outputs.glob(f"*/{IMPORTED}"))
    newest_first = sorted(written, key=lambda path: path.stat().st_mtime, reverse=True)
    return [path.parent for path in newest_first]


def find_sweep(out: str = "", outputs: Path = OUTPUTS) -> Path:
    """The sweep in folder `out`, or the newest of `outputs` where `out` is empty.

    Raises `RequestError` where there is none.
    """
    if out:
        return Path(out)
    for newest in sweeps(outputs):
        return newest
    raise RequestError(f"no sweep in {outputs.name}/ yet: measure one first, with 'make sweep'")


def show(measured: Measured, metric: MetricName, by: By) -> None:
    """Show the page's figures of `metric` by batch size or by optimization, in a notebook."""
    for plate in plates(measured.table):
        if (plate.metric, plate.by) == (metric, by):
            print(plate.missing) if plate.missing else display(plate.draw(measured.source))
    if by == "optimization" and measured.without_smt:
        print(measured.without_smt)


@dataclass(frozen=True)
class Shown:
    """A sweep's picture, and the numbers in it."""

    name: str
    picture: Picture
    data: pd.DataFrame
    measured: Measured


class Explorer(widgets.VBox):  # type: ignore[misc]
    """Controls that choose a view of the sweep in `out`, and of others in `outputs` beside it.

    `picture` shows it; `message` says what is seen in it, or why there is none. Two buttons
    save picture and data into the sweep's folder ``explored/``.
    """

    def __init__(self, out: Path, outputs: Path = OUTPUTS) -> None:
        self._folders = list(dict.fromkeys(p.resolve() for p in (out, *sweeps(outputs))))
        self._load = cache(Measured.load)
        self._table = cache(lambda folder, view: table_of(self._load(folder), view))
        self._quiet, self._shown = False, list[Shown]()
        self._make_controls()
        self.message, self.saved = widgets.HTML(), widgets.HTML()
        self.picture = PngImage(format="png", layout=_BESIDE)
        self.pictures = widgets.Box([self.picture], layout={"flex_flow": "row wrap"})
        buttons_row = widgets.HBox([self.save_picture, self.save_data, self.saved])
        super().__init__([*self.controls, self.message, self.pictures, buttons_row])
        self._choose_sweep()
        self._listen()

    def _make_controls(self) -> None:
        self.sweep = dropdown("Sweep", [(path.name, path) for path in self._folders])
        self.beside = Checks("Beside it", ticked=False)
        self.filters = {name: dropdown(name.replace("_", " ").capitalize()) for name in _FILTERS}
        self.view = dropdown("View")
        self.metric = buttons("Metric", list(METRICS))
        self.batch_size = slider("Batch size")
        self.optimization = dropdown("Optimization")
        self.smt = buttons("SMT")
        self.batch_sizes = Checks("Batch sizes")
        self.optimizations = Checks("Optimizations")
        self.smts = Checks("SMT")
        self.at = dropdown("Threads")
        self.reach = range_slider("Threads")
        self.scale = buttons("Scale", ["auto", "linear", "log"])
        self.save_picture = widgets.Button(description="Save picture (PNG)")
        self.save_data = widgets.Button(description="Save data (CSV)")

    @property
    def controls(self) -> list[Any]:
        """All controls, from top to bottom."""
        where = [self.sweep, self.beside, *self.filters.values(), self.view, self.metric]
        one = [self.batch_size, self.optimization, self.smt]
        several = [self.batch_sizes, self.optimizations, self.smts, self.at, self.reach]
        return [*where, *one, *several, self.scale]

    def _listen(self) -> None:
        """Sweep and filters change what there is to choose from; the rest only the picture."""
        reactions = {self.sweep: self._choose_sweep}
        reactions |= dict.fromkeys(self.filters.values(), self._choose_setting)
        for control in self.controls:
            control.observe(self._unless_quiet(reactions.get(control, self._redraw)), "value")
        self.save_picture.on_click(lambda _: self._save(".png"))
        self.save_data.on_click(lambda _: self._save(".csv"))

    def _unless_quiet(self, action: Callable[[], None]) -> Callable[[object], None]:
        def act(_change: object) -> None:
            if not self._quiet:
                action()

        return act

    @contextmanager
    def _quietly(self) -> Iterator[None]:
        """Let controls change without a reaction to each."""
        self._quiet = True
        try:
            yield
        finally:
            self._quiet = False

    def _choose_sweep(self) -> None:
        with self._quietly():
            others = [path for path in self._folders if path != self.sweep.value]
            self.beside.offer(others, lambda path: path.name)
        try:
            self._load(self.sweep.value)
        except ScalebenchError as error:
            self._say_why_not(str(error))
        else:
            self._choose_setting()

    def _choose_setting(self) -> None:
        """Offer what was measured; each filter narrows what the next can offer."""
        rows = self._load(self.sweep.value).table
        with self._quietly():
            for column, control in self.filters.items():
                offer(control, choices(rows, column))
                rows = chosen(rows, column, control.value)
            views = [(view.title, name) for name, view in VIEWS.items() if view.needs(rows)]
            offer(self.view, views)
            self._offer_rows(rows)
        self._redraw()

    def _offer_rows(self, rows: pd.DataFrame) -> None:
        batch_sizes, smts = choices(rows, "batch_size"), choices(rows, "smt")
        optimizations, threads = ordered_optimizations(rows), choices(rows, "threads") or [1]
        offer(self.batch_size, batch_sizes)
        offer(self.optimization, optimizations, shown_optimizations(rows)[0])
        offer(self.smt, [(_SMT[smt], smt) for smt in smts])
        self.batch_sizes.offer(batch_sizes)
        self.optimizations.offer(optimizations)
        self.smts.offer(smts, _SMT.__getitem__)
        offer(self.at, [(_BEST, None), *((str(threads_), threads_) for threads_ in threads)])
        offer_range(self.reach, threads)

    def _redraw(self) -> None:
        show_only(self.controls, self._applying())
        self.optimizations.hide(VIEWS[self.view.value].always)
        self.saved.value, complaints = "", []
        self._shown, chosen = [], [self.sweep.value, *self.beside.value]
        for folder in chosen:
            try:
                self._shown.append(self._draw(folder, self._asked(folder)))
            except ScalebenchError as error:
                several = f"{folder.name}: " * (len(chosen) > 1)
                complaints.append(f"{several}{error}")
        if self._shown:
            self._share_axis()
            self._show(complaints)
        else:
            self._say_why_not(" ".join(complaints))

    def _applying(self) -> list[Any]:
        """The controls that do something here."""
        names = ("sweep", "beside", "view", *VIEWS[self.view.value].controls)
        some = [*(getattr(self, name) for name in names), *self.filters.values()]
        return [control for control in some if choosable(control)]

    def _asked(self, folder: Path) -> Asked:
        several = f"{folder.name} · " * bool(self.beside.value)
        source = f"{several}{self._load(folder).source}"
        names = ("metric", "batch_size", "optimization", "smt", "batch_sizes", "optimizations")
        values = {name: getattr(self, name).value for name in (*names, "smts", "at", "reach")}
        return Asked(
            **values,
            scale=self.scale.value,
            setting={name: control.value for name, control in self.filters.items()},
            source=source,
        )

    def _draw(self, folder: Path, asked: Asked) -> Shown:
        name, view = self.view.value, VIEWS[self.view.value]
        rows = rows_of(self._table(folder, name), name, asked)
        measured = self._load(folder)
        return Shown(folder.name, view.draw(rows, asked), view.data(rows, asked), measured)

    def _share_axis(self) -> None:
        """Draw several sweeps on one y axis, so that heights can be compared."""
        spans = [shown.picture.span for shown in self._shown]
        known = [span for span in spans if span is not None]
        if len(set(known)) < 2:
            return
        around = Span.around(known)
        paths = {path.name: path for path in (self.sweep.value, *self.beside.value)}
        for place, shown in enumerate(self._shown):
            folder = paths[shown.name]
            self._shown[place] = self._draw(folder, replace(self._asked(folder), scale=around))

    def _show(self, complaints: list[str]) -> None:
        """Put the pictures where the old ones were; nothing else moves."""
        while len(self.pictures.children) < len(self._shown):
            self.pictures.children += (PngImage(format="png", layout=_BESIDE),)
        self.pictures.children = self.pictures.children[: len(self._shown)]
        for image, shown in zip(self.pictures.children, self._shown, strict=True):
            with image.hold_sync():  # each message would load the picture anew
                image.value, image.tooltip = shown.picture.png(_DPI), shown.picture.alt
        view, several = self.view.value, len(self._shown) > 1
        told = [
            f"{shown.name}: " * several + seen(view, shown.data, self.metric.value, shown.measured)
            for shown in self._shown
        ]
        self.message.value = _status(" ".join([*told, *complaints]))
        self._enable(True)

    def _say_why_not(self, why: str) -> None:
        self._shown = []
        self.message.value = _status(why)
        self._enable(False)

    def _enable(self, shown: bool) -> None:
        self.pictures.layout.display = "" if shown else "none"
        self.save_picture.disabled = self.save_data.disabled = not shown

    def _save(self, ending: str) -> None:
        named = [shown.data.assign(sweep=shown.name) for shown in self._shown]
        content = self.png() if ending == ".png" else pd.concat(named).to_csv(index=False).encode()
        try:
            path = save(self.sweep.value, self._shown[0].picture.alt, ending, content)
        except OSError as error:
            self.saved.value = _status(f"Not saved: {error}")
            return
        self.saved.value = _status(f"Saved: {'/'.join(path.parts[-3:])}")

    def png(self) -> bytes:
        """All that is shown, in one picture."""
        return stacked([image.value for image in self.pictures.children])

    def _repr_mimebundle_(self, **options: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """The controls with the picture as it is, for where they are dead; headless, it alone."""
        data: dict[str, Any] = super()._repr_mimebundle_(**options)
        if not somebody_watches():
            del data[WIDGET]
        data["text/plain"] = "; ".join(f"{one.name}: {one.picture.alt}" for one in self._shown)
        if self._shown:
            data["image/png"] = b64encode(self.png()).decode("ascii")
        return data, {"image/png": {"alt": data["text/plain"]}}


def _status(text: str) -> str:
    return f'<p role="status">{escape(text)}</p>'
