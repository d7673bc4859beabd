"""Controls for looking around in the sweeps of a folder; the picture follows."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from html import escape
from pathlib import Path
from typing import Any

import ipywidgets as widgets
import pandas as pd
from IPython.display import display

from scalebench_lib.analysis.controls import Checks, buttons, dropdown, offer, show_only, slider
from scalebench_lib.analysis.figures import per_batch, per_optimization
from scalebench_lib.analysis.findings import extreme
from scalebench_lib.analysis.picture import Picture
from scalebench_lib.analysis.plates import By, ordered_optimizations, plates, shown_optimizations
from scalebench_lib.analysis.selection import (
    METRICS,
    Measured,
    MetricName,
    as_raw,
    setting_words,
    settings,
)
from scalebench_lib.errors import RequestError, ScalebenchError
from scalebench_lib.imported import FILE as IMPORTED
from scalebench_lib.notebook import OUTPUTS, somebody_watches
from scalebench_lib.rendered import WIDGET

_DPI = 100
"""Less than on the page, for a quicker answer."""

_BATCH, _OPTIMIZATION = "batch size", "optimization"
_REFERENCE, _RAW = "at reference speed", "raw medians"
_PUBLISHED = "published means"
_SMT = {False: "off", True: "on"}


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


class Explorer(widgets.VBox):  # type: ignore[misc]
    """Controls that choose a figure of the sweep in `out`, or of another one in `outputs`.

    `picture` shows the figure; `message` says what is seen in it, or why there is none.
    """

    def __init__(self, out: Path, outputs: Path = OUTPUTS) -> None:
        folders = dict.fromkeys(path.resolve() for path in (out, *sweeps(outputs)))
        self._load = cache(Measured.load)
        self._quiet = False
        self.sweep = dropdown("Sweep", [(path.name, path) for path in folders])
        self.setting = dropdown("Setting")
        self.metric = buttons("Metric", list(METRICS))
        self.view = buttons("One figure for", [_OPTIMIZATION, _BATCH])
        self.optimization = dropdown("Optimization")
        self.smt = buttons("SMT")
        self.batch_sizes = Checks("Batch sizes")
        self.batch_size = slider("Batch size")
        self.optimizations = Checks("Optimizations")
        self.smts = Checks("SMT")
        self.scale = buttons("Scale", ["auto", "linear", "log"])
        self.numbers = buttons("Numbers", [_REFERENCE, _RAW])
        self.message = widgets.HTML()
        self.picture = widgets.Image(format="png", layout={"max_width": "100%"})
        super().__init__([*self.controls, self.message, self.picture])
        self._choose_sweep()
        self._listen()

    @property
    def controls(self) -> list[Any]:
        """All controls, from top to bottom."""
        by_optimization = [self.optimization, self.smt, self.batch_sizes]
        by_batch = [self.batch_size, self.optimizations, self.smts]
        general = [self.sweep, self.setting, self.metric, self.view]
        return [*general, *by_optimization, *by_batch, self.scale, self.numbers]

    def _listen(self) -> None:
        """Sweep and setting change what there is to choose from; the rest only the picture."""
        reactions = {self.sweep: self._choose_sweep, self.setting: self._choose_setting}
        for control in self.controls:
            control.observe(self._unless_quiet(reactions.get(control, self._redraw)), "value")

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
        try:
            measured = self._load(self.sweep.value)
        except ScalebenchError as error:
            self._say_why_not(error)
            return
        table = measured.table
        names = [setting_words(table, setting) for setting, _ in settings(table)]
        with self._quietly():
            offer(self.numbers, [_PUBLISHED] if measured.imported else [_REFERENCE, _RAW])
            offer(self.setting, [(name or "the only one", i) for i, name in enumerate(names)])
        self._choose_setting()

    def _choose_setting(self) -> None:
        rows = self._rows()
        batch_sizes = sorted(rows["batch_size"].unique())
        optimizations = ordered_optimizations(rows)
        smts = sorted(bool(smt) for smt in rows["smt"].unique())
        with self._quietly():
            offer(self.batch_size, batch_sizes)
            offer(self.optimization, optimizations, shown_optimizations(rows)[0])
            offer(self.smt, [(_SMT[smt], smt) for smt in smts])
            self.batch_sizes.offer(batch_sizes)
            self.optimizations.offer(optimizations)
            self.smts.offer(smts, _SMT.__getitem__)
        self._redraw()

    def _rows(self) -> pd.DataFrame:
        """What was measured in the chosen sweep and setting."""
        found = [rows for _, rows in settings(self._load(self.sweep.value).table)]
        chosen: int = self.setting.value
        return found[chosen]

    def _redraw(self) -> None:
        show_only(self.controls, self._applying())
        try:
            rows = self._chosen_rows()
            self.picture.value = self._draw(rows).png(_DPI)
            self.message.value = _status(extreme(rows, self.metric.value))
            self.picture.layout.display = ""
        except ScalebenchError as error:
            self._say_why_not(error)

    def _applying(self) -> list[Any]:
        several_smt = len(self.smt.options) > 1
        if self.view.value == _BATCH:
            chosen = [self.batch_size, self.optimizations, *([self.smts] * several_smt)]
        else:
            chosen = [self.optimization, *([self.smt] * several_smt), self.batch_sizes]
        setting = [self.setting] * (len(self.setting.options) > 1)
        look = [self.scale, *([self.numbers] * (len(self.numbers.options) > 1))]
        return [self.sweep, *setting, self.metric, self.view, *chosen, *look]

    def _chosen_rows(self) -> pd.DataFrame:
        by_batch = self.view.value == _BATCH
        wanted = {
            "batch_size": [self.batch_size.value] if by_batch else self.batch_sizes.value,
            "optimization": self.optimizations.value if by_batch else [self.optimization.value],
            "smt": self.smts.value if by_batch else [self.smt.value],
        }
        rows = self._rows()
        for column, values in wanted.items():
            if not values:
                raise RequestError("Nothing is chosen: tick at least one box of each row.")
            rows = rows[rows[column].isin(values)]
        return as_raw(rows) if self.numbers.value == _RAW else rows

    def _draw(self, rows: pd.DataFrame) -> Picture:
        model, metric = rows["model"].iloc[0], self.metric.value
        kind = [self.numbers.value] * (len(self.numbers.options) > 1)
        source = " · ".join([self._load(self.sweep.value).source, *kind])
        how = {"scale": self.scale.value, "source": source}
        if self.view.value == _BATCH:
            return per_batch(rows, model, metric, self.batch_size.value, **how)
        config = self.optimization.value, self.smt.value
        return per_optimization(rows, model, metric, *config, **how)

    def _repr_mimebundle_(self, **options: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """The controls with the picture as it is, for where they are dead; headless, it alone."""
        data: dict[str, Any] = super()._repr_mimebundle_(**options)
        if not somebody_watches():
            del data[WIDGET]
        data["text/plain"] = f"{self.sweep.label}: {self.metric.value}, as chosen"
        if self.picture.value:
            data["image/png"] = b64encode(self.picture.value).decode("ascii")
        return data, {"image/png": {"alt": data["text/plain"]}}

    def _say_why_not(self, error: ScalebenchError) -> None:
        self.picture.layout.display = "none"
        self.message.value = _status(str(error))


def _status(text: str) -> str:
    return f'<p role="status">{escape(text)}</p>'
