"""A grid: one question of the design as a YAML, ablations/NAME.yaml, and the cells that answer it.

# Does the gate matter, and which one?        the fields below, for who reads the file
order: 60                                     its place in the book
question: Does the gate matter, and which one?
paper: what the paper says, with section or table
cost: what it costs at 7B
time: how long it takes at mini scale
limits: where mini scale can't tell           optional
reference: dynamic_tanh                       the cell that all others are compared with
together: [architecture=slow_fast]            settings of every cell
axis: frames                                  optional, the label of x; then every cell has an x
cells:
  dynamic_tanh: []                            name: in which settings it differs
  slow_fast@64: {set: [frames=64], x: 64, line: slow_fast}
"""

import re
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

import harness
from harness.errors import UserError

GRIDS = Path(harness.__file__).resolve().parent.parent / "ablations"
CELL_NAME = re.compile(r"[A-Za-z0-9_.@+-]+")
ALL = "all"  # in place of a name: the whole book


class GridCell(BaseModel):
    """One cell: its settings beside those of all cells, and its place in a figure."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    set: list[str] = Field(default=[], description="settings in which the cell differs, KEY=VALUE")
    x: float | None = Field(default=None, description="its place on the grid's axis")
    line: str | None = Field(default=None, description="cells of one line are joined in the figure")

    @model_validator(mode="before")
    @classmethod
    def _from_list(cls, given: Any) -> Any:
        """`name: [gate=none]` is short for `name: {set: [gate=none]}`."""
        return {"set": given} if isinstance(given, list) else given


class Grid(BaseModel):
    """A question, what is said of it, and its cells in their order."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    order: int
    question: str = Field(min_length=1)
    paper: str
    cost: str
    time: str
    limits: str | None = None
    reference: str
    together: list[str] = []
    axis: str | None = None
    cells: dict[str, GridCell] = Field(min_length=1)

    @field_validator("cells", mode="before")
    @classmethod
    def _names(cls, cells: Any) -> Any:
        """Names are texts, `8:` too, which YAML reads as a number."""
        return {str(name): cell for name, cell in cells.items()} if isinstance(cells, dict) else cells

    @field_validator("reference", mode="before")
    @classmethod
    def _reference(cls, reference: Any) -> Any:
        return str(reference) if isinstance(reference, int | float) else reference

    @model_validator(mode="after")
    def _fits_together(self) -> "Grid":
        for name, cell in self.cells.items():
            if not CELL_NAME.fullmatch(name):
                raise ValueError(f"cells: '{name}' is no name for a cell; use letters, digits and _ . @ + -")
            if self.axis is not None and cell.x is None:
                raise ValueError(f"cells: {name} has no x, its place on the axis '{self.axis}'; give it one")
            if self.axis is None and cell.x is not None:
                raise ValueError(f"cells: {name} has an x and the grid no axis; add axis: LABEL")
        if self.reference not in self.cells:
            raise ValueError(f"reference: there is no cell '{self.reference}'; there are {', '.join(self.cells)}")
        return self


def load_grid(name: str, folder: Path = GRIDS, composed: bool = True) -> Grid:
    """The grid in `folder`/`name`.yaml, checked.

    composed: also compose every cell, a fraction of a second each, so that what is no setting is found out; who
        plans the cells right after finds it out then.

    Raises UserError, one sentence, for a grid that is not there or any mistake in it.
    """
    path = folder / f"{name}.yaml"
    if not path.is_file():
        raise UserError(f"grid={name}: {_missing(name, folder)}")
    grid = _parsed(path)
    if composed:
        from harness.grids.cells import check_settings  # here: Hydra takes half a second

        check_settings(grid)
    return grid


def all_grids(folder: Path = GRIDS, composed: bool = True) -> list[Grid]:
    """Every grid of the book in its order; errors as `load_grid`."""
    names = sorted(path.stem for path in folder.glob("*.yaml"))
    if not names:
        raise UserError(_missing(ALL, folder))
    return sorted((load_grid(name, folder, composed) for name in names), key=lambda grid: (grid.order, grid.name))


def _missing(name: str, folder: Path) -> str:
    """Why there is no such grid, and what to do."""
    names = sorted(path.stem for path in folder.glob("*.yaml"))
    if not names:
        return f"there are no grids in {folder}: they are in a checkout of the repository, so run it from one"
    from harness.compose import closest_first

    return f"there is no {folder / f'{name}.yaml'}; choose one of {ALL}, {closest_first(name, names)}"


def _parsed(path: Path) -> Grid:
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except yaml.YAMLError as error:
        raise UserError(f"{path}: it is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: a grid is a mapping with the keys {', '.join(_keys())}")
    if "name" in content:
        raise UserError(f"{path}: name: a grid's name is that of its file; leave it out")
    if strange := sorted(set(map(str, content)) - set(_keys())):
        raise UserError(f"{path}: {strange[0]} is no key of a grid; there are {', '.join(_keys())}")
    try:
        return Grid.model_validate({"name": path.stem, **content})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        what = first["msg"].removeprefix("Value error, ")
        raise UserError(f"{path}: {f'{where}: ' if where else ''}{what}") from error


def _keys() -> list[str]:
    return [key for key in Grid.model_fields if key != "name"]


class _Loader(yaml.SafeLoader):
    """Reads YAML, and refuses a key that is there twice: the first one would be lost without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"'{key}' is there twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)
