"""The benchmark harness: mini benchmarks, training, evaluation, costs, rows and reports."""

__version__ = "0.1.0"
