"""What a converted model must do: checks that the table (`plug_and_play_table.py`) and the tests share.

A check raises AssertionError where the model falls short, and `NotApplicable` where the question makes no sense for
it or the unconverted model fails.
"""

import tempfile
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from torch import nn
from transformers.masking_utils import AttentionMaskInterface
from transformers.modeling_utils import AttentionInterface

from architectures.conversion import decoder_of
from architectures.hybrid import SUFFIX, fusions
from architectures.plug_and_play import VISUAL_TOKENS, convert, load, new_modules, new_parameters

PLACEMENT = {"name": "every", "n": 2}  # of the tiny models' four layers, the first and the third
NEW_TOKENS = 4
CLOSE = {"rtol": 1e-4, "atol": 1e-4}  # float32 sums in another order
TRUTH = "slow_truth"


class NotApplicable(Exception):
    """A check that makes no sense for a model; says why."""


class Subject:
    """A family's model, converted, with its gates open, and a batch of prompts: one video, two videos, none."""

    def __init__(self, family: Any, parts: Any):
        """`family` as in `tests/hf_models.py`, which is `parts` (its clips and words)."""
        self.family, self.parts = family, parts
        words, clip = parts.words, parts.Clip
        self.one = [*words(3, 1), clip(4, 1), *words(4, 2)]
        self.two = [*words(2, 3), clip(4, 2), *words(2, 4), clip(4, 3), *words(3, 5)]
        self.text = words(6, 6)
        self.prompts = [self.one, self.two, self.text]
        original = family.model()
        inputs = self.inputs(self.prompts)
        self.before = logits(original, inputs), generated(original, inputs)
        self.beams_before = attempt(lambda: generated(original, inputs, num_beams=3))
        self.model = convert(original, PLACEMENT)

    def inputs(self, prompts: Sequence[Any]) -> dict[str, Any]:
        """The model's inputs; a pure decoder's prompts are their words."""
        if self.family.video is None:
            prompts = [[piece for piece in prompt if isinstance(piece, int)] for prompt in prompts]
        return self.family.inputs(prompts)

    def slow(self, prompts: Sequence[Any]) -> dict[str, Any]:
        """Slow inputs of the prompts: for each clip one of more frames, not the same for all."""
        rows = [[self.longer(piece) for piece in prompt if not isinstance(piece, int)] for prompt in prompts]
        if self.family.video is None:
            return {"slow_tokens": [self.random_tokens(row) if row else None for row in rows]}
        return {"slow_inputs": [[self.family.videos([[clip]]) for clip in row] or None for row in rows]}

    def longer(self, clip: Any) -> Any:
        """Another video, of more frames."""
        return self.parts.Clip(clip.frames + 2 * clip.seed, clip.seed + 100)

    def random_tokens(self, clips: Sequence[Any]) -> torch.Tensor:
        """Slow tokens for a decoder without vision."""
        return torch.cat([clip.pixels(2 * clip.frames, self.parts.WIDTH) for clip in clips])

    def both(self, prompts: Sequence[Any]) -> dict[str, Any]:
        """Inputs and slow inputs."""
        return {**self.inputs(prompts), **self.slow(prompts)}

    @cached_property
    def open(self) -> nn.Module:
        """The model with open gates, a different one in each hybrid layer. Asked for once, they stay open."""
        with torch.no_grad():
            for number, fusion in enumerate(fusions(decoder_of(self.model)).values()):
                fusion.gate.warmup.fill_(0.8 - 1.5 * (number % 2))
        return self.model


# ------------------------------------------------------------------------------------------------- the checks


def identical_when_closed(subject: Subject) -> None:
    """As converted, prefill and greedy ids are the original's, to the bit, with slow tokens and without."""
    for given in (subject.both(subject.prompts), subject.inputs(subject.prompts)):
        assert torch.equal(logits(subject.model, given), subject.before[0])
        assert torch.equal(generated(subject.model, given), subject.before[1])


def follows_the_formula(subject: Subject) -> None:
    """With open gates, logits are those of a plain loop over rows, tokens and heads, and not the original's."""
    model, given = subject.open, subject.both(subject.prompts)
    fast = logits(model, given)
    assert not torch.allclose(fast[:2], subject.before[0][:2], **CLOSE)
    with slow_truth(model, given):
        assert torch.allclose(logits(model, subject.inputs(subject.prompts)), fast, **CLOSE)


def saves_and_loads(subject: Subject) -> None:
    """Saved and loaded, the class, every weight to the bit, the logits and greedy ids are the same."""
    model, given = subject.open, subject.both(subject.prompts)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        again = load(folder).eval()
    assert type(again) is type(model)
    here, there = model.state_dict(), again.state_dict()
    assert here.keys() == there.keys()
    assert all(torch.equal(here[name], there[name]) for name in here)
    assert torch.allclose(logits(again, given), logits(model, given), **CLOSE)  # loaded weights lie otherwise in memory
    assert torch.equal(generated(again, given), generated(model, given))


def greedy(subject: Subject) -> None:
    """Greedy ids with a cache are those recomputed without; slow keys are projected once per video."""
    same_without_cache(subject)


def sampling(subject: Subject) -> None:
    """The same for sampled ids, by the same random numbers."""
    same_without_cache(subject, do_sample=True, top_k=0)


def beams(subject: Subject) -> None:
    """The same for beam search, and several sequences of it."""
    if isinstance(subject.beams_before, Exception):
        raise NotApplicable("the original's own beam search fails with a video in a batch")
    same_without_cache(subject, num_beams=3, num_return_sequences=2)


def lora(subject: Subject) -> None:
    """PEFT's LoRA attaches, changes nothing at first, trains with the new modules, and its adapter reloads."""
    try:
        import peft
    except ImportError:
        raise NotApplicable("peft is not installed") from None
    given = subject.both(subject.prompts)
    expected = logits(subject.open, given)
    targets = r".*\.self_attn\.(q_proj|v_proj)"
    options = peft.LoraConfig(r=2, target_modules=targets, modules_to_save=new_modules(subject.open))
    torch.manual_seed(0)
    model = peft.get_peft_model(same_again(subject), options).eval()
    assert torch.equal(logits(model, given), expected)
    trained = {name: p.clone() for name, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.SGD((p for p in model.parameters() if p.requires_grad), lr=0.3)
    for _ in range(2):  # at first LoRA's B is zero, and A has no gradient
        optimizer.zero_grad()
        loss_of(model, given).backward()
        optimizer.step()
    changed = {name for name, p in model.named_parameters() if name in trained and not torch.equal(p, trained[name])}
    assert any("lora_" in name for name in changed)
    assert all(any(module in name for name in changed) for module in new_modules(subject.open))
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        again = peft.PeftModel.from_pretrained(same_again(subject), folder).eval()
    assert torch.equal(logits(again, given), logits(model, given))
    assert torch.equal(generated(again, given), generated(model, given))


def two_videos(subject: Subject) -> None:
    """A prompt with two videos reads both: their tokens one after the other, each of which matters."""
    model = subject.open
    if subject.family.video is None:
        raise NotApplicable("a decoder has no videos; its rows take any slow tokens")
    given = subject.both([subject.two])
    (videos,) = given["slow_inputs"]
    tokens_SD = torch.cat([model.visual_tokens(video) for video in videos]).detach()
    inputs, expected = subject.inputs([subject.two]), logits(model, given)
    assert torch.allclose(logits(model, {**inputs, "slow_tokens": [tokens_SD]}), expected, **CLOSE)
    for changed in ([videos[0]], [videos[1]], [videos[0], videos[0]]):
        assert not torch.allclose(logits(model, {**inputs, "slow_inputs": [changed]}), expected, **CLOSE)


def text_only(subject: Subject) -> None:
    """A row without a video is the original's, in a batch with videos and without any, and nothing of it reads."""
    model, given = subject.open, subject.both(subject.prompts)
    assert torch.allclose(logits(model, given)[2], subject.before[0][2], **CLOSE)
    alone = subject.inputs([subject.text])
    calls = count_projections(model)
    assert torch.equal(logits(model, {**alone, "slow_tokens": [None]}), logits(model, alone))
    assert calls() == 0


def left_padding(subject: Subject) -> None:
    """Every row of a padded batch says what it says alone."""
    model = subject.open
    together = generated(model, subject.both(subject.prompts))
    for row, prompt in enumerate(subject.prompts):
        given = subject.both([prompt])
        if any(entry is not None for entry in next(iter(subject.slow([prompt]).values()))):
            assert torch.equal(generated(model, given)[0], together[row])
        else:
            assert torch.equal(generated(model, subject.inputs([prompt]))[0], together[row])


def gradients(subject: Subject) -> None:
    """With open gates every new parameter has a gradient, the same under gradient checkpointing."""
    model, given = same_again(subject), subject.both(subject.prompts)
    plain = gradients_of(model, given)
    missing = [name for name, gradient in plain.items() if gradient is None]
    assert not missing, missing
    # softmax does not see what is the same for all keys: a key bias has no gradient where keys aren't normalised
    zero = [name for name, g in plain.items() if not g.abs().max() > 0 and not name.endswith("k_proj.bias")]
    assert not zero, zero
    if model.supports_gradient_checkpointing:
        model.gradient_checkpointing_enable()
        again = gradients_of(model, given)
        assert all(torch.allclose(again[name], plain[name], **CLOSE) for name in plain)


CHECKS: dict[str, Callable[[Subject], None]] = {
    "identical": identical_when_closed,
    "formula": follows_the_formula,
    "save/load": saves_and_loads,
    "greedy": greedy,
    "sampling": sampling,
    "beams": beams,
    "LoRA": lora,
    "two videos": two_videos,
    "text only": text_only,
    "left padding": left_padding,
    "gradients": gradients,
}


# -------------------------------------------------------------------------------------------- what checks need


@torch.no_grad()
def logits(model: nn.Module, given: dict[str, Any]) -> torch.Tensor:
    """Logits of a prompt's real tokens (padding holds zeros)."""
    return model(**given).logits * given["attention_mask"][..., None]


def generated(model: nn.Module, given: dict[str, Any], **options: Any) -> torch.Tensor:
    """Generated ids, without the prompt's; greedy unless `options` say otherwise."""
    return generation(model, given, **options).sequences[:, given["input_ids"].shape[1] :]


def generation(model: nn.Module, given: dict[str, Any], **options: Any) -> Any:
    """What `generate` returns, with every step's logits and every beam's score."""
    torch.manual_seed(0)
    visual = [getattr(model.config, name) for name in VISUAL_TOKENS if getattr(model.config, name, None) is not None]
    lengths = {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS}
    details = {"return_dict_in_generate": True, "output_logits": True, "output_scores": True}
    options = {"do_sample": False, **lengths, **details, "suppress_tokens": visual or None, **options}
    return model.generate(**given, **options)


def attempt(action: Callable[[], Any]) -> Any:
    """What the action returns, or the exception it raised: the unconverted model's own limits."""
    try:
        return action()
    except (ValueError, TypeError, RuntimeError, IndexError) as error:
        return error


def same_without_cache(subject: Subject, **options: Any) -> None:
    """Generation with a cache, in which slow keys are projected once, equals generation without one."""
    model, given = subject.open, subject.both(subject.prompts)
    calls = count_projections(model)
    with_cache = generation(model, given, **options)
    lengths = 2  # of slow tokens, in the batch: one projection each
    assert calls() == lengths * len(fusions(decoder_of(model)))
    without = generation(model, given, use_cache=False, **options)
    assert torch.equal(with_cache.sequences, without.sequences)
    if "num_beams" in options:  # beams that were given up may differ
        assert torch.allclose(with_cache.sequences_scores, without.sequences_scores, **CLOSE)
    else:
        assert torch.allclose(torch.stack(with_cache.logits), torch.stack(without.logits), **CLOSE)


def count_projections(model: nn.Module) -> Callable[[], int]:
    """Counts, until it is asked, how often slow keys are projected."""
    seen: list[nn.Module] = []
    found = fusions(decoder_of(model)).values()
    hooks = [fusion.k_proj.register_forward_hook(lambda module, *_: seen.append(module)) for fusion in found]

    def calls() -> int:
        for hook in hooks:
            hook.remove()
        return len(seen)

    return calls


def same_again(subject: Subject) -> nn.Module:
    """Another model with the same weights."""
    model = convert(subject.family.model(), PLACEMENT)
    model.load_state_dict(subject.open.state_dict())
    return model.eval()


def loss_of(model: nn.Module, given: dict[str, Any]) -> torch.Tensor:
    """Mean negative log-probability of every next token of the prompts."""
    scores = model(**given, use_cache=False).logits[:, :-1].log_softmax(-1)
    real = given["attention_mask"][:, 1:].bool()
    return -scores.gather(2, given["input_ids"][:, 1:, None])[..., 0][real].mean()


def gradients_of(model: nn.Module, given: dict[str, Any]) -> dict[str, torch.Tensor | None]:
    """Gradients of the new parameters alone, by name, in training mode."""
    new = {id(parameter) for parameter in new_parameters(model)}
    for parameter in model.parameters():
        parameter.grad = None
        parameter.requires_grad_(id(parameter) in new)
    loss_of(model.train(), given).backward()
    return {name: p.grad for name, p in model.named_parameters() if id(p) in new}


@contextmanager
def slow_truth(model: nn.Module, given: dict[str, Any]) -> Any:
    """While it lasts, the model's hybrid layers compute the paper's formula by plain loops, from `given`."""
    decoder = decoder_of(model)
    slow = given.get("slow_tokens")
    if slow is None:
        slow = [row and torch.cat([model.visual_tokens(video) for video in row]) for row in given["slow_inputs"]]
    ids = {getattr(model.config, f"{kind}_token_id", None) for kind in ("image", "video")}
    reads = [
        [place for place in range(len(row)) if mask[place] and int(row[place]) not in ids]
        for row, mask in zip(given["input_ids"], given["attention_mask"], strict=True)
    ]
    backend = decoder.config._attn_implementation
    base = AttentionInterface()[backend.removesuffix(SUFFIX)]

    def attend(module: nn.Module, query: torch.Tensor, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, Any]:
        attended, weights = base(module, query, *args, **kwargs)
        fusion = getattr(module, "cross_attention", None)
        if fusion is None:
            return attended, weights
        layer = decoder.layers[module.layer_idx]
        result = attended.clone()
        for row, slow_SD in enumerate(slow):
            if slow_SD is None:
                continue
            x = layer.input_layernorm(slow_SD)
            keys = fusion.k_proj(x).unflatten(1, (-1, module.head_dim))
            keys = module.k_norm(keys) if hasattr(module, "k_norm") else keys
            values = fusion.v_proj(x).unflatten(1, (-1, module.head_dim))
            for place in reads[row]:
                a = attended[row, place]
                gate = fusion.gate.projection(a.flatten()).tanh() * fusion.gate.warmup.tanh()
                for head in range(a.shape[0]):
                    pair = head // (a.shape[0] // keys.shape[1])  # grouped-query attention
                    score = (keys[:, pair] @ query[row, head, place] * kwargs["scaling"]).exp()
                    result[row, place, head] += gate[0] * (score @ values[:, pair]) / score.sum()
        return result, weights

    AttentionInterface.register(TRUTH, attend)
    AttentionMaskInterface.register(TRUTH, AttentionMaskInterface()[backend])
    decoder.config._attn_implementation = TRUTH
    try:
        yield
    finally:
        decoder.config._attn_implementation = backend
