"""Pretraining of the mini encoder: it learns, and a run cut off goes on as if nothing had happened."""

from pathlib import Path

import pytest
import torch

from harness.mini import encoder as pretraining
from harness.mini.encoder import EncoderRecipe, pretrain_encoder

VISION = {"name": "tiny", "width": 16, "image_size": 64}
RECIPE = EncoderRecipe(clips=3, steps=12, batch=32)


class CutOff(Exception):
    """Stands in for a kill."""


def no_report(bar: str, done: int, total: int) -> None:
    """Nobody watches."""


def test_a_run_cut_off_ends_with_the_weights_of_one_that_was_not(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(pretraining, "SAVE_EVERY", 4)
    whole, _ = pretrain_encoder(VISION, 5, RECIPE, no_report)

    def cut_off(bar: str, done: int, total: int) -> None:
        if bar == "encoder" and done == 10:
            raise CutOff

    checkpoint = tmp_path / "checkpoint.pt"
    with pytest.raises(CutOff):
        pretrain_encoder(VISION, 5, RECIPE, cut_off, checkpoint)
    steps = []
    resumed, _ = pretrain_encoder(
        VISION, 5, RECIPE, lambda bar, done, total: steps.append(done) if bar == "encoder" else None, checkpoint
    )
    assert steps == [9, 10, 11, 12]
    for name, weight in whole.state_dict().items():
        assert torch.equal(weight, resumed.state_dict()[name]), name


def test_it_learns_to_tell_glyphs_from_empty_ground() -> None:
    encoder, accuracy = pretrain_encoder(VISION, 5, EncoderRecipe(clips=8, steps=250, batch=64), no_report)
    assert accuracy["empty"] > 0.8
    assert accuracy["colour"] > 3 / 6
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
