"""The explorer: controls for looking around in the sweeps of a folder; the picture follows.

A `View` says which controls apply to it, what it draws, and what of it is saved as data.
"""

from __future__ import annotations

import io
import re
from base64 import b64encode
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from html import escape
from itertools import count
from pathlib import Path
from typing import Any

import ipywidgets as widgets
import pandas as pd
from IPython.display import display
from PIL import Image

from scalebench_lib.analysis.draw import Picture, Scale, Span
from scalebench_lib.analysis.figures import (
    by_batch_size,
    distribution,
    heat_map,
    peak_share,
    per_batch,
    per_optimization,
    samples_table,
    speedup_over_eager,
    speedup_over_one_thread,
)
from scalebench_lib.analysis.findings import extreme, interval_label, point_label
from scalebench_lib.analysis.page import (
    By,
    figure_specs,
    ordered_optimizations,
    shown_optimizations,
)
from scalebench_lib.analysis.tables import (
    ALL,
    CONTEXT,
    EAGER,
    METRICS,
    Measured,
    MetricName,
    allocators_as_optimizations,
    best_threads,
    choices,
    chosen,
    measured_only,
    over_eager,
    over_one_thread,
)
from scalebench_lib.errors import RequestError, ScalebenchError
from scalebench_lib.notebook import OUTPUTS, WIDGET, is_interactive
from scalebench_lib.results import FILE as IMPORTED
from scalebench_lib.text import format_number
from scalebench_lib.widgets import (
    CheckboxGroup,
    PngImage,
    buttons,
    choosable,
    dropdown,
    range_slider,
    set_options,
    set_range_options,
    set_visible,
    slider,
)

EXPLORED = "explored"
"""The folder in a sweep's for what is saved."""


def save(out: Path, title: str, ending: str, content: bytes) -> Path:
    """Write `content` into ``explored/`` of sweep `out`, named by `title`; nothing is replaced.

    Raises OSError where that cannot be written.
    """
    folder = out / EXPLORED
    folder.mkdir(exist_ok=True)
    name = re.sub(r"[^\w.]+", "-", title.lower()).strip("-")
    paths = (folder / f"{name}{f'-{i}' * (i > 1)}{ending}" for i in count(1))
    path = next(path for path in paths if not path.exists())
    path.write_bytes(content)
    return path


def stacked(pngs: Sequence[bytes]) -> bytes:
    """PNG pictures as one, each under the one before."""
    if len(pngs) == 1:
        return pngs[0]
    images = [Image.open(io.BytesIO(png)).convert("RGB") for png in pngs]
    size = max(image.width for image in images), sum(image.height for image in images)
    whole, top = Image.new("RGB", size, "white"), 0
    for image in images:
        whole.paste(image, (0, top))
        top += image.height
    buffer = io.BytesIO()
    whole.save(buffer, "png", optimize=True)
    return buffer.getvalue()


_LINES = ("batch_sizes", "optimizations", "smts")


@dataclass(frozen=True)
class Selection:
    """What was chosen. `at` is the thread count to compare at, None for each config's best;
    `reach` the least and the most threads; `setting` the values of model and `CONTEXT`."""

    metric: MetricName
    batch_size: int
    optimization: str
    smt: bool
    batch_sizes: tuple[int, ...]
    optimizations: tuple[str, ...]
    smts: tuple[bool, ...]
    at: int | None
    reach: tuple[int, int]
    scale: Scale
    setting: dict[str, Any]
    source: str = ""

    @property
    def words(self) -> dict[str, Any]:
        """For figures with a y axis."""
        return {"scale": self.scale, "source": self.source}

    @property
    def config(self) -> tuple[str, bool]:
        """For figures of one optimization, SMT off or on."""
        return self.optimization, self.smt


@dataclass(frozen=True)
class View:
    """A way to look at a sweep: its `title`, the controls that apply to it, and its picture.

    `data` gives the numbers in the picture from the rows chosen; `needs` says whether a results
    table holds what it shows; `always` are optimizations that it compares with, ticked or not.
    """

    title: str
    controls: tuple[str, ...]
    draw: Callable[[pd.DataFrame, Selection], Picture]
    data: Callable[[pd.DataFrame, Selection], pd.DataFrame] = lambda rows, asked: rows
    needs: Callable[[pd.DataFrame], bool] = lambda table: True
    always: tuple[str, ...] = ()


def _model(rows: pd.DataFrame) -> str:
    return str(rows["model"].iloc[0])


def _sizes(rows: pd.DataFrame, asked: Selection) -> Picture:
    return by_batch_size(rows, _model(rows), asked.metric, threads=asked.at, **asked.words)


def _compares(table: pd.DataFrame) -> bool:
    return {EAGER} < set(table["optimization"])


VIEWS: dict[str, View] = {
    "eager": View(
        "Speed-up over eager",
        (*_LINES, "at", "scale"),
        lambda rows, asked: speedup_over_eager(rows, _model(rows), threads=asked.at, **asked.words),
        lambda rows, asked: over_eager(rows, asked.at),
        _compares,
        always=(EAGER,),
    ),
    "sizes": View(
        "By batch size",
        ("metric", *_LINES, "at", "scale"),
        _sizes,
        lambda rows, asked: best_threads(rows, asked.at),
    ),
    "batch": View(
        "One batch size, by cores",
        ("metric", "batch_size", "optimizations", "smts", "reach", "scale"),
        lambda rows, asked: per_batch(
            rows, _model(rows), asked.metric, asked.batch_size, **asked.words
        ),
    ),
    "optimization": View(
        "One optimization, by threads",
        ("metric", "optimization", "smt", "batch_sizes", "reach", "scale"),
        lambda rows, asked: per_optimization(
            rows, _model(rows), asked.metric, *asked.config, **asked.words
        ),
    ),
    "scaling": View(
        "Speed-up over one thread",
        ("optimization", "smt", "batch_sizes", "scale"),
        lambda rows, asked: speedup_over_one_thread(
            rows, _model(rows), *asked.config, **asked.words
        ),
        lambda rows, asked: over_one_thread(rows),
    ),
    "heat": View(
        "Heat map: batch size × threads",
        ("metric", "optimization", "smt", "batch_sizes", "reach"),
        lambda rows, asked: heat_map(
            rows, _model(rows), asked.metric, *asked.config, source=asked.source
        ),
    ),
    "peak": View(
        "Share of the machine's peak",
        (*_LINES, "at", "scale"),
        lambda rows, asked: peak_share(rows, _model(rows), threads=asked.at, **asked.words),
        lambda rows, asked: best_threads(rows[rows["peak_fraction"].notna()], asked.at),
        needs=lambda table: bool(table["peak_fraction"].notna().any()),
    ),
    "samples": View(
        "Every sample of a batch size",
        ("batch_size", "optimization", "smt", "reach"),
        lambda rows, asked: distribution(rows, _model(rows), asked.batch_size, asked.source),
        needs=lambda table: bool(table["latency_ms_min"].notna().any()),
    ),
}
"""By the names that the page has for them too; the first that a sweep can have is shown first."""


def table_of(measured: Measured, view: str) -> pd.DataFrame:
    """What `view` draws from: a row a point, or a row a sample in view ``samples``."""
    return samples_table(measured.results) if view == "samples" else measured.table


def select_rows(table: pd.DataFrame, view: str, asked: Selection) -> pd.DataFrame:
    """The rows of `table` (`table_of` gave it) that were asked for.

    Raises `RequestError` where nothing is left.
    """
    controls = VIEWS[view].controls
    setting = {name: [value] for name, value in asked.setting.items() if value != ALL}
    together = setting.keys() != asked.setting.keys()
    rows = _choose_some(allocators_as_optimizations(table) if together else table, setting)
    rows = _choose_some(rows, _wanted(view, asked))
    if view != "samples":
        measured_only(rows)
    if "reach" in controls:
        within = rows["threads"].isna() | rows["threads"].between(*asked.reach)
        rows = rows[within.astype(bool)]
    return rows


def _wanted(view: str, asked: Selection) -> dict[str, list[Any]]:
    """The values of each column that the view's controls left in."""
    controls = VIEWS[view].controls
    several = {"batch_size": "batch_sizes", "optimization": "optimizations", "smt": "smts"}
    wanted: dict[str, list[Any]] = {
        column: list(getattr(asked, many)) if many in controls else [getattr(asked, column)]
        for column, many in several.items()
    }
    if any(not values for values in wanted.values()):
        raise RequestError("Nothing is chosen: tick at least one box of each row.")
    wanted["optimization"] += VIEWS[view].always
    return wanted


def _choose_some(rows: pd.DataFrame, wanted: dict[str, list[Any]]) -> pd.DataFrame:
    """The rows that have one of the values in each column; `RequestError` where none has."""
    for column, values in wanted.items():
        if column in rows:
            there, rows = rows, rows[rows[column].isin(values)]
            if rows.empty:
                names = ", ".join(map(str, values))
                known = ", ".join(map(str, sorted(there[column].unique())))
                raise RequestError(f"nothing has {column} {names}: there is {known}")
    return rows


def describe(view: str, data: pd.DataFrame, metric: MetricName, measured: Measured) -> str:
    """A sentence on what is seen in a picture of `view`, computed from its `data`."""
    if view == "samples":
        return f"{len(data):,} passes, {int(data['outlier'].sum()):,} of them outliers."
    if view in ("eager", "scaling"):
        top = data.sort_values("speedup").dropna(subset="speedup").iloc[-1]
        value = f"{format_number(top['speedup'])}×{interval_label(top)}"
        return f"Largest speed-up: {value}, with {point_label(data, top)}."
    if view == "peak":
        top = data.sort_values("peak_fraction").dropna(subset="peak_fraction").iloc[-1]
        share = format_number(100 * top["peak_fraction"])
        return f"Largest share: {share} % of the peak, with {point_label(data, top)}."
    return extreme(measured, data, metric)


_DPI = 100
"""Less than on the page, for a quicker answer."""

_SMT = {False: "off", True: "on"}
_BEST = "each at its best thread count"

_FILTERS = ("model", *(name for name in CONTEXT if name != "machine"))
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
    for spec in figure_specs(measured.table):
        if (spec.metric, spec.by) == (metric, by):
            print(spec.missing) if spec.missing else display(spec.draw(measured.source))
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
        self.beside = CheckboxGroup("Beside it", ticked=False)
        self.filters = {name: dropdown(name.replace("_", " ").capitalize()) for name in _FILTERS}
        self.view = dropdown("View")
        self.metric = buttons("Metric", list(METRICS))
        self.batch_size = slider("Batch size")
        self.optimization = dropdown("Optimization")
        self.smt = buttons("SMT")
        self.batch_sizes = CheckboxGroup("Batch sizes")
        self.optimizations = CheckboxGroup("Optimizations")
        self.smts = CheckboxGroup("SMT")
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
            self.beside.set_options(others, lambda path: path.name)
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
                set_options(control, choices(rows, column))
                rows = chosen(rows, column, control.value)
            views = [(view.title, name) for name, view in VIEWS.items() if view.needs(rows)]
            set_options(self.view, views)
            self._offer_rows(rows)
        self._redraw()

    def _offer_rows(self, rows: pd.DataFrame) -> None:
        batch_sizes, smts = choices(rows, "batch_size"), choices(rows, "smt")
        optimizations, threads = ordered_optimizations(rows), choices(rows, "threads") or [1]
        set_options(self.batch_size, batch_sizes)
        set_options(self.optimization, optimizations, shown_optimizations(rows)[0])
        set_options(self.smt, [(_SMT[smt], smt) for smt in smts])
        self.batch_sizes.set_options(batch_sizes)
        self.optimizations.set_options(optimizations)
        self.smts.set_options(smts, _SMT.__getitem__)
        set_options(self.at, [(_BEST, None), *((str(threads_), threads_) for threads_ in threads)])
        set_range_options(self.reach, threads)

    def _redraw(self) -> None:
        set_visible(self.controls, self._applying())
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

    def _asked(self, folder: Path) -> Selection:
        several = f"{folder.name} · " * bool(self.beside.value)
        source = f"{several}{self._load(folder).source}"
        names = ("metric", "batch_size", "optimization", "smt", "batch_sizes", "optimizations")
        values = {name: getattr(self, name).value for name in (*names, "smts", "at", "reach")}
        return Selection(
            **values,
            scale=self.scale.value,
            setting={name: control.value for name, control in self.filters.items()},
            source=source,
        )

    def _draw(self, folder: Path, asked: Selection) -> Shown:
        name, view = self.view.value, VIEWS[self.view.value]
        rows = select_rows(self._table(folder, name), name, asked)
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
            f"{shown.name}: " * several
            + describe(view, shown.data, self.metric.value, shown.measured)
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
        if not is_interactive():
            del data[WIDGET]
        data["text/plain"] = "; ".join(f"{one.name}: {one.picture.alt}" for one in self._shown)
        if self._shown:
            data["image/png"] = b64encode(self.png()).decode("ascii")
        return data, {"image/png": {"alt": data["text/plain"]}}


def _status(text: str) -> str:
    return f'<p role="status">{escape(text)}</p>'
