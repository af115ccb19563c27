"""Vision encoders: `frames_BTCHW -> features_BTPV`, P patches of a square grid, frames already normalised.

Each has `grid` (rows, columns), `width` (V), `image_size` (pixels) and `image_mean`, `image_std`. To add
one: a file here with a registered class, and a YAML of the same name in the harness's encoder group.
"""

import importlib
import pkgutil

from architectures.encoders.base import ENCODERS, Encoder

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = ["ENCODERS", "Encoder"]
