"""Generation of a video MLLM: Hugging Face's `generate`, with slow tokens kept beside the cache."""

from typing import Any

import torch
from transformers import Cache, LogitsProcessorList, SuppressTokensLogitsProcessor

from architectures.hybrid import SlowFastCache

COUNTING = ("repetition_penalty", "no_repeat_ngram_size")  # options of `generate` that look the prompt's ids up
NOTHING = (None, 0, 1.0)  # values of those that switch them off
VIDEO_INPUTS = ("frames", "features", "frame_times", "slow_features", "questions")


class NoPlaceholder(SuppressTokensLogitsProcessor):
    """Keeps a model from generating the placeholder of a video that nobody gave.

    A type of its own, because `generate` keeps one processor per type: a caller's `suppress_tokens` stand too.
    """


class SlowFastGeneration:
    """What `generate` needs to know: which inputs are videos, and which cache remembers slow tokens.

    Stands between `PreTrainedModel` and `GenerationMixin` among a model's bases.
    """

    def generate(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """As Hugging Face's `generate`, with a cache that keeps the slow memory too.

        A placeholder is never generated. One outside the vocabulary cannot be counted by a penalty on repeated
        tokens: a ValueError.
        """
        config = kwargs.get("generation_config") or self.generation_config
        if kwargs.get("use_cache", config.use_cache is not False) and kwargs.get("past_key_values") is None:
            kwargs["past_key_values"] = SlowFastCache(self.config.text_config)
        placeholder = self.config.video_token_id
        if 0 <= placeholder < self.config.text_config.vocab_size:
            others = kwargs.get("logits_processor") or []
            kwargs["logits_processor"] = LogitsProcessorList([*others, NoPlaceholder([placeholder], self.device)])
        else:
            counting = [name for name in COUNTING if kwargs.get(name, getattr(config, name, None)) not in NOTHING]
            if counting:
                raise ValueError(
                    f"{counting[0]} counts the prompt's tokens, of which video_token_id {placeholder} lies outside "
                    "the vocabulary: set config.video_token_id to an unused id of the vocabulary."
                )
        return super().generate(*args, **kwargs)

    def prepare_inputs_for_generation(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """A video is watched at the first step only; later ones read the cache."""
        inputs = super().prepare_inputs_for_generation(*args, **kwargs)
        if not kwargs.get("is_first_iteration", False) and kwargs.get("use_cache", True):
            for name in VIDEO_INPUTS:
                inputs.pop(name, None)
        return inputs

    def _expand_inputs_for_generation(self, expand_size: int = 1, **kwargs: Any) -> tuple[torch.Tensor, dict[str, Any]]:
        """Repeats prompts for beams or several samples, but not their videos: those are watched once."""
        videos = {name: kwargs.pop(name) for name in VIDEO_INPUTS if name in kwargs}
        input_ids, kwargs = super()._expand_inputs_for_generation(expand_size=expand_size, **kwargs)
        return input_ids, {**kwargs, **videos, "rows_per_prompt": expand_size}

    def cache(self, past_key_values: Cache | None, use_cache: bool | None) -> SlowFastCache | None:
        """The given cache, or a new one where the decoder would make one that forgets slow tokens."""
        if past_key_values is None:
            wanted = getattr(self.config.text_config, "use_cache", True) if use_cache is None else use_cache
            return SlowFastCache(self.config.text_config) if wanted and not self.training else None
        if not isinstance(past_key_values, SlowFastCache):
            raise ValueError(
                f"past_key_values is a {type(past_key_values).__name__}, which has no place for slow tokens: "
                "give a SlowFastCache, or none."
            )
        return past_key_values

    def expect_no_video(self, input_ids: torch.Tensor, frames: Any, features: Any) -> None:
        """Raises ValueError for a video, or the place of one, that comes when the cache holds a prompt already."""
        placed = input_ids.shape[1] > 1 and bool((input_ids == self.config.video_token_id).any())
        if placed or frames is not None or features is not None:
            raise ValueError(
                "The cache already holds a prompt: a video can't join it. Start without a cache, with all videos."
            )
