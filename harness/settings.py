"""Every setting of the command line: its type, bounds and meaning; the values are in conf/.

Verbs that train, evaluate and make tables take `Settings` (conf/config.yaml), sweeps `AblateSettings`
(conf/ablate.yaml), profilers `ProfileSettings` (conf/profile.yaml), all with the groups of conf/groups.yaml. A new
setting is one line here and one there; a new choice of a group is one YAML in the group's folder.
"""

from dataclasses import dataclass, field
from enum import Enum
from typing import Any


class Control(Enum):
    """What is done at evaluation to see what the answers depend on; each is explained in `harness.controls`."""

    none = "none"
    gate_closed = "gate_closed"
    other_video = "other_video"
    shuffled = "shuffled"
    blank_video = "blank_video"
    other_question = "other_question"
    non_question = "non_question"


def setting(meaning: str, least: int | None = None) -> Any:
    """A setting that config.yaml gives a value; `least` bounds a number, or each number of a list."""
    return field(default="???", metadata={"meaning": meaning, "least": least})


def group(meaning: str) -> Any:
    """A group: its content is the chosen YAML's, `{name: ..., option: value, ...}`."""
    return field(default_factory=dict, metadata={"meaning": meaning, "group": True})


class Precision(Enum):
    """The floating point type of weights and activations."""

    bfloat16 = "bfloat16"
    float16 = "float16"
    float32 = "float32"


class Attention(Enum):
    """What computes attention: torch's choice or one of its kernels, plain matrix products, the flash-attn package."""

    sdpa = "sdpa"
    flash = "flash"
    efficient = "efficient"
    math = "math"
    cudnn = "cudnn"
    eager = "eager"
    flash_attention_2 = "flash_attention_2"


class Check(Enum):
    """Which videos are read to see whether they can be."""

    sampled = "sampled"
    all = "all"


@dataclass
class Groups:
    """The groups: what a model consists of, and the sizes of everything."""

    scale: dict[str, Any] = group("sizes of everything")
    world: dict[str, Any] = group("what happens in the mini clips, in adaptation and in evaluation")
    architecture: dict[str, Any] = group("a row of the table: sets the groups below")
    selector: dict[str, Any] = group("which frames the encoder sees")
    encoder: dict[str, Any] = group("frames to features")
    compressor: dict[str, Any] = group("all tokens of a video to its fast tokens")
    slow_tokens: dict[str, Any] = group("what cross-attention reads")
    placement: dict[str, Any] = group("which layers are hybrid")
    fusion: dict[str, Any] = group("how a hybrid layer reads the slow tokens")
    gate: dict[str, Any] = group("how much cross-attention adds")
    scope: dict[str, Any] = group("which tokens cross-attend")


@dataclass
class Settings(Groups):
    """The composed configuration of a verb that trains, evaluates or reports; verbs take it as their argument."""

    training: dict[str, Any] = group("how a row's model learns from its base")

    seed: int = setting("of the suite's clips and of training", least=0)
    base_seeds: list[int] = setting("one base is trained for each", least=0)
    rows: list[str] = setting("of the table, each ARCHITECTURE@FRAMES")
    frames: int = setting("frames sampled uniformly from each video", least=1)
    control: Control = setting("none, or what is done to the slow tokens, the video or the question")

    checkpoint: str | None = setting("folder of a saved model")
    suite: str | None = setting("folder of a suite; null: the one of this seed, generated if need be")
    batch_size: int = setting("questions answered together; typed for scale=paper, where it is 1 by itself", least=1)
    workers: int = setting("threads that decode videos ahead of the model; 0: none, decoded when needed", least=0)

    data: str | None = setting("folder of the real benchmarks, and of checkpoints from the hub (scale=paper)")
    benchmarks: list[str] | None = setting("that are asked; null: the five of the suite")
    further: bool = setting("the paper's other benchmarks as well (scale=paper)")
    models: list[str] | None = setting("rows of the table at scale=paper: names in conf/model, or YAML files")
    limit: int | None = setting("questions of each task at most (scale=paper); null: all", least=1)
    prompts: str | None = setting("lmms_eval or official; null: official at scale=paper, else lmms_eval")
    sampling: str | None = setting("rule of frames, uniform or official; null: official at scale=paper, else uniform")
    processes: int = setting("that share an evaluation, one per GPU; answers do not depend on it", least=1)
    dtype: Precision | None = setting("of evaluation; null: bfloat16 at scale=paper, else as the checkpoint has it")
    device: str = setting("of evaluation: auto (a GPU if there is one), cpu, cuda, cuda:1, ...")
    check: Check = setting("which videos `doctor` reads: some of each benchmark (sampled), or all")
    source: str | None = setting("of `fetch`: a folder that stands for the hub")
    online: bool = setting("whether the hub, or a benchmark's judge, may be asked; false: nothing reaches the network")
    submit: bool = setting("whether predictions for EgoSchema's full set are posted to its server")
    dry_run: bool = setting("print the plan of the table at scale=paper, or of a sweep, and run nothing; or --dry-run")

    benchmark: str = setting("whose sample is looked at")
    task: str | None = setting("its lmms-eval task, where the benchmark has several; null: the first")
    sample: int = setting("row in the task's table", least=0)

    jobs: int | None = setting("processes; null: what cores and memory allow; 0: none, for a debugger", least=0)
    runs_dir: str = setting("where trained and measured things go")
    results_dir: str = setting("where rows, tables and figures go")
    output: str | None = setting("file or folder of a verb that writes one; null: a place of its own")


class Launcher(Enum):
    """Who runs the jobs of a sweep: processes here, the same by way of submitit, or a SLURM cluster."""

    joblib = "joblib"
    submitit_local = "submitit_local"
    submitit_slurm = "submitit_slurm"


class Reuse(Enum):
    """Which rows count as done without their stages: none, or the committed ones of the same content."""

    none = "none"
    committed = "committed"


@dataclass
class AblateSettings(Settings):
    """The composed configuration of a sweep: its own settings, and those of every cell."""

    grid: str | None = setting("a question of ablations/, or all")
    grids_dir: str | None = setting("folder of the grids' YAMLs; null: ablations/ of the checkout")
    retry: bool = setting("try failed cells again")
    reuse: Reuse = setting("committed: rows of the same content count as done without their stages")
    launcher: Launcher = setting("joblib, submitit_local or submitit_slurm")
    partition: str | None = setting("SLURM partition")
    minutes: int = setting("SLURM time of a job", least=1)
    gigabytes: int = setting("SLURM memory of a job", least=1)
    gpus: int = setting("SLURM GPUs of a job", least=0)


@dataclass
class ProfileSettings(Groups):
    """The composed configuration of a verb that counts or measures what models cost."""

    architectures: list[str] | None = setting("that are profiled; null: the verb's own choice")
    frames: list[int] = setting("numbers of frames", least=1)
    text_tokens: list[int] = setting("numbers of text tokens behind the video", least=1)

    device: str = setting("of measurements: auto (a GPU if there is one), cpu, cuda, cuda:1, ...")
    dtype: Precision = setting("of measured weights and activations")
    attention: Attention = setting("what computes attention where it is measured")
    compile: str | None = setting("a backend of torch.compile, such as inductor; null: none")
    rounds: int = setting("measured rounds, as far as `seconds` allow", least=1)
    warmup: int = setting("unmeasured rounds before them", least=0)
    new_tokens: int = setting("decoded tokens that are measured together", least=1)
    seconds: int = setting("after which no further round begins", least=1)

    results_dir: str = setting("where rows, tables and figures go")
    output: str | None = setting("CSV file of the rows; null: one in results_dir, with tables and figures")


@dataclass(frozen=True)
class Root:
    """A YAML in conf/ and the dataclass that describes it."""

    name: str
    schema: type[Groups]


MAIN, PROFILE, ABLATE = Root("config", Settings), Root("profile", ProfileSettings), Root("ablate", AblateSettings)
