"""FLOPs of a video's way to the first token, and of one more, counted by running it on the meta device.

Conventions, the same wherever an overhead is stated: FLOP = 2 x MAC; attention as the full square; matrix
products, convolutions and attention are counted, elementwise operations, norms and pooling are not; lm_head on
the last position, as `generate` runs it, or with `every_logit` on each, as the official code does. Stages are
those of `architectures.cost`, whose closed form agrees to the operation.

The meta device has shapes, but neither weights nor arithmetic, so that 7B is counted on a laptop. Nor has it
fused attention, which torch 2.13 counts as 0 FLOP on a CPU (pytorch#195460): there, it is two matrix products.

Who counts is a `Counter`: torch's `FlopCounterMode` (`by_torch`), or another that is given the same runs.
"""

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from architectures import SlowFastConfig, SlowFastForConditionalGeneration
from architectures.cost import Cost, DecodeCost
from architectures.fusions import Fusion
from architectures.hybrid import SlowFastCache, remember
from architectures.slow_memory import Readers, SlowMemory
from architectures.tokens import SlowContext, VideoTokens

META = torch.device("meta")
ByModule = dict[str, dict[str, int]]  # path below the counted module -> operator -> FLOP inside; "" is all of it


class Counter(Protocol):
    """Runs a part of the model and counts it."""

    def __call__(
        self, module: nn.Module, run: Callable[..., Any], *inputs: torch.Tensor, times: int = 1
    ) -> tuple[Any, ByModule]:
        """What `run(*inputs)` returns, and `times` the FLOPs it took inside of `module` and its descendants.

        `run` calls `module`, or methods and descendants of it.
        """


def counted(run: Callable[[], Any]) -> tuple[Any, int]:
    """What `run` returns, and the FLOPs it took."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        result = run()
    return result, counter.get_total_flops()


def by_torch(module: nn.Module, run: Callable[..., Any], *inputs: torch.Tensor, times: int = 1) -> tuple[Any, ByModule]:
    """Counts by torch's `FlopCounterMode`; a `Counter`."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        result = run(*inputs)
    root, found = f"{type(module).__name__}.", {"": {}}
    for path, operators in counter.get_flop_counts().items():
        if path == "Global" or path.startswith(root):
            below = path.removeprefix(root) if path != "Global" else ""
            found[below] = {str(operator): times * flop for operator, flop in operators.items()}
    return result, found


# ------------------------------------------------------------------------------------------------------- counts


def count_prefill(
    config: SlowFastConfig, frames: int, text_tokens: int, every_logit: bool = False, counter: Counter = by_torch
) -> Cost:
    """Counts one video of `frames` frames with `text_tokens` tokens of text; the scope says who reads."""
    return count_model(model_on_meta(config), frames, text_tokens, every_logit, counter)


def count_model(
    model: SlowFastForConditionalGeneration,
    frames: int,
    text_tokens: int,
    every_logit: bool = False,
    counter: Counter = by_torch,
) -> Cost:
    """As `count_prefill`, of a model on the meta device."""
    tokens, seen = count_video(model, frames, counter)
    n_fast, n_slow = len(tokens.fast_FD), 0 if tokens.slow_SD is None else len(tokens.slow_SD)
    memory, remembering = count_memory(model, tokens, counter)
    is_video_BL = torch.arange(n_fast + text_tokens)[None] < n_fast
    reads_BL = model.scope(is_video_BL, torch.zeros_like(is_video_BL))
    layers = count_decoder(model, reads_BL, memory, None, counter)
    lm_head = count_lm_head(model, n_fast + text_tokens if every_logit else 1, counter)
    return Cost(n_fast, n_slow, text_tokens, **seen, slow_keys_values=remembering, **layers, lm_head=lm_head)


def count_decode(
    config: SlowFastConfig,
    frames: int,
    text_tokens: int,
    bytes_per_number: int = 2,
    reproject: bool = False,
    counter: Counter = by_torch,
) -> DecodeCost:
    """Counts the token after that prefill, and the bytes of the caches; arguments as `decode_cost` has them."""
    model = model_on_meta(config)
    tokens, _ = count_video(model, frames, by_torch)
    memory, remembering = count_memory(model, tokens, counter if reproject else by_torch)
    cache = SlowFastCache(config.text_config)
    prompt_BL = torch.zeros(1, len(tokens.fast_FD) + text_tokens, dtype=torch.bool)
    count_decoder(model, prompt_BL, None, cache, by_torch)
    numbers = sum(layer.keys.numel() + layer.values.numel() for layer in cache.layers)
    reads_BL = torch.ones(1, 1, dtype=torch.bool)
    layers = count_decoder(model, reads_BL, memory if reproject or config.generated_read_slow else None, cache, counter)
    return DecodeCost(
        slow_keys_values=remembering if reproject else 0,
        **layers,
        lm_head=count_lm_head(model, 1, counter),
        kv_bytes=numbers * bytes_per_number,
        slow_kv_bytes=0 if memory is None else memory.nbytes // model.dtype.itemsize * bytes_per_number,
    )


def model_on_meta(config: SlowFastConfig) -> SlowFastForConditionalGeneration:
    """The model without memory for its weights."""
    with META:
        return SlowFastForConditionalGeneration(config)


# ------------------------------------------------------------------------------------------------------- stages


def count_video(
    model: SlowFastForConditionalGeneration, frames: int, counter: Counter
) -> tuple[VideoTokens, dict[str, int]]:
    """The tokens of a video, and FLOPs by stage; the encoder sees each frame alone, so one frame is counted."""
    encoder = model.encoder
    choosing, frames = count_choosing(model, frames, counter), model.selector.n_frames(frames)
    with META:
        frame, times = torch.empty(1, 1, 3, encoder.image_size, encoder.image_size), torch.empty(1, frames)
        features = torch.empty(1, frames, encoder.grid[0] * encoder.grid[1], encoder.width)
    pooling = model.config.pooling_of(frames)
    _, seen = counter(encoder, model.encode_video, frame, times=frames)
    tokens, projected = counter(model.projector, lambda features: model.watch(features, pooling), features)
    streams = nn.ModuleList([model.compressor, model.time_positions])
    (video,), compressed = counter(streams, model.fast_and_slow, tokens, times)
    return video, {
        "vision": choosing + total(seen),
        "projector": total(projected),
        "compressor": total(compressed),
    }


def count_choosing(model: SlowFastForConditionalGeneration, frames: int, counter: Counter) -> int:
    """FLOPs of choosing the frames that the encoder sees; the choice itself takes none."""
    selector, size = model.selector, model.encoder.image_size
    if selector.n_frames(frames) == frames:
        return 0
    with META:
        video = torch.empty(1, frames, 3, size, size)
        question = [torch.zeros(1, 1, dtype=torch.long)] if selector.needs_question else []
    return total(counter(selector, selector.scores, video, *question)[1])


def count_memory(
    model: SlowFastForConditionalGeneration, tokens: VideoTokens, counter: Counter
) -> tuple[SlowMemory | None, int]:
    """The slow keys and values of all hybrid layers, and their FLOPs."""
    if tokens.slow_SD is None:
        return None, 0
    decoder, places = model.language_model.model, places_of(model, tokens)

    def run(slow_SD: torch.Tensor) -> SlowMemory:
        return remember(decoder, [SlowContext(slow_SD, places)])

    memory, found = counter(decoder, run, tokens.slow_SD)
    return memory, total(found)


def count_decoder(
    model: SlowFastForConditionalGeneration,
    reads_BL: torch.Tensor,
    memory: SlowMemory | None,
    cache: SlowFastCache | None,
    counter: Counter,
) -> dict[str, int]:
    """FLOPs by stage of the decoder's layers for as many tokens as `reads_BL` has, which go into the `cache`."""
    decoder, L = model.language_model.model, reads_BL.shape[1]
    keys = L + (0 if cache is None else cache.get_seq_length())
    with META:
        embeds_BLD = torch.empty(1, L, model.config.text_config.hidden_size)
        mask = torch.empty(1, 1, L, keys, dtype=torch.bool)  # no decoder makes one on meta
    readers = None if memory is None else Readers.of(reads_BL, memory).to(META)

    def run(embeds_BLD: torch.Tensor) -> torch.Tensor:
        return decoder(
            inputs_embeds=embeds_BLD,
            attention_mask=mask,
            past_key_values=cache,
            use_cache=cache is not None,
            slow_memory=memory,
            readers=readers,
        ).last_hidden_state

    _, found = counter(decoder, run, embeds_BLD)
    return decoder_stages(decoder, found)


def count_lm_head(model: SlowFastForConditionalGeneration, positions: int, counter: Counter) -> int:
    """FLOPs of the logits of so many positions."""
    head = model.language_model.lm_head
    return total(counter(head, head, torch.empty(1, positions, head.in_features, device=META))[1])


def decoder_stages(decoder: nn.Module, found: ByModule) -> dict[str, int]:
    """FLOPs of the decoder's layers by stage.

    What a fusion attends with is cross-attention, what else happens in it (in its gate and other modules below
    it too) is the gate's; outside of fusions attention is self-attention and all the rest linear.
    """
    attended = attention(found[""])
    stages = {"linear": total(found) - attended, "self_attention": attended, "cross_attention": 0, "gate": 0}
    for path, fusion in decoder.named_modules():
        if isinstance(fusion, Fusion):
            inside = found.get(path, {})
            deeper = sum(attention(found.get(f"{path}.{name}", {})) for name, _ in fusion.named_children())
            everything, attended = sum(inside.values()), attention(inside)
            stages["cross_attention"] += attended - deeper
            stages["gate"] += everything - (attended - deeper)
            stages["self_attention"] -= attended
            stages["linear"] -= everything - attended
    return stages


def attention(operators: dict[str, int]) -> int:
    """FLOPs of attention: fused, or the products of two activations that it is made of."""
    names = ("bmm", "baddbmm", "matmul", "scaled_dot_product")
    return sum(flop for operator, flop in operators.items() if any(name in operator for name in names))


def total(found: ByModule) -> int:
    """All FLOPs of a count."""
    return sum(found[""].values())


def places_of(model: SlowFastForConditionalGeneration, tokens: VideoTokens) -> torch.Tensor | None:
    """Where slow tokens stand, for models that rotate slow keys by it."""
    rotates = model.time_positions[model.config.slow_time["name"]].rotates_keys
    return tokens.times_S if rotates else None
