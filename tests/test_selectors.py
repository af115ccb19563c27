"""Frame selectors: against plain loops, planted events, cost, and the same choice in training and evaluation."""

from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from small_models import small_config
from torch.utils.flop_counter import FlopCounterMode

from architectures import SlowFastForConditionalGeneration
from architectures.encoders import ENCODERS, Encoder
from architectures.selectors import SELECTORS, Selector, choose, pick

KEEP = 3
SMALL = {"name": "tiny", "width": 8, "image_size": 16}
SPECS = {
    "all": {"name": "all"},
    "uniform": {"name": "uniform", "keep": KEEP},
    "frame_difference": {"name": "frame_difference", "keep": KEEP, "size": 4},
    "median_distance": {"name": "median_distance", "keep": KEEP, "size": 4},
    "salience": {"name": "salience", "keep": KEEP, "encoder": SMALL},
    "question_match": {"name": "question_match", "keep": KEEP, "encoder": SMALL, "width": 5, "vocab_size": 7},
}
SEEING = ("frame_difference", "median_distance", "salience")  # those whose choice depends on the video alone


def built(name: str, **options: object) -> Selector:
    return SELECTORS.build({**SPECS[name], **options}).eval()


def noise(B: int = 2, T: int = 9, size: int = 16, seed: int = 0) -> torch.Tensor:
    return torch.randn(B, T, 3, size, size, generator=torch.Generator().manual_seed(seed))


def question(selector: Selector, B: int = 2) -> torch.Tensor | None:
    return torch.tensor([[1, 4, -1], [2, 0, 3]])[:B] if selector.needs_question else None


def with_flashes(T: int, places: list[int], size: int = 16) -> torch.Tensor:
    """A still, faintly noisy scene in which a bright square appears at `places`, `frames_1TCHW`."""
    frames_BTCHW = torch.randn(1, 1, 3, size, size).expand(1, T, -1, -1, -1) + 0.02 * noise(1, T, size, seed=5)
    frames_BTCHW[:, places, :, 2:7, 3:8] += torch.tensor([3.0, -2.0, 1.0])[:, None, None]
    return frames_BTCHW


# ------------------------------------------------------------------------------------------------- the choice


def chosen_by_loop(scores: list[float], keep: int) -> list[int]:
    """Takes the best that is left, the earlier of equals, and sorts."""
    left, taken = dict(enumerate(scores)), []
    while left and len(taken) < keep:
        best = min(left, key=lambda place: (-left[place], place))
        taken.append(best)
        del left[best]
    return sorted(taken)


@pytest.mark.parametrize("keep", [1, 2, 5, 11, 12, 40])
def test_choice_is_a_plain_loops(keep: int) -> None:
    rng = np.random.default_rng(keep)
    scores_BT = torch.from_numpy(np.concatenate([rng.normal(size=(4, 12)), rng.integers(0, 3, (4, 12))]))
    index_BK = choose(scores_BT, keep)
    assert index_BK.shape == (8, min(keep, 12))
    assert index_BK.tolist() == [chosen_by_loop(row, keep) for row in scores_BT.tolist()]


def test_of_equals_the_earliest_are_kept() -> None:
    assert choose(torch.zeros(1, 100), 4).tolist() == [[0, 1, 2, 3]]
    assert choose(torch.tensor([[1.0, 2.0, 2.0, 2.0, 3.0]]), 3).tolist() == [[1, 2, 4]]


def test_a_score_that_is_no_number_is_refused() -> None:
    with pytest.raises(ValueError, match="a frame's score is not a number"):
        choose(torch.tensor([[0.0, float("nan")]]), 1)


def test_what_is_chosen_is_picked_from_frames_and_times() -> None:
    frames_BTCHW, times_BT = noise(), torch.linspace(0, 1, 9).expand(2, -1)
    index_BK = torch.tensor([[0, 4, 8], [1, 2, 3]])
    for b, row in enumerate(index_BK.tolist()):
        for k, place in enumerate(row):
            assert torch.equal(pick(frames_BTCHW, index_BK)[b, k], frames_BTCHW[b, place])
            assert pick(times_BT, index_BK)[b, k] == times_BT[b, place]


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("T", [1, 2, KEEP, KEEP + 1, 9])
def test_any_number_of_frames(name: str, T: int) -> None:
    selector, frames_BTCHW = built(name), noise(T=T)
    index_BK = selector(frames_BTCHW, question(selector))
    assert index_BK.shape == (2, selector.n_frames(T))
    assert selector.n_frames(T) == (T if name == "all" else min(T, KEEP))
    assert all(row == sorted(set(row)) and row[0] >= 0 and row[-1] < T for row in index_BK.tolist())
    if selector.n_frames(T) == T:
        assert index_BK.tolist() == [list(range(T))] * 2
    kept = pick(frames_BTCHW, index_BK)  # what was kept is kept when it is offered again
    assert selector(kept, question(selector)).tolist() == [list(range(selector.n_frames(T)))] * 2


@pytest.mark.parametrize("name", SPECS)
def test_videos_of_a_batch_do_not_influence_each_other(name: str) -> None:
    selector, frames_BTCHW = built(name), noise(T=20)
    index_BK, asked = selector(frames_BTCHW, question(selector)), question(selector)
    for b in range(2):
        alone = selector(frames_BTCHW[b : b + 1], None if asked is None else asked[b : b + 1])
        assert torch.equal(alone[0], index_BK[b])
    if name in (*SEEING, "question_match"):
        assert not torch.equal(index_BK[0], index_BK[1])


def test_uniform_frames_are_those_of_uniform_sampling() -> None:
    from harness.video import uniform_indices

    for T in (2, 5, 16, 17, 40, 127, 128, 999):
        for keep in (1, 2, 3, 16, 31):
            index_BK = SELECTORS.build({"name": "uniform", "keep": keep})(torch.empty(1, T, 3, 1, 1))
            assert index_BK[0].tolist() == uniform_indices(T, min(T, keep)).tolist()


# ------------------------------------------------------------------------------------------------- the scores


def mean_colours(frame_CHW: torch.Tensor, rows: int) -> list[list[float]]:
    """The mean colour of each cell of a frame cut into `rows` x `rows`, by hand."""
    side = frame_CHW.shape[-1] // rows
    corners = [(y * side, x * side) for y in range(rows) for x in range(rows)]
    return [[frame_CHW[c, y : y + side, x : x + side].mean().item() for c in range(3)] for y, x in corners]


def largest(cells: list[list[float]], others: list[list[float]]) -> float:
    return max(sum((a - b) ** 2 for a, b in zip(*pair, strict=True)) for pair in zip(cells, others, strict=True))


def lower_median(numbers: list[float]) -> float:
    return sorted(numbers)[(len(numbers) - 1) // 2]


@pytest.mark.parametrize("T", [1, 2, 8, 9])
def test_frame_difference_by_a_plain_loop(T: int) -> None:
    frames_BTCHW = noise(T=T)
    for video, scores in zip(frames_BTCHW, built("frame_difference").scores(frames_BTCHW), strict=True):
        cells = [mean_colours(frame, 4) for frame in video]
        expected = [0.0, *(largest(cells[t], cells[t - 1]) for t in range(1, T))]
        assert scores.tolist() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("T", [1, 2, 8, 9])
def test_median_distance_by_a_plain_loop(T: int) -> None:
    frames_BTCHW = noise(T=T)
    for video, scores in zip(frames_BTCHW, built("median_distance").scores(frames_BTCHW), strict=True):
        cells = [mean_colours(frame, 4) for frame in video]
        usual = [[lower_median([cells[t][p][c] for t in range(T)]) for c in range(3)] for p in range(16)]
        assert scores.tolist() == pytest.approx([largest(cells[t], usual) for t in range(T)], rel=1e-4, abs=1e-9)


@pytest.mark.parametrize("size", [16, 32])
def test_salience_by_a_plain_loop(size: int) -> None:
    """On frames of the cheap encoder's own size, and twice as large: then each 2 x 2 pixels are averaged."""
    selector, frames_BTCHW = built("salience"), noise(T=6, size=size)
    for video, scores in zip(frames_BTCHW, selector.scores(frames_BTCHW), strict=True):
        small = [(f[:, ::2, ::2] + f[:, 1::2, ::2] + f[:, ::2, 1::2] + f[:, 1::2, 1::2]) / 4 for f in video]
        small = small if size == 32 else video
        features = [selector.cheap.encoder.encode(frame[None])[0].tolist() for frame in small]
        V = len(features[0][0])
        usual = [[lower_median([f[p][v] for f in features]) for v in range(V)] for p in range(len(features[0]))]
        assert scores.tolist() == pytest.approx([largest(f, usual) for f in features], rel=1e-3, abs=1e-9)


@pytest.mark.parametrize("name", SEEING)
def test_planted_flashes_are_found(name: str) -> None:
    """Frames with the flash, whichever way the colours change; the reverse of the ranking would miss all."""
    torch.manual_seed(0)
    places = [4, 11, 17]
    for sign in (1, -1):
        frames_BTCHW = sign * with_flashes(20, places)
        keep = 6 if name == "frame_difference" else 3  # what vanishes is a change too
        index_BK = built(name, keep=keep)(frames_BTCHW)
        expected = sorted({*places, *(p + 1 for p in places)}) if name == "frame_difference" else places
        assert index_BK.tolist() == [expected]


def test_a_small_vivid_flash_outweighs_a_large_faint_change() -> None:
    frames_BTCHW = torch.zeros(1, 12, 3, 16, 16)
    frames_BTCHW[:, 3] += 0.3
    frames_BTCHW[:, 8, 0, 4:8, 4:8] = 2.0
    for name in ("frame_difference", "median_distance"):
        assert built(name, keep=1)(frames_BTCHW).tolist() == [[8]]
    assert frames_BTCHW[:, 3].abs().sum() > frames_BTCHW[:, 8].abs().sum()


# ------------------------------------------------------------------------------------------- cheap encoders


def weights(selector: Selector) -> torch.Tensor:
    return torch.cat([parameter.flatten() for parameter in selector.parameters()])


def test_untrained_weights_are_a_function_of_the_seed_alone() -> None:
    torch.manual_seed(1)
    first = built("salience")
    torch.manual_seed(2)
    second = built("salience")
    assert torch.equal(weights(first), weights(second))
    assert not torch.equal(weights(first), weights(built("salience", seed=1)))
    assert not any(parameter.requires_grad for parameter in first.parameters())
    for module in first.cheap.encoder.children():  # as transformers initialises a model: children first
        module.reset_parameters()
    assert not torch.equal(weights(first), weights(second))
    state = torch.get_rng_state()
    first.cheap.reset_parameters()
    assert torch.equal(weights(first), weights(second))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", ["salience", "question_match"])
def test_a_models_selector_is_a_function_of_the_seed_alone(name: str, tmp_path: Path) -> None:
    """However the model comes about; but weights that were saved are kept."""
    spec = {key: value for key, value in SPECS[name].items() if key != "vocab_size"}
    config = small_config("architecture=self_attention", selector=spec)
    vocab_size = {"vocab_size": config.text_config.vocab_size} if name == "question_match" else {}
    expected = weights(built(name, **vocab_size))

    base = SlowFastForConditionalGeneration(small_config("architecture=self_attention"))
    base.save_pretrained(tmp_path / "base")
    for seed in (1, 2):
        torch.manual_seed(seed)
        model = SlowFastForConditionalGeneration(config)
        completed = SlowFastForConditionalGeneration.from_pretrained(tmp_path / "base", config=config)
        converted = SlowFastForConditionalGeneration.from_base(base, selector=spec)
        for each in (model, completed, converted):
            assert torch.equal(weights(each.selector), expected)
            assert not any(parameter.requires_grad for parameter in each.selector.parameters())
            assert each.selector.cheap.encoder.feature_mean.abs().max() == 0
            assert each.selector.cheap.encoder.feature_std.tolist() == [1.0] * 8

    with torch.no_grad():
        for weight in model.selector.state_dict().values():
            weight.add_(0.5)
    model.save_pretrained(tmp_path / "trained")
    again = SlowFastForConditionalGeneration.from_pretrained(tmp_path / "trained").selector
    assert not any(parameter.requires_grad for parameter in again.parameters())
    assert again.state_dict().keys() == model.selector.state_dict().keys()
    for key, weight in model.selector.state_dict().items():
        assert torch.equal(again.state_dict()[key], weight)


def test_an_encoder_that_a_checkpoint_lacks_starts_as_a_new_one() -> None:
    encoder = ENCODERS.build(SMALL).to("meta").to_empty(device="cpu")
    for tensor in (encoder.position.data, encoder.feature_mean, encoder.feature_std):
        tensor.fill_(7.0)
    encoder.reset_parameters()
    fresh = ENCODERS.build(SMALL)
    for name in ("position", "feature_mean", "feature_std"):
        assert torch.equal(getattr(encoder, name), getattr(fresh, name))


def test_frames_normalised_for_another_encoder_are_normalised_anew() -> None:
    pixels_BTCHW = torch.rand(1, 12, 3, 16, 16, generator=torch.Generator().manual_seed(3))
    other = {"image_mean": (0.5, 0.4, 0.6), "image_std": (0.2, 0.3, 0.1)}
    own = ENCODERS.find("tiny")

    def normalised(mean: tuple, std: tuple) -> torch.Tensor:
        return (pixels_BTCHW - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]

    expected = built("salience").scores(normalised(own.image_mean, own.image_std))
    given = normalised(other["image_mean"], other["image_std"])
    torch.testing.assert_close(built("salience", **other).scores(given), expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(built("salience").scores(given), expected, rtol=1e-2)


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("T", [KEEP, 10])
def test_the_closed_form_is_what_torch_counts(name: str, T: int) -> None:
    selector = built(name)
    frames_BTCHW = noise(B=1, T=T, size=32)
    with FlopCounterMode(display=False) as counter:
        selector(frames_BTCHW, question(selector, 1))
    assert selector.flops(T) == counter.get_total_flops()
    assert (selector.flops(T) > 0) == (name in ("salience", "question_match") and T > KEEP)


# ------------------------------------------------------------------------------------------- the question


class Colours(Encoder):
    """The mean colour of each quadrant of 8 x 8 pixels."""

    image_size, grid, width = 8, (2, 2), 3

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(1))

    def encode(self, images_NCHW: torch.Tensor) -> torch.Tensor:
        return self.scale * torch.nn.functional.adaptive_avg_pool2d(images_NCHW, 2).flatten(2).transpose(1, 2)

    def flops_per_frame(self) -> int:
        return 0


def matcher(**options: object) -> Selector:
    """Words 1, 2, 3 are red, green, blue; word 0 ("the") says nothing."""
    spec = {"name": "question_match", "keep": 2, "encoder": {"name": "test_colours"}, "width": 3, "vocab_size": 4}
    with patch.dict(ENCODERS, {"test_colours": Colours}):  # for a moment: other tests look at the registry
        selector = SELECTORS.build({**spec, **options})
    with torch.no_grad():
        selector.place.weight.copy_(torch.eye(3))
        selector.word.weight.copy_(torch.cat([torch.zeros(1, 3), torch.eye(3)]))
    return selector


def test_frames_that_show_what_is_asked_about_are_kept() -> None:
    frames_BTCHW = -0.5 + 0.1 * noise(1, 12, 8)
    red, green = [2, 9], [5, 6]
    frames_BTCHW[:, red, 0, :4, 4:] = 2.0
    frames_BTCHW[:, green, 1, 4:, :4] = 2.0
    both = frames_BTCHW.expand(2, -1, -1, -1, -1)
    asked = torch.tensor([[0, 1, -1], [2, 0, 0]])
    assert matcher()(both, asked).tolist() == [red, green]
    assert matcher()(-both, asked).tolist() != [red, green]


def test_question_match_by_a_plain_loop() -> None:
    selector, frames_BTCHW, asked = built("question_match"), noise(T=5), torch.tensor([[1, 4, -1], [2, 0, 3]])
    scores_BT = selector.scores(frames_BTCHW, asked)
    words, projection = selector.word.weight, selector.place.weight
    for b in range(2):
        query = sum(words[word] for word in asked[b].tolist() if word >= 0)
        for t in range(5):
            places = selector.cheap.encoder.encode(frames_BTCHW[b, t][None])[0] @ projection.T
            cosines = [torch.dot(place, query) / (place.norm() * query.norm()) for place in places]
            assert scores_BT[b, t].item() == pytest.approx(max(cosines).item(), abs=1e-5)


def test_matching_can_be_learned() -> None:
    """The scores pass gradients to what requires them, and following these finds the frame."""
    selector = built("question_match")
    selector.place.requires_grad_(True)
    selector.word.requires_grad_(True)
    frames_BTCHW, asked, target = noise(T=6), question(selector), torch.tensor([4, 2])
    optimizer = torch.optim.Adam([p for p in selector.parameters() if p.requires_grad], 0.05)
    for _ in range(60):
        loss = torch.nn.functional.cross_entropy(10 * selector.scores(frames_BTCHW, asked), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert selector.scores(frames_BTCHW, asked).argmax(1).tolist() == target.tolist()


@pytest.mark.parametrize(
    ("asked", "complaint"),
    [
        (None, "needs one question .* per video: it got 2 videos and none questions"),
        (torch.tensor([[1]]), "it got 2 videos and 1 questions"),
        (torch.tensor([[7], [0]]), "word ids lie between -1 .none. and 6, but one is 7"),
        (torch.tensor([[-2], [0]]), "word ids lie between -1"),
    ],
)
def test_a_question_is_needed_and_checked(asked: torch.Tensor | None, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        built("question_match")(noise(), asked)


@pytest.mark.parametrize(
    ("spec", "complaint"),
    [
        ({"name": "nope"}, "Unknown selector 'nope': choose one of all, frame_difference, median_distance"),
        ({"name": "uniform", "keep": 0}, "selector: keep is 0, must be at least 1"),
        ({"name": "all", "keep": 3}, "selector 'all' has no option 'keep'"),
        ({"name": "median_distance", "size": 0}, "'median_distance': size is 0, must be at least 1"),
        ({"name": "frame_difference", "size": 0}, "'frame_difference': size is 0, must be at least 1"),
        ({"name": "salience", "encoder": {"name": "nope"}}, "Unknown encoder 'nope'"),
    ],
)
def test_a_selector_that_cannot_be_is_a_sentence(spec: dict, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        SELECTORS.build(spec)
