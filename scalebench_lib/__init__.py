"""scalebench: how fast does a model run on this machine?

The way of the data, and the order to read the library in:
``config`` → ``sweep.runner`` → ``measure.trial`` → ``record`` → ``results`` → ``analysis.figures``.

>>> from scalebench_lib.results import Results
>>> results = Results.load(Path("outputs/mine"))      # doctest: +SKIP
>>> results.table[["batch_size", "latency_ms"]]       # doctest: +SKIP
"""

__version__ = "0.1.0"
