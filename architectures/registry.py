"""Names for variants: a dictionary that says what is allowed when a name is wrong."""

import inspect
from collections.abc import Callable
from typing import Any


class Registry(dict[str, Callable]):
    """A named family of variants (`gates`, `compressors`, ...); a variant registers itself under its name."""

    def __init__(self, family: str):
        super().__init__()
        self.family = family

    def register(self, name: str) -> Callable:
        """Decorator that files a class or function under `name`; a name taken twice is a ValueError."""

        def file(variant: Callable) -> Callable:
            if name in self:
                raise ValueError(f"{self.family}: the name '{name}' is taken by {self[name].__qualname__}.")
            self[name] = variant
            return variant

        return file

    def find(self, name: str) -> Callable:
        """The variant called `name`; an unknown name is a ValueError that lists the known ones."""
        if name not in self:
            raise ValueError(f"Unknown {self.family} '{name}': choose one of {', '.join(sorted(self))}.")
        return self[name]

    def build(self, spec: dict[str, Any], **context: Any) -> Any:
        """Builds `spec = {"name": ..., option: value, ...}`; `context` is what the model supplies (widths, grids).

        A variant takes from `context` only what its signature names. An option it does not have is a ValueError.
        """
        variant = self.find(spec["name"])
        options = {key: value for key, value in spec.items() if key != "name"}
        parameters = inspect.signature(variant).parameters
        unknown = sorted(set(options) - (set(parameters) - set(context)))
        if unknown:
            allowed = sorted(set(parameters) - set(context)) or ["none"]
            raise ValueError(
                f"{self.family} '{spec['name']}' has no option '{unknown[0]}': its options are {', '.join(allowed)}."
            )
        return variant(**{key: value for key, value in context.items() if key in parameters}, **options)
