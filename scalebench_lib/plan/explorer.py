"""Controls for asking what to run; the picture of the cores follows."""

from __future__ import annotations

from html import escape
from typing import Any

import ipywidgets as widgets

from scalebench_lib.errors import ScalebenchError
from scalebench_lib.plan import picture
from scalebench_lib.plan.decide import Decision, Ground, Request, choose
from scalebench_lib.plan.report import sentences

_FASTEST, _MOST = "the fastest for a batch", "the most within a limit"
_ANY = "any"


class PlanExplorer(widgets.VBox):  # type: ignore[misc]
    """Asks `ground` for a plan: a batch size or a latency limit, cores, an optimization.

    `message` says what is best, or why there is nothing; `picture` shows where it runs.
    """

    def __init__(self, ground: Ground, batch_size: int = 0) -> None:
        self._ground = ground
        self.question = widgets.ToggleButtons(
            options=[_FASTEST, _MOST], description="Wanted", **_look("max-content")
        )
        sizes = [plan.batch_size for plan in ground.planner.plans(ground.planner.largest_batch)]
        self.batch_size = _slider("Batch size", sizes, batch_size)
        frontier = ground.planner.frontier()
        limits = [(f"{plan.predicted_ms:.4g} ms", plan.predicted_ms) for plan in frontier]
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
            self.message.value = _status(str(error))
            self.picture.layout.display = "none"

    def _request(self, by_batch: bool) -> Request:
        chosen = self.optimization.value
        return Request.of(
            batch_size=self.batch_size.value if by_batch else None,
            slo_ms=None if by_batch else self.limit.value,
            threads=self.cores.value,
            optimization=None if chosen == _ANY else chosen,
        )

    def _show(self, decision: Decision) -> None:
        self.message.value = _status(". ".join(sentences(decision)) + ".")
        self.picture.value = picture.cores(decision).png()
        self.picture.layout.display = ""


def _slider(description: str, options: list[Any], value: Any) -> widgets.SelectionSlider:
    values = [option[1] if isinstance(option, tuple) else option for option in options]
    chosen = value if value in values else values[-1]
    return widgets.SelectionSlider(
        options=options, value=chosen, description=description, **_look("32rem")
    )


def _look(width: str) -> dict[str, Any]:
    return {"style": {"description_width": "7rem"}, "layout": {"width": width}}


def _status(text: str) -> str:
    return f'<p role="status">{escape(text)}</p>'
