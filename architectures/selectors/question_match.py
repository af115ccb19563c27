"""Frames that resemble the question's words: the choice differs from question to question."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from architectures.selectors.base import SELECTORS, Selector
from architectures.selectors.cheap_encoder import CheapEncoder, draw_, visible_to_initialisation

PADDING = -1  # stands in `question_BW` where a shorter question has no word


@SELECTORS.register("question_match")
class QuestionMatch(Selector):
    """Scores a frame by the cosine between the question and the frame's best matching place.

    Ranking frames by an image-text encoder's similarity to the question is the training-free selection that
    BOLT (arXiv 2503.21483) and AKS (arXiv 2502.21271) compare with and build on; here the highest are taken,
    without their spread over time. A question is the sum of its words' vectors, a frame's places are a cheap
    encoder's features, projected to the same `width`. Frames and words have to be trained to match, or loaded:
    with random weights the choice means nothing. `scores` passes gradients to whatever requires them.

    Args:
        vocab_size: number of word ids; the model supplies its decoder's.
    """

    needs_question = True

    def __init__(
        self,
        vocab_size: int,
        keep: int = 16,
        encoder: dict[str, Any] | None = None,
        width: int = 32,
        seed: int = 0,
        image_mean: Sequence[float] | None = None,
        image_std: Sequence[float] | None = None,
    ):
        super().__init__(keep)
        self.cheap = CheapEncoder(encoder, seed, image_mean, image_std)
        self.place = nn.Linear(self.cheap.encoder.width, width, bias=False)
        self.word = nn.Embedding(vocab_size, width)
        self.seed = seed
        visible_to_initialisation(self)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws what is not the cheap encoder's from `seed`, without touching the state of torch's generator."""
        place, word = self.place, self.word
        draw_(place, lambda: nn.Linear(place.in_features, place.out_features, bias=False), self.seed)
        draw_(word, lambda: nn.Embedding(word.num_embeddings, word.embedding_dim), self.seed)

    def scores(self, frames_BTCHW: torch.Tensor, question_BW: torch.Tensor | None = None) -> torch.Tensor:
        """`scores_BT` in [-1, 1]; `question_BW` holds word ids, PADDING (-1) where a question has no word.

        Raises ValueError without a question for every video, or for an id outside the vocabulary.
        """
        if question_BW is None or len(question_BW) != len(frames_BTCHW):
            asked = "none" if question_BW is None else len(question_BW)
            raise ValueError(
                f"selector 'question_match' needs one question (word ids) per video: it got {len(frames_BTCHW)} "
                f"videos and {asked} questions."
            )
        if not question_BW.is_meta and (question_BW.max() >= self.word.num_embeddings or question_BW.min() < PADDING):
            raise ValueError(
                f"selector 'question_match': word ids lie between {PADDING} (none) and "
                f"{self.word.num_embeddings - 1}, but one is {int(question_BW.max())} or {int(question_BW.min())}."
            )
        words_BWD = self.word(question_BW.clamp(min=0)) * (question_BW != PADDING)[..., None]
        question_BD = F.normalize(words_BWD.sum(1), dim=-1)
        features_BTPV = self.cheap(frames_BTCHW).to(self.place.weight.dtype)
        places_BTPD = F.normalize(self.place(features_BTPV), dim=-1)
        return torch.einsum("btpd,bd->btp", places_BTPD, question_BD).amax(-1)

    def scoring_flops(self, T: int) -> int:
        P, D = self.cheap.encoder.grid[0] * self.cheap.encoder.grid[1], self.place.out_features
        return T * (self.cheap.flops_per_frame() + 2 * P * D * self.place.in_features + 2 * P * D)
