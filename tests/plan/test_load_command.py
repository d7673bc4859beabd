"""The commands ``plan --rate`` and ``load``, on a made-up sweep of this machine and stand-ins."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from scalebench_lib.config import Config
from scalebench_lib.machine import Machine
from scalebench_lib.plan import runner, search
from scalebench_lib.plan.answer import Question
from scalebench_lib.plan.decide import Context
from scalebench_lib.plan.load import LoadRun, read_load_runs
from scalebench_lib.plan.simulate import Log
from scalebench_lib.record import Software
from tests import factories
from tests.plan.test_load import run
from tests.standins import STAND_IN, instances

MACHINE = Machine.here()


@pytest.fixture
def out(tmp_path: Path, monkeypatch) -> Path:
    """A sweep of this machine; whatever is run of it takes 5 ms."""
    monkeypatch.setattr(runner, "_COMMAND", STAND_IN)
    monkeypatch.setattr(search, "_STAGES", ((500, 10), (2_000, 5)))
    tiny = Config(model="bert-tiny")
    configs = [tiny.model_copy(update={"batch_size": size}) for size in (1, 4)]
    records = [factories.measured(one, MACHINE) for one in configs]
    here = {"software": Software.here()}
    return factories.save_sweep(tmp_path, [one.model_copy(update=here) for one in records])


@pytest.mark.skipif(not MACHINE.pinnable, reason="no affinity here")
def test_a_plan_for_a_rate_is_made_and_then_run_under_load(scalebench, out: Path) -> None:
    """Both keep what they find in the folder; each trouble is one line."""
    code, _, trouble = scalebench("load", out, "--rate", 50)
    assert (code, len(trouble.splitlines())) == (2, 1)
    assert "has no plan for requests" in trouble
    asked = {"rate": 20, "slo_ms": 500, "percentile": 90}
    options = ("--rate", 20, "--slo-ms", 500, "--percentile", 90, "--price-per-hour", 1.53)
    _, said, _ = scalebench("plan", out, *options)
    question = Question.of(**asked)
    in_notebook = question.answer(search.Predictor(Context.load(out, question.request)))
    assert "\n".join(in_notebook.costs(1.53)) in said
    assert "requests/s with a p90 of" in said
    assert "best" in said
    assert "taskset -c" in said
    planned = json.loads((out / "plan.json").read_text())
    assert planned["rate"] == 20
    _, said, trouble = scalebench("load", out, "--rate", 40, "--duration", "2s", "--max-batch", 1)
    assert "80 requests, poisson" in said, trouble
    assert "p50: " in said
    assert "p99 needs 662 requests: a duration of 1" in said
    assert re.search(r"asked 40/s, the random arrivals came at [\d.]+/s", said)
    assert "predicted from this run's own passes" in said
    trace = out / "trace.txt"
    trace.write_text("0.1\n0.2\n0.4\n")
    _, said, _ = scalebench("load", out, "--trace", trace, "--if-busy", "ignore")
    assert "3 requests, trace trace.txt" in said
    assert [run.log.arrivals.size for run in read_load_runs(out)] == [80, 3]
    assert (out / "load.png").read_bytes().startswith(b"\x89PNG")
    assert instances() == []


@pytest.mark.skipif(not MACHINE.pinnable, reason="no affinity here")
def test_where_no_plan_kept_the_limit_it_ends_with_1_and_types_nothing(
    scalebench, out: Path, monkeypatch
) -> None:
    """What was measured comes before what was predicted."""

    def late(_: search.LoadVerifier, found: list[search.Prediction]) -> list[LoadRun]:
        log = Log.of(np.arange(700.0), [(0, 1, n, n + 0.8) for n in range(700)])
        one = found[0].deployment
        return [run(log, one.batching, deployment=one, slo_ms=500.0)]

    monkeypatch.setattr(search.LoadVerifier, "verify", late)
    asked = ("--rate", 20, "--slo-ms", 500, "--verify", "--if-busy", "ignore")
    code, said, trouble = scalebench("plan", out, *asked)
    assert code == 1, trouble
    assert said.index("none of the 1 plan kept 500 ms when run") < said.index("(predicted)")
    assert "YOUR_SERVER" not in said
    assert json.loads((out / "plan.json").read_text())["limit_kept"] is False


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ((), "name a rate, or a trace, or a limit"),
        (("--rate", 5, "--trace", "x"), "name a rate, or a trace, or a limit"),
        (("--rate", 5, "--arrivals", "posson"), "must be poisson, constant, or gamma:CV"),
        (("--trace", "nowhere"), "nowhere not found"),
        (("--rate", 5, "--percentile", 100), "percentile"),
        (("--rate", -5), "rate"),
    ],
)
def test_a_wrong_load_gets_one_line(scalebench, out: Path, options: tuple, why: str) -> None:
    code, _, trouble = scalebench("load", out, *options)
    assert (code, len(trouble.splitlines())) == (2, 1)
    assert why in trouble
