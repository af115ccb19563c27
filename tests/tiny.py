"""A tiny random checkpoint and a small suite, made once per test session in the session's cache."""

from pathlib import Path

import torch
from transformers import Qwen2Config

from architectures import SlowFastConfig, SlowFastForConditionalGeneration, SlowFastProcessor
from harness.benchmarks import LETTERS
from harness.mini.questions import WORDS
from harness.mini.suite import SMALL, build_suite
from harness.mini.tokenizer import build_tokenizer
from harness.paths import cache_dir, new_directory


def small_suite() -> Path:
    """The small suite of seed 0."""
    return build_suite(0, SMALL)


def tiny_checkpoint(seed: int = 0, placement: str = "every", speak: float = 3.0) -> Path:
    """A random slow-fast model whose gates are open, saved with its processor.

    Its answers depend on the video; with a large `speak` most of them hold an option's letter.
    """
    folder = cache_dir() / f"tiny-{seed}-{placement}-{speak}"
    if not folder.exists():
        with new_directory(folder) as work:
            _save(work, seed, placement, speak)
    return folder


def _save(folder: Path, seed: int, placement: str, speak: float) -> None:
    tokenizer = build_tokenizer([*WORDS, "What colour is the Where How often does appear"], [])
    torch.manual_seed(seed)
    text = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=False,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    config = SlowFastConfig(
        text_config=text,
        compressor={"name": "sample_and_average"},
        placement={"name": "none"} if placement == "none" else {"name": placement, "n": 1},
        slow_time={"name": "fourier"},
        video_token_id=tokenizer.convert_tokens_to_ids("<video>"),
        pad_token_id=tokenizer.pad_token_id,
    )
    model = SlowFastForConditionalGeneration(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() >= 2:
                parameter.normal_(std=1.5 * parameter[0].numel() ** -0.5)
        for name, parameter in model.named_parameters():
            if "warm" in name:
                parameter.fill_(1.0)
        spoken = tokenizer.convert_tokens_to_ids([*LETTERS, tokenizer.eos_token])
        model.language_model.lm_head.weight[spoken] *= speak
    model.save_pretrained(folder)
    SlowFastProcessor.for_model(model.config, model.encoder, tokenizer).save_pretrained(folder)
