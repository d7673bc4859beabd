"""The plan notebook's parameters, and controls for asking on; the picture of the cores follows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ipywidgets as widgets

from scalebench_lib.errors import ScalebenchError
from scalebench_lib.notebook import WIDGET, is_interactive, parameters
from scalebench_lib.plan import figures
from scalebench_lib.plan.decide import Context, Request
from scalebench_lib.plan.report import sentences
from scalebench_lib.text import format_number
from scalebench_lib.widgets import buttons, dropdown, slider, status

FASTEST, MOST = "the fastest for a batch", "the most with a median within a limit"


def from_notebook(out: Path, namespace: Mapping[str, Any]) -> tuple[Context, Request]:
    """Return the evidence in `out`, and the request by the parameters in a notebook's `namespace`.

    Raises `RequestError` for an unknown parameter or a wrong value.
    """
    values = parameters(namespace)
    asked = values.keys() - {"out", "verify", "max_seconds", "rate", "price_per_hour"}
    request = Request.of(**{name: values[name] for name in asked})
    return Context.load(out, request), request


class PlanExplorer(widgets.VBox):  # type: ignore[misc]
    """Asks `context` for a plan: a batch size or a latency limit, cores, an optimization.

    `answer` is its decision, or why there is none; the picture shows where it runs.
    """

    def __init__(self, context: Context, batch_size: int = 0) -> None:
        self._context = context
        self.question = buttons("Wanted", [FASTEST, MOST])
        self.batch_size = widgets.BoundedIntText(
            value=batch_size or context.profile.batch_sizes[-1],
            min=1,
            max=context.planner.largest_batch,
            description="Batch size",
            style={"description_width": "7rem"},
            layout={"width": "24rem"},
        )
        latencies = [plan.latency_ms for plan in context.frontier()]
        self.limit, self.cores = slider("Latency limit"), slider("Cores")
        self.limit.options = [(f"{format_number(ms, 4)} ms", ms) for ms in latencies]
        self.limit.value = latencies[-1]
        self.cores.options = range(1, context.cores + 1)
        self.cores.value = context.cores
        optimizations = [(name, name) for name in context.profile.optimizations]
        self.optimization = dropdown("Optimization", [("any", ""), *optimizations])
        self.message = widgets.HTML()
        self.picture = widgets.Image(format="png", layout={"max_width": "100%"})
        self.controls = (self.question, self.batch_size, self.limit, self.cores, self.optimization)
        super().__init__([*self.controls, self.message, self.picture])
        for control in self.controls:
            control.observe(self._answer, "value")
        self._answer()

    def _answer(self, _change: object = None) -> None:
        by_batch = self.question.value == FASTEST
        self.batch_size.layout.display = "flex" if by_batch else "none"
        self.limit.layout.display = "none" if by_batch else "flex"
        request = Request.of(
            batch_size=by_batch and self.batch_size.value,
            slo_ms=not by_batch and self.limit.value,
            threads=self.cores.value,
            optimization=self.optimization.value,
        )
        try:
            decision = self._context.decide(request)
        except ScalebenchError as error:
            self.answer, self.picture.layout.display = str(error), "none"
        else:
            self.answer, self.picture.layout.display = ". ".join(sentences(decision)) + ".", ""
            self.picture.value = figures.cores(decision).png()
        self.message.value = status(self.answer)

    def _repr_mimebundle_(self, **options: Any) -> dict[str, Any]:
        """Show the answer as text where controls do not work; headless, only the answer."""
        data: dict[str, Any] = super()._repr_mimebundle_(**options)
        if not is_interactive():
            del data[WIDGET]
        return {**data, "text/plain": self.answer}
