"""A new compressor is one file and one YAML: in a copy of the packages it is found by name and runs."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from harness.compose import compose
from harness.errors import UserError

ROOT = Path(__file__).parent.parent

COMPRESSOR = '''
"""The last frames only."""

import torch
from torch import nn

from architectures.compressors.base import COMPRESSORS, Compressor


@COMPRESSORS.register("last_frames")
class LastFrames(Compressor):
    """Keeps the last `kept` frames, linearly mapped."""

    def __init__(self, width: int, kept: int = 4):
        super().__init__()
        self.kept, self.map = kept, nn.Linear(width, width)

    def n_tokens(self, T: int, H: int, W: int) -> int:
        return min(T, self.kept) * H * W

    def flops(self, T: int, H: int, W: int) -> int:
        return 2 * self.n_tokens(T, H, W) * self.map.weight.numel()

    def forward(self, tokens_BTHWD: torch.Tensor) -> torch.Tensor:
        return self.map(tokens_BTHWD[:, -self.kept :]).flatten(1, 3)
'''

YAML = """
# The last frames only.
name: last_frames
kept: 3
"""

PROGRAM = """
import torch
from architectures import SlowFastForConditionalGeneration
from architectures.cost import prefill_cost
from harness.compose import compose
from harness.models import model_config, variant_of
from harness.profilers.flops import count_prefill

settings = compose(["compressor=last_frames", "compressor.kept=5"])
config = model_config(settings)
model = SlowFastForConditionalGeneration(config).eval()
assert type(model.compressor).__name__ == "LastFrames"
fast = model.fast_token_count(12)
assert fast == 5 * 4
ids = torch.tensor([[config.video_token_id] * fast + [5, 6, 7]])
features = torch.randn(1, 12, 16, model.encoder.width)
logits = model(input_ids=ids, features=features, frame_times=torch.linspace(0, 1, 12)[None]).logits
assert logits.shape == (1, fast + 3, config.text_config.vocab_size) and logits.isfinite().all()
cost = prefill_cost(config, 12, 3)
assert cost == count_prefill(config, 12, 3) and cost.compressor > 2 * fast * config.text_config.hidden_size**2
base = SlowFastForConditionalGeneration(model_config(compose(["architecture=self_attention"])))
SlowFastForConditionalGeneration.from_base(base, **variant_of(settings))
print("found by name")
"""


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The two packages, by themselves in a new folder."""
    for package in ("architectures", "harness"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def run(copy: Path) -> subprocess.CompletedProcess:
    """The program above, in the copy."""
    path = os.pathsep.join([str(copy), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=copy,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
def test_a_new_compressor_is_one_file_and_one_yaml(copy: Path) -> None:
    with pytest.raises(UserError, match="there is no compressor 'last_frames'; choose one of"):
        compose(["compressor=last_frames"])
    (copy / "architectures" / "compressors" / "last_frames.py").write_text(COMPRESSOR.lstrip())
    (copy / "harness" / "conf" / "compressor" / "last_frames.yaml").write_text(YAML.lstrip())
    done = run(copy)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("found by name")
