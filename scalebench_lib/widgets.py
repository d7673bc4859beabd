"""The explorers' controls: one look for all, with labels in one column."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

import ipywidgets as widgets
import traitlets

_MOST_ROWS = 6

RIGHT = {"flex": "1 1 30rem", "min_width": "0"}
"""Layout of message and pictures: right of the controls, so that both are seen at once."""


def _look(description: str, width: str = "19rem") -> dict[str, Any]:
    style = {"description_width": "6rem"}
    return {"description": description, "style": style, "layout": {"width": width}}


def buttons(description: str, options: Sequence[Any] = ()) -> widgets.ToggleButtons:
    """Return a choice of one of a few, all seen at once."""
    look = _look(description, "max-content")
    look["style"]["button_width"] = "max-content"
    look["layout"] |= {"flex_flow": "row wrap", "max_width": "100%"}
    made = widgets.ToggleButtons(options=options, **look)
    return made.add_class("widget-inline-hbox")  # or its label stands left, others' right


def dropdown(description: str, options: Sequence[Any] = ()) -> widgets.Dropdown:
    """Return a choice of one of many."""
    return widgets.Dropdown(options=options, **_look(description))


def number(description: str, value: float) -> widgets.FloatText | widgets.IntText:
    """Return a field for any number, a whole one if `value` is; Enter ends it."""
    field = widgets.IntText if isinstance(value, int) else widgets.FloatText
    return field(value=value, **_look(description))


def slider(description: str) -> widgets.SelectionSlider:
    """Return a choice of one of an ordered few, to go through with the arrow keys."""
    return widgets.SelectionSlider(options=[""], **_look(description))


def several(description: str) -> widgets.SelectMultiple:
    """Return a choice of any of a few."""
    return widgets.SelectMultiple(**_look(description))


def status_html(text: str) -> str:
    """Return `text` as HTML that screen readers announce when it changes."""
    return f'<p role="status">{escape(text)}</p>'


class PngImage(widgets.Image):  # type: ignore[misc]
    """A PNG picture; its `tooltip` is its alternative text."""

    description = traitlets.Unicode("").tag(sync=True)
    """The browser's part of a tooltip reads it, though images have none: it would fail."""


def set_options(control: Any, options: Sequence[Any], default: Any = None) -> None:
    """Give `control` new options (values, or names and values), keeping its choice if it can."""
    values = [option[1] if isinstance(option, tuple) else option for option in options]
    wanted = control.value if control.value in values else default
    control.options = options
    control.index = values.index(wanted) if wanted in values else 0  # None as a value shows nothing


def set_several(control: widgets.SelectMultiple, options: Sequence[tuple[str, Any]]) -> None:
    """Give `control` new options; those that were left out stay so, unless none would be chosen."""
    left_out = {value for _, value in control.options} - set(control.value)
    control.value = ()  # the browser would look for what is chosen among the new options
    control.options, control.rows = options, max(2, min(len(options), _MOST_ROWS))
    every = [value for _, value in options]
    control.value = [value for value in every if value not in left_out] or every


def show_applying(controls: Sequence[Any], applying: Sequence[Any]) -> None:
    """Show those of `controls` that are among `applying` and leave a choice; hide the others."""
    for control in controls:
        shown = any(control is one for one in applying) and len(control.options) > 1
        control.layout.display = "flex" if shown else "none"
