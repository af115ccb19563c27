"""The plan of a table: which stages make its rows, and how a finished stage becomes a row.

suite (made before all of this) ------------------------------------+
encoder --> pool --> base (per base seed) --> model (per row) --> scores (per row) --> row
cost (per architecture) ----------------------------------------------------------------^
latency (all rows in turn, alone on the machine) ---------------------------------------^
"""

import json
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from harness.compose import compose, own_groups
from harness.disclosures import disclosures_of
from harness.errors import UserError
from harness.journal import SCORING
from harness.mini.suite import load_suite, suite_state
from harness.mini.training import adapt_training_seed, base_training_seed
from harness.mini.world import World, development_seed, evaluation_seed, training_seed
from harness.models import check_variant, model_config, plain, variant_of
from harness.paths import cache_dir
from harness.provenance import Provenance
from harness.rows import CONTROLLED, Row, make_row
from harness.settings import Control
from harness.staged import SAID, is_staged, said_stage, training_stages
from harness.stages import DESCRIPTION, Stage
from harness.suite_record import suite_record
from harness.table_stages import cheap_encoder_stages, selection_needs, selection_stages
from harness.video import SAMPLING_RULE

POOL_PARTS = 4
TEXT_TOKENS = 64
NOTHING_ELSE = {"dwell": None, "distractors": 0}  # the plain world, as plain data
PAPER = ("scale=paper", "encoder=convnext_xxlarge")
CONTROLS = (Control.gate_closed.value, Control.other_video.value)  # of the table of controls; grids have all
VARIANT_GROUPS = ("architecture", "selector", "compressor", "fusion", "gate", "placement", "scope", "slow_tokens")

WORLD = tuple(f"harness.mini.{name}" for name in ("world", "clips", "questions", "schema"))
ENCODING = (*WORLD, "harness.mini.encoder", "architectures.encoders")
LEARNING = (
    *WORLD,
    *(f"harness.mini.{name}" for name in ("recipes", "stream", "pool", "tokenizer", "initialise", "conversion")),
    *(f"harness.{name}" for name in ("train", "packing", "sampling", "benchmarks")),
    "architectures",
)


@dataclass(frozen=True)
class Cell:
    """One architecture at one number of frames; written `slow_fast@128`."""

    architecture: str
    frames: int

    @classmethod
    def parse(cls, text: str, allowed: Sequence[str]) -> "Cell":
        """From "ARCHITECTURE@FRAMES"; anything else is a UserError."""
        architecture, at, frames = text.partition("@")
        if architecture not in allowed or not at or not frames.isdecimal() or int(frames) < 1:
            raise UserError(
                f"rows: '{text}' is not ARCHITECTURE@FRAMES such as slow_fast@128; "
                f"architectures are {', '.join(allowed)}"
            )
        return cls(architecture, int(frames))

    def __str__(self) -> str:
        return f"{self.architecture}@{self.frames}"


class Plan:
    """The stages of a table under given settings; `overrides` are the settings that were typed.

    An architecture keeps the groups that its own YAML chooses, whatever was typed: `compressor_only` stays
    what its name says while `compressor=...` changes the other rows.

    Raises UserError, before any work, for a row that cannot be built, a seed or a size out of range, or an
    override that no row takes.
    """

    def __init__(self, settings: DictConfig, overrides: Sequence[str], cells: Sequence[Cell]):
        self.settings, self.scale = settings, settings.scale
        self.cells = list(cells)
        self.suite: Path | None = None
        evaluation_seed(settings.seed)  # it and the next refuse what is out of range
        for world in (settings.world.training, settings.world.evaluation):
            World.of(world)
        for base_seed in settings.base_seeds:
            base_training_seed(settings.seed, base_seed)
        check_scale(self.scale)
        if len(set(cells)) < len(cells):
            raise UserError(f"rows={[str(cell) for cell in cells]}: give each row only once")
        typed = [text for text in overrides if not text.startswith(("architecture=", "frames="))]
        taken = {name: taken_by(name, typed) for name in {cell.architecture for cell in cells}}
        for text in typed:
            if not any(text in its for its in taken.values()):
                names, group = " and ".join(sorted(taken)), group_of(text)
                raise UserError(f"{text} changes no row: {group} is fixed in {names}; leave it out")
        self.of_architecture = {name: compose([*its, f"architecture={name}"]) for name, its in taken.items()}
        variant = [text for text in typed if group_of(text) in VARIANT_GROUPS]
        self.at_7b = {
            name: compose([*(text for text in its if text in variant), *PAPER, f"architecture={name}"])
            for name, its in taken.items()
        }
        others = [text for text in typed if text not in variant]
        self.base_settings = compose([*others, "architecture=self_attention"])
        for cell in cells:
            check_variant(self.of_architecture[cell.architecture], cell.frames)

    def on(self, suite: Path) -> "Plan":
        """This plan, its rows scored on the suite in the folder `suite`; UserError if that is none."""
        plan = copy(self)
        plan.suite, plan.suite_state = suite.resolve(), suite_state(suite)
        return plan

    # ------------------------------------------------------------------------------------------- stages

    def stages(self, controls: Sequence[str] = ()) -> list[Stage]:
        """Everything but latency; `controls` adds their evaluations of the controlled row.

        Only of a plan that is `on` a suite.
        """
        base_seeds = self.settings.base_seeds
        costs = map(self.cost, sorted(self.of_architecture))
        of_rows = [self.scores(cell, base_seed) for base_seed in base_seeds for cell in self.cells]
        controlled = Cell(*CONTROLLED[:2])
        of_controls = [self.scores(controlled, base_seed, control) for base_seed in base_seeds for control in controls]
        return [*self.training(), *costs, *of_rows, *of_controls]

    def training(self) -> list[Stage]:
        """All that trains: it needs no suite."""
        base_seeds = self.settings.base_seeds
        shared = [self.encoder(), *self.pool(), *self.selection(), *map(self.base, base_seeds)]
        said = [said_stage(self.settings)] if is_staged(self.settings) else []
        of_rows = [self.learning(cell, base_seed) for base_seed in base_seeds for cell in self.cells]
        return [*shared, *said, *(stage for stages in of_rows for stage in stages)]

    def needed_by(self, wanted: Sequence[str]) -> list[Stage]:
        """The training stages called `wanted`, and all that these need."""
        stages = {stage.name: stage for stage in self.training()}
        needed: dict[str, Stage] = {}
        queue = list(wanted)
        while queue:
            stage = stages[queue.pop()]
            needed[stage.name] = stage
            queue += stage.needs.values()
        return list(needed.values())

    def encoder(self) -> Stage:
        """The encoder of the seed."""
        kwargs = {
            "seed": self.settings.seed,
            "vision": plain(self.settings.encoder),
            "recipe": plain(self.scale.encoder_training),
        }
        return Stage("encoder", "harness.mini.training:encoder_stage", kwargs, weight=80, sources=ENCODING)

    def pool(self) -> list[Stage]:
        """The features of the training clips, in parts, and of the development clips."""
        ranges = dict(zip(self.pool_parts(), ((*edges, "training") for edges in self.pool_ranges()), strict=True))
        ranges["development"] = (0, min(100, self.scale.pool_clips), "development")
        stages = [self.pool_part(name, *its, NOTHING_ELSE) for name, its in ranges.items()]
        if (world := plain(self.settings.world.training)) != NOTHING_ELSE:
            own = zip(self.world_parts().values(), self.pool_ranges(), strict=True)
            stages += [self.pool_part(name, *edges, "training", world) for name, edges in own]
        return stages

    def pool_part(self, name: str, start: int, stop: int, clips: str, world: dict[str, Any]) -> Stage:
        """The features of the "training" or "development" clips `start` to `stop` of a world."""
        kwargs = {"seed": self.settings.seed, "start": start, "stop": stop, "clips": clips, "world": world}
        weight, sources = 0.05 * (stop - start), (*ENCODING, "harness.mini.pool")
        return Stage(name, "harness.mini.training:pool_stage", kwargs, {"encoder": "encoder"}, weight, sources)

    def selection(self) -> list[Stage]:
        """What rows with a frame selector need besides: its own encoder, if any, and its choices of frames."""
        rows = [(self.of_architecture[cell.architecture], cell.frames) for cell in self.cells]
        own = (cheap_encoder_stages(settings, ENCODING) for settings in self.of_architecture.values())
        choices = (selection_stages(settings, frames, self.pool_ranges(), WORLD) for settings, frames in rows)
        return [stage for stages in (*own, *choices) for stage in stages]

    def base(self, base_seed: int) -> Stage:
        """One base: its configuration is the self-attention model's, whatever variant was asked for."""
        kwargs = {
            "seed": self.settings.seed,
            "base_seed": base_seed,
            "config": mini_config(self.base_settings),
            "recipe": plain(self.scale.base),
        }
        needs = {"encoder": "encoder", "development": "development", **self.pool_parts()}
        function = "harness.mini.training:base_stage"
        return Stage(f"base{base_seed}", function, kwargs, needs, 0.24 * self.scale.base.steps, LEARNING)

    def learning(self, cell: Cell, base_seed: int) -> list[Stage]:
        """What trains one row's model, in order; the last stage's folder is the model's."""
        adapted, settings = self.model(cell, base_seed), self.of_architecture[cell.architecture]
        if not is_staged(settings):
            return [adapted]
        return training_stages(settings, cell.frames, adapt_training_seed(self.settings.seed, base_seed), adapted)

    def model(self, cell: Cell, base_seed: int) -> Stage:
        """One row's model, adapted from its base."""
        kwargs = {
            "seed": self.settings.seed,
            "base_seed": base_seed,
            "frames": cell.frames,
            "variant": variant_of(self.of_architecture[cell.architecture]),
            "recipe": plain(self.scale.adapt),
            "world": plain(self.settings.world.training),
        }
        chosen = selection_needs(self.of_architecture[cell.architecture], cell.frames, POOL_PARTS)
        needs = {"base": f"base{base_seed}", **self.world_parts(), **chosen}
        function = "harness.mini.training:adapt_stage"
        weight = 0.25 * self.scale.adapt.steps
        return Stage(model_name(cell, base_seed), function, kwargs, needs, weight, LEARNING)

    def scores(self, cell: Cell, base_seed: int, control: str = "none") -> Stage:
        """One row's evaluation: of the suite, what is in it shapes the result, and not where it is."""
        kwargs = {
            "suite_state": self.suite_state,
            "frames": cell.frames,
            "control": control,
            "batch_size": self.settings.batch_size,
        }
        needs = {"checkpoint": model_name(cell, base_seed)}
        aside = {"suite": self.suite, "workers": self.settings.workers, "features": cache_dir() / "features"}
        function = "harness.table_stages:scores_stage"
        return Stage(scores_name(cell, base_seed, control), function, kwargs, needs, 25, SCORING, aside)

    def cost(self, architecture: str) -> Stage:
        """FLOPs of an architecture's rows, at this scale and at 7B."""
        kwargs = {
            "frames": sorted({cell.frames for cell in self.cells if cell.architecture == architecture}),
            "text_tokens": TEXT_TOKENS,
            "mini": mini_config(self.of_architecture[architecture]),
            "paper": model_config(self.at_7b[architecture]).to_dict(),
        }
        sources = ("architectures", "harness.profilers.flops")
        return Stage(f"cost-{architecture}", "harness.table_stages:cost_stage", kwargs, {}, 2, sources)

    def latency(self) -> Stage:
        """Latency of all rows in turn, of the first base seed's models (weights do not matter)."""
        first = self.settings.base_seeds[0]
        needs = {f"model{i}": model_name(cell, first) for i, cell in enumerate(self.cells)}
        kwargs = {"frames": [cell.frames for cell in self.cells]}
        sources = ("architectures", "harness.profilers.latency", "harness.profilers.timing")
        return Stage("latency", "harness.table_stages:latency_stage", kwargs, needs, 20, sources)

    def pool_ranges(self) -> list[tuple[int, int]]:
        """The training clips of each part of the pool, from and to."""
        edges = [round(part * self.scale.pool_clips / POOL_PARTS) for part in range(POOL_PARTS + 1)]
        return list(pairwise(edges))

    def pool_parts(self) -> dict[str, str]:
        """The parts of the plain world's pool, which bases learn from, as needs."""
        return {f"pool{part}": f"pool{part}" for part in range(POOL_PARTS)}

    def world_parts(self) -> dict[str, str]:
        """The parts of the pool that rows are adapted on, as needs: those of the world asked for."""
        world = self.settings.world
        suffix = "" if plain(world.training) == NOTHING_ELSE else f"-{world.name}"
        return {part: f"{part}{suffix}" for part in self.pool_parts()}

    def row(
        self, folders: dict[str, Path], cell: Cell, base_seed: int, table: str, control: str = "none", /, **of_grid: Any
    ) -> tuple[Row, Any]:
        """The finished row of a cell, and its evaluation; `of_grid`: fields of a row that belongs to a grid."""
        from harness.evaluate import load_evaluation

        scores = folders[scores_name(cell, base_seed, control)]
        evaluation = load_evaluation(scores)
        settings, seed = self.of_architecture[cell.architecture], self.settings.seed
        row = make_row(
            evaluation,
            table=table,
            scale=self.scale.name,
            architecture=cell.architecture,
            frames=cell.frames,
            control=control,
            base_seed=base_seed,
            seed=seed,
            seeds=seeds_of(seed, base_seed),
            # The fingerprint says which suite.
            config={**plain(settings), "frames": cell.frames, "control": control, "suite": None},
            suite_fingerprint=load_suite(self.suite)["fingerprint"],
            suite=suite_record(self.suite, scores),
            world=settings.world.name,
            sampling=SAMPLING_RULE,
            cost=self.cost_of(folders, cell),
            timings=self.timings(folders, cell, base_seed, control),
            disclosures=self.disclosures(folders, base_seed),
            made_by=Provenance(**read_json(scores / DESCRIPTION)["made_by"]),
            **{"content_hash": scores.name.rpartition("-")[2], **of_grid},
        )
        return row, evaluation

    def cost_of(self, folders: dict[str, Path], cell: Cell) -> dict[str, Any]:
        """The cost fields of a row; without latency where that was not measured."""
        flops = read_json(folders[f"cost-{cell.architecture}"] / "cost.json")[str(cell.frames)]
        latency = read_json(folders["latency"] / "latency.json")[self.cells.index(cell)] if "latency" in folders else {}
        return {**flops, **latency}

    def timings(self, folders: dict[str, Path], cell: Cell, base_seed: int, control: str) -> dict[str, float]:
        """Seconds of each stage behind a row; shared ones stand in every row that used them."""
        seconds = {name: read_json(folder / DESCRIPTION)["seconds"] for name, folder in folders.items()}
        chosen = selection_needs(self.of_architecture[cell.architecture], cell.frames, POOL_PARTS)
        return {
            "encoder": seconds["encoder"],
            "pool": sum(
                seconds[part]
                for part in sorted({*self.pool_parts(), *self.world_parts().values(), "development", *chosen.values()})
            ),
            "base": seconds[f"base{base_seed}"],
            "adapt": sum(seconds[stage.name] for stage in self.learning(cell, base_seed)) + seconds.get(SAID, 0.0),
            "evaluate": seconds[scores_name(cell, base_seed, control)],
        }

    def disclosures(self, folders: dict[str, Path], base_seed: int) -> list[str]:
        """What a reader must know of the recipe and of this base."""
        return disclosures_of(self.settings, read_json(folders[f"base{base_seed}"] / "base.json"))


def seeds_of(seed: int, base_seed: int) -> dict[str, int]:
    """Every seed derived from SEED and a base seed, by what it draws."""
    return {
        "evaluation_clips": evaluation_seed(seed),
        "training_clips": training_seed(seed),
        "development_clips": development_seed(seed),
        "encoder": training_seed(seed),
        "base": base_training_seed(seed, base_seed),
        "adapt": adapt_training_seed(seed, base_seed),
    }


def group_of(override: str) -> str:
    """The group or setting that an override such as `gate.bias=0` is about."""
    return override.partition("=")[0].partition(".")[0]


def taken_by(architecture: str, typed: Sequence[str]) -> list[str]:
    """The typed overrides that an architecture takes: not those of the groups that its own YAML chooses."""
    own = own_groups(architecture)
    return [text for text in typed if group_of(text) not in own]


def check_scale(scale: DictConfig) -> None:
    """UserError for sizes that training would stumble over; a scale that only counts has none."""
    if "adapt" not in scale:
        return
    for part in ("encoder_training", "base", "adapt"):
        for name in ("steps", "clips", "batch", "videos", "questions"):
            if name in scale[part] and scale[part][name] < 1:
                raise UserError(f"scale.{part}.{name}={scale[part][name]}: it is at least 1")
    least = max(scale.base.videos, scale.adapt.videos, POOL_PARTS)
    if scale.pool_clips < least:
        raise UserError(
            f"scale.pool_clips={scale.pool_clips}: it is at least {least}, so that each step can draw different "
            f"videos (scale.base.videos={scale.base.videos}, scale.adapt.videos={scale.adapt.videos})"
        )


def model_name(cell: Cell, base_seed: int) -> str:
    """Stage name of a row's model."""
    return f"model{base_seed}-{cell.architecture}-{cell.frames}"


def scores_name(cell: Cell, base_seed: int, control: str = "none") -> str:
    """Stage name of a row's evaluation."""
    suffix = "" if control == "none" else f"-{control}"
    return f"scores{base_seed}-{cell.architecture}-{cell.frames}{suffix}"


def mini_config(settings: DictConfig) -> dict[str, Any]:
    """The configuration of a model with the suite's own vocabulary, as plain data."""
    from harness.mini.stream import suite_tokenizer

    return model_config(settings, suite_tokenizer()).to_dict()


def read_json(path: Path) -> Any:
    """A JSON file's content."""
    return json.loads(path.read_text(encoding="utf-8"))
