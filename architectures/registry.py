"""Names for variants: a dictionary that says what is allowed when a name is wrong."""

import functools
import inspect
from collections.abc import Callable, Collection
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

    def find(self, name: str | None) -> Callable:
        """The variant called `name`; an unknown name is a ValueError that lists the known ones."""
        if name not in self:
            raise ValueError(f"Unknown {self.family} '{name}': choose one of {', '.join(sorted(self))}.")
        return self[name]

    def build(self, spec: dict[str, Any], **context: Any) -> Any:
        """Builds `spec = {"name": ..., option: value, ...}`; `context` is what the model supplies.

        A variant takes from `context` only what its signature names. An option it does not have is a
        ValueError.
        """
        variant, options = self._options(spec, context)
        parameters = inspect.signature(variant).parameters
        return variant(**{key: value for key, value in context.items() if key in parameters}, **options)

    def bind(self, spec: dict[str, Any], arguments: Collection[str]) -> Callable:
        """A variant that is a function, with `spec`'s options filled in; its callers give the `arguments`."""
        variant, options = self._options(spec, arguments)
        return functools.partial(variant, **options)

    def _options(self, spec: dict[str, Any], supplied: Collection[str]) -> tuple[Callable, dict[str, Any]]:
        variant = self.find(spec.get("name"))
        options = {key: value for key, value in spec.items() if key != "name"}
        allowed = sorted(set(inspect.signature(variant).parameters) - set(supplied))
        unknown = sorted(set(options) - set(allowed))
        if unknown:
            raise ValueError(
                f"{self.family} '{spec['name']}' has no option '{unknown[0]}': "
                f"its options are {', '.join(allowed) or 'none'}."
            )
        return variant, options
