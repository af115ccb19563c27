"""One function makes an existing Hugging Face model slow-fast: `convert(model)`.

    model = convert(Qwen2_5_VLForConditionalGeneration.from_pretrained(...))
    for parameter in model.parameters(): parameter.requires_grad_(False)
    optimizer = AdamW([p.requires_grad_() for p in new_parameters(model)])
    model.generate(**inputs_of_16_frames, slow_inputs=video_inputs_of_128_frames)

The fast tokens are the model's own video tokens, in its prompt as ever; the slow tokens are what its own
vision path makes of a longer version of the same video, beside the prompt. The gates start closed, so that a
converted model computes what it did before, to the bit, until it is trained (arXiv 2504.01328, section 3).

The model's class becomes a subclass of what it was, `SlowFast<name>`; nothing of the model is copied. How the slow
memory gets to the attention function: the decoder is handed it as keyword arguments, by a hook that lives for one
call, and decoders pass keyword arguments they don't know down to the attention function.
"""

import functools
import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import transformers
from torch import nn
from torch.nn import functional as F
from transformers import AutoConfig, Cache, PreTrainedModel

from architectures.conversion import (
    decoder_of,
    expect_arguments_to_arrive,
    expect_known_names,
    expect_options,
    hybrid_layers,
    install,
    use_hybrid_attention,
)
from architectures.fusions import Fusion
from architectures.hybrid import RemembersSlow, fusions, remember
from architectures.plug_and_play_inputs import (
    SLOW_INPUTS,
    VideoInputs,
    entries_and_times,
    evenly,
    expect_checkpoints_fit,
    expect_inputs_of,
    expect_width,
    once_each,
    tokens_of,
    with_slow_inputs,
)
from architectures.prompts import positions_of, real_tokens
from architectures.scope import scope_of
from architectures.slow_memory import Readers, SlowMemory
from architectures.tokens import SlowContext

VISUAL_TOKENS = ("image_token_id", "video_token_id", "image_token_index", "video_token_index")


def convert(
    model: PreTrainedModel,
    placement: dict[str, Any] | None = None,
    gate: dict[str, Any] | None = None,
    scope: dict[str, Any] | None = None,
    fusion: dict[str, Any] | None = None,
    kv_init: str = "copy",
    slow_time: dict[str, Any] | None = None,
    slow_chunk: int | None = None,
    slow_device: str | None = None,
) -> PreTrainedModel:
    """Turns `model` (a Hugging Face decoder with a head, or a whole video MLLM) into a slow-fast one; returns it.

    `placement` (default: every 8th layer), `gate` (dynamic_tanh), `scope` (text_only), `fusion` (slow_fast),
    `kv_init`, `slow_time` (none), `slow_chunk` and `slow_device` mean what they mean in `SlowFastConfig`; they
    are saved as `config.slow_fast`. Its `forward` and `generate` then take, besides what they took, the slow tokens
    of a batch: see `SlowFastModel.forward`. Slow keys pass the layer's input norm and key norm; reading has no
    soft-capping where self-attention has (Gemma2), no window where it has one, and no rotary position of keys.
    Raises ValueError, in a sentence, for a model that cannot be converted, and leaves it as it was.
    """
    if isinstance(model, SlowFastModel):
        raise ValueError(f"{type(model).__name__} is slow-fast already.")
    if not isinstance(model, PreTrainedModel):
        raise ValueError(
            f"A {type(model).__name__} is no PreTrainedModel of transformers: convert one before wrapping it."
        )
    spec = {
        "base": type(model).__name__,
        "placement": placement or {"name": "every", "n": 8},
        "gate": gate or {"name": "dynamic_tanh"},
        "scope": scope or {"name": "text_only"},
        "fusion": fusion or {"name": "slow_fast"},
        "kv_init": kv_init,
        "slow_time": slow_time or {"name": "none"},
        "slow_chunk": slow_chunk,
        "slow_device": slow_device,
    }
    expect_options(spec)
    decoder = decoder_of(model)
    layers = hybrid_layers(decoder, spec)
    expect_known_names(decoder.layers[layers[0]], spec)
    expect_arguments_to_arrive(decoder, layers)
    install(model, spec)
    for index, built in fusions(decoder).items():
        layer = decoder.layers[index]
        like = layer.self_attn.o_proj.weight
        built.to(device=like.device, dtype=like.dtype if like.is_floating_point() else model.dtype)
        built.initialise_(layer, kv_init)
        built.train(model.training)
    model.slow_time.to(device=like.device, dtype=model.dtype)
    model.config.slow_fast = spec
    model.__class__ = slow_fast_class(type(model))
    return model


def new_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that `convert` added, for an optimizer."""
    added = [module for name, module in model.named_modules() if is_new(name, module)]
    return list({id(p): p for module in added for p in module.parameters()}.values())


def new_modules(model: nn.Module) -> list[str]:
    """Names of the added modules that hold parameters: PEFT's `modules_to_save` trains and saves them whole.

    A fusion's parts, not the fusion, which must stay the module that it is.
    """
    added = {name: module for name, module in model.named_modules() if is_new(name, module)}
    parts = {
        f"{name}.{part}": child
        for name, module in added.items()
        if isinstance(module, Fusion)
        for part, child in module.named_children()
    }
    others = {name: module for name, module in added.items() if not isinstance(module, Fusion)}
    return [name for name, module in {**parts, **others}.items() if any(True for _ in module.parameters())]


def is_new(name: str, module: nn.Module) -> bool:
    """Whether `convert` added this module."""
    return isinstance(module, Fusion) or name.split(".")[-1] == "slow_time"


def load(path: str, **kwargs: Any) -> PreTrainedModel:
    """A converted model that `save_pretrained` wrote to `path`; `kwargs` as for `from_pretrained`."""
    config = kwargs.pop("config", None) or AutoConfig.from_pretrained(path)
    spec = getattr(config, "slow_fast", None)
    if spec is None:
        raise ValueError(f"{path} holds no converted model: its config.json has no 'slow_fast'.")
    return slow_fast_class(getattr(transformers, spec["base"])).from_pretrained(path, config=config, **kwargs)


@functools.cache
def slow_fast_class(base: type[PreTrainedModel]) -> type[PreTrainedModel]:
    """`SlowFast<base>`: `base` whose forward and generate take slow tokens."""

    def forward(self: "SlowFastModel", *args: Any, **kwargs: Any) -> Any:
        return SlowFastModel.forward(self, *args, **kwargs)

    def prepare_inputs_for_generation(self: "SlowFastModel", *args: Any, **kwargs: Any) -> dict[str, Any]:
        return SlowFastModel.prepare_inputs_for_generation(self, *args, **kwargs)

    methods = {"__module__": base.__module__}
    for method in (forward, prepare_inputs_for_generation):  # transformers reads their signatures
        original = getattr(base, method.__name__, None)
        if original is not None:
            method.__signature__ = with_slow_inputs(inspect.signature(original))
            methods[method.__name__] = method
    return type(f"SlowFast{base.__name__}", (SlowFastModel, base), methods)


@contextmanager
def passing(decoder: nn.Module, **extra: Any) -> Iterator[None]:
    """While it lasts, the decoder is called with `extra` among its keyword arguments."""
    hook = decoder.register_forward_pre_hook(lambda _, args, kwargs: (args, {**kwargs, **extra}), with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()


# ---------------------------------------------------------------------------------------------- the slow memory


@functools.cache
def remembering(kind: type[Cache]) -> type[Cache]:
    """A cache class of the same kind that keeps the slow memory."""
    return type(f"SlowFast{kind.__name__}", (RemembersSlow, kind), {})


def keep(cache: Cache | None, memory: SlowMemory) -> None:
    """Gives the memory to the cache, whatever its kind."""
    if cache is None:
        return
    if not isinstance(cache, RemembersSlow):
        cache.__class__ = remembering(type(cache))
    cache.slow_memory = memory


class SlowFastModel:
    """What `SlowFast<name>` classes have before their base: slow tokens in `forward` and `generate`."""

    def __init__(self, config: Any, *args: Any, **kwargs: Any):
        super().__init__(config, *args, **kwargs)
        install(self, config.slow_fast)

    def forward(
        self,
        *args: Any,
        slow_tokens: Sequence[torch.Tensor | SlowContext | None] | torch.Tensor | None = None,
        slow_inputs: VideoInputs | Sequence[VideoInputs | Sequence[VideoInputs] | None] | None = None,
        slow_times: Sequence[torch.Tensor | None] | None = None,
        is_video: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """The model's own forward, in whose hybrid layers text reads slow tokens; the rest as it was.

        Slow tokens come with the prompt; a cache keeps them for later calls. One entry per row of the batch, None
        for a row without; rows that share an entry (the same object) share its keys and values:

        - `slow_inputs`: the model's own inputs for one video (`pixel_values_videos`, grids, ...; images where
          the model takes a video as images), many frames of it. A list of them for a row with several videos.
          For a batch of one row the dict alone will do. The model's own `get_video_features` makes the tokens.
        - `slow_tokens`: instead, `slow_SD` in the decoder's width (a tensor BSD if equally many).

        `slow_times`: when each slow token of a row was seen, `times_S` in [0, 1] (None: evenly along each video),
        for a `slow_time` that uses it; with `slow_inputs`, of every token that the vision path makes of the row's
        videos. `is_video_BL` marks visual tokens, for the scope; by default they are known by the model's own
        token ids. ValueError if there is not an entry for each row, or if it does not fit the model; in training,
        for reentrant gradient checkpointing where it can't work (transformers' default, the other kind, always does).
        """
        kwargs = {**dict(zip(inspect.signature(type(self).forward).parameters, (self, *args), strict=False)), **kwargs}
        kwargs.pop("self")
        cache: Cache | None = kwargs.get("past_key_values")
        memory = getattr(cache, "slow_memory", None)
        if any(given is not None for given in (slow_tokens, slow_inputs, slow_times)):
            if memory is not None:
                raise ValueError("The cache already holds slow tokens: more can't join. Start without a cache.")
            contexts_B = self.slow_contexts(slow_tokens, slow_inputs, slow_times)
            expect_checkpoints_fit(decoder_of(self), contexts_B)
            memory = self.memorise(contexts_B, len(tokens_of(kwargs)))
            del contexts_B  # from here on their keys and values serve
        if memory is None:
            return super().forward(**kwargs)
        decoder = decoder_of(self)
        reads_BL = self.reads(kwargs, is_video).cpu()  # sorted there: the device is waited for once, or not at all
        readers = Readers.of(reads_BL, memory).to(self.device)
        with passing(decoder, slow_memory=memory, readers=readers):
            outputs = super().forward(**kwargs)
        keep(cache if cache is not None else cache_in(outputs), memory)
        return outputs

    def memorise(self, contexts_B: list[SlowContext | None], rows: int) -> SlowMemory:
        """The slow keys and values of a batch, each different context projected once."""
        if len(contexts_B) != rows:
            raise ValueError(f"{len(contexts_B)} sets of slow tokens for {rows} rows: give one (or None) per row.")
        different = {id(context): context for context in contexts_B}
        order = {key: number for number, key in enumerate(different)}
        spec = self.config.slow_fast
        memory = remember(decoder_of(self), list(different.values()), spec["slow_chunk"], spec["slow_device"])
        return memory.select(torch.tensor([order[id(context)] for context in contexts_B]))

    def slow_contexts(self, slow_tokens: Any, slow_inputs: Any, slow_times: Any) -> list[SlowContext | None]:
        """One entry per row, of slow tokens given in any of `forward`'s ways."""
        entries, times = entries_and_times(slow_tokens, slow_inputs, slow_times)
        return once_each(self.watch if slow_tokens is None else self.timed, entries, times)

    def watch(self, videos: VideoInputs | Sequence[VideoInputs], times_S: Any = None) -> SlowContext:
        """The slow tokens of one row: what the model's own vision path makes of its videos, with their times."""
        tokens = [self.visual_tokens(video) for video in ([videos] if isinstance(videos, Mapping) else videos)]
        return self.timed(torch.cat(tokens), torch.cat([evenly(t) for t in tokens]) if times_S is None else times_S)

    def visual_tokens(self, video: VideoInputs) -> torch.Tensor:
        """All tokens of one video in the decoder's width, `slow_SD`, in the order of time."""
        as_video = any("video" in name for name in video)
        owner = next((m for m in (self.base_model, self) if as_video and hasattr(m, "get_video_features")), None)
        see = getattr(owner, "get_video_features", None)
        if see is None:  # its videos are images
            owner = next((m for m in (self.base_model, self) if hasattr(m, "get_image_features")), None)
            see = getattr(owner, "get_image_features", None)
            video = {name.removesuffix("_videos"): value for name, value in video.items()}
        if see is None:
            raise ValueError(f"{type(self).__name__} has no vision path of its own: give slow_tokens.")
        expect_inputs_of(see, video)
        made = see(**video, return_dict=True).pooler_output
        pieces = made if isinstance(made, (list, tuple)) else [made]
        return torch.cat([piece.flatten(0, -2) for piece in pieces])

    def timed(self, slow_SD: torch.Tensor | SlowContext, times_S: Any = None) -> SlowContext:
        """Slow tokens with their time position."""
        given = isinstance(slow_SD, SlowContext)
        expect_width(slow_SD.slow_SD if given else slow_SD, decoder_of(self).config.hidden_size)
        if given and times_S is not None:
            raise ValueError("slow_times were given for a SlowContext, whose tokens have their time: leave them out.")
        if given:
            return slow_SD
        times_S = evenly(slow_SD) if times_S is None else torch.as_tensor(times_S, dtype=torch.float32)
        if times_S.shape != slow_SD.shape[:1]:
            shape = tuple(times_S.shape)
            raise ValueError(f"slow_times of shape {shape} for {len(slow_SD)} slow tokens of a row: give one for each.")
        slow_SD, position_1SD = slow_SD.to(self.dtype), self.slow_time(times_S[None].to(self.device))
        none = isinstance(position_1SD, float)
        return SlowContext(slow_SD if none else slow_SD + position_1SD[0].to(slow_SD.device))

    def reads(self, inputs: dict[str, Any], is_video_BL: torch.Tensor | None) -> torch.Tensor:
        """Which tokens of a call read the slow tokens: a prompt's by scope, later ones as text after it.

        For a decoded token the answer is on the CPU, where it is known without asking the device.
        """
        tokens_BL, cache = tokens_of(inputs), inputs.get("past_key_values")
        scope = scope_of(self.config.slow_fast["scope"])
        cached = cache is not None and bool(cache.get_seq_length())
        if cached and is_video_BL is None and tokens_BL.shape[1] == 1:
            is_video_BL = padding_BL = torch.zeros(tokens_BL.shape, dtype=torch.bool)
        else:
            if is_video_BL is None:
                is_video_BL = self.visual_places(inputs.get("input_ids"), tokens_BL)
            generated = tokens_BL.shape[1] - is_video_BL.shape[1]  # there are some where a prompt is not cached
            is_video_BL = F.pad(is_video_BL, (0, generated))
            padding_BL = ~real_tokens(inputs.get("attention_mask"), tokens_BL)
        if not cached:
            return scope(is_video_BL, padding_BL)
        before_B1 = torch.ones_like(is_video_BL[:, :1])  # stands for the video in the cache
        return scope(torch.cat([before_B1, is_video_BL], 1), torch.cat([~before_B1, padding_BL], 1))[:, 1:]

    def visual_places(self, input_ids_BL: torch.Tensor | None, tokens_BL: torch.Tensor) -> torch.Tensor:
        """Where the model's own visual tokens stand."""
        ids = {getattr(self.config, name, None) for name in VISUAL_TOKENS} - {None}
        if input_ids_BL is None and ids:
            raise ValueError("Without input_ids visual tokens can't be told from text: give is_video.")
        if not ids:
            return torch.zeros_like(tokens_BL, dtype=torch.bool)
        return torch.isin(input_ids_BL, torch.tensor(sorted(ids), device=input_ids_BL.device))

    # -------------------------------------------------------------------------------------------- generation

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """As Hugging Face's `generate`; videos are watched, and their keys and values made, once."""
        given = [kwargs.pop(name, None) for name in SLOW_INPUTS[:3]]
        if any(slow is not None for slow in given):
            with torch.no_grad():
                kwargs["slow_tokens"] = self.slow_contexts(*given)
        return super().generate(*args, **kwargs)

    def prepare_inputs_for_generation(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Slow tokens go with the prompt only; later steps find them with the cache."""
        slow = {name: kwargs.pop(name, None) for name in SLOW_INPUTS}
        inputs = super().prepare_inputs_for_generation(*args, **kwargs)
        if kwargs.get("is_first_iteration", False) or not kwargs.get("use_cache", True):
            inputs |= {name: value for name, value in slow.items() if value is not None}
        reading = inputs.get("slow_tokens") or getattr(inputs.get("past_key_values"), "slow_memory", None)
        if reading and inputs.get("position_ids") is None:  # slow keys, which have no place, see absolute positions
            inputs["position_ids"] = positions_of(inputs.get("attention_mask"), tokens_of(inputs).shape[1])
        return inputs

    def _expand_inputs_for_generation(
        self, expand_size: int = 1, slow_tokens: Sequence[Any] | None = None, **kwargs: Any
    ) -> tuple[torch.Tensor, dict[str, Any]]:
        """Rows repeated for beams or several samples refer to the same slow tokens, which are not repeated."""
        input_ids, kwargs = super()._expand_inputs_for_generation(expand_size=expand_size, **kwargs)
        if slow_tokens is not None:
            kwargs["slow_tokens"] = [entry for entry in slow_tokens for _ in range(expand_size)]
        return input_ids, kwargs

    def set_attn_implementation(self, *args: Any, **kwargs: Any) -> None:
        """As Hugging Face's, and the decoder's becomes hybrid again."""
        super().set_attn_implementation(*args, **kwargs)
        use_hybrid_attention(decoder_of(self))


def cache_in(outputs: Any) -> Cache | None:
    """The cache among a model's outputs."""
    values = outputs.values() if hasattr(outputs, "values") else outputs
    return next((value for value in values if isinstance(value, Cache)), None)


if __name__ == "__main__":
    from architectures.plug_and_play_table import main

    raise SystemExit(main())
