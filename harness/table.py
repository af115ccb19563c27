"""The plan of a table: which stages make its rows, and how a finished stage becomes a row.

suite --------------------------------------------------------------+
encoder --> pool --> base (per base seed) --> model (per row) --> scores (per row) --> row
cost (per architecture) ----------------------------------------------------------------^
latency (all rows in turn, alone on the machine) ---------------------------------------^
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from harness.compose import compose
from harness.errors import UserError
from harness.mini.suite import suite_state
from harness.models import check_variant, model_config, plain, variant_of
from harness.provenance import provenance
from harness.rows import Row, make_row
from harness.stages import DESCRIPTION, Stage
from harness.video import SAMPLING_RULE

POOL_PARTS = 4
TEXT_TOKENS = 64
PAPER = ("scale=paper", "encoder=convnext_xxlarge")
CONTROLS = ("gate_closed", "other_video")
CONTROLLED = ("slow_fast", 128)  # the row whose slow tokens the controls take away
VARIANT_GROUPS = ("architecture", "compressor", "gate", "placement", "scope", "slow_tokens")

WORLD = tuple(f"harness.mini.{name}" for name in ("world", "clips", "questions", "schema"))
ENCODING = (*WORLD, "harness.mini.encoder", "architectures.encoders")
LEARNING = (
    *WORLD,
    *(f"harness.mini.{name}" for name in ("recipes", "stream", "pool", "tokenizer", "initialise")),
    *(f"harness.{name}" for name in ("train", "packing", "video", "benchmarks")),
    "architectures",
)
SCORING = (
    *(f"harness.{name}" for name in ("evaluate", "lmms_plugin", "lmms_requests", "video", "benchmarks")),
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
        if architecture not in allowed or not at or not frames.isdigit() or int(frames) < 1:
            raise UserError(
                f"rows: '{text}' is not ARCHITECTURE@FRAMES such as slow_fast@128; "
                f"architectures are {', '.join(allowed)}"
            )
        return cls(architecture, int(frames))

    def __str__(self) -> str:
        return f"{self.architecture}@{self.frames}"


class Plan:
    """The stages of a table under given settings; `overrides` are the settings that were typed.

    Raises UserError, before any work, for a row that cannot be built or a suite that is none.
    """

    def __init__(self, settings: DictConfig, overrides: Sequence[str], cells: Sequence[Cell]):
        self.settings, self.scale = settings, settings.scale
        self.cells = list(cells)
        typed = [text for text in overrides if not text.startswith(("architecture=", "frames="))]
        self.of_architecture = {
            name: compose([*typed, f"architecture={name}"]) for name in {cell.architecture for cell in cells}
        }
        variant = [text for text in typed if group_of(text) in VARIANT_GROUPS]
        self.at_7b = {name: compose([*variant, *PAPER, f"architecture={name}"]) for name in self.of_architecture}
        others = [text for text in typed if text not in variant]
        self.base_settings = compose([*others, "architecture=self_attention"])
        for cell in cells:
            check_variant(self.of_architecture[cell.architecture], cell.frames)
        self.suite_state = None if settings.suite is None else suite_state(Path(settings.suite))

    # ------------------------------------------------------------------------------------------- stages

    def stages(self, controls: Sequence[str] = ()) -> list[Stage]:
        """Everything but latency; `controls` adds their evaluations of the controlled row."""
        shared = [self.suite(), self.encoder(), *self.pool(), *map(self.base, self.settings.base_seeds)]
        of_rows = [
            stage
            for base_seed in self.settings.base_seeds
            for cell in self.cells
            for stage in (self.model(cell, base_seed), self.scores(cell, base_seed))
        ]
        of_controls = [
            self.scores(Cell(*CONTROLLED), base_seed, control)
            for base_seed in self.settings.base_seeds
            for control in controls
        ]
        return [*shared, *map(self.cost, sorted(self.of_architecture)), *of_rows, *of_controls]

    def needed_by(self, wanted: Sequence[str]) -> list[Stage]:
        """The stages called `wanted`, and all that these need."""
        stages = {stage.name: stage for stage in self.stages()}
        needed: dict[str, Stage] = {}
        queue = list(wanted)
        while queue:
            stage = stages[queue.pop()]
            needed[stage.name] = stage
            queue += stage.needs.values()
        return list(needed.values())

    def suite(self) -> Stage:
        """The evaluation suite, made in the cache (or the folder that the settings name)."""
        kwargs = {
            "seed": self.settings.seed,
            "sizes": self.scale.suite,
            "suite": self.settings.suite,
            "state": self.suite_state,
        }
        return Stage(
            "suite",
            "harness.table_stages:suite_stage",
            kwargs,
            weight=60,
            sources=(*WORLD, "harness.mini.suite"),
        )

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
        edges = [round(part * self.scale.pool_clips / POOL_PARTS) for part in range(POOL_PARTS + 1)]
        ranges = {f"pool{part}": (edges[part], edges[part + 1], "training") for part in range(POOL_PARTS)}
        ranges["development"] = (0, min(100, self.scale.pool_clips), "development")
        sources = (*ENCODING, "harness.mini.pool")
        return [
            Stage(
                name,
                "harness.mini.training:pool_stage",
                {"seed": self.settings.seed, "start": start, "stop": stop, "clips": clips},
                {"encoder": "encoder"},
                weight=0.05 * (stop - start),
                sources=sources,
            )
            for name, (start, stop, clips) in ranges.items()
        ]

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

    def model(self, cell: Cell, base_seed: int) -> Stage:
        """One row's model, adapted from its base."""
        kwargs = {
            "seed": self.settings.seed,
            "base_seed": base_seed,
            "frames": cell.frames,
            "variant": variant_of(self.of_architecture[cell.architecture]),
            "recipe": plain(self.scale.adapt),
        }
        needs = {"base": f"base{base_seed}", **self.pool_parts()}
        function = "harness.mini.training:adapt_stage"
        weight = 0.25 * self.scale.adapt.steps
        return Stage(model_name(cell, base_seed), function, kwargs, needs, weight, LEARNING)

    def scores(self, cell: Cell, base_seed: int, control: str = "none") -> Stage:
        """One row's evaluation."""
        kwargs = {
            "seed": self.settings.seed,
            "sizes": self.scale.suite,
            "suite_folder": self.settings.suite,
            "frames": cell.frames,
            "control": control,
            "batch_size": self.settings.batch_size,
        }
        needs = {"checkpoint": model_name(cell, base_seed), "suite": "suite"}
        function, aside = "harness.table_stages:scores_stage", {"workers": self.settings.workers}
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
        return Stage(f"cost-{architecture}", "harness.table_stages:cost_stage", kwargs, {}, 15, sources)

    def latency(self) -> Stage:
        """Latency of all rows in turn, of the first base seed's models (weights do not matter)."""
        first = self.settings.base_seeds[0]
        needs = {f"model{i}": model_name(cell, first) for i, cell in enumerate(self.cells)}
        kwargs = {"frames": [cell.frames for cell in self.cells]}
        sources = ("architectures", "harness.profilers.latency")
        return Stage("latency", "harness.table_stages:latency_stage", kwargs, needs, 20, sources)

    def pool_parts(self) -> dict[str, str]:
        """The parts of the pool, as needs."""
        return {f"pool{part}": f"pool{part}" for part in range(POOL_PARTS)}

    # --------------------------------------------------------------------------------------------- rows

    def row(
        self, folders: dict[str, Path], cell: Cell, base_seed: int, table: str, control: str = "none"
    ) -> tuple[Row, Any]:
        """The finished row of a cell, and its evaluation."""
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
            seeds={"suite": seed, "training_clips": seed, "base": base_seed, "adapt": 1_000 + base_seed},
            config=plain(settings),
            content_hash=scores.name.rpartition("-")[2],
            suite_fingerprint=read_json(folders["suite"] / "suite.json")["fingerprint"],
            sampling=SAMPLING_RULE,
            cost=self.cost_of(folders, cell),
            timings=self.timings(folders, cell, base_seed, control),
            disclosures=self.disclosures(folders, base_seed),
            made_by=provenance(),
        )
        return row, evaluation

    def cost_of(self, folders: dict[str, Path], cell: Cell) -> dict[str, Any]:
        """The cost fields of a row."""
        flops = read_json(folders[f"cost-{cell.architecture}"] / "cost.json")[str(cell.frames)]
        latency = read_json(folders["latency"] / "latency.json")[self.cells.index(cell)]
        return {**flops, **latency}

    def timings(self, folders: dict[str, Path], cell: Cell, base_seed: int, control: str) -> dict[str, float]:
        """Seconds of each stage behind a row; shared ones stand in every row that used them."""
        seconds = {name: read_json(folder / DESCRIPTION)["seconds"] for name, folder in folders.items()}
        return {
            "encoder": seconds["encoder"],
            "pool": sum(seconds[part] for part in (*self.pool_parts(), "development")),
            "base": seconds[f"base{base_seed}"],
            "adapt": seconds[model_name(cell, base_seed)],
            "evaluate": seconds[scores_name(cell, base_seed, control)],
        }

    def disclosures(self, folders: dict[str, Path], base_seed: int) -> list[str]:
        """What a reader must know of the recipe and of this base."""
        base, recipe = read_json(folders[f"base{base_seed}"] / "base.json"), self.scale.base
        reading = f"{recipe.first_layer_reading:.0%}"
        families = ", ".join(f"{family} {share:.0%}" for family, share in base["accuracy"].items())
        passed = "passes" if base["passed"] else "FAILS"
        return [
            f"Base training lets text read the video in the first decoder layer only in {reading} of its "
            "batches (scale.base.first_layer_reading): slow-fast's copied K/V suit such a base.",
            f"Base training shows at most {BASE_FRAMES} frames, chosen to hold the events asked about; "
            "adaptation and evaluation sample uniformly.",
            "Encoder and base are trained from scratch here and shared by all rows of a base seed; every row "
            f"then gets the same {self.scale.adapt.steps} adaptation steps, data order and learning rates "
            f"(gates: times {self.scale.adapt.gate_lr_factor:g}).",
            "Answers are a word, then the option's letter; each benchmark's fixed instruction is one token.",
            f"Its words on held-out key frames are right in {base['mean']:.0%} of cases ({families}): it {passed} the "
            f"threshold of {base['threshold']:.0%}.",
        ]


BASE_FRAMES = 16


def group_of(override: str) -> str:
    """The group or setting that an override such as `gate.bias=0` is about."""
    return override.partition("=")[0].partition(".")[0]


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
