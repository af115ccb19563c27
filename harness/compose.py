"""From `key=value ...` to checked settings: Hydra composes, and every mistake becomes one sentence."""

import difflib
import functools
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from enum import Enum
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException, ValidationError

from harness.errors import UserError
from harness.settings import MAIN, Root

CONF = Path(__file__).parent / "conf"
Written = tuple[tuple[str, int, int], ...]
KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}


def compose(overrides: Sequence[str], folder: Path = CONF, root: Root = MAIN) -> DictConfig:
    """The settings of `folder`'s `root` with `overrides` ("frames=16", "gate=static_tanh"), types checked.

    Raises UserError, one sentence that lists what is allowed, closest first, for anything that is not a
    setting, not a choice of its group, or not of its setting's type or range.
    """
    groups = group_choices(folder, root)
    parsed = {text: _parse(text) for text in overrides}
    chosen = [text for text, override in parsed.items() if override.key_or_group in groups]
    for text in chosen:
        _check_choice(text, parsed[text], groups)
    written = _written(folder)
    before = _hydra(folder, written, root.name, tuple(chosen))
    for text in parsed:
        if text not in chosen:
            _check_key(text, parsed[text].key_or_group, before, groups)
    after = _hydra(folder, written, root.name, tuple(parsed)) if len(chosen) < len(parsed) else before
    for text in parsed:
        if text not in chosen:
            _check_value(text, parsed[text].key_or_group, before, after, root)
    try:
        settings = OmegaConf.merge(OmegaConf.structured(root.schema), after)
    except ValidationError as error:  # a value of the root's YAML itself, or an element deeper down
        raise UserError(f"{error.full_key}: {_first_line(error)}") from error
    _check_bounds(settings, root)
    OmegaConf.set_struct(settings, True)
    return settings


def group_choices(folder: Path = CONF, root: Root = MAIN) -> dict[str, list[str]]:
    """Every group of a root, a folder of YAMLs such as "compressor", and the names of its choices."""
    groups = {item.name for item in fields(root.schema) if "group" in item.metadata}
    choices: dict[str, list[str]] = {}
    for file in sorted(folder.rglob("*.yaml")):
        inside = "/".join(file.parent.relative_to(folder).parts)
        if inside in groups:  # other folders are other roots' groups, Hydra's own, or no groups
            choices.setdefault(inside, []).append(file.stem)
    return choices


def own_groups(architecture: str, folder: Path = CONF) -> set[str]:
    """The groups whose choice an architecture's YAML makes itself, in its list of defaults."""
    defaults = OmegaConf.load(folder / "architecture" / f"{architecture}.yaml").get("defaults", [])
    overridden = (str(key) for entry in defaults if OmegaConf.is_dict(entry) for key in entry)
    return {key.removeprefix("override ").lstrip("/") for key in overridden}


def closest_first(word: str, allowed: Iterable[str]) -> str:
    """The allowed words, the most similar to `word` first, as a list in a sentence."""
    ratio = {name: difflib.SequenceMatcher(None, word, name).ratio() for name in allowed}
    return ", ".join(sorted(ratio, key=lambda name: (-ratio[name], name))) or "nothing"


@contextmanager
def _nothing_global() -> Iterator[None]:
    """Puts Hydra's one global state aside: in a job of a Hydra app (harness/grids/sweep.py) it is the app's."""
    apps = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        yield
    finally:
        GlobalHydra.instance().hydra = apps


def _parse(text: str) -> Override:
    try:
        (override,) = OverridesParser.create().parse_overrides([text])
    except OverrideParseException as error:
        raise UserError(
            f"'{text}' is not KEY=VALUE: write for example seed=1, and quotes around a value with special "
            "characters, as in 'output=\"a b.png\"'"
        ) from error
    if override.is_add() or override.is_delete() or override.package is not None:
        raise UserError(f"'{text}': settings can be changed, not added, removed or moved; write KEY=VALUE")
    if override.is_sweep_override():
        raise UserError(f"'{text}' gives several values: give one, or a list in brackets as in base_seeds=[0,1]")
    return override


def _written(folder: Path) -> Written:
    """Path, time and size of every YAML of a folder: what has to be the same for a composition to be."""
    return tuple((str(file), file.stat().st_mtime_ns, file.stat().st_size) for file in sorted(folder.rglob("*.yaml")))


@functools.lru_cache(maxsize=256)  # a fifth of a second each, and a book of grids asks for most of them several times
def _hydra(folder: Path, written: Written, root: str, overrides: tuple[str, ...]) -> DictConfig:
    """What Hydra composes, to be read and merged, not written to."""
    try:
        with _nothing_global(), hydra.initialize_config_dir(str(folder.absolute()), version_base="1.3"):
            return hydra.compose(root, overrides=list(overrides))
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(f"{' '.join(overrides) or f'{root}.yaml'}: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def _check_choice(text: str, override: Override, groups: Mapping[str, list[str]]) -> None:
    group, choice = override.key_or_group, str(override.value())
    if choice not in groups[group]:
        allowed = closest_first(choice, groups[group])
        raise UserError(f"{text}: there is no {group} '{choice}'; choose one of {allowed}")


def _check_key(text: str, key: str, config: DictConfig, groups: Mapping[str, list[str]]) -> None:
    parent, _, last = key.rpartition(".")
    if parent in groups and last == "name":
        raise UserError(f"{text}: choose by {parent}=NAME, one of {', '.join(groups[parent])}")
    node: Any = config
    above: list[str] = []
    for part in key.split("."):
        if not isinstance(node, DictConfig):
            raise UserError(f"{text}: {'.'.join(above)} is a single value with nothing below it")
        if part not in node:
            where = f"{'.'.join(above)} has no setting '{part}'" if above else f"there is no setting '{part}'"
            allowed = {str(name) for name in node} | (set() if above else set(groups))
            raise UserError(f"{text}: {where}; there are {closest_first(part, allowed)}")
        node = node[part]
        above.append(part)
    if isinstance(node, DictConfig):
        raise UserError(f"{text}: {key} has settings of its own: {', '.join(map(str, node))}")


def _check_value(text: str, key: str, before: DictConfig, after: DictConfig, root: Root) -> None:
    """Top-level settings by their declared type; inside a group by the type of the YAML's own value.

    A null in a group's YAML stands for a number that the variant chooses itself.
    """
    value, example = _plain(after, key), _plain(before, key)
    hint = get_type_hints(root.schema).get(key)
    if hint is None:
        hint = float | None if example is None or value is None else type(example)
    if not _fits(value, hint):
        raise UserError(f"{text}: {key} takes {_in_words(hint)}, not {'null' if value is None else repr(value)}")


def _plain(config: DictConfig, key: str) -> Any:
    value = OmegaConf.select(config, key)
    return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value


def _fits(value: Any, hint: Any) -> bool:
    if get_origin(hint) in (Union, types.UnionType):
        return any(_fits(value, part) for part in get_args(hint))
    if get_origin(hint) is list:
        return isinstance(value, list) and all(_fits(item, get_args(hint)[0]) for item in value)
    if isinstance(hint, type) and issubclass(hint, Enum):
        return value in hint.__members__
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is str:
        return isinstance(value, str | int | float) and not isinstance(value, bool)
    return type(value) is hint


def _in_words(hint: Any) -> str:
    if get_origin(hint) in (Union, types.UnionType):
        return " or ".join(_in_words(part) for part in get_args(hint))
    if hint is types.NoneType:
        return "null"
    if get_origin(hint) is list:
        (item,) = get_args(hint)
        return f"a list such as {'[1,2]' if item is int else '[a,b]'}, each {_in_words(item)}"
    if isinstance(hint, type) and issubclass(hint, Enum):
        return f"one of {', '.join(hint.__members__)}"
    return KINDS.get(hint, f"a {getattr(hint, '__name__', hint)}")


def _check_bounds(settings: DictConfig, root: Root) -> None:
    for item in fields(root.schema):
        least = item.metadata.get("least")
        value = settings[item.name]
        values = list(value) if OmegaConf.is_list(value) else [value]
        if least is not None and value is not None and any(number < least for number in values):
            raise UserError(f"{item.name}={value}: {item.name} is at least {least}")
        if OmegaConf.is_list(value) and (not values or len(set(values)) < len(values)):
            raise UserError(f"{item.name}={value}: give at least one, each only once")
