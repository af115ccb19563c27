"""Fusions: how a hybrid layer lets text read the slow tokens. Built for a decoder layer, attached to it.

Each is a module with keys and values of its own; `forward` adds what was read. To add one: a file here with a
registered class, and a YAML of the same name in the harness's fusion group.
"""

import importlib
import pkgutil

from architectures.fusions.base import FUSIONS, Fusion, fusion_of

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = ["FUSIONS", "Fusion", "fusion_of"]
