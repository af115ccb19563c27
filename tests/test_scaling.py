"""Slopes of known power laws, the overhead's parts by hand, and the verb at tiny sizes."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from small_models import small_config

from architectures import SlowFastConfig
from architectures.cost import Cost, prefill_cost
from harness.cli import main
from harness.compose import compose
from harness.models import model_config
from harness.profilers import scaling
from harness.profilers.overhead import BASELINE, HYBRID, LABELS, compare, counted_parts, measure_overhead
from harness.profilers.scaling import MID_SIZE, TOKENS_9, TOKENS_81, mid_size, slopes_of
from harness.profilers.slopes import slope_of
from harness.profilers.timing import Rounds
from harness.settings import PROFILE

FRAMES = [16, 32, 64, 128, 256, 512, 1024, 1536]
TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "vocab_size": 100,
}


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0, 2.0])
def test_a_power_law_has_its_power_as_slope(power: float) -> None:
    slope = slope_of(FRAMES, [3e9 * n**power for n in FRAMES])
    assert (slope.slope, slope.low, slope.high) == pytest.approx((power,) * 3, abs=1e-9)
    assert (slope.first, slope.last) == pytest.approx((power, power), abs=1e-9)


def test_a_linear_and_a_quadratic_term_have_no_single_slope() -> None:
    slope = slope_of(FRAMES, [100 * n + n**2 for n in FRAMES])
    local = np.log((100 * 32 + 32**2) / (100 * 16 + 16**2)) / np.log(2)
    assert slope.first == pytest.approx(local)
    assert 1 < slope.first < slope.low < slope.slope < slope.high < slope.last < 2


def test_the_interval_is_students() -> None:
    x, noise = np.log(FRAMES), np.array([1, -1, 1, 1, -1, -1, 1, -1]) / 10
    slope = slope_of(FRAMES, np.exp(1.3 * x + noise))
    centred = x - x.mean()
    estimate = (centred @ (1.3 * x + noise)) / (centred @ centred)
    left = 1.3 * x + noise - estimate * centred - (1.3 * x + noise).mean()
    half = stats.t.ppf(0.975, 6) * np.sqrt(left @ left / 6 / (centred @ centred))
    assert (slope.slope, slope.low, slope.high) == pytest.approx((estimate, estimate - half, estimate + half))


def test_two_points_have_no_interval() -> None:
    assert slope_of([16, 32], [1.0, 2.0]) is None


def test_cells_without_a_value_are_left_out_of_the_slope() -> None:
    values = [*(2.0 * n for n in FRAMES[:-1]), None]
    points = pd.DataFrame({"frames": FRAMES, "value": values}).assign(how="measured", architecture="a", scope="model")
    (row,) = slopes_of(points).itertuples()
    assert (row.from_frames, row.to_frames) == (16, 1024)
    assert row.slope == pytest.approx(1)


def test_the_mid_size_decoder_is_as_quadratic_as_7b() -> None:
    config = mid_size(small_config("architecture=self_attention"), TOKENS_9)
    cost = prefill_cost(config, 1536, 64)
    assert cost.fast_tokens == 9 * 1536
    assert cost.self_attention / cost.linear == pytest.approx(5.0, abs=0.05)
    large = prefill_cost(paper(), 1536, 64)
    assert large.self_attention / large.linear == pytest.approx(3.8, abs=0.05)
    hybrid = mid_size(small_config("architecture=slow_fast", "placement.n=8"), TOKENS_81)
    assert prefill_cost(hybrid, 128, 64).slow_tokens == 128 * 81
    assert prefill_cost(hybrid, 128, 64).fast_tokens == 16 * 81


def paper() -> SlowFastConfig:
    """7B's baseline behind an encoder of the same grid, which is faster to build."""
    config = model_config(compose(["scale=paper", "encoder=tiny", "architecture=self_attention"]))
    config.vision = {"name": "tiny", "image_size": 288}
    return config


# ------------------------------------------------------------------------------------------------- overhead


def costs() -> tuple[Cost, ...]:
    configs = {name: small_config(f"architecture={name}") for name, _ in (BASELINE, HYBRID)}
    return tuple(prefill_cost(configs[name], frames, 9) for name, frames in (BASELINE, HYBRID))


def test_the_counted_parts_are_the_prefill() -> None:
    for cost in costs():
        assert sum(counted_parts(cost).values()) == cost.llm_prefill


def test_the_overhead_by_hand() -> None:
    of_base, of_hybrid = costs()
    zero = {part: np.zeros(3) for part in LABELS}
    base = zero | {"decoder": np.array([1.0, 2.0, 4.0]), "lm_head": np.array([1.0, 2.0, 4.0])}
    hybrid = base | {"slow_projection": np.array([0.2, 0.4, 0.4]), "cross_attention": np.array([0.1, 0.1, 0.4])}
    found = compare(base, hybrid, of_base, of_hybrid)
    rows = found.rows.set_index("part")
    assert rows["measured"][LABELS["slow_projection"]] == pytest.approx(10)  # of 10, 10, 5 %
    assert rows["q1"][LABELS["slow_projection"]] == pytest.approx(7.5)
    assert rows["measured"][LABELS["cross_attention"]] == pytest.approx(5)  # of 5, 2.5, 5 %
    assert rows["measured"][LABELS["decoder"]] == 0
    assert rows["measured"]["total"] == pytest.approx(12.5)  # of 15, 12.5, 10 %
    assert found.baseline_ms == pytest.approx((4000, 3000, 6000))
    counted = rows["counted"]
    assert counted["total"] == pytest.approx(100 * (of_hybrid.llm_prefill / of_base.llm_prefill - 1))
    assert counted.drop("total").sum() == pytest.approx(counted["total"])
    speed = of_hybrid.slow_keys_values / 0.4 / 1e9
    assert rows["gflop_per_s"][LABELS["slow_projection"]] == pytest.approx(speed)
    halves = [cost.llm_prefill - cost.self_attention / 2 for cost in (of_hybrid, of_base)]
    assert found.counted_causal == pytest.approx(100 * (halves[0] / halves[1] - 1))
    assert found.counted_causal > counted["total"]
    assert "+12.5% measured" in found.sentence()
    speed = f"({rows['gflop_per_s'][LABELS['slow_projection']]:.0f} GFLOP/s)"
    assert f"points from slow tokens: projection to keys and values {speed}" in found.sentence()
    assert "more than the baseline's" not in found.sentence()  # those layers take what is counted of them


def test_the_overhead_is_measured_part_by_part() -> None:
    configs = {name: small_config(f"architecture={name}") for name, _ in (BASELINE, HYBRID)}
    found = measure_overhead(configs, torch.device("cpu"), torch.float32, 9, Rounds(4, 1))
    assert not found.error
    rows = found.rows.set_index("part")["measured"]
    for part in LABELS:
        if part not in ("decoder", "lm_head"):
            assert rows[LABELS[part]] > 0, part
    assert found.rounds == 4
    assert found.hybrid_ms[0] > 0


def test_an_overhead_that_could_not_be_measured_says_why() -> None:
    configs = {name: small_config(f"architecture={name}") for name, _ in (BASELINE, HYBRID)}
    found = measure_overhead(configs, torch.device("cpu"), torch.float32, 9, Rounds(4, 0, seconds=0))
    assert found.sentence() == "The overhead was not measured: not run: time budget."


# ------------------------------------------------------------------------------------------------- the verb


def test_the_verb(tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaling, "MID_SIZE", MID_SIZE | TINY)
    small = ["scale=mini", "encoder=tiny", "frames=[16,32,64]", "text_tokens=[8]", "rounds=3", "seconds=200"]
    assert main(["scaling", *small, f"results_dir={tmp_path}"]) == 0
    printed = capsys.readouterr().out
    assert "Is it linear?" in printed
    assert "Prefill of slow_fast at 128 frames against self_attention at 16" in printed
    points, slopes = (pd.read_csv(tmp_path / f"{name}.csv") for name in ("scaling", "scaling_slopes"))
    assert len(points) == 2 * 2 * 2 * 3  # counted and measured, architectures, scopes, frames
    assert len(slopes) == 2 * 2 * 2
    counted = points[points["how"].eq("counted at mini scale") & points["scope"].eq("model") & points["frames"].eq(32)]
    baseline = counted[counted["architecture"].eq("self_attention")]["value"].item()
    config = model_config(compose([*small, "architecture=self_attention"], root=PROFILE))
    assert baseline == pytest.approx(prefill_cost(config, 32, 8).model / 1e12)
    assert (tmp_path / "scaling.md").read_text().count("| slow_fast |") == 4
    assert sorted(path.suffix for path in (tmp_path / "figures").iterdir()) == [".png", ".svg"]
