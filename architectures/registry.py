"""Names for variants: a dictionary that says what is allowed when a name is wrong."""

import functools
import inspect
from collections.abc import Callable, Collection, Mapping
from types import NoneType, UnionType
from typing import Any, get_args


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

        A variant takes from `context` only what its signature names. A spec that is no dictionary, an option
        that the variant does not have, one it needs and did not get, or one that should be a whole number and
        is not, is a ValueError.
        """
        variant, options = self._options(spec, context)
        parameters = inspect.signature(variant).parameters
        return variant(**{key: value for key, value in context.items() if key in parameters}, **options)

    def bind(self, spec: dict[str, Any], arguments: Collection[str]) -> Callable:
        """A variant that is a function, with `spec`'s options filled in; its callers give the `arguments`."""
        variant, options = self._options(spec, arguments)
        return functools.partial(variant, **options)

    def _options(self, spec: dict[str, Any], supplied: Collection[str]) -> tuple[Callable, dict[str, Any]]:
        expect_spec(self.family, spec)
        variant = self.find(spec.get("name"))
        options = {key: value for key, value in spec.items() if key != "name"}
        parameters = inspect.signature(variant).parameters
        allowed = sorted(set(parameters) - set(supplied))
        unknown = sorted(set(options) - set(allowed))
        if unknown:
            raise ValueError(
                f"{self.family} '{spec['name']}' has no option '{unknown[0]}': "
                f"its options are {', '.join(allowed) or 'none'}."
            )
        missing = [key for key in allowed if parameters[key].default is inspect.Parameter.empty and key not in options]
        if missing:
            raise ValueError(f"{self.family} '{spec['name']}' needs its option '{missing[0]}': give a value.")
        for key, value in options.items():
            if not fits(value, parameters[key].annotation):
                raise ValueError(f"{self.family} '{spec['name']}': {key} is {value!r}, must be a whole number.")
        return variant, options


def expect_spec(what: str, spec: Any) -> None:
    """Raises ValueError unless `spec` is a dictionary, in a sentence that says what it should be a spec of."""
    if not isinstance(spec, Mapping):
        raise ValueError(f"{what} is {spec!r}, must be a dictionary with a name and options: {{'name': ...}}.")


def fits(value: Any, annotation: Any) -> bool:
    """Whether `value` may stand where `annotation` asks for a whole number; anything where it asks for more."""
    kinds = set(get_args(annotation)) if isinstance(annotation, UnionType) else {annotation}
    if int not in kinds or not kinds <= {int, NoneType}:
        return True
    return (isinstance(value, int) and not isinstance(value, bool)) or (value is None and NoneType in kinds)
