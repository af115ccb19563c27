"""Hugging Face models of many families at tiny random configurations, with prompts and videos for them.

A prompt is a list of pieces: an int is a text token, a `Clip` a video. `family.inputs([prompt, ...])` pads the rows on
the left and makes what the family's own processor would: ids, mask, pixels, grids, token types.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

PAD, BOS, EOS = 0, 1, 2
FIRST_WORD, LAST_WORD = 10, 99
WIDTH = 32
TEXT = {
    "vocab_size": 128,
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "pad_token_id": PAD,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
    "tie_word_embeddings": False,
}


@dataclass(frozen=True)
class Clip:
    """A random video of `frames` frames."""

    frames: int
    seed: int = 0

    def pixels(self, *shape: int) -> torch.Tensor:
        """Its pixels in the given shape, different for every seed."""
        return torch.randn(shape, generator=torch.Generator().manual_seed(self.seed))


Prompt = Sequence[int | Clip]


@dataclass(frozen=True)
class Family:
    """One kind of model: how to build it, how its prompts hold a video, and what a video's inputs are."""

    name: str
    build: Callable[[], PreTrainedModel]
    video: Callable[[Clip], dict[str, torch.Tensor]] | None = None  # None: a pure decoder
    places: Callable[[Clip], list[int]] = lambda clip: []
    image_token: int | None = None
    video_token: int | None = None
    token_types: bool = False  # whether forward wants mm_token_type_ids (multi-axis positions)
    padded_rows: bool = False  # whether videos are stacked by row, absent ones as zeros (SmolVLM)

    def model(self, seed: int = 0) -> PreTrainedModel:
        """A random model with weights large enough for every part to matter."""
        torch.manual_seed(seed)
        return lively(self.build(), seed).eval()

    def inputs(self, prompts: Sequence[Prompt]) -> dict[str, torch.Tensor]:
        """Model inputs of a batch of prompts, padded on the left."""
        rows = [[i for piece in prompt for i in self._ids(piece)] for prompt in prompts]
        longest = max(map(len, rows))
        ids = torch.tensor([[PAD] * (longest - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
        inputs = {"input_ids": ids, "attention_mask": mask}
        clips = [[piece for piece in prompt if isinstance(piece, Clip)] for prompt in prompts]
        if self.token_types and any(clips):
            visual = (ids == self.image_token) | (ids == self.video_token)
            inputs["mm_token_type_ids"] = 2 * visual.int()
        return {**inputs, **self.videos(clips)}

    def videos(self, clips: Sequence[Sequence[Clip]]) -> dict[str, torch.Tensor]:
        """The video inputs of a batch: each row's clips, in order."""
        if self.video is None or not any(clips):
            return {}
        if self.padded_rows:
            rows = [[next(iter(self.video(clip).values()))[0] for clip in row] for row in clips]
            empty = next(row[0] for row in rows if row)[:0]
            stacked = torch.nn.utils.rnn.pad_sequence([torch.cat(row or [empty]) for row in rows], batch_first=True)
            return {"pixel_values": stacked}
        each = [self.video(clip) for row in clips for clip in row]
        return {name: torch.cat([one[name] for one in each]) for name in each[0]}

    def _ids(self, piece: int | Clip) -> list[int]:
        return self.places(piece) if isinstance(piece, Clip) else [piece]


@torch.no_grad()
def lively(model: PreTrainedModel, seed: int) -> PreTrainedModel:
    """Draws all matrices and biases anew, larger than the usual initialisation does."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.dim() >= 2:
            parameter.normal_(std=1.2 * parameter[0].numel() ** -0.5, generator=generator)
        elif name.endswith("bias"):
            parameter.normal_(std=0.3, generator=generator)
    return model


def words(count: int, seed: int = 0) -> list[int]:
    """Random text tokens."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(FIRST_WORD, LAST_WORD, (count,), generator=generator).tolist()


def model_of(model: str, config: str, **options: Any) -> Callable[[], PreTrainedModel]:
    """A builder of a transformers class by name, so that only what is asked for is imported."""
    return lambda: getattr(transformers, model)(getattr(transformers, config)(**options))


def causal(name: str, config: str = "", **options: Any) -> Family:
    """A decoder with a head, by the name that its classes share."""
    model = name if name.endswith("Model") else f"{name}ForCausalLM"
    return Family(name, model_of(model, config or f"{name}Config", **{**TEXT, **options}))


LOCAL = {
    "layer_types": ["sliding_attention", "full_attention", "full_attention", "sliding_attention"],
    "sliding_window": 8,
}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 24}
DECODERS = [
    causal("Qwen2"),
    causal("Qwen3", head_dim=16),
    causal("Qwen3Moe", head_dim=8, num_experts=4, **EXPERTS),
    causal("Llama", attention_bias=True),
    causal("Mistral", sliding_window=8),
    causal("Mixtral", num_local_experts=4),
    causal("Gemma", head_dim=16, num_key_value_heads=1),
    causal("Gemma2", head_dim=8, query_pre_attn_scalar=16, **LOCAL),
    causal("Gemma3", "Gemma3TextConfig", head_dim=8, query_pre_attn_scalar=16, **LOCAL),
    causal("SmolLM3"),
    causal("Granite", attention_multiplier=0.3),
    causal("Cohere2", head_dim=8, **LOCAL),
]
REFUSED = [  # and what the refusal must say
    (causal("Phi3"), "q_proj"),
    (
        causal(
            "DeepseekV3",
            q_lora_rank=8,
            kv_lora_rank=8,
            qk_rope_head_dim=4,
            qk_nope_head_dim=4,
            v_head_dim=8,
            n_routed_experts=4,
            n_group=1,
            topk_group=1,
            first_k_dense_replace=4,
            num_key_value_heads=4,
            **EXPERTS,
        ),
        "low-rank",
    ),
    (causal("Olmo2"), "input_layernorm"),
    (causal("Gemma4", "Gemma4TextConfig", head_dim=8, hidden_size_per_layer_input=0), "v_norm"),
    (causal("GPT2LMHeadModel", "GPT2Config"), "layers"),
    (causal("Mamba"), "self_attn"),
]
