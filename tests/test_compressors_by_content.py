"""Compressors that look at the tokens, merging or learned, against slow truths in plain loops."""

import math

import pytest
import torch
from small_compressors import built, mean, random_tokens

from architectures.compressors import Compressor

# ------------------------------------------------------------------------------------------ merging


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    """Of two tokens."""
    return float(a @ b / (a.norm() * b.norm()))


def merged_frames(frames_TPD: torch.Tensor, left: int) -> list[torch.Tensor]:
    """The most alike neighbours merged one pair at a time, all similarities computed anew each time."""
    groups = [[frame] for frame in frames_TPD]
    while len(groups) > left:
        means = [mean(group) for group in groups]
        alike = [sum(cosine(a, b) for a, b in zip(means[i], means[i + 1], strict=True)) for i in range(len(groups) - 1)]
        best = alike.index(max(alike))
        groups[best : best + 2] = [groups[best] + groups[best + 1]]
    return [token for group in groups for token in mean(group)]


def merged_tokens(tokens_ND: torch.Tensor, budget: int) -> list[torch.Tensor]:
    """Rounds of bipartite matching in which every group is the list of the tokens it stands for."""
    groups = [[token] for token in tokens_ND]
    while len(groups) > budget:
        means = [mean(group) for group in groups]
        pairs = []
        for even in range(0, len(groups), 2):
            scores = {odd: cosine(means[even], means[odd]) for odd in range(1, len(groups), 2)}
            pairs.append((max(scores.values()), even, max(scores, key=scores.get)))
        pairs = sorted(pairs, reverse=True)[: min(len(groups) // 2, len(groups) - budget)]
        for _, even, odd in pairs:
            groups[odd] = groups[odd] + groups[even]
        gone = {even for _, even, _ in pairs}
        groups = [group for place, group in enumerate(groups) if place not in gone]
    return [mean(group) for group in groups]


def drifting_tokens(T: int, H: int, W: int) -> torch.Tensor:
    """A video whose frames change slowly at some times and fast at others."""
    steps = random_tokens(1, T, H, W, seed=T) * torch.linspace(0.05, 1.5, T).view(1, T, 1, 1, 1)
    return steps.cumsum(1) + random_tokens(1, 1, H, W)


@pytest.mark.parametrize("fast_frames", [1, 4, 11])
def test_similarity_merging_is_its_plain_loop(fast_frames: int) -> None:
    compressor = built(name="similarity_merging", fast_frames=fast_frames)
    for T in (1, 2, 5, 12, 23):
        tokens_BTHWD = drifting_tokens(T, 2, 3)
        expected = merged_frames(tokens_BTHWD[0].flatten(1, 2), fast_frames)
        torch.testing.assert_close(compressor(tokens_BTHWD)[0], torch.stack(expected))


@pytest.mark.parametrize("tokens", [1, 5, 16, 40])
def test_token_merging_is_its_plain_loop(tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    compressor = built(name="token_merging", tokens=tokens)
    for T, H, W in [(1, 1, 1), (2, 1, 1), (5, 3, 3), (7, 2, 3)]:
        tokens_BTHWD = drifting_tokens(T, H, W)
        expected = torch.stack(merged_tokens(tokens_BTHWD.flatten(0, 3), tokens))
        torch.testing.assert_close(compressor(tokens_BTHWD)[0], expected)
        with monkeypatch.context() as patch:  # in chunks of few similarities, as a long video would be
            patch.setattr("architectures.compressors.token_merging.SCORES", 50)
            torch.testing.assert_close(compressor(tokens_BTHWD)[0], expected)


@pytest.mark.parametrize("name", ["similarity_merging", "token_merging"])
def test_scenes_come_out_as_their_means_in_order(name: str) -> None:
    lengths = [3, 9, 2, 1, 6]
    scenes = 5 * torch.eye(6)[[3, 0, 4, 1, 2]]
    frames = torch.cat([scene.expand(length, -1) for scene, length in zip(scenes, lengths, strict=True)])
    noisy_BTHWD = frames[None, :, None, None] + 0.1 * random_tokens(1, sum(lengths), 1, 1)
    expected = torch.stack([scene.mean(0) for scene in noisy_BTHWD[0, :, 0, 0].split(lengths)])
    if name == "similarity_merging":
        torch.testing.assert_close(built(name=name, fast_frames=5)(noisy_BTHWD)[0], expected)
    else:  # the lone frame is the least alike of the 11 at even places, so it is the one that stays
        fast_FD = built(name=name, fast_frames=8)(noisy_BTHWD)[0]
        scene_F = fast_FD.argmax(1).tolist()
        assert set(scene_F) == {0, 1, 2, 3, 4}
        assert scene_F == sorted(scene_F, key=[3, 0, 4, 1, 2].index)


def test_merging_keeps_the_mean_of_all() -> None:
    """Every input token counts once, whatever was merged how often: gradients of the group sums say so."""
    tokens_BTHWD = random_tokens(1, 12, 2, 2).requires_grad_()
    for spec in ({"name": "token_merging", "tokens": 1}, {"name": "similarity_merging", "fast_frames": 1}):
        fast_BFD = built(**spec)(tokens_BTHWD)
        (gradient,) = torch.autograd.grad(fast_BFD.sum(), tokens_BTHWD)
        torch.testing.assert_close(gradient, torch.full_like(gradient, fast_BFD.shape[1] / 48))


# ------------------------------------------------------------------------------------------ learned


def resampled(compressor: Compressor, frames_TPD: torch.Tensor) -> torch.Tensor:
    """The perceiver resampler, latent by latent and head by head."""
    T, slots = len(frames_TPD), compressor.time_slots
    timed = []
    for t in range(T):
        place = 0 if T == 1 else t * (len(slots) - 1) / (T - 1)
        low = min(math.floor(place), len(slots) - 1)
        high = min(low + 1, len(slots) - 1)
        timed.append(frames_TPD[t] + slots[low] + (place - low) * (slots[high] - slots[low]))
    tokens, latents = torch.cat(timed), compressor.latents
    for layer in compressor.layers:
        inner = layer.q_proj.out_features // layer.heads
        normed = layer.latent_norm(latents)
        read = torch.cat([layer.token_norm(tokens), normed])
        attended = []
        for latent in normed:
            heads = []
            for head in range(layer.heads):
                part = slice(head * inner, (head + 1) * inner)
                keys, values = read @ layer.k_proj.weight[part].t(), read @ layer.v_proj.weight[part].t()
                shares = torch.softmax(keys @ (layer.q_proj.weight[part] @ latent) / math.sqrt(inner), dim=0)
                heads.append(shares @ values)
            attended.append(torch.cat(heads))
        latents = latents + torch.stack(attended) @ layer.o_proj.weight.t()
        hidden = (layer.mlp_norm(latents) @ layer.up_proj.weight.t()).clamp(min=0) ** 2
        latents = latents + hidden @ layer.down_proj.weight.t()
    return compressor.norm(latents)


@pytest.mark.parametrize("T", [1, 2, 3, 7])
def test_the_resampler_is_its_plain_loop(T: int) -> None:
    compressor = built(name="perceiver_resampler", latents=3, depth=2, heads=2, head_dim=5, time_slots=3)
    tokens_BTHWD = random_tokens(1, T, 2, 2)
    torch.testing.assert_close(
        compressor(tokens_BTHWD)[0], resampled(compressor, tokens_BTHWD[0].flatten(1, 2)), rtol=1e-4, atol=1e-5
    )


def test_only_its_time_embedding_tells_the_resampler_the_order() -> None:
    compressor = built(name="perceiver_resampler", depth=2)
    tokens_BTHWD = random_tokens(1, 9, 2, 2)
    assert not torch.allclose(compressor(tokens_BTHWD), compressor(tokens_BTHWD.flip(1)), atol=1e-2)
    torch.nn.init.zeros_(compressor.time_slots)
    torch.testing.assert_close(compressor(tokens_BTHWD), compressor(tokens_BTHWD.flip(1)), rtol=1e-4, atol=1e-5)


def convolved(compressor: Compressor, frames_THWD: torch.Tensor) -> torch.Tensor:
    """The STC connector with its 3D convolution tap by tap: the window of place n begins at n * stride - 1."""
    on_frames = compressor.before(frames_THWD.permute(0, 3, 1, 2))
    T, D, H, W = on_frames.shape
    weight, bias, strides = compressor.shorten.weight, compressor.shorten.bias, compressor.strides
    sizes = [size if stride == 1 else -(-(size + 1) // stride) for size, stride in zip((T, H, W), strides, strict=True)]
    short = torch.zeros(sizes[0], D, sizes[1], sizes[2])
    for place in torch.cartesian_prod(*(torch.arange(size) for size in sizes)).tolist():
        value = bias.clone()
        for tap in torch.cartesian_prod(*(torch.arange(stride) for stride in strides)).tolist():
            t, h, w = (n * s + k - (s > 1) for n, s, k in zip(place, strides, tap, strict=True))
            if 0 <= t < T and 0 <= h < H and 0 <= w < W:
                value = value + weight[:, :, tap[0], tap[1], tap[2]] @ on_frames[t, :, h, w]
        short[place[0], :, place[1], place[2]] = value * torch.sigmoid(value)
    return compressor.readout(compressor.after(short).permute(0, 2, 3, 1).flatten(0, 2))


@pytest.mark.parametrize("strides", [(2, 2), (3, 2), (4, 1), (1, 3)], ids=str)
def test_the_spatio_temporal_convolution_is_its_plain_loop(strides: tuple[int, int]) -> None:
    compressor = built(name="spatio_temporal_convolution", time_stride=strides[0], space_stride=strides[1], depth=1)
    for T, H, W in [(1, 1, 1), (4, 3, 2), (5, 2, 3)]:
        tokens_BTHWD = random_tokens(1, T, H, W)
        with torch.no_grad():
            torch.testing.assert_close(compressor(tokens_BTHWD)[0], convolved(compressor, tokens_BTHWD[0]))


def test_the_spatio_temporal_convolution_keeps_the_sizes_of_its_source() -> None:
    """A convolution of stride 2 and padding 1: n becomes n // 2 + 1 (there 24 x 24 and 8 or 16 frames)."""
    compressor = built(name="spatio_temporal_convolution")
    for n in range(1, 40):
        assert compressor.shortened(n, n, 24) == (n // 2 + 1, n // 2 + 1, 13)
