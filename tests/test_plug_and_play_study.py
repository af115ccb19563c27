"""The plug-and-play study: its stages and what they share with the table, conversion, snapshots, and its report."""

import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import tiny_recipe
import torch
from rich.console import Console
from safetensors.torch import load_file
from synthetic_rows import MADE_BY, answers, evaluation, questions
from tiny import small_suite

from architectures import SlowFastForConditionalGeneration
from harness import cli, plug_and_play_report, readme
from harness.compose import compose
from harness.errors import UserError
from harness.mini.conversion import Snapshots, choose_trained, new_parameters, snapshot_folder
from harness.mini.stream import suite_tokenizer
from harness.mini.training import adapt_training_seed, base_training_seed, run_training
from harness.models import model_config, variant_of
from harness.plug_and_play import Study, check_steps
from harness.plug_and_play_points import CURVES, SAMPLES, Point, read, write
from harness.progress import SILENT
from harness.stages import resolve
from harness.statistics import AVERAGE, Scores
from harness.table import Cell, Plan

SCALE = ["scale=test", "base_seeds=[0]"]
STEPS = [0, 4, 8]


def study(*overrides: str) -> Study:
    typed = [*SCALE, *overrides]
    return Study(compose(typed), typed).on(small_suite())


# ------------------------------------------------------------------------------------------------- stages


def test_all_up_to_the_baseline_and_its_scores_are_the_tables_own() -> None:
    typed = ["scale=test", "base_seeds=[0]"]
    cells = [Cell("self_attention", 16), Cell("compressor_only", 128), Cell("slow_fast", 128)]
    table = resolve(Plan(compose(typed), typed, cells).on(small_suite()).stages(), Path("runs"))
    own = resolve(study().stages(), Path("runs"))
    shared = {name for name in own if not name.startswith("study")}
    pools = {f"pool{part}" for part in range(4)}
    baseline = {"model0-self_attention-16", "scores0-self_attention-16"}
    assert shared == {"encoder", *pools, "development", "base0"} | baseline
    assert {name: own[name].key for name in shared} == {name: table[name].key for name in shared}


def test_the_table_keys_do_not_depend_on_the_study() -> None:
    changed = resolve(study("scale.plug_and_play.steps=[0,8]").stages(), Path("runs"))
    before = resolve(study().stages(), Path("runs"))
    differing = {name for name in changed if changed[name].key != before[name].key}
    assert differing == {name for name in changed if name.startswith("study")}


def test_each_curve_starts_where_it_should_and_trains_what_it_should() -> None:
    stages = {stage.name: stage for stage in study("base_seeds=[0,1]").stages()}
    found = {}
    for curve in CURVES:
        stage = stages[f"study1-{curve.name}"]
        arguments = stage.kwargs
        assert arguments["snapshots"] == STEPS
        found[curve.name] = (
            stage.needs["base"],
            arguments["frames"],
            arguments["trains"],
            arguments["variant"]["placement"]["name"],
            arguments.get("nth", 1),
        )
    assert found == {
        "baseline_further": ("model1-self_attention-16", 16, "all", "none", 2),
        "converted_new": ("model1-self_attention-16", 128, "new", "every", 2),
        "converted_all": ("model1-self_attention-16", 128, "all", "every", 2),
        "slow_fast": ("base1", 128, "all", "every", 1),
    }


def test_every_point_is_evaluated_once() -> None:
    made = study()
    names = [made.scores(curve, step, 0).name for curve in CURVES for step in STEPS]
    assert len(set(names)) == len(names) - 1  # two conversions, one start
    assert made.scores(CURVES[1], 0, 0) == made.scores(CURVES[2], 0, 0)
    assert made.scores(CURVES[0], 0, 0) == made.plan.scores(made.baseline, 0)
    late = made.scores(CURVES[2], 8, 0)
    assert (late.needs, late.kwargs["step"], late.kwargs["frames"]) == ({"checkpoint": "study0-converted_all"}, 8, 128)


def test_further_training_draws_anew() -> None:
    seeds = {adapt_training_seed(s, b, nth) for s in (0, 1) for b in (0, 1, 999) for nth in (1, 2)}
    assert len(seeds | {base_training_seed(s, b) for s in (0, 1) for b in (0, 1, 999)}) == 18


@pytest.mark.parametrize("steps", [[0, 4], [4, 8], [0, 8, 4], [0, 4, 4, 8], []])
def test_steps_that_do_not_span_the_training_are_a_sentence(steps: list[int]) -> None:
    with pytest.raises(UserError, match=r"give rising steps, from 0 to the last of scale.adapt.steps=8"):
        check_steps(steps, 8)


def test_mistakes_are_found_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    mistakes = {
        "scale=paper": "scale=paper: this verb trains models from scratch",
        "scale.adapt.steps=9": "scale.plug_and_play.steps=",
        "placement=none": "with hybrid layers: leave out",
        "architecture=slow_fast_official": "the study converts to slow_fast with",
    }
    for override, said in mistakes.items():
        assert cli.main(["plug-and-play", "scale=test", override]) == 2
        assert said in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------------------- conversion


@pytest.fixture(scope="module")
def baseline() -> SlowFastForConditionalGeneration:
    """A random self-attention model of the tests' scale."""
    torch.manual_seed(0)
    config = model_config(compose([*SCALE, "architecture=self_attention"]), suite_tokenizer())
    return SlowFastForConditionalGeneration(config).eval()


def converted(baseline: SlowFastForConditionalGeneration) -> SlowFastForConditionalGeneration:
    variant = variant_of(compose([*SCALE, "architecture=slow_fast"]))
    return SlowFastForConditionalGeneration.from_base(baseline, **variant).eval()


def logits(model: SlowFastForConditionalGeneration, frames: int, seed: int = 0) -> torch.Tensor:
    """Of one random prompt with one random video."""
    draw = torch.Generator().manual_seed(seed)
    n = model.fast_token_count(frames)
    ids_BL = torch.cat([torch.full((1, n), model.config.video_token_id), torch.arange(7, 17)[None]], dim=1)
    features_BTPV = torch.randn(1, frames, *feature_shape(model), generator=draw)
    with torch.no_grad():
        return model(input_ids=ids_BL, features=features_BTPV).logits[:, n:]


def feature_shape(model: SlowFastForConditionalGeneration) -> tuple[int, int]:
    rows, columns = model.encoder.grid
    return rows * columns, model.encoder.width


def test_converted_and_untrained_a_model_is_its_baseline_on_the_same_fast_tokens(baseline) -> None:
    model = converted(baseline)
    assert model.fast_token_count(16) == baseline.fast_token_count(16)
    assert torch.equal(logits(model, 16), logits(baseline, 16))
    with torch.no_grad():
        for gate in model.gates():
            gate.warmup.fill_(1.0)
    assert not torch.allclose(logits(model, 16), logits(baseline, 16), atol=1e-3)  # now slow tokens are read


def test_only_the_new_parameters_train_and_the_encoder_never_does(baseline) -> None:
    model = converted(baseline)
    counts = choose_trained(model, baseline, "new")
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == set(new_parameters(model, baseline)) == {n for n, _ in model.named_parameters() if "cross" in n}
    # Two hybrid layers of width 64 with 2 key heads of 16: K and V with bias, and a gate of 64 + 1 + a warm-up.
    assert counts["n_new"] == counts["n_trained"] == 2 * (2 * (64 * 32 + 32) + 64 + 1 + 1)
    assert counts["n_parameters"] == sum(parameter.numel() for parameter in model.parameters())

    whole = converted(baseline)
    counts = choose_trained(whole, baseline, "all")
    frozen = {name for name, parameter in whole.named_parameters() if not parameter.requires_grad}
    assert frozen == {name for name, _ in whole.named_parameters() if name.startswith("encoder.")}
    encoder = sum(parameter.numel() for parameter in whole.encoder.parameters())
    assert counts["n_trained"] == counts["n_parameters"] - encoder


def test_what_cannot_be_trained_is_a_sentence(baseline) -> None:
    with pytest.raises(ValueError, match="adds none to its base"):
        choose_trained(baseline, baseline, "new")
    with pytest.raises(ValueError, match="choose one of all, new"):
        choose_trained(baseline, baseline, "some")


# ------------------------------------------------------------------------------------------------- snapshots

NO_PROCESSOR = SimpleNamespace(save_pretrained=lambda folder: None)
KEPT = [0, 4, 12, 24]


def snapshots_of(out: Path, die_after: int | None = None) -> dict[int, torch.Tensor]:
    """Train the tiny model of test_train.py to its end, or to its death; the weights it kept."""
    model = tiny_recipe.tiny_model()
    kept = Snapshots(model, NO_PROCESSOR, out, KEPT)

    def after_step(done: int) -> None:
        kept.take(done)
        if done == die_after:
            raise KeyboardInterrupt

    try:
        run_training(model, tiny_recipe.NextToken(), tiny_recipe.OPTIMISATION, out, 0, SILENT, after_step)
    except KeyboardInterrupt:
        assert die_after is not None
    folders = {step: snapshot_folder(out, step) / "model.safetensors" for step in KEPT}
    return {step: load_file(path)["lm_head.weight"] for step, path in folders.items() if path.is_file()}


def test_snapshots_are_of_their_steps_and_a_death_changes_none(tmp_path: Path) -> None:
    whole = snapshots_of(tmp_path / "whole")
    assert list(whole) == KEPT
    assert torch.equal(whole[0], tiny_recipe.tiny_model().state_dict()["lm_head.weight"])
    assert torch.equal(whole[24], tiny_recipe.trained(tmp_path / "plain").state_dict()["lm_head.weight"])
    assert not torch.equal(whole[12], whole[24])

    torn = tmp_path / "killed" / ".step-12.work"
    torn.mkdir(parents=True)
    (torn / "model.safetensors").write_text("half")
    assert list(snapshots_of(tmp_path / "killed", die_after=13)) == [0, 4, 12]
    after = snapshots_of(tmp_path / "killed")
    assert list(after) == KEPT
    assert all(torch.equal(after[step], whole[step]) for step in KEPT)
    assert not torn.exists()


# ------------------------------------------------------------------------------------------------- report

SHARES = {  # share right after 0, 4 and 8 steps
    "baseline_further": (0.48, 0.49, 0.50),
    "converted_new": (0.40, 0.60, 0.66),
    "converted_all": (0.40, 0.70, 0.80),
    "slow_fast": (0.27, 0.55, 0.78),
}


@pytest.fixture(scope="module")
def points_and_samples() -> tuple[pd.DataFrame, pd.DataFrame]:
    """An imagined run of two base seeds, through the files that a real one writes."""
    made, asked = [], questions()
    for base_seed in (0, 1):
        for number, curve in enumerate(CURVES):
            for step, share in zip(STEPS, SHARES[curve.name], strict=True):
                seed = 97 * base_seed + 7 * number + step
                measured = evaluation(answers(asked, share + 0.02 * base_seed, seed))
                which = (curve.name, step, base_seed, measured)
                made.append((point(*which), tagged(*which)))
    folder = small_suite().parent / "imagined"
    write(made, folder)
    return read(folder, "mini", 0)


@pytest.fixture(scope="module")
def scores(points_and_samples) -> Scores:
    return plug_and_play_report.resampled(*points_and_samples)


def point(curve: str, step: int, base_seed: int, measured: SimpleNamespace, **changes) -> Point:
    average = float(np.mean(list(measured.scores.values())))
    new = {"baseline_further": 900, "converted_new": 50}.get(curve, 950)
    fields = {
        **{"scale": "mini", "seed": 0, "base_seed": base_seed, "curve": curve, "step": step, "frames": 128},
        **{"n_trained": new, "n_parameters": 1000, "scores": measured.scores, "average": average},
        **{"n_samples": len(measured.samples), "failures": 0, "unparsed": 0, "training": {}, "timings": {}},
        **{"content_hash": "x", "suite_fingerprint": "f" * 64, "sampling": "uniform", "disclosures": ["A recipe."]},
        **MADE_BY.fields(),
    }
    return Point(**{**fields, **changes})


def tagged(curve: str, step: int, base_seed: int, measured: SimpleNamespace) -> pd.DataFrame:
    return measured.samples.assign(curve=curve, step=step, base_seed=base_seed, failure="")[list(SAMPLES)]


def test_the_tables_scores_are_the_points_pooled_within_their_intervals(points_and_samples, scores) -> None:
    points, samples = points_and_samples
    table = plug_and_play_report.study_table(points, samples, scores)
    assert list(table.columns) == list(plug_and_play_report.COLUMNS)
    assert table["curve"].tolist() == [curve.name for curve in CURVES for _ in STEPS] + ["chance"]
    pooled = points.groupby(["curve", "step"])["average"].mean()
    for line in table[table["seeds"] > 0].itertuples():
        assert line.average == pytest.approx(pooled[line.curve, line.step], abs=1e-6)
        assert line.average_lo < line.average < line.average_hi
    assert 20 < table["average"].iloc[-1] < 34
    assert table["seeds"].tolist() == [2] * 12 + [0]


def test_differences_are_first_minus_second_and_paired(points_and_samples, scores) -> None:
    points, samples = points_and_samples
    gained = plug_and_play_report.differences(samples, scores)
    pooled = points.groupby(["curve", "step"])["average"].mean()
    for line in gained.itertuples():
        expected = pooled[line.first, line.first_step] - pooled[line.second, line.second_step]
        assert line.average == pytest.approx(expected, abs=1e-6)
        assert line.average_lo < line.average < line.average_hi
    by_pair = gained.set_index(["first", "first_step", "second", "second_step"])
    start = ("baseline_further", 0)
    assert by_pair.loc[("converted_all", 0, *start), AVERAGE] < -5  # untrained, it loses
    assert by_pair.loc[("converted_new", 8, *start), AVERAGE] > 10
    assert by_pair.loc[("converted_all", 8, "baseline_further", 8), "p_largest"] < 1e-6
    assert by_pair.loc[("converted_all", 8, "slow_fast", 8), "average_lo"] < 4


def test_it_is_written_fits_a_terminal_and_fills_the_readme(points_and_samples, tmp_path: Path) -> None:
    printed = Console(file=io.StringIO(), width=200)
    plug_and_play_report.write_study(*points_and_samples, tmp_path, printed)
    said = printed.file.getvalue()
    assert max(map(len, said.partition("- Mini scale")[0].splitlines())) <= 80
    files = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    names = {f"tables/plug_and_play_mini.{kind}" for kind in ("csv", "md", "tex")}
    figures = {f"figures/plug_and_play.{kind}" for kind in ("svg", "png")}
    assert files == names | figures | {"tables/plug_and_play_differences_mini.csv"}
    text = (tmp_path / "tables" / "plug_and_play_mini.md").read_text()
    warnings = ("not ends of shorter ones", "8 steps more than slow_fast", "A recipe.")
    for needed in ("chance", "5.0", "converted_new @8", *warnings):
        assert needed in text

    table = pd.read_csv(tmp_path / "tables" / "plug_and_play_mini.csv")
    block = readme.study_block(table).splitlines()
    assert block[0] == "| curve | parameters trained | 0 steps | 4 steps | 8 steps |"
    assert len(block) == 2 + 4 + 1
    assert f"{table.set_index(['curve', 'step']).loc[('converted_new', 4), 'average']:.1f} ± " in block[3]
    gained = readme.differences_block(pd.read_csv(tmp_path / "tables" / "plug_and_play_differences_mini.csv"))
    assert "| `converted_new` at 8 | `baseline_further` at 0 | +" in gained


def test_samples_of_another_run_are_refused(points_and_samples) -> None:
    points, samples = points_and_samples
    spoilt = samples.assign(correct=samples["correct"] ^ samples["step"].eq(4))
    with pytest.raises(UserError, match="the samples give"):
        plug_and_play_report.resampled(points, spoilt)


# ------------------------------------------------------------------------------------------------- end to end

RUN = [sys.executable, "-m", "harness", "plug-and-play", *SCALE, "frames=32", "scale.adapt.steps=40"]
RUN += ["scale.plug_and_play.steps=[0,20,40]"]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_from_nothing_to_curves_with_a_kill_and_beside_the_table(tmp_path: Path) -> None:
    """The reference's last snapshot is the table's own model, whatever was killed on the way."""
    runs = tmp_path / "results" / "runs"
    with subprocess.Popen(RUN, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as run:
        deadline = time.monotonic() + 600
        while not any(runs.glob(".study0-slow_fast-*.work/step-20")):
            assert run.poll() is None, "the run ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.02)
        os.kill(run.pid, signal.SIGKILL)
    time.sleep(2)  # its workers notice
    done = subprocess.run(RUN, cwd=tmp_path, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    points, samples = read(tmp_path / "results", "test", 0)
    assert len(points) == 4 * 3
    assert len(samples) == 12 * 104
    assert points.set_index(["curve", "step"]).loc[("converted_new", 40), "n_trained"] == 8452
    same = points[points["step"].eq(0) & points["curve"].str.startswith("converted")]
    assert same["average"].nunique() == 1
    before = sorted(path.name for path in runs.iterdir())

    train = [*RUN[:3], "train", *RUN[4:], "architecture=slow_fast"]
    trained = subprocess.run(train, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert trained.returncode == 0, trained.stderr
    assert len(trained.stdout.splitlines()) == 1, trained.stdout
    model = Path(trained.stdout.strip())
    (curve,) = (path for path in runs.glob("study0-slow_fast-*") if (path / "adapt.json").is_file())
    assert (model / "model.safetensors").read_bytes() == (curve / "step-40" / "model.safetensors").read_bytes()
    assert {path.name for path in runs.iterdir()} - set(before) <= {model.name, f".{model.name}.lock"}
