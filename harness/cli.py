"""The one command line: a verb, then settings as key=value; a mistake in them is one sentence, exit 2."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields

from harness.errors import UserError
from harness.finetune.settings import FINETUNE
from harness.settings import ABLATE, MAIN, PROFILE, Root
from harness.stages import find_function

WITH_PLAN = ("ablate", "finetune", "table")  # verbs that can say what they would do
INTERRUPTED = 130  # as the shell has it for Ctrl-C


@dataclass(frozen=True)
class Verb:
    """What a verb runs: a function of the composed settings and what was typed, imported when called."""

    function: str  # "package.module:function"
    help: str
    preset: tuple[str, ...] = ()  # settings that come before the typed ones
    root: Root = MAIN


VERBS = {
    "table": Verb("harness.commands:table", "train, evaluate, print and write the main table"),
    "controls": Verb("harness.commands:controls", "the controls: gate closed, slow tokens of another video"),
    "plug-and-play": Verb("harness.commands:plug_and_play", "does converting a trained baseline help, by steps"),
    "smoke": Verb(
        "harness.commands:table",
        "a first real row within three minutes",
        ("scale=smoke", "base_seeds=[0]", "rows=[self_attention@16,slow_fast@32]", "results_dir=results/runs/smoke"),
    ),
    "train": Verb("harness.commands:train", "train one architecture and print its checkpoint's folder"),
    "annotations": Verb("harness.commands:annotations", "write mini clips and conversations for the verb finetune"),
    "finetune": Verb(
        "harness.finetune.verb:finetune", "train on annotation files: the paper's stages, DeepSpeed", root=FINETUNE
    ),
    "evaluate": Verb("harness.commands:evaluate", "score a checkpoint on a suite with lmms-eval's own tasks"),
    "cost": Verb("harness.commands:cost", "tokens and FLOPs of one architecture, at this scale and at 7B"),
    "suite": Verb("harness.commands:suite", "generate the five mini benchmarks and print their folder"),
    "contact-sheet": Verb("harness.commands:contact_sheet", "a picture of one sample with its answer"),
    "doctor": Verb("harness.real.verb:doctor", "what is there, what is missing, and the command that mends it"),
    "fetch": Verb("harness.real.verb:fetch", "download real benchmarks and checkpoints (online=true), and unpack them"),
    "real-suite": Verb("harness.real.verb:real_suite", "make a suite of the real benchmarks in data, print its folder"),
    "ablate": Verb("harness.grids.verb:ablate", "run a grid of ablations/: every cell, each base seed", root=ABLATE),
    "report": Verb("harness.reports.verb:report", "tables, figures, claims and one page, from results/ alone"),
    "attention": Verb(
        "harness.reports.attention_record:attention", "record which frames a checkpoint's text reads, for the report"
    ),
    "profile": Verb("harness.profilers.profile:profile", "FLOPs and cache bytes against frames, at 7B", root=PROFILE),
    "profile-gpu": Verb(
        "harness.profilers.profile_gpu:profile_gpu",
        "time and memory against frames, measured on a GPU",
        ("architectures=[self_attention,slow_fast]", "frames=[16,32,64,128,256,512,1024]"),
        PROFILE,
    ),
    "scaling": Verb(
        "harness.profilers.scaling:scaling",
        "is cost linear in frames? counted at 7B, measured on this machine",
        ("frames=[16,32,64,128,256,512,1024,1536]", "device=cpu", "dtype=float32", "rounds=25"),
        PROFILE,
    ),
    "bench": Verb("harness.bench:bench", "this project's own speed: decoding, profiling, evaluation", (), PROFILE),
    "plot": Verb("harness.commands:plot", "tables and figures again from results/rows; runs nothing"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code.

    0: done. 2: a mistake in what was asked. 3: finished, but too many samples failed. 1: a stage failed.
    130: stopped by Ctrl-C.
    """
    parsed = _parser().parse_intermixed_args(arguments)  # --config may stand anywhere
    if parsed.verb is None:
        _parser().print_help()
        return 0
    try:
        dry_run = ["dry_run=true"] if parsed.dry_run else []
        return _run(parsed.verb, [*parsed.settings, *dry_run], parsed.config)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("stopped; the same command resumes", file=sys.stderr)
        return INTERRUPTED


def _run(verb: str, overrides: list[str], only_print: bool) -> int:
    from harness.compose import closest_first, compose  # here: Hydra is not needed for --help

    if verb not in VERBS:
        raise UserError(f"there is no verb '{verb}'; there are {closest_first(verb, VERBS)}")
    overrides = [*VERBS[verb].preset, *overrides]
    settings = compose(overrides, root=VERBS[verb].root)
    if settings.get("dry_run") and verb not in WITH_PLAN:
        raise UserError(f"dry_run: the verb {verb} has no plan to print; {' and '.join(WITH_PLAN)} have")
    if only_print:
        from omegaconf import OmegaConf

        print(OmegaConf.to_yaml(settings), end="")
    else:
        find_function(VERBS[verb].function)(settings, overrides)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m harness",
        description="The slow-fast benchmark harness.",
        epilog=_epilog(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("verb", nargs="?", metavar="VERB", help="what to do, see below")
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="settings, see below")
    parser.add_argument("--dry-run", action="store_true", help="of ablate, and of table at scale=paper: print the plan")
    parser.add_argument("--config", action="store_true", help="print the composed settings and do nothing")
    return parser


def _epilog() -> str:
    from harness.compose import group_choices

    verbs = [f"  {name:14} {verb.help}" for name, verb in VERBS.items()]
    choices = {**group_choices(), **group_choices(root=FINETUNE)}
    groups = [f"  {name:14} {', '.join(names)}" for name, names in choices.items()]
    profilers = ", ".join(name for name, verb in VERBS.items() if verb.root is PROFILE)
    lines = ["verbs:", *verbs]
    known = {item.name for item in fields(MAIN.schema)}
    for title, root in (
        ("settings:", MAIN),
        ("further ones of ablate:", ABLATE),
        (f"settings of {profilers}:", PROFILE),
        ("settings of finetune, with the groups experiment, recipe and zero:", FINETUNE),
    ):
        plain = [item for item in fields(root.schema) if "group" not in item.metadata]
        plain = [item for item in plain if root is not ABLATE or item.name not in known]
        lines += ["", title, *(f"  {item.name:14} {item.metadata['meaning']}" for item in plain)]
    return "\n".join([*lines, "", "groups, chosen as GROUP=NAME:", *groups])
