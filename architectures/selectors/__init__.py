"""Frame selectors: which frames of a video the encoder sees. `frames_BTCHW -> index_BK`, in order of time.

Each is a module that scores frames; `n_frames(T)` says how many it keeps of T, without running. To add one:
a file here with a registered class, and a YAML of the same name in the harness's selector group.
"""

import importlib
import pkgutil

from architectures.selectors.base import SELECTORS, Selector, choose, pick

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = ["SELECTORS", "Selector", "choose", "pick"]
