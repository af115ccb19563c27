"""One recorded case of the official model, run again here: from its files to the difference of every quantity."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch.nn.utils.rnn import pad_sequence

from architectures.official_names import IMAGE_TOKEN, config_from_official, tensors_from_official
from architectures.processing import IGNORED, collate
from architectures.video_mllm import SlowFastForConditionalGeneration

PAD = 0  # the recorded prompts' padding
TEXT, ANSWER, VIDEO, PADDING = 1, 2, 3, 4  # recorded token types
EXACT = 0.0
# Largest difference allowed, by the beginning of a quantity's name (the recorded data's README, "Tolerances").
LIMITS = {
    "outputs.slow_tokens": 2e-5,
    "outputs.fast_tokens": 2e-5,
    "outputs.inputs_embeds": 2e-5,
    "outputs.layer.": 1e-4,
    "outputs.final_norm": 1e-4,
    "outputs.logits": 1e-4,
    "outputs.generate_logits": 1e-4,
    "alt.recompute_generate_logits": 1e-4,
    "outputs.loss": 1e-5,
    "outputs.vision_features": 2e-5,
    "outputs.stage.": 2e-5,
}


@dataclass
class CaseReport:
    """What was compared in a case: `differences[quantity]`, each with a limit; `problem` if it could not run."""

    name: str
    differences: dict[str, float] = field(default_factory=dict)
    limits: dict[str, float] = field(default_factory=dict)
    problem: str | None = None

    def add(self, quantity: str, difference: float, limit: float | None = None) -> None:
        """Files a difference; integers must be equal, unless a limit is given or listed."""
        if limit is None:
            limit = next((limit for start, limit in LIMITS.items() if quantity.startswith(start)), EXACT)
        self.differences[quantity], self.limits[quantity] = difference, limit

    def misses(self) -> list[str]:
        """The quantities beyond their limits."""
        return [name for name, difference in self.differences.items() if not difference <= self.limits[name]]

    @property
    def passed(self) -> bool:
        """Whether the case ran, compared something, and all of it is within its limits."""
        return self.problem is None and bool(self.differences) and not self.misses()


def largest(ours: torch.Tensor, recorded: torch.Tensor, where: torch.Tensor | None = None) -> float:
    """The largest absolute difference (at `where`, a mask of leading axes); infinite for other shapes, or NaN."""
    if ours.shape != recorded.shape:
        return float("inf")
    gap = (ours.double() - recorded.double()).abs()
    gap = gap if where is None else gap[where]
    worst = float(gap.max()) if gap.numel() else 0.0
    return worst if worst == worst else float("inf")


@dataclass
class Case:
    """A case's files: what it says of itself, its tensors, and our model with its weights."""

    about: dict[str, Any]
    tensors: dict[str, torch.Tensor]
    model: SlowFastForConditionalGeneration

    @classmethod
    def read(cls, directory: Path, name: str) -> "Case":
        """Raises FileNotFoundError or ValueError for files that are not there or do not fit together."""
        about = json.loads((directory / f"{name}.json").read_text())
        weights: dict[str, torch.Tensor] = {}
        for file in about["weights"]:
            weights |= {key.removeprefix("weights."): value for key, value in load_file(directory / file).items()}
        return cls(about, load_file(directory / about["tensors"]), model_of(about, weights))

    @property
    def features(self) -> list[torch.Tensor]:
        """Recorded tower features, `features_TPV` of each row of the batch (a dummy image where it has no video)."""
        return [self.tensors[f"inputs.vision_features.{i}"] for i in range(len(self.about["frames"]))]

    def batch(self) -> dict[str, torch.Tensor]:
        """Our collation of the recorded prompts: one placeholder per video becomes one per fast token."""
        ids_BL = self.tensors["inputs.input_ids"]
        mask_BL = self.tensors.get("inputs.attention_mask", torch.ones_like(ids_BL)).bool()
        labels_BL = self.tensors.get("inputs.labels")
        rows = [ids[mask].tolist() for ids, mask in zip(ids_BL, mask_BL, strict=True)]
        counts = [[self.model.fast_token_count(len(video))] for video in self.features]
        return collate(
            rows,
            [count if IMAGE_TOKEN in row else [] for row, count in zip(rows, counts, strict=True)],
            IMAGE_TOKEN,
            PAD,
            labels=None
            if labels_BL is None
            else [row[mask].tolist() for row, mask in zip(labels_BL, mask_BL, strict=True)],
            padding_side=self.about["config"]["tokenizer_padding_side"],
            max_length=self.about["config"]["tokenizer_model_max_length"],
            truncation="tail",
        )

    def videos(self) -> list[torch.Tensor]:
        """The features of rows with a video: a text-only prompt needs no dummy here."""
        with_video = (self.tensors["inputs.input_ids"] == IMAGE_TOKEN).any(1).tolist()
        return [video for video, wanted in zip(self.features, with_video, strict=True) if wanted]


def model_of(about: Mapping[str, Any], weights: Mapping[str, torch.Tensor]) -> SlowFastForConditionalGeneration:
    """Our model with a case's configuration and weights, through the names of official checkpoints.

    The recorded inputs are tower features, so the tower is a stand-in of their width and grid that never
    runs. Raises ValueError for any other weight that is missing or left over.
    """
    official = about["config"]
    stand_in = {"name": "tiny", "width": official["mm_hidden_size"], "image_size": 16 * about["raw_grid"]}
    config = config_from_official({**official, "pad_token_id": PAD}, vision=stand_in)
    model = SlowFastForConditionalGeneration(config).eval()
    head_dim = official["hidden_size"] // official["num_attention_heads"]
    missing, left_over = model.load_state_dict(tensors_from_official(weights, head_dim), strict=False)
    missing = [name for name in missing if not name.startswith("encoder.")]
    if missing or left_over:
        raise ValueError(f"The weights do not fit: missing {missing or 'none'}, left over {left_over or 'none'}.")
    return model


def run_case(directory: Path, name: str) -> CaseReport:
    """Runs a decoder case and compares every recorded tensor of it."""
    case, report = Case.read(directory, name), CaseReport(name)
    with torch.no_grad():
        compare_layout(case, report)
        compare_tokens(case, report)
        compare_forward(case, report)
        if "outputs.generate_ids" in case.tensors:
            compare_generation(case, report)
        if "kv_init" in case.about["notes"]:
            compare_initialisation(case, report)
    return report


def compare_layout(case: Case, report: CaseReport) -> None:
    """What stands where: hybrid layers, token types, labels and mask after merging."""
    batch, recorded = case.batch(), case.tensors
    types_BL = recorded["outputs.token_types"]
    report.add("hybrid_layers", float(list(case.model.hybrid_layers) != case.about["hybrid_layers"]))
    labels_BL = batch.get("labels", torch.full_like(batch["input_ids"], IGNORED))
    ours_BL = torch.where(labels_BL != IGNORED, ANSWER, TEXT)
    ours_BL = ours_BL.masked_fill(batch["input_ids"] == IMAGE_TOKEN, VIDEO)
    report.add("outputs.token_types", largest(ours_BL.masked_fill(batch["attention_mask"] == 0, PADDING), types_BL))
    for quantity, ours in (("attention_mask", batch["attention_mask"]), ("labels", labels_BL)):
        if f"outputs.{quantity}" in recorded:
            report.add(f"outputs.{quantity}", largest(ours, recorded[f"outputs.{quantity}"]))


def compare_tokens(case: Case, report: CaseReport) -> None:
    """Fast and slow tokens of every video, and the slow ones side by side in a batch."""
    videos = case.model.see(None, case.features, None)
    for i, video in enumerate(videos):
        report.add(f"outputs.fast_tokens.{i}", largest(video.fast_FD, case.tensors[f"outputs.fast_tokens.{i}"]))
        report.add(f"outputs.slow_tokens.{i}", largest(video.slow_SD, case.tensors[f"outputs.slow_tokens.{i}"]))
    slow_BSD = pad_sequence([video.slow_SD for video in videos], batch_first=True)
    mask_BS = pad_sequence([torch.ones(len(video.slow_SD), dtype=torch.uint8) for video in videos], batch_first=True)
    report.add("outputs.slow_mask", largest(mask_BS, case.tensors["outputs.slow_mask"]))
    if "outputs.slow_tokens_padded" in case.tensors:
        report.add("outputs.slow_tokens_padded", largest(slow_BSD, case.tensors["outputs.slow_tokens_padded"]))


def compare_forward(case: Case, report: CaseReport) -> None:
    """One pass over the batch: embeddings, positions, every layer, logits, loss."""
    batch, recorded = case.batch(), case.tensors
    real_BL = recorded["outputs.token_types"] != PADDING
    if not bool(batch["attention_mask"][:, 0].all()):  # the official forward counts positions through left padding
        batch["position_ids"] = torch.arange(real_BL.shape[1]).expand(real_BL.shape)
    with watching(case.model) as seen:
        outputs = case.model(**batch, features=case.videos())
    position_1L = recorded["outputs.position_ids"].expand(real_BL.shape)
    report.add("outputs.position_ids", largest(seen["position_ids"][0], position_1L, real_BL))
    ours = {"inputs_embeds": seen["inputs_embeds"][0], "final_norm": seen["final_norm"][0], "logits": outputs.logits}
    ours |= {f"layer.{i}": values[0] for i, values in enumerate(seen["layers"])}
    for quantity, values_BLX in ours.items():
        report.add(f"outputs.{quantity}", largest(values_BLX, recorded[f"outputs.{quantity}"], real_BL))
    if "outputs.loss" in recorded:
        report.add("outputs.loss", largest(outputs.loss[None], recorded["outputs.loss"]))


def compare_generation(case: Case, report: CaseReport) -> None:
    """Greedy decoding with a cache: ids, logits and positions; and with generated tokens that read slow tokens."""
    recorded = case.tensors
    real_BL = recorded["outputs.token_types"] != PADDING
    ids_BN, logits_BNV, prefill_BL, decode_BN = greedy(case, recorded["outputs.generate_ids"].shape[1])
    report.add("outputs.generate_ids", largest(ids_BN, recorded["outputs.generate_ids"]))
    report.add("outputs.generate_logits", largest(logits_BNV, recorded["outputs.generate_logits"]))
    prefill = recorded["outputs.generate_prefill_position_ids"]
    report.add("outputs.generate_prefill_position_ids", largest(prefill_BL, prefill, real_BL))
    decode = recorded["outputs.generate_decode_position_ids"]
    report.add("outputs.generate_decode_position_ids", largest(decode_BN, decode))
    if "alt.recompute_generate_ids" in recorded:
        case.model.config.generated_read_slow = True
        ids_BN, logits_BNV, _, _ = greedy(case, recorded["alt.recompute_generate_ids"].shape[1])
        case.model.config.generated_read_slow = False
        report.add("alt.recompute_generate_ids", largest(ids_BN, recorded["alt.recompute_generate_ids"]))
        report.add("alt.recompute_generate_logits", largest(logits_BNV, recorded["alt.recompute_generate_logits"]))


def greedy(case: Case, tokens: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """`tokens` greedy tokens without a stop: new ids, their logits, positions of the prompt and of later steps."""
    batch = case.batch()
    batch.pop("labels", None)
    with watching(case.model) as seen:
        made = case.model.generate(
            **batch,
            features=case.videos(),
            max_new_tokens=tokens,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=PAD,
            output_logits=True,
            return_dict_in_generate=True,
        )
    new_BN = made.sequences[:, batch["input_ids"].shape[1] :]
    prefill_BL, *steps = seen["position_ids"]
    return new_BN, torch.stack(made.logits, dim=1), prefill_BL, torch.cat(steps, dim=1)


def compare_initialisation(case: Case, report: CaseReport) -> None:
    """`kv_init: scrambled`, from the language model's own keys and values, against the recorded projections."""
    for index, (layer, fusion) in zip(case.model.hybrid_layers, case.model.hybrid(), strict=True):
        recorded = {name: tensor.clone() for name, tensor in fusion.state_dict().items() if "_proj." in name}
        fusion.initialise_(layer, "scrambled")
        worst = max(largest(fusion.state_dict()[name], tensor) for name, tensor in recorded.items())
        report.add(f"kv_init.layer.{index}", worst)


@contextmanager
def watching(model: SlowFastForConditionalGeneration) -> Iterator[dict[str, Any]]:
    """Records what enters and leaves the decoder: a list per quantity, an entry per call."""
    decoder = model.language_model.model
    seen: dict[str, Any] = {"inputs_embeds": [], "position_ids": [], "final_norm": []}
    seen["layers"] = [[] for _ in decoder.layers]

    def enter(module: torch.nn.Module, arguments: tuple, inputs: dict[str, Any]) -> None:
        for name in ("inputs_embeds", "position_ids"):
            seen[name].append(inputs[name])

    def leave(kept: list) -> Any:
        return lambda module, arguments, output: kept.append(output[0] if isinstance(output, tuple) else output)

    handles = [decoder.register_forward_pre_hook(enter, with_kwargs=True)]
    handles.append(decoder.norm.register_forward_hook(leave(seen["final_norm"])))
    handles += [layer.register_forward_hook(leave(seen["layers"][i])) for i, layer in enumerate(decoder.layers)]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
