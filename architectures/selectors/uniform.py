"""Frames at even distances, whatever they show: the control of every other selector."""

import numpy as np
import torch

from architectures.selectors.base import SELECTORS, Selector


@SELECTORS.register("uniform")
class UniformFrames(Selector):
    """Keeps `round(linspace(0, T - 1, keep))`: first and last frame included; a single one is the first."""

    def scores(self, frames_BTCHW: torch.Tensor, question_BW: torch.Tensor | None = None) -> torch.Tensor:
        scores_BT = torch.zeros(frames_BTCHW.shape[:2], device=frames_BTCHW.device)
        T = scores_BT.shape[1]
        scores_BT[:, np.linspace(0, T - 1, self.n_frames(T)).round().astype(np.int64)] = 1
        return scores_BT
