"""The two stages of mini training: `base` (stands in for pretrained encoder and LLM), `adapt` (makes a variant).

Both train on packed questions with three losses: the answer's word, the option's letter after it (and the end
of the turn), and, right at the question's end, the word without options ("open-ended", where that suffices).
What `base` does beyond that is listed in `BaseRecipe`; every item is a switch, disclosed under the table.
"""

import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from architectures import SlowFastForConditionalGeneration
from harness.mini.pool import Pool
from harness.mini.questions import FAMILIES
from harness.mini.stream import ANSWER_LENGTH, TEXT_ONLY, Branch, QuestionStream
from harness.mini.tokenizer import START
from harness.mini.world import COLOURS, FRAMES, GLYPHS, PLACES, Clip
from harness.packing import IGNORED, Packed, answer_targets, pack, packed_logits
from harness.video import uniform_indices

NEEDS_OPTIONS = ("order", TEXT_ONLY)  # families whose question has no answer before its options are known


@dataclass(frozen=True)
class Batch:
    """Questions about clips: the frames that are seen, and the packed turns with their targets."""

    features_BTPV: torch.Tensor
    times_BT: torch.Tensor
    packed: Packed
    answer_BQM: torch.Tensor
    open_BQM: torch.Tensor
    families: list[list[str]]


class PackedQuestions:
    """What both stages share: from clips, frames and drawn questions to a batch, and from it to logits."""

    def __init__(self, pool: Pool, stream: QuestionStream, model: SlowFastForConditionalGeneration):
        self.pool, self.stream = pool, stream
        self.video_token = model.config.video_token_id
        self.fast_tokens = model.fast_token_count

    def batch(self, clips_B: np.ndarray, frames_BT: np.ndarray, branches: list[list[Branch]]) -> Batch:
        """Packs `branches[clip][question]` behind the video of `frames_BT`."""
        tokenizer = self.stream.tokenizer
        user = tokenizer(f"{START}user")["input_ids"]
        prefix = user + [self.video_token] * self.fast_tokens(frames_BT.shape[1])
        ids = [[branch.ids for branch in clip] for clip in branches]
        packed = pack(prefix, ids, tokenizer.pad_token_id, text_prefix=len(user))
        answer_BQM = answer_targets(ids, ANSWER_LENGTH)
        open_BQM = torch.full_like(answer_BQM, IGNORED)
        for b, clip in enumerate(branches):
            for q, branch in enumerate(clip):
                if branch.family not in NEEDS_OPTIONS:
                    open_BQM[b, q, branch.question_end] = branch.ids[-ANSWER_LENGTH]
        return Batch(
            self.pool.features(clips_B, frames_BT),
            torch.from_numpy(frames_BT).float() / (FRAMES - 1),
            packed,
            answer_BQM,
            open_BQM,
            [[branch.family for branch in clip] for clip in branches],
        )

    def logits(
        self, model: SlowFastForConditionalGeneration, batch: Batch, first_layer_reads: bool = False
    ) -> torch.Tensor:
        """Logits `(B, Q, M, vocabulary)` of all branches.

        With `first_layer_reads` text reads the video in the first layer only.
        """
        return packed_logits(
            model,
            batch.packed,
            first_layer_reads,
            features=batch.features_BTPV,
            frame_times=batch.times_BT,
        )


def question_losses(logits_BQMW: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """The sum of the mean losses of word, letter, end and open-ended word; and each question's word loss."""
    answers = batch.answer_BQM != IGNORED
    logits_BQ3W = logits_BQMW[answers].unflatten(0, (*answers.shape[:2], ANSWER_LENGTH))
    targets_BQ3 = batch.answer_BQM[answers].unflatten(0, (*answers.shape[:2], ANSWER_LENGTH))
    losses_BQ3 = F.cross_entropy(logits_BQ3W.flatten(0, 2), targets_BQ3.flatten(), reduction="none").view_as(
        targets_BQ3
    )
    total = losses_BQ3.mean((0, 1)).sum()
    if (batch.open_BQM != IGNORED).any():
        total = total + F.cross_entropy(logits_BQMW.flatten(0, 2), batch.open_BQM.flatten())
    return total, losses_BQ3[..., 0].detach()


@dataclass(frozen=True)
class BaseRecipe:
    """What `base` training does beyond asking questions. Each is a switch; zero turns it off.

    - `text_only`: share of questions that need no video (which option says a word?).
    - `alignment_steps`: for so many steps, single frames are also captioned from their visual tokens.
    - `few_frames_until`, `all_frames_from`: clips of 5 frames at first, growing to 16.
    - `key_frames`: the frames seen are those with events, and fillers (only in this stage).
    - `balance`: families are drawn in proportion to their running word loss plus this floor.
    - `shuffle`: chance that a batch's frames come in random order, each with its true time.
    - `first_layer_reading`: chance that text may read the video in the first layer only.
    """

    videos: int = 16
    questions: int = 8
    text_only: float = 0.125
    alignment_steps: int = 400
    alignment_frames: int = 64
    few_frames_until: int = 250
    all_frames_from: int = 700
    balance: float = 0.15
    shuffle: float = 0.5
    first_layer_reading: float = 0.6


class BaseTraining:
    """The `base` stage: self-attention only, on 5 to 16 frames that hold the events."""

    FRAMES_AT_MOST = 16

    def __init__(self, recipe: BaseRecipe, pool: Pool, stream: QuestionStream, seed: int, model: Any):
        self.recipe, self.seed = recipe, seed
        self.questions = PackedQuestions(pool, stream, model)
        self.pool, self.stream = pool, stream
        self.state: dict[str, Any] = {"word_loss": dict.fromkeys(FAMILIES, 1.4)}

    def loss(self, model: SlowFastForConditionalGeneration, step: int) -> torch.Tensor:
        """Question losses, and for the first steps the captioning of single frames."""
        rng, chance = np.random.default_rng([self.seed, step]), random.Random(f"{self.seed} {step}")
        batch = self.draw(rng, chance, step)
        first_layer = chance.random() < self.recipe.first_layer_reading
        loss, word_loss_BQ = question_losses(self.questions.logits(model, batch, first_layer), batch)
        self.observe(batch.families, word_loss_BQ)
        if step < self.recipe.alignment_steps:
            loss = loss + self.alignment_loss(model, rng)
        return loss

    def draw(self, rng: np.random.Generator, chance: random.Random, step: int) -> Batch:
        """Clips, their frames, and questions that those frames can answer."""
        recipe = self.recipe
        clips_B = rng.choice(len(self.pool), recipe.videos, replace=False)
        n_frames = self.frame_count(chance, step)
        clips = [self.pool.clips[i] for i in clips_B]
        frames_BT = np.stack([key_frames(rng, clip, n_frames) for clip in clips])
        # Counting needs every flash in view, which only the longest clips guarantee.
        families = [f for f in FAMILIES if f != "count" or n_frames == self.FRAMES_AT_MOST]
        weights = [self.state["word_loss"][f] + recipe.balance for f in families]
        branches = [self.ask(chance, clip, families, weights) for clip in clips]
        if chance.random() < recipe.shuffle:
            frames_BT = rng.permuted(frames_BT, axis=1)
        return self.questions.batch(clips_B, frames_BT, branches)

    def ask(self, chance: random.Random, clip: Clip, families: list[str], weights: list[float]) -> list[Branch]:
        """Questions about one clip, families by weight, some without need of the video."""
        drawn = []
        for _ in range(self.recipe.questions):
            text_only = chance.random() < self.recipe.text_only
            family = TEXT_ONLY if text_only else chance.choices(families, weights)[0]
            drawn.append(self.stream.draw(chance, clip, family))
        return self.stream.branches(drawn)

    def frame_count(self, chance: random.Random, step: int) -> int:
        """From 5 frames (one for each glyph that flashes once) to 16, with shorter clips mixed in."""
        recipe, fewest, most = self.recipe, 5, self.FRAMES_AT_MOST
        growth = (step - recipe.few_frames_until) / max(1, recipe.all_frames_from - recipe.few_frames_until)
        longest = fewest + int((most - fewest) * min(1.0, max(0.0, growth)))
        full = chance.random() < (0.7 if longest == most else 0.5)
        return longest if full else chance.randint(fewest, longest)

    def observe(self, families: list[list[str]], word_loss_BQ: torch.Tensor) -> None:
        """Keeps a running mean of each family's word loss."""
        flat = [family for clip in families for family in clip]
        for name, running in self.state["word_loss"].items():
            losses = [
                loss for family, loss in zip(flat, word_loss_BQ.flatten().tolist(), strict=True) if family == name
            ]
            if losses:
                rate = 0.1 * min(1.0, len(losses) / 16)
                self.state["word_loss"][name] = running + rate * (sum(losses) / len(losses) - running)

    def alignment_loss(self, model: SlowFastForConditionalGeneration, rng: np.random.Generator) -> torch.Tensor:
        """Single frames with a flash: each visual token says its place, the glyph and colour seen there."""
        clips_B = rng.choice(len(self.pool), self.recipe.alignment_frames)
        flashes = [clip.flashes[rng.integers(len(clip.flashes))] for clip in (self.pool.clips[i] for i in clips_B)]
        frames_B1 = np.array([[flash.start] for flash in flashes])
        times_B1 = torch.from_numpy(frames_B1).float() / (FRAMES - 1)
        visual = model.watch(self.pool.features(clips_B, frames_B1), model.config.video_pooling)
        tokens_B4D = (visual + model.time_of(times_B1, model.config.fast_time)).flatten(1, 3)
        language = model.language_model
        logits_B4W = language.lm_head(language.model.norm(tokens_B4D))
        words = self.stream.tokenizer.convert_tokens_to_ids
        places_B4 = torch.tensor(words(list(PLACES))).expand(len(flashes), -1)
        seen_2B4 = torch.full((2, len(flashes), len(PLACES)), IGNORED)
        for b, flash in enumerate(flashes):
            seen_2B4[:, b, flash.place] = torch.tensor(words([GLYPHS[flash.glyph], COLOURS[flash.colour]]))
        targets = (places_B4, *seen_2B4)
        return sum(F.cross_entropy(logits_B4W.flatten(0, 1), t.flatten()) for t in targets) / len(targets)


def key_frames(rng: np.random.Generator, clip: Clip, n: int) -> np.ndarray:
    """`n` >= 5 frames in order: the flashes of glyphs that flash once, then others, then no flash."""
    once = [flash.start for flash in clip.flashes if clip.counts[flash.glyph] == 1]
    again = [flash.start for flash in clip.flashes if clip.counts[flash.glyph] > 1]
    shown = {flash.start + d for flash in clip.flashes for d in range(flash.duration)}
    quiet = rng.permutation([t for t in range(FRAMES) if t not in shown])[: max(0, n - len(once) - len(again))]
    others = rng.permutation(np.concatenate([again, quiet]))[: n - len(once)]
    return np.sort(np.concatenate([once, others])).astype(np.int64)[:n]


@dataclass(frozen=True)
class AdaptRecipe:
    """How every variant is adapted: the same steps, data order and rates for all rows of the table."""

    videos: int = 12
    questions: int = 8


class AdaptTraining:
    """The `adapt` stage: all parameters of a variant, on uniformly sampled frames, families drawn alike.

    `choices_NK` are the frames of each clip of the pool that a selector keeps of them (None: all are seen).
    """

    def __init__(
        self,
        recipe: AdaptRecipe,
        pool: Pool,
        stream: QuestionStream,
        seed: int,
        model: Any,
        frames: int,
        choices_NK: np.ndarray | None = None,
    ):
        if choices_NK is not None and len(choices_NK) != len(pool):
            raise ValueError(f"There are choices of frames for {len(choices_NK)} clips, but {len(pool)} clips.")
        self.recipe, self.seed = recipe, seed
        self.choices_NK = choices_NK
        self.questions = PackedQuestions(pool, stream, model)
        self.pool, self.stream = pool, stream
        self.frames_T = uniform_indices(FRAMES, frames)
        self.state: dict[str, Any] = {}

    def loss(self, model: SlowFastForConditionalGeneration, step: int) -> torch.Tensor:
        """Question losses of fresh questions about the step's clips."""
        rng, chance = np.random.default_rng([self.seed, step]), random.Random(f"{self.seed} {step}")
        clips_B = rng.choice(len(self.pool), self.recipe.videos, replace=False)
        branches = []
        for clip in (self.pool.clips[i] for i in clips_B):
            drawn = [
                self.stream.draw(chance, clip, chance.choice(list(FAMILIES))) for _ in range(self.recipe.questions)
            ]
            branches.append(self.stream.branches(drawn))
        batch = self.questions.batch(clips_B, self.frames_of(clips_B), branches)
        return question_losses(self.questions.logits(model, batch), batch)[0]

    def frames_of(self, clips_B: np.ndarray) -> np.ndarray:
        """The frames that the model sees of some clips, `frames_BT`, as in evaluation."""
        if self.choices_NK is None:
            return np.tile(self.frames_T, (len(clips_B), 1))
        return self.choices_NK[clips_B]
