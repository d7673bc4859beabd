"""A question as the command and the notebook ask it, and its answer: predicted, then proved."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.table import Table

from scalebench_lib.config import StrictModel
from scalebench_lib.errors import RequestError
from scalebench_lib.picture import Picture
from scalebench_lib.plan import decide, figures, load_report, report
from scalebench_lib.plan.decide import Context, Decision, PlanRequest
from scalebench_lib.plan.load import LoadRun
from scalebench_lib.plan.profile import SHARED
from scalebench_lib.plan.runner import Limits, Say
from scalebench_lib.plan.search import LoadVerifier, Prediction, Predictor, Target

_PASSES = 5
"""The limit is so many times the fastest pass where none is named."""


class Question(StrictModel):
    """How to split a batch, where `request` has one; else how to serve requests."""

    request: PlanRequest
    target: Target
    limit_assumed: bool = False

    @classmethod
    def of(cls, rate: Any = 0, percentile: Any = 99, max_seconds: Any = 10, **of: Any) -> Question:
        """Check the values, and those `of` the request; `RequestError` says what is wrong."""
        request = PlanRequest.of(**of)
        if rate and request.batch_size:
            raise RequestError("rate: asks for requests, batch_size for one batch: leave one out")
        asked = {"rate": rate or 0.0, "percentile": percentile, "max_seconds": max_seconds}
        target = Target.from_input({**asked, "slo_ms": request.slo_ms})
        return cls(request=request, target=target)

    @staticmethod
    def parameter_names() -> set[str]:
        """Return the names that `of` takes."""
        return {*PlanRequest.model_fields, *Target.model_fields, *SHARED} - {"shared"}

    def answer(self, predictor: Predictor) -> Answer:
        """Return what is predicted to be best; `RequestError` says what cannot be had."""
        if self.request.batch_size:
            return _of_batch(predictor.context.decide(self.request), self.target.max_seconds)
        narrowed = replace(predictor, context=predictor.context.narrowed(self.request))
        return _of_requests(narrowed, self, narrowed.search(self.target))


def ask(out: Path, **asked: Any) -> tuple[Context, Question]:
    """Return the evidence in `out`, and the question by values as `Question.of` takes.

    Where neither a limit nor a batch is named, a limit is assumed.
    """
    limited = asked.get("batch_size") or asked.get("slo_ms")
    question = Question.of(**asked if limited else asked | {"slo_ms": 1.0})
    context = Context.load(out, question.request)
    if limited:
        return context, question
    instances = context.narrowed(question.request).profile.instances
    limit_ms = float(f"{_PASSES * min(one.latency_ms for one in instances):.2g}")
    assumed = Question.of(**asked | {"slo_ms": limit_ms})
    return context, assumed.model_copy(update={"limit_assumed": True})


@dataclass(frozen=True)
class Answer:
    """The best plan, what was considered, and the findings; the rest takes a moment.

    `verified` runs the best: its arguments are called before each step, and with each load test.
    """

    decision: Decision
    table: Table
    sentences: Sequence[str]
    chart: Callable[[], Picture]
    costs: Callable[[float], Iterator[str]]
    save: Callable[[], Path]
    verified: Callable[..., Answer]


def _of_batch(decision: Decision, max_seconds: float) -> Answer:
    limits = Limits(max_seconds=max_seconds)
    return Answer(
        decision,
        report.plan_table(decision),
        list(report.sentences(decision)),
        chart=partial(figures.frontier, decision.context),
        costs=partial(report.cost_lines, decision),
        save=partial(report.save_plan_json, decision),
        verified=lambda say, *_: _of_batch(
            decide.verify_by_running(decision, limits, say), max_seconds
        ),
    )


def _of_requests(
    predictor: Predictor, question: Question, found: Sequence[Prediction], *runs: LoadRun
) -> Answer:
    """Tell what was `found`, and seen in `runs`, the best first."""
    served = runs[0].deployment if runs else found[0].deployment
    best = next(one for one in found if one.deployment == served)
    context = replace(predictor.context, loads=(*predictor.context.loads, *runs))
    decision = Decision(context, question.request, served.plan, batching=served.batching)
    decision = replace(decision, limit_kept=runs[0].holds if runs else None)
    limit = f"{best.target.slo_ms:g} ms is assumed, {_PASSES} times the fastest pass"

    def verified(say: Say, show: Callable[[LoadRun], None] = lambda _: None) -> Answer:
        verifier = LoadVerifier(predictor, context.runner(Limits(), say), best.target, show)
        return _of_requests(predictor, question, found, *verifier.verify(found))

    return Answer(
        decision,
        load_report.deployment_table(context.cores, found, best, runs),
        [
            *load_report.answer_sentences(predictor, found, best, runs),
            *[f"no limit was named: {limit}; slo_ms names another"] * question.limit_assumed,
        ],
        chart=lambda: load_report.by_rate(predictor.curve(served, best.target), context.loads),
        costs=partial(load_report.cost_lines, predictor, found, best.target),
        save=partial(load_report.save_plan_json, decision, best, *runs[:1]),
        verified=verified,
    )
