"""The explorer's controls: one look for all, with labels in one column."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import ipywidgets as widgets
import traitlets

_LABEL_WIDTH = "7rem"


def buttons(description: str, options: Sequence[Any] = ()) -> widgets.ToggleButtons:
    """One of a few, all seen at once."""
    style = {"description_width": _LABEL_WIDTH, "button_width": "max-content"}
    layout = {"width": "max-content", "flex_flow": "row nowrap"}
    made = widgets.ToggleButtons(
        options=options, description=description, style=style, layout=layout
    )
    return made.add_class("widget-inline-hbox")  # or its label stands left, others' right


def dropdown(description: str, options: Sequence[Any] = ()) -> widgets.Dropdown:
    """One of many."""
    return widgets.Dropdown(options=options, **_wide(description))


def slider(description: str) -> widgets.SelectionSlider:
    """One of an ordered few, to go through with the arrow keys."""
    return widgets.SelectionSlider(options=[""], **_wide(description))


def range_slider(description: str) -> widgets.SelectionRangeSlider:
    """From one to another of an ordered few."""
    return widgets.SelectionRangeSlider(options=[1], **_wide(description))


def _wide(description: str) -> dict[str, Any]:
    style = {"description_width": _LABEL_WIDTH}
    return {"description": description, "style": style, "layout": {"width": "24rem"}}


class CheckboxGroup(widgets.Box):  # type: ignore[misc]
    """Check boxes, at first all or none `ticked`; `value` is the tuple of what is ticked."""

    value = traitlets.Tuple()

    def __init__(self, description: str, ticked: bool = True) -> None:
        super().__init__(layout={"align_items": "baseline"})
        self.boxes: dict[Any, widgets.Checkbox] = {}
        self._ticked = ticked
        self.least = 2 if ticked else 1
        self._label = widgets.Label(
            description,
            layout={
                "width": _LABEL_WIDTH,
                "justify_content": "flex-end",
                "margin": "2px 8px 2px 2px",
                "flex": "none",
            },
        )
        self._row = widgets.Box(layout={"flex_flow": "row wrap", "align_items": "center"})
        self.children = (self._label, self._row)

    def set_options(self, options: Sequence[Any], names: Callable[[Any], str] = str) -> None:
        """Show a box for each of `options`; unticked ones stay so, unless none would be ticked."""
        kept = {option: self.boxes[option] for option in options if option in self.boxes}
        others = [option for option in options if option not in kept]
        new = {option: _box(names(option), self._ticked, self._collect) for option in others}
        self.boxes = {option: {**kept, **new}[option] for option in options}
        if self._ticked and not any(box.value for box in self.boxes.values()):
            for box in self.boxes.values():
                box.value = True
        self._row.children = tuple(self.boxes.values())
        self._collect()

    def hide(self, options: Sequence[Any]) -> None:
        """Take the boxes of `options`, and only those, from sight; their ticks stay."""
        for option, box in self.boxes.items():
            box.layout.display = "none" if option in options else ""

    def _collect(self, _change: object = None) -> None:
        self.value = tuple(option for option, box in self.boxes.items() if box.value)


class PngImage(widgets.Image):  # type: ignore[misc]
    """A PNG picture; its `tooltip` is its alternative text."""

    description = traitlets.Unicode("").tag(sync=True)
    """The browser's part of a tooltip reads it, though images have none: it would fail."""


def _box(name: str, ticked: bool, react: Callable[[object], None]) -> widgets.Checkbox:
    layout = {"width": "max-content", "margin": "0 1rem 0 0"}
    box = widgets.Checkbox(ticked, description=name, indent=False, layout=layout)
    box.observe(react, "value")
    return box


def set_options(control: Any, options: Sequence[Any], default: Any = None) -> None:
    """Give `control` new options (values, or names and values), keeping its choice if it can."""
    values = [option[1] if isinstance(option, tuple) else option for option in options]
    wanted = control.value if control.value in values else default
    control.options = options
    control.index = values.index(wanted) if wanted in values else 0  # None as a value shows nothing


def set_range_options(control: Any, options: Sequence[Any]) -> None:
    """Give a range slider new options, all of them chosen."""
    control.options = options
    control.value = options[0], options[-1]


def choosable(control: Any) -> bool:
    """Whether there is something to choose with `control`."""
    if isinstance(control, CheckboxGroup):
        return len(control.boxes) >= control.least
    return len(control.options) > 1


def set_visible(controls: Sequence[Any], applying: Sequence[Any]) -> None:
    """Hide those of `controls` that are not among `applying`."""
    for control in controls:
        control.layout.display = "flex" if any(control is one for one in applying) else "none"
