"""No selection: the encoder sees every frame."""

import torch

from architectures.selectors.base import SELECTORS, Selector


@SELECTORS.register("all")
class AllFrames(Selector):
    """Keeps every frame."""

    def __init__(self) -> None:
        super().__init__()

    def n_frames(self, T: int) -> int:
        return T

    def scores(self, frames_BTCHW: torch.Tensor, question_BW: torch.Tensor | None = None) -> torch.Tensor:
        return torch.ones(frames_BTCHW.shape[:2], device=frames_BTCHW.device)
