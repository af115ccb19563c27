"""The model's configuration: everything a variant is, as data. Only names and numbers, never import paths."""

from typing import Any, ClassVar

from transformers import AutoConfig, PreTrainedConfig

from architectures.fusions.base import KV_INITS
from architectures.registry import expect_spec, fits

SPECS = ("vision", "selector", "compressor", "placement", "fusion", "gate", "scope", "fast_time", "slow_time")
COUNTS = {  # whole numbers of at least 1, and whether None is one of their values
    "video_pooling": int,
    "slow_pooling": int,
    "slow_frames": int | None,
    "frames_at_once": int | None,
    "slow_chunk": int | None,
}


class SlowFastConfig(PreTrainedConfig):
    """Configuration of `SlowFastForConditionalGeneration`.

    A variant is a choice of specs, each `{"name": ..., option: value, ...}` from a registry:

    - `text_config`: any Hugging Face decoder's configuration; `vision`: an encoder and its options.
    - `selector`: which frames the encoder sees.
    - `projector_depth`; `video_pooling`: stride of the 2x2 average pooling that makes a video's tokens;
      `pool_single_frame`: whether a video of one frame is pooled as well (the official code does not).
    - `compressor`: from all tokens to the fast ones. `placement`: which layers are hybrid ("none": baseline).
    - `fusion`: how a hybrid layer reads the slow tokens; `gate`, `scope`: how much is added, for which tokens.
    - `slow_pooling`, `slow_frames`: further pooling in space, and a budget of frames, for the slow tokens.
    - `fast_time`, `slow_time`: time position of fast and of slow tokens; equal names share their weights.
    - `kv_init`: keys and values of a new cross-attention from the layer's own: "copy" (as meant), "scrambled"
      (as the official code interleaves them) or "random".
    - `generated_read_slow`: whether generated tokens read the slow tokens (the official code's do not).
    - `video_token_id`: the placeholder of a fast token; may lie outside the vocabulary.
    - `frames_at_once`, `slow_chunk`, `slow_device`: bounds on memory, without influence on results: frames in
      the encoder and projector at a time, slow tokens in cross-attention at a time, and where slow keys and
      values wait ("cpu"; None: with the decoder).

    Raises ValueError, in a sentence, for a spec that is no dictionary, a count below 1 or no whole number, and
    an unknown `kv_init`. What specs hold is checked by their registries when a model is built.
    """

    model_type = "slow_fast_video_mllm"
    sub_configs: ClassVar = {"text_config": AutoConfig}

    def __init__(
        self,
        text_config: dict | PreTrainedConfig | None = None,
        vision: dict[str, Any] | None = None,
        selector: dict[str, Any] | None = None,
        projector_depth: int = 2,
        video_pooling: int = 2,
        pool_single_frame: bool = True,
        compressor: dict[str, Any] | None = None,
        placement: dict[str, Any] | None = None,
        fusion: dict[str, Any] | None = None,
        gate: dict[str, Any] | None = None,
        scope: dict[str, Any] | None = None,
        slow_pooling: int = 1,
        slow_frames: int | None = None,
        fast_time: dict[str, Any] | None = None,
        slow_time: dict[str, Any] | None = None,
        kv_init: str = "copy",
        generated_read_slow: bool = True,
        video_token_id: int = 1,
        frames_at_once: int | None = None,
        slow_chunk: int | None = None,
        slow_device: str | None = None,
        **kwargs: Any,
    ):
        if isinstance(text_config, dict):
            text_config = AutoConfig.for_model(**text_config)
        elif not isinstance(text_config, PreTrainedConfig | None):
            raise ValueError(f"text_config is {text_config!r}, must be a decoder's configuration or a dictionary.")
        self.text_config = text_config if text_config is not None else AutoConfig.for_model("qwen2")
        self.vision = vision or {"name": "tiny"}
        self.selector = selector or {"name": "all"}
        self.projector_depth = projector_depth
        self.video_pooling = video_pooling
        self.pool_single_frame = pool_single_frame
        self.compressor = compressor or {"name": "identity"}
        self.placement = placement or {"name": "none"}
        self.fusion = fusion or {"name": "slow_fast"}
        self.gate = gate or {"name": "dynamic_tanh"}
        self.scope = scope or {"name": "text_only"}
        self.slow_pooling = slow_pooling
        self.slow_frames = slow_frames
        self.fast_time = fast_time or {"name": "none"}
        self.slow_time = slow_time or {"name": "none"}
        self.kv_init = kv_init
        self.generated_read_slow = generated_read_slow
        self.video_token_id = video_token_id
        self.frames_at_once = frames_at_once
        self.slow_chunk = slow_chunk
        self.slow_device = slow_device
        self._expect_sensible()
        kwargs.setdefault("tie_word_embeddings", self.text_config.tie_word_embeddings)
        for token in ("pad_token_id", "bos_token_id", "eos_token_id"):
            kwargs.setdefault(token, getattr(self.text_config, token, None))
        super().__init__(**kwargs)

    def _expect_sensible(self) -> None:
        for name in SPECS:
            expect_spec(name, getattr(self, name))
        for name, kind in COUNTS.items():
            value = getattr(self, name)
            if not fits(value, kind):
                raise ValueError(f"{name} is {value!r}, must be a whole number.")
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}, must be at least 1.")
        if self.kv_init not in KV_INITS:
            raise ValueError(f"Unknown kv_init '{self.kv_init}': choose one of {', '.join(sorted(KV_INITS))}.")

    def pooling_of(self, frames: int) -> int:
        """The stride of the pooling in space of a video of so many frames."""
        return self.video_pooling if frames > 1 or self.pool_single_frame else 1
