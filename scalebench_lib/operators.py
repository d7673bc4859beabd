"""Where the time of a pass goes: by operator, as its engine calls it, and by kind of operator."""

from __future__ import annotations

import re
from collections import Counter

from scalebench_lib.config import StrictModel

BETWEEN, QUANTIZING = "between operators", "quantizing, converting"
KINDS = {
    "matrix products": r"(?<!b)mm$|(?<!quantize)linear|matmul(?! of)|gemm|conv(?!ert)|fullyconn",
    "attention": "attention|mha|of activations|bmm|softmax",
    "normalization": "norm|^mvn",
    "embedding": "embedding|index_select|^gather$",
    QUANTIZING: "quantize|qparams|^(cast|convert|reorder)|(::to|to_copy|mkldnn|to_dense)$",
    "fused kernels": "fused|CompiledFxGraph|^forward$|subgraph|tensorexpr",
    "other operators": "",
    BETWEEN: "",
}
"""The kinds, and what the names of their operators hold; the first that fits counts. Convolutions
are matrix products, products of two activations are attention's; a fused kernel does several
kinds. Between operators are Python, the scheduler and the profiler itself."""

SHARES = {kind: f"share_{re.sub('[^a-z]+', '_', kind)}" for kind in KINDS}
"""The columns of the results table by kind."""


class OperatorTimes(StrictModel):
    """Times of `passes` at `threads` threads under the engine's profiler, which slows them down.

    `wall_ns` is that of all, `self_ns` of each operator, without the operators that it called.
    """

    threads: int
    passes: int
    wall_ns: int
    self_ns: dict[str, int]

    @property
    def shares(self) -> dict[str, float]:
        """The share of the time by kind."""
        times = Counter[str]()
        for name, ns in self.self_ns.items():
            times[next(k for k, names in KINDS.items() if re.search(names, name, re.I))] += ns
        whole = max(self.wall_ns, times.total())
        times[BETWEEN] = whole - times.total()
        return {kind: times[kind] / whole for kind in KINDS}
