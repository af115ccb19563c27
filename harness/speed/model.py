"""How fast a token is decoded with slow keys and values kept or projected again, and how fast costs are counted."""

from collections.abc import Sequence

import torch

from architectures.bench import GRID_18, MEASURED, Session, config_of, open_model
from architectures.cost import decode_cost, prefill_cost
from harness.compose import compose
from harness.models import model_config
from harness.profilers.flops import count_decode, count_prefill
from harness.profilers.timing import Rounds
from harness.progress import SILENT, Progress
from harness.speed.rows import MS, Case, Measurement, measure

HYBRID_LAYERS = [0, 4]  # of MEASURED's eight
COUNTED = ("self_attention", "slow_fast")
COUNTED_FRAMES, TEXT_TOKENS = 128, 64


class Reprojecting(Session):
    """As the official code: every step projects the slow keys and values again."""

    @torch.no_grad()
    def prefill(self) -> float:
        """As `Session.prefill`; what the projection starts from is kept."""
        seconds = super().prefill()
        self.prompts = [self.model.see(None, self.features_BTPV, None)]
        self.is_video_BL = self.prompt_BL == self.model.config.video_token_id
        return seconds

    @torch.no_grad()
    def step(self) -> float:
        """Seconds of one more token, without the projection, which comes before."""
        self.cache.slow_memory = self.model.memorise(self.prompts, self.is_video_BL, None)
        return super().step()


def decode_steps(frames: Sequence[int], rounds: Rounds, progress: Progress = SILENT) -> list[Measurement]:
    """Milliseconds of one decoded token of a mid-size slow-fast model behind each number of frames."""
    torch.manual_seed(0)
    model = open_model(config_of(MEASURED, GRID_18, placement={"name": "list", "layers": HYBRID_LAYERS}))
    cases = []
    for count in frames:
        again, kept = Reprojecting(model, count), Session(model, count)
        again.prefill(), kept.prefill()
        what = f"one token behind {count} frames"
        cases += [Case(what, "slow K/V projected again", again.step), Case(what, "slow K/V kept", kept.step)]
    return measure("decode step", cases, MS, rounds, progress)


def profile_grid(rounds: Rounds, progress: Progress = SILENT, scale: str = "paper") -> list[Measurement]:
    """Milliseconds of one cell of the profile, prefill and decoded token: torch's counter, and the closed form."""
    cases = []
    for architecture in COUNTED:
        encoder = ["encoder=convnext_xxlarge"] if scale == "paper" else []
        config = model_config(compose([f"scale={scale}", *encoder, f"architecture={architecture}"]))
        what = f"{architecture}, {COUNTED_FRAMES} frames, {scale}"
        for variant, counts in (
            ("torch's counter", (count_prefill, count_decode)),
            ("closed form", (prefill_cost, decode_cost)),
        ):

            def run(config=config, counts=counts) -> None:
                for count in counts:
                    count(config, COUNTED_FRAMES, TEXT_TOKENS)

            cases.append(Case(what, variant, run))
    return measure("profile grid, one cell", cases, MS, rounds, progress)
