"""Whole video MLLMs of transformers at tiny random configurations; see `hf_models.py`."""

from collections.abc import Callable
from typing import Any

import torch
from hf_models import FIRST_WORD, LAST_WORD, PAD, TEXT, WIDTH, Clip, Family, model_of

IMAGE, VIDEO, START, END, IMAGE_START, IMAGE_END = range(120, 126)
SIDE, PATCH = 8, 2  # pixels of a frame, of a patch
GRID = SIDE // PATCH
MERGED = (GRID // 2) ** 2  # tokens of a frame whose patches are merged 2 x 2

LLAMA = {"model_type": "llama", **TEXT}
QWEN = {"model_type": "qwen2", **TEXT}
AXES = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
EXPERTS = {"moe_intermediate_size": 24, "num_experts_per_tok": 2}
SIZES = {"hidden_size": 16, "intermediate_size": 24}
VIT = {**SIZES, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": SIDE, "patch_size": PATCH}
PATCHES = {**SIZES, "depth": 2, "num_heads": 2, "patch_size": PATCH, "out_hidden_size": WIDTH}
WINDOWS = {**PATCHES, "window_size": 8, "fullatt_block_indexes": [1]}
SQUARE = {**PATCHES, "image_size": SIDE}

BY_INDEX = {"image_token_index": IMAGE, "video_token_index": VIDEO}
BY_ID = {"image_token_id": IMAGE, "video_token_id": VIDEO}
QWEN_IDS = {**BY_ID, "vision_start_token_id": START, "vision_end_token_id": END}
VIDEO_IDS = {**BY_ID, "video_start_token_id": START, "video_end_token_id": END}
GLM_IDS = {**VIDEO_IDS, "image_start_token_id": IMAGE_START, "image_end_token_id": IMAGE_END}

Video = Callable[[Clip], dict[str, torch.Tensor]]
Places = Callable[[Clip], list[int]]


# ----------------------------------------------------------------------------- what a video's inputs look like


def frames(clip: Clip) -> dict[str, torch.Tensor]:
    """Frames as they are, one video per entry (LLaVA)."""
    return {"pixel_values_videos": clip.pixels(1, clip.frames, 3, SIDE, SIDE)}


def images(clip: Clip) -> dict[str, torch.Tensor]:
    """Frames as so many images (InternVL)."""
    return {"pixel_values": clip.pixels(clip.frames, 3, SIDE, SIDE)}


def images_of_row(clip: Clip) -> dict[str, torch.Tensor]:
    """Frames as so many images of one row (SmolVLM)."""
    return {"pixel_values": clip.pixels(1, clip.frames, 3, SIDE, SIDE)}


def patches(temporal: int = 2, width: int = 2) -> Video:
    """A line per patch of `temporal` frames, each `width` frames deep, and the grid of the video (Qwen2-VL)."""

    def video(clip: Clip) -> dict[str, torch.Tensor]:
        steps = clip.frames // temporal
        lines = clip.pixels(steps * GRID * GRID, 3 * width * PATCH * PATCH)
        return {"pixel_values_videos": lines, "video_grid_thw": torch.tensor([[steps, GRID, GRID]])}

    return video


# --------------------------------------------------------------------------- how a prompt holds a video's tokens


def run(per_frame: int, extra: int = 0) -> Places:
    """One run of tokens, `extra` at its end."""
    return lambda clip: [VIDEO] * (clip.frames * per_frame + extra)


def bracketed(clip: Clip) -> list[int]:
    """One run of tokens in brackets, two frames merged into one (Qwen2-VL)."""
    return [START, *[VIDEO] * (clip.frames // 2 * MERGED), END]


def stamped(tokens: int = MERGED, temporal: int = 2, token: int = VIDEO) -> Places:
    """Each step's tokens in brackets after a word for its time (Qwen3-VL, VideoLLaMA3, InternVL)."""

    def places(clip: Clip) -> list[int]:
        stamps = [FIRST_WORD + 7 * i % (LAST_WORD - FIRST_WORD) for i in range(clip.frames // temporal)]
        return [i for stamp in stamps for i in (stamp, START, *[token] * tokens, END)]

    return places


def glm_places(clip: Clip) -> list[int]:
    """Steps as images in the brackets of a video (GLM-4V)."""
    return [START, *stamped(token=IMAGE)(clip), END]


def mllm(
    name: str, model: str, config: str, text: dict[str, Any], vision: dict[str, Any], video: Video, places: Places,
    token_types: bool = False, padded_rows: bool = False, **options: Any,
) -> Family:  # fmt: skip
    """A family of video MLLMs by the names of its classes."""
    build = model_of(model, config, text_config=text, vision_config=vision, **options)
    return Family(name, build, video, places, IMAGE, VIDEO, token_types, padded_rows)


def qwen_like(name: str, prefix: str, text: dict[str, Any], vision: dict[str, Any], places: Places) -> Family:
    """A family that is built as Qwen2-VL is, with multi-axis rotary positions."""
    model, config = f"{prefix}ForConditionalGeneration", f"{prefix}Config"
    text = {**TEXT, "rope_parameters": AXES, **text}
    return mllm(name, model, config, text, vision, patches(), places, token_types=True, **QWEN_IDS)


def glm_like(name: str, prefix: str, text: dict[str, Any], vision: dict[str, Any]) -> Family:
    """A family that is built as GLM-4.1V is."""
    model, config = f"{prefix}ForConditionalGeneration", f"{prefix}Config"
    text = {**TEXT, "head_dim": 8, "rope_parameters": {**AXES, "partial_rotary_factor": 1.0}, **text}
    return mllm(name, model, config, text, vision, patches(), glm_places, token_types=True, **GLM_IDS)


def qwen3_5(name: str, layer_types: list[str]) -> Family:
    """Qwen3.5: linear and softmax attention in turn, queries projected with a gate."""
    axes = {**AXES, "partial_rotary_factor": 0.5}
    linear = {f"linear_{what}": 8 for what in ("key_head_dim", "value_head_dim")}
    linear |= {"linear_num_key_heads": 2, "linear_num_value_heads": 4}
    text = {"model_type": "qwen3_5_text", "head_dim": 16, "layer_types": layer_types, "rope_parameters": axes, **linear}
    return qwen_like(name, "Qwen3_5", text, {**PATCHES, "num_position_embeddings": 16}, stamped())


CLIP = {"model_type": "clip_vision_model", **VIT}
SIGLIP = {"model_type": "siglip_vision_model", **VIT}
DEEP = {**PATCHES, "num_position_embeddings": 16, "deepstack_visual_indexes": [0, 1]}
PE_CORE = {  # the vision tower of timm that PerceptionLM has, tiny
    "model_type": "timm_wrapper",
    "architecture": "vit_pe_core_tiny_patch16_384",
    "model_args": {
        "embed_dim": 16, "depth": 2, "num_heads": 2, "patch_size": PATCH, "img_size": [SIDE, SIDE],
        "ref_feat_shape": [GRID, GRID], "use_post_transformer_norm": False, "global_pool": "",
    },
}  # fmt: skip

MLLMS = [
    mllm("LLaVA-OneVision", "LlavaOnevisionForConditionalGeneration", "LlavaOnevisionConfig",
         QWEN, SIGLIP, frames, run(MERGED, 1), **BY_INDEX),
    mllm("LLaVA-NeXT-Video", "LlavaNextVideoForConditionalGeneration", "LlavaNextVideoConfig",
         LLAMA, CLIP, frames, run(MERGED), **BY_INDEX),
    mllm("Video-LLaVA", "VideoLlavaForConditionalGeneration", "VideoLlavaConfig",
         LLAMA, CLIP, frames, run(GRID**2 + 1), **BY_INDEX),
    qwen_like("Qwen2-VL", "Qwen2VL", {"model_type": "qwen2_vl_text"},
              {"depth": 2, "embed_dim": 16, "hidden_size": WIDTH, "num_heads": 2, "patch_size": PATCH}, bracketed),
    qwen_like("Qwen2.5-VL", "Qwen2_5_VL", {"model_type": "qwen2_5_vl_text"}, WINDOWS, bracketed),
    qwen_like("Qwen3-VL", "Qwen3VL", {"model_type": "qwen3_vl_text", "head_dim": 8}, DEEP, stamped()),
    qwen_like("Qwen3-VL-MoE", "Qwen3VLMoe",
              {"model_type": "qwen3_vl_moe_text", "head_dim": 8, "num_experts": 4, **EXPERTS}, DEEP, stamped()),
    mllm("InternVL", "InternVLForConditionalGeneration", "InternVLConfig",
         QWEN, {"model_type": "internvl_vision", **VIT}, images, stamped(MERGED, 1, IMAGE),
         image_token_id=IMAGE, image_seq_length=MERGED),
    mllm("VideoLLaMA3", "VideoLlama3ForConditionalGeneration", "VideoLlama3Config",
         QWEN, {"model_type": "video_llama_3_vision", **VIT},
         lambda clip: {**patches(1, 1)(clip), "video_merge_sizes": torch.tensor([2])}, stamped(temporal=1), **BY_ID),
    mllm("SmolVLM", "SmolVLMForConditionalGeneration", "SmolVLMConfig",
         LLAMA, {"model_type": "smolvlm_vision", **VIT}, images_of_row, stamped(MERGED, 1, IMAGE),
         padded_rows=True, image_token_id=IMAGE, scale_factor=2, pad_token_id=PAD),
    mllm("PerceptionLM", "PerceptionLMForConditionalGeneration", "PerceptionLMConfig",
         LLAMA, PE_CORE, frames, run(MERGED), projector_pooling_ratio=2, **BY_ID),
    glm_like("GLM-4.1V", "Glm4v", {"model_type": "glm4v_text"}, SQUARE),
    glm_like("GLM-4.6V", "Glm46V", {"model_type": "glm4v_text"}, {"model_type": "glm4v_vision", **SQUARE}),
    glm_like("GLM-4.5V", "Glm4vMoe", {"model_type": "glm4v_moe_text", "n_routed_experts": 4, "n_shared_experts": 1,
             "first_k_dense_replace": 1, **EXPERTS}, SQUARE),
    glm_like("GLM-OCR", "GlmOcr", {"model_type": "glm_ocr_text"}, SQUARE),
    mllm("ERNIE-4.5-VL", "Ernie4_5_VLMoeForConditionalGeneration", "Ernie4_5_VLMoeConfig",
         {**TEXT, "model_type": "ernie4_5_vl_moe_text", "head_dim": 8, "moe_intermediate_size": [24, 24],
          "moe_num_experts": 4, "moe_k": 2, "moe_num_shared_experts": 1,
          "rope_parameters": {**AXES, "mrope_section": [1, 1, 2]}},
         {**SIZES, "depth": 2, "num_heads": 2, "patch_size": PATCH}, patches(1, 1), bracketed,
         token_types=True, image_start_token_id=IMAGE_START, image_end_token_id=IMAGE_END, **VIDEO_IDS),
    mllm("HyperCLOVA X V2", "HyperCLOVAXVisionV2ForConditionalGeneration", "HyperCLOVAXVisionV2Config",
         {**TEXT, "model_type": "hyperclovax", "head_dim": 8}, {"model_type": "qwen2_5_vl_vision", **WINDOWS},
         patches(), bracketed, **BY_ID),
    qwen3_5("Qwen3.5", ["full_attention", "linear_attention"] * 2),
    mllm("Cosmos3-Edge", "Cosmos3EdgeForConditionalGeneration", "Cosmos3EdgeConfig",
         {**TEXT, "model_type": "cosmos3_edge_text", "head_dim": 8, "rope_parameters": AXES},
         {**SIZES, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": PATCH, "num_patches": 16},
         patches(1, 1), stamped(temporal=1), token_types=True, projector_hidden_size=24, **QWEN_IDS),
    mllm("Gemma3 (images)", "Gemma3ForConditionalGeneration", "Gemma3Config",
         {**TEXT, "model_type": "gemma3_text", "head_dim": 8, "sliding_window": 8}, SIGLIP, images,
         stamped(MERGED, 1, IMAGE), mm_tokens_per_image=MERGED, image_token_index=IMAGE, boi_token_index=START,
         eoi_token_index=END),
    mllm("LLaVA (images)", "LlavaForConditionalGeneration", "LlavaConfig",
         LLAMA, CLIP, images, stamped(GRID**2, 1, IMAGE), image_token_index=IMAGE),
    mllm("Idefics3 (images)", "Idefics3ForConditionalGeneration", "Idefics3Config",
         LLAMA, {"model_type": "idefics3_vision", **VIT}, images_of_row, stamped(MERGED, 1, IMAGE),
         padded_rows=True, image_token_id=IMAGE, scale_factor=2, pad_token_id=PAD),
]  # fmt: skip
REFUSED = [  # and what the refusal must say
    (qwen3_5("Qwen3.5 (linear first)", ["linear_attention", "full_attention"] * 2), "self_attn"),
    (mllm("EXAONE-4.5", "Exaone4_5_ForConditionalGeneration", "Exaone4_5_Config",
          {**TEXT, "model_type": "exaone4", "head_dim": 8}, {**WINDOWS, "num_key_value_heads": 1}, patches(),
          bracketed, **BY_ID), "input_layernorm"),
    (mllm("LFM3-VL", "Lfm3VlForConditionalGeneration", "Lfm3VlConfig", {**TEXT, "model_type": "lfm3"},
          {**SIZES, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
           "patch_size": PATCH, "layer_types": ["full_attention"] * 2},
          patches(), stamped(), projector_hidden_size=24, **QWEN_IDS), "self_attn"),
    (mllm("Muse-Glimmer", "MuseGlimmerForConditionalGeneration", "MuseGlimmerConfig",
          {**TEXT, "model_type": "muse_glimmer_text", "head_dim": 8},
          {**SIZES, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": PATCH,
           "pos_emb_height": GRID, "pos_emb_width": GRID},
          patches(), stamped(), out_hidden_size=64, projector_hidden_size=24, **BY_ID), "qk_norm"),
]  # fmt: skip
