"""The plan notebook's parameters, and controls for asking on; the pictures follow."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ipywidgets as widgets

from scalebench_lib.errors import ScalebenchError
from scalebench_lib.notebook import WIDGET, check_parameters, is_interactive
from scalebench_lib.optimizations import optimization_title
from scalebench_lib.plan import figures
from scalebench_lib.plan.answer import Question, ask
from scalebench_lib.plan.decide import Context
from scalebench_lib.plan.search import Predictor
from scalebench_lib.widgets import RIGHT, PngImage, buttons, dropdown, number, slider, status_html

_NOT_ASKED = ("out", "verify", "price_per_hour")
REQUESTS, BATCH = ("rate", "slo_ms", "percentile"), ("batch_size",)  # asked with these numbers


def context_and_question(out: Path, namespace: Mapping[str, Any]) -> tuple[Context, Question]:
    """Return the evidence in `out`, and the question by the parameters in a notebook's `namespace`.

    Raises `RequestError` for an unknown parameter or a wrong value.
    """
    values = check_parameters(namespace, {*Question.parameter_names(), *_NOT_ASKED})
    return ask(out, **{name: value for name, value in values.items() if name not in _NOT_ASKED})


class PlanExplorer(widgets.Box):  # type: ignore[misc]
    """Asks `context` on from `question`: requests or a batch, cores, an optimization.

    `answer` says what is best, or why nothing is; `pictures` are its chart, and where it runs.
    """

    def __init__(self, context: Context, question: Question) -> None:
        self._predictor = Predictor(context, quick=True)
        request, target = question.request, question.target
        kinds = [("requests as they come", REQUESTS), ("one batch at a time", BATCH)]
        self.question = buttons("Serve", kinds)
        self.question.value = BATCH if request.batch_size else REQUESTS
        self.numbers = {
            "rate": number("Requests/s", target.rate),
            "slo_ms": number("Limit (ms)", target.slo_ms or 100.0),
            "percentile": number("Percentile", target.percentile),
            "batch_size": number("Batch", request.batch_size or context.profile.batch_sizes[-1]),
        }
        self.cores, self.optimization = slider("Cores"), dropdown("Optimization")
        self.cores.options = range(1, context.cores + 1)
        self.cores.value = request.cores or context.cores
        names = context.profile.optimizations
        self.optimization.options = {"any": "", **{optimization_title(n): n for n in names}}
        self.optimization.value = request.optimization
        self.message = widgets.HTML()
        self.pictures = [PngImage(format="png", layout={"max_width": "100%"}) for _ in range(2)]
        controls = [self.question, *self.numbers.values(), self.cores, self.optimization]
        right = widgets.VBox([self.message, *self.pictures], layout=RIGHT)
        super().__init__([widgets.VBox(controls), right], layout={"flex_flow": "row wrap"})
        for control in controls:
            control.observe(self._answer, "value")
        self._answer()

    def _answer(self, _change: object = None) -> None:
        charts: list[Any] = []
        for name, field in self.numbers.items():
            field.layout.display = "flex" if name in self.question.value else "none"
        asked = {name: self.numbers[name].value for name in self.question.value}
        asked |= {"cores": self.cores.value, "optimization": self.optimization.value}
        try:
            answer = Question.of(**asked).answer(self._predictor)
            charts = [answer.chart(), figures.cores(answer.decision)]
            self.answer = "; ".join([*answer.sentences, *charts[0].sentence.splitlines()])
        except ScalebenchError as error:
            self.answer = str(error)
        for image, chart in zip(self.pictures, charts, strict=False):
            with image.hold_sync():  # each message would load the picture anew
                image.value, image.tooltip = chart.png(), chart.alt
        for image in self.pictures:
            image.layout.display = "" if charts else "none"
        self.message.value = status_html(self.answer)

    def _repr_mimebundle_(self, **options: Any) -> dict[str, Any]:
        """Show the answer as text where controls do not work; headless, only the answer."""
        data: dict[str, Any] = super()._repr_mimebundle_(**options)
        if not is_interactive():
            del data[WIDGET]
        return {**data, "text/plain": self.answer}
