"""The plan of the table at paper scale: its memory against a real model's tensors, its FLOPs against the counter."""

import io
import json
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from rich.console import Console
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from architectures import SlowFastConfig
from architectures.cost import prefill_cost
from architectures.official_names import config_from_official
from harness.errors import UserError
from harness.paper import plan as planning
from harness.paper.memory import checkpoint_bytes, evaluation_memory
from harness.paper.models import ModelSpec, load_model
from harness.paper.plan import NEW_TOKENS, TEXT_TOKENS, Questions, Work, config_of, device_hours, needs_of, plan_of
from harness.paper.request import Request
from harness.paper.verb import print_plan, table
from harness.profilers.flops import count_decode, count_prefill
from harness.profilers.random_weights import RandomWeights
from harness.real.catalogue import EXPECTED, bytes_of

REFERENCE = Path(__file__).parent / "reference" / "checkpoint_manifest_7b.json"
FRAMES, TEXT, ANSWER = 16, 32, 3
TINY = {"name": "tiny", "image_size": 64}
TOWER = {"name": "convnext_xxlarge", "image_size": 128}
SIGLIP = {"name": "siglip", "depth": 2, "width": 64, "heads": 4, "mlp_width": 160, "image_size": 56, "patch_size": 7}


def small(vision: dict[str, Any], width: int = 128, mlp: int = 512, **changes: Any) -> SlowFastConfig:
    """A small model of the released kind: official compressor, every second layer hybrid."""
    text = {"model_type": "qwen2", "hidden_size": width, "num_hidden_layers": 4, "num_attention_heads": 8}
    text |= {"num_key_value_heads": 4, "intermediate_size": mlp, "vocab_size": 1000}
    text |= {"eos_token_id": None, "bos_token_id": None, "pad_token_id": 0}
    compressor = {"name": "official", "sample_stride": 1, "average_stride": 2, "space_stride": 1, "min_fast_frames": 4}
    return SlowFastConfig(
        **{
            "text_config": text,
            "vision": vision,
            "compressor": compressor,
            "placement": {"name": "every", "n": 2},
            "video_token_id": 999,
            **changes,
        }
    )


class Live(TorchDispatchMode):
    """Counts the bytes of all tensors that operations have made and that are still there, and their peak."""

    def __init__(self) -> None:
        super().__init__()
        self.now, self.peak, self.sizes = 0, 0, {}

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = operator(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor):
                self._add(tensor.untyped_storage())
        return made

    def _add(self, storage: Any) -> None:
        if (key := storage._cdata) in self.sizes:
            return
        self.sizes[key] = storage.nbytes()
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._drop, key)

    def _drop(self, key: int) -> None:
        self.now -= self.sizes.pop(key, 0)


@torch.inference_mode()
def measured(config: SlowFastConfig, batch: int, dtype: torch.dtype) -> tuple[int, int, int]:
    """Bytes of the weights, then the peaks of encoding videos one by one and of answering, as evaluation does."""
    model = RandomWeights("cpu", dtype).model(config)
    side = model.encoder.image_size
    video = torch.full((batch, model.fast_token_count(FRAMES)), config.video_token_id)
    ids_BL = torch.cat([video, torch.randint(1, 900, (batch, TEXT))], 1)
    with Live() as live:
        seen = [encoded(model, torch.empty(1, FRAMES, 3, side, side).clone(), dtype) for _ in range(batch)]
        vision, live.peak = live.peak, live.now
        model.generate(
            input_ids=ids_BL,
            attention_mask=torch.ones_like(ids_BL),
            features=torch.cat(seen),
            frame_times=torch.linspace(0, 1, FRAMES).expand(batch, -1),
            max_new_tokens=ANSWER,
            do_sample=False,
        )
    return sum(parameter.nbytes for parameter in model.parameters()), vision, live.peak


def encoded(model: Any, frames_BTCHW: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return model.encode_video(frames_BTCHW.to(dtype))


CASES = {
    "tower of one stage that is widest": small(TOWER | {"depths": [2, 2, 3, 2], "widths": [32, 64, 128, 256]}),
    "tower whose second stage is widest": small(TOWER | {"depths": [1, 2, 3, 2], "widths": [16, 128, 256, 512]}),
    "vision transformer": small(SIGLIP),
    "wide decoder": small(TINY, width=64, mlp=2048),
}


@pytest.mark.parametrize("case", CASES)
def test_memory_is_that_of_a_real_models_tensors(case: str) -> None:
    dtype, size = (torch.float32, 4) if case == "vision transformer" else (torch.bfloat16, 2)
    batch = 2 if case == "wide decoder" else 1
    weights, vision, answering = measured(CASES[case], batch, dtype)
    planned = evaluation_memory(CASES[case], FRAMES, TEXT, ANSWER, batch, size)
    later = max(bytes_ for phase, bytes_ in planned.phases.items() if phase != "vision")
    assert planned.weights == weights
    assert planned.phases["vision"] == pytest.approx(vision, rel=0.02)
    assert later == pytest.approx(answering, rel=0.08)
    assert planned.peak == pytest.approx(weights + max(vision, answering), rel=0.05)


def test_frames_at_once_bound_the_encoders_memory() -> None:
    config = CASES["tower whose second stage is widest"]
    whole, bounded = (evaluation_memory(config, FRAMES, TEXT, ANSWER, at_once=n) for n in (None, 4))
    images = FRAMES * 3 * 128**2 * (4 + 2)
    assert bounded.phases["vision"] - images == (whole.phases["vision"] - images) // 4
    assert bounded.peak < whole.peak


# -------------------------------------------------------------------------------------------------------- FLOPs


def test_flops_are_the_counters() -> None:
    config = CASES["vision transformer"]
    asked = Questions(planning.benchmark_named("videomme"), 30, 10, "here")
    spec = ModelSpec(name="small", title="small", kind="ours", frames=FRAMES)
    work = Work(spec, config, [asked], batch=1, size=2)
    prefill, step = count_prefill(config, FRAMES, TEXT_TOKENS), count_decode(config, FRAMES, TEXT_TOKENS).step
    per_question = prefill.model - prefill.vision + NEW_TOKENS * step
    assert work.flop_of_video == prefill.vision
    assert work.flop_of_question == per_question
    assert work.flop == 30 * (prefill.vision + per_question)  # batches of one: each question encodes its video
    of_ten = Work(spec, config, [asked], batch=10, size=2)
    assert of_ten.flop == 13 * prefill.vision + 30 * per_question  # 10 videos, 3 of them in two batches at most


@pytest.mark.parametrize("name", ["released_64", "released_96"])
def test_the_plans_configuration_is_the_released_one(name: str) -> None:
    spec = load_model(name)
    official = json.loads(REFERENCE.read_text())["config_json"]
    official |= {"fast_token_temporal_stride": spec.frames // 16}
    ours, theirs = config_of(spec, None), config_from_official(official)
    for config in (ours, theirs):
        config.vision = TINY | {"image_size": 288, "width": 3072}  # as many patches, counted at once
    assert prefill_cost(ours, spec.frames, 64) == prefill_cost(theirs, spec.frames, 64)
    assert prefill_cost(ours, spec.frames, 64).fast_tokens == 16 * 81
    assert (ours.generated_read_slow, ours.kv_init) == (theirs.generated_read_slow, theirs.kv_init)


def test_hours_are_flop_over_the_stated_share_of_the_peak() -> None:
    hours = device_hours(int(312e12 * 3600), "bfloat16", utilisation=0.5)
    assert hours["A100 SXM 80 GB"] == pytest.approx(2.0)
    assert hours["H100 SXM"] == pytest.approx(2.0 * 312 / 989.4)


# ---------------------------------------------------------------------------------------------- what is asked


def test_questions_are_the_catalogues_and_a_limit_is_per_task() -> None:
    whole = Questions.of("videomme", None)
    assert (whole.questions, whole.videos) == (EXPECTED["videomme"].questions, EXPECTED["videomme"].videos)
    assert whole.encodings(1) == whole.questions
    assert whole.encodings(10) == whole.videos + whole.questions // 10
    assert Questions.of("mvbench", 3).questions == 3 * 20
    unknown = Questions.of("mlvu", None)
    assert unknown.questions is EXPECTED["mlvu"].questions is None
    assert unknown.encodings(1) is None
    assert Questions.of("mlvu", 5).questions == 5


def request(**settings: Any) -> Request:
    return Request.of(OmegaConf.create(settings), [])


def test_a_plan_says_what_is_not_known_and_needs_nothing(tmp_path: Path) -> None:
    made = plan_of(request(models=["released_64", "qwen2_5_vl"], benchmarks=["videomme", "mlvu"], data=str(tmp_path)))
    own, external = made.works
    assert external.config is external.flop is external.memory is None
    assert made.flop == own.flop == 2700 * (own.flop_of_video + own.flop_of_question)
    assert own.memory.weights == 2 * 8_497_569_160  # the manifest's 8,500,648,304 without the unused head
    assert {fetch.what: fetch.bytes for fetch in made.fetches}["sy1998/MLVU_dev"] is None
    assert not any(fetch.here for fetch in made.fetches)
    needs = needs_of(made)
    assert (needs.disk, needs.memory, needs.gpu_memory) == (2 * own.memory.weights, own.memory.weights, own.memory.peak)
    assert [needs_of(plan_of(replace(made.request, processes=8, device=d))).gpus for d in ("auto", "cpu")] == [8, 1]
    console = Console(file=io.StringIO(), width=80)
    print_plan(made, console)
    text = console.file.getvalue()
    assert max(map(len, text.splitlines())) <= 80
    assert "Not known, so not in the sums: questions of MLVU." in " ".join(text.split())
    assert "Not counted, lmms-eval's own code: qwen2_5_vl." in " ".join(text.split())
    assert list(tmp_path.iterdir()) == []
    here = tmp_path / "hub" / "lmms-eval" / "Video-MME"
    here.mkdir(parents=True)
    after = plan_of(made.request)
    assert made.to_fetch - after.to_fetch == {f.what: f.bytes for f in made.fetches}["lmms-eval/Video-MME"]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"models": ["released_46"]}, "there is no 'released_46'; choose among released_64"),
        ({"models": ["released_64", "released_64"]}, "each only once"),
        ({"models": ["checkpoint"]}, "give its folder as checkpoint=FOLDER"),
        ({"benchmarks": []}, "give at least one"),
        ({"benchmarks": ["videomm"]}, "unknown benchmark 'videomm'"),
        ({"prompts": "ours"}, "unknown prompts 'ours'"),
        ({"sampling": "random"}, "unknown sampling rule 'random'"),
        ({"dtype": "int8"}, "dtype=int8: choose one of"),
        ({"processes": 0}, "processes=0: it is at least 1"),
        ({"checkpoint": "/nowhere"}, "no folder of a saved model"),
        ({"submit": True}, "submit=true: no benchmark here has predictions to post"),
        ({"submit": True, "benchmarks": ["egoschema_full"], "limit": 5}, "a set is posted whole; leave out limit=5"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_mistakes_are_one_sentence(settings: dict, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        request(**settings)


def test_further_columns_come_without_judges_unless_online_and_submissions_only_by_name() -> None:
    assert request().benchmarks == ("videomme", "mlvu", "mvbench", "egoschema", "longvideobench")
    further = request(further=True).benchmarks
    assert {"videomme_w_subtitle", "nextqa_mc_test"} < set(further)
    assert not {"activitynetqa", "egoschema_full"} & set(further)
    assert "activitynetqa" in request(further=True, online=True).benchmarks
    assert request(benchmarks=["egoschema_full"]).benchmarks == ("egoschema_full",)


def test_a_null_is_the_default_and_a_checkpoint_comes_alone_unless_models_are_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    nulls = dict.fromkeys(("models", "prompts", "sampling", "dtype", "benchmarks", "limit"))
    assert request(**nulls) == request()
    assert [spec.name for spec in request(**nulls).models] == ["released_64", "released_96"]
    alone = request(**nulls, checkpoint=str(tmp_path))
    assert [spec.folder for spec in alone.models] == [tmp_path]
    both = request(models=["released_64"], checkpoint=str(tmp_path))
    assert [spec.kind for spec in both.models] == ["released", "ours"]


def test_the_readmes_disk_and_hours_are_the_plans() -> None:
    made = plan_of(request())
    readme = (Path(__file__).parents[1] / "README.md").read_text().partition("## Paper scale")[2]
    weights = sum(checkpoint_bytes(work.config) for work in made.works)
    hours = device_hours(made.flop, "bfloat16")
    assert f"{made.to_fetch / 1e9:.0f} GB to download" in readme
    assert f"{(bytes_of(made.request.benchmarks)[0] + 2 * weights) / 1e9:.0f} GB of disk" in readme
    assert f"{hours['A100 SXM 80 GB']:.1f} hours of one A100 or {hours['H100 SXM']:.1f} of one H100" in readme.replace(
        "\n", " "
    )


def test_without_data_there_is_one_sentence() -> None:
    with pytest.raises(UserError, match="scale=paper needs data=FOLDER"):
        table(OmegaConf.create({}), [])


def test_a_batch_size_counts_only_if_it_was_typed() -> None:
    composed = OmegaConf.create({"batch_size": 32})
    assert Request.of(composed, ["scale=paper"]).batch_size == 1
    assert Request.of(composed, ["scale=paper", "batch_size=32"]).batch_size == 32
