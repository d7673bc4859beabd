"""scalebench: how fast does a model run on this machine?

The way of the data, and the order to read the library in:
``config`` → ``sweep.runner`` → ``measure.trial`` → ``record`` → ``results`` → ``analysis.figures``.
"""

__version__ = "0.1.0"
