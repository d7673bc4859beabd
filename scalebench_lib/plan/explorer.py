"""Controls for asking what to run; the picture of the cores follows."""

from __future__ import annotations

from html import escape
from typing import Any

import ipywidgets as widgets

from scalebench_lib.errors import ScalebenchError
from scalebench_lib.notebook import WIDGET, is_interactive
from scalebench_lib.plan import figures
from scalebench_lib.plan.decide import Decision, Ground, Request, choose
from scalebench_lib.plan.report import sentences
from scalebench_lib.text import format_number

_FASTEST, _MOST = "the fastest for a batch", "the most within a limit"
_ANY = "any"


class PlanExplorer(widgets.VBox):  # type: ignore[misc]
    """Asks `ground` for a plan: a batch size or a latency limit, cores, an optimization.

    `message` says the `answer`, or why there is none; `picture` shows where it runs.
    """

    def __init__(self, ground: Ground, batch_size: int = 0) -> None:
        self._ground = ground
        self.question = widgets.ToggleButtons(
            options=[_FASTEST, _MOST], description="Wanted", **_look("max-content")
        ).add_class("widget-inline-hbox")  # or its label stands left, others' right
        self.batch_size = widgets.BoundedIntText(
            value=batch_size or ground.profile.batch_sizes[-1],
            min=1,
            max=ground.planner.largest_batch,
            description="Batch size",
            **_look("24rem"),
        )
        frontier = ground.frontier()
        limits = [
            (f"{format_number(plan.predicted_ms, 4)} ms", plan.predicted_ms) for plan in frontier
        ]
        self.limit = _slider("Latency limit", limits, limits[-1][1])
        self.cores = _slider("Cores", list(range(1, ground.cores + 1)), ground.cores)
        self.optimization = widgets.Dropdown(
            options=[_ANY, *ground.profile.optimizations],
            description="Optimization",
            **_look("24rem"),
        )
        self.message = widgets.HTML()
        self.picture = widgets.Image(format="png", layout={"max_width": "100%"})
        self.controls = (self.question, self.batch_size, self.limit, self.cores, self.optimization)
        super().__init__([*self.controls, self.message, self.picture])
        for control in self.controls:
            control.observe(self._answer, "value")
        self._answer()

    def _answer(self, _change: object = None) -> None:
        by_batch = self.question.value == _FASTEST
        self.batch_size.layout.display = "flex" if by_batch else "none"
        self.limit.layout.display = "none" if by_batch else "flex"
        try:
            self._show(choose(self._ground, self._request(by_batch)))
        except ScalebenchError as error:
            self._say(str(error))
            self.picture.layout.display = "none"

    def _request(self, by_batch: bool) -> Request:
        chosen = self.optimization.value
        return Request.of(
            batch_size=self.batch_size.value if by_batch else None,
            slo_ms=None if by_batch else self.limit.value,
            threads=self.cores.value,
            optimization=None if chosen == _ANY else chosen,
        )

    def _repr_mimebundle_(self, **options: Any) -> dict[str, Any]:
        """The controls, and their answer in words for where they are dead; headless, it alone."""
        data: dict[str, Any] = super()._repr_mimebundle_(**options)
        if not is_interactive():
            del data[WIDGET]
        return {**data, "text/plain": self.answer}

    def _show(self, decision: Decision) -> None:
        self._say(". ".join(sentences(decision)) + ".")
        self.picture.value = figures.cores(decision).png()
        self.picture.layout.display = ""

    def _say(self, answer: str) -> None:
        self.answer = answer
        self.message.value = f'<p role="status">{escape(answer)}</p>'


def _slider(description: str, options: list[Any], value: Any) -> widgets.SelectionSlider:
    return widgets.SelectionSlider(
        options=options, value=value, description=description, **_look("32rem")
    )


def _look(width: str) -> dict[str, Any]:
    return {"style": {"description_width": "7rem"}, "layout": {"width": width}}
