"""Compressors: from all of a video's tokens to the few fast ones. `tokens_BTHWD -> fast_BFD`.

Each is a module whose `n_tokens(T, H, W)` says how many fast tokens it makes, without running. To add one:
a file here with a registered class, and a YAML of the same name in the harness's compressor group.
"""

import importlib
import pkgutil

from architectures.compressors.base import COMPRESSORS, Compressor

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = ["COMPRESSORS", "Compressor"]
