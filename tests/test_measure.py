"""What is measured: rows by stage, failures among them, and the verb, on small models."""

import dataclasses
from pathlib import Path

import pandas as pd
import pytest
import torch
from small_models import small_config

from architectures.cost import decode_cost, prefill_cost
from harness.cli import main
from harness.profilers import measured_report, profile_gpu
from harness.profilers.attention import kernel
from harness.profilers.measure import PEAK_KINDS, STAGES, VIDEO_DECODING, Measured, Options, Subject, measure
from harness.profilers.random_weights import RandomWeights
from harness.profilers.timing import Rounds
from harness.profilers.workload import Workload
from harness.video import read_frames

CPU = torch.device("cpu")
CONFIGS = {name: small_config(f"architecture={name}") for name in ("self_attention", "slow_fast")}


def options(**changes: object) -> Options:
    given = Options(CPU, torch.float32, Rounds(2, 1), text_tokens=(9,), new_tokens=2)
    return dataclasses.replace(given, **changes)


# ----------------------------------------------------------------------------------------------------- rows


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Measured:
    clip = profile_gpu.write_clip(tmp_path_factory.mktemp("clip") / "clip.mp4")
    return measure(CONFIGS, [8, 24], options(), clip)


def test_there_is_a_row_per_model_frames_and_stage(measured: Measured) -> None:
    rows = measured.rows
    of_models = rows[rows["stage"].ne(VIDEO_DECODING)]
    assert len(of_models) == 2 * 2 * len(STAGES)
    assert not of_models.duplicated(["architecture", "frames", "text_tokens", "stage"]).any()
    assert rows["error"].eq("").all()
    assert rows["rounds"].eq(2).all()
    assert (rows["q1_ms"] <= rows["median_ms"]).all()
    assert (rows["median_ms"] <= rows["q3_ms"]).all()
    assert rows["threads"].eq(torch.get_num_threads()).all()
    assert rows["dtype"].eq("float32").all()
    assert len(rows[rows["stage"].eq(VIDEO_DECODING)]) == 2


def test_stages_add_up(measured: Measured) -> None:
    rows = measured.rows[measured.rows["stage"].ne(VIDEO_DECODING)]
    for _, group in rows.groupby(["architecture", "frames"]):
        row = group.set_index("stage")
        for column in ("flop", "bytes", "predicted_ms"):
            values = row[column].fillna(0)
            prefill = values["slow_keys_values"] + values["decoder"] + values["lm_head"]
            assert values["prefill"] == pytest.approx(prefill)
            assert values["model"] == pytest.approx(values["vision"] + values["projector"] + prefill)
            assert values["end_to_end"] == pytest.approx(values["model"] + 2 * values["decode"])
        assert row["median_ms"]["end_to_end"] > row["median_ms"]["model"] > row["median_ms"]["prefill"]
        assert row["peak_bytes"]["end_to_end"] == row["peak_bytes"][["vision", "projector", "prefill", "decode"]].max()


def test_counted_columns_are_the_closed_form(measured: Measured) -> None:
    for row in measured.rows[measured.rows["stage"].isin(["model", "decode"])].itertuples():
        config = CONFIGS[row.architecture]
        step = decode_cost(config, row.frames, 9, 4)
        expected = prefill_cost(config, row.frames, 9).model if row.stage == "model" else step.step
        assert row.flop == expected
        assert (row.kv_bytes, row.slow_kv_bytes) == (step.kv_bytes, step.slow_kv_bytes)


def test_peak_memory_holds_the_weights_and_grows_with_the_video(measured: Measured) -> None:
    whole = measured.rows[measured.rows["stage"].eq("end_to_end")].set_index(["architecture", "frames"])
    assert whole["peak_kind"].eq(PEAK_KINDS["cpu"]).all()
    assert (whole["peak_bytes"] > whole["kv_bytes"] + whole["slow_kv_bytes"]).all()
    for name in CONFIGS:
        assert whole.loc[(name, 24), "peak_bytes"] > whole.loc[(name, 8), "peak_bytes"]


def test_no_mask_of_all_tokens_by_all_tokens_is_made() -> None:
    rows = measure({"self_attention": CONFIGS["self_attention"]}, [512, 1024], options(rounds=Rounds(1, 1))).rows
    small, large = (row["peak_bytes"] for _, row in rows[rows["stage"].eq("decoder")].iterrows())
    weights = sum(p.nbytes for p in RandomWeights("meta", torch.float32).model(CONFIGS["self_attention"]).parameters())
    assert large - weights < 2.2 * (small - weights)  # a mask of one byte an entry would make it 2.8


def test_measured_over_predicted(measured: Measured) -> None:
    rows = measured.rows[measured.rows["predicted_ms"].notna()]
    assert rows["measured_over_predicted"].tolist() == (rows["median_ms"] / rows["predicted_ms"]).tolist()
    assert set(rows["bound"]) <= {"compute", "memory"}
    assert rows.loc[rows["stage"].eq("decode"), "bound"].eq("memory").all()  # each weight is read for one product
    baseline = measured.rows[measured.rows["architecture"].eq("self_attention")].set_index("stage")
    assert baseline.loc["slow_keys_values", "predicted_ms"].isna().all()


def test_an_attention_that_is_not_to_be_had_is_a_recorded_error() -> None:
    for attention, reason in (("efficient", "No viable backend"), ("flash_attention_2", "FlashAttention2")):
        rows = measure({"self_attention": CONFIGS["self_attention"]}, [4], options(attention=attention)).rows
        assert rows["error"].str.startswith("not available: ").all()
        assert rows["error"].str.contains(reason).all()
        assert rows["median_ms"].isna().all()
        assert rows["flop"].notna().all()


@pytest.mark.parametrize("attention", ["math", "flash", "eager"])
def test_other_attentions_compute_the_same(attention: str) -> None:
    results = []
    for name in ("sdpa", attention):
        subject = Subject(
            "slow_fast", CONFIGS["slow_fast"], RandomWeights("cpu", torch.float32), options(attention=name)
        )
        torch.manual_seed(1)
        with torch.no_grad(), kernel(name):
            workload = Workload(subject.model, 12, 9, 1)
            tokens = workload.tokens_of(workload.encode(workload.random_frames()))
            results.append(workload.decoder(tokens, *workload.remember(tokens)))
    assert torch.allclose(*results, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_other_types_are_measured(dtype: torch.dtype) -> None:
    rows = measure({"slow_fast": CONFIGS["slow_fast"]}, [4], options(dtype=dtype, rounds=Rounds(1, 0))).rows
    assert rows["error"].eq("").all()
    assert rows["dtype"].eq(str(dtype).removeprefix("torch.")).all()
    assert rows["peak_bytes"].isna().all()  # on a processor unmeasured rounds watch memory, and there was none


@pytest.mark.slow
def test_a_compiled_model_is_measured() -> None:
    rows = measure({"slow_fast": CONFIGS["slow_fast"]}, [6, 12], options(compile="eager")).rows
    assert rows["error"].eq("").all()
    assert rows["compile"].eq("eager").all()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_a_gpu_is_measured_by_events_and_its_allocator(dtype: torch.dtype) -> None:
    rows = measure(CONFIGS, [8, 24], options(device=torch.device("cuda", 0), dtype=dtype)).rows
    assert rows["error"].eq("").all()
    assert (rows["median_ms"] > 0).all()
    assert rows["peak_kind"].eq(PEAK_KINDS["cuda"]).all()
    refused = measure(
        CONFIGS, [8], options(device=torch.device("cuda", 0), dtype=torch.float32, attention="flash")
    ).rows
    assert refused["error"].str.startswith("not available: ").all()


# -------------------------------------------------------------------------------------------------- the verb


def test_without_a_gpu_it_says_so_and_exits_2(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert main(["profile-gpu"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: profile-gpu needs a CUDA GPU, and torch finds none on this machine")
    assert main(["profile-gpu", "device=cuda"]) == 2
    assert "torch finds no CUDA GPU here" in capsys.readouterr().err


def test_an_unknown_architecture_is_refused(capsys: pytest.CaptureFixture) -> None:
    assert main(["profile-gpu", "device=cpu", "architectures=[slow_fats]"]) == 2
    assert "there is no architecture 'slow_fats'; there are slow_fast" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("typed", "sentence"),
    [
        ("compile=nonsense", "compile=nonsense: there is no such backend; there are "),
        ("results_dir=FILE/below", "nothing can be written to "),
        ("output=FOLDER", "it is a folder; name a CSV file in it"),
        ("architecture=slow_fast", "write architectures=[slow_fast]"),
        ("device=cuda:7", "device=cuda:7: torch finds "),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_measured(
    typed: str, sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    typed = typed.replace("FILE", str(tmp_path / "file")).replace("FOLDER", str(tmp_path))
    monkeypatch.setattr(profile_gpu, "write_clip", lambda path: pytest.fail("work was begun"))
    given = ["device=cpu", "scale=mini", "encoder=tiny", f"results_dir={tmp_path}", typed]
    assert main(["profile-gpu", *given]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert sentence in line


def test_the_verb_on_a_processor(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    small = ["device=cpu", "scale=mini", "encoder=tiny", "frames=[4,8,16]", "text_tokens=[8]", "dtype=float32"]
    assert main(["profile-gpu", *small, "rounds=2", "new_tokens=2", f"results_dir={tmp_path}"]) == 0
    printed = capsys.readouterr().out
    assert max(map(len, printed.partition("All ")[0].splitlines()[:20])) <= 100
    (file,) = tmp_path.glob("measured_*.csv")
    rows = pd.read_csv(file)
    assert set(rows["architecture"].dropna()) == {"self_attention", "slow_fast"}
    table = file.with_suffix(".md").read_text()
    assert table.startswith("Measured on ")
    assert table.count("| slow_fast |") == table.count("| self_attention |") == 3
    median = rows[rows["stage"].eq("prefill") & rows["frames"].eq(8) & rows["architecture"].eq("slow_fast")]
    assert f"| 8 | slow_fast | {measured_report.number(median['median_ms'].item())} (" in table
    assert len(list((tmp_path / "figures").glob("measured_*.*"))) == 2


def test_cells_that_failed_stand_in_the_table_with_the_reason(tmp_path: Path) -> None:
    failed = measure(CONFIGS, [4], options(attention="efficient"))
    assert all(cells[2] == "not available" for cells in measured_report.as_table(failed))
    assert "| 4 | slow_fast | not available |" in measured_report.as_markdown(failed)
    assert measured_report.draw(failed, tmp_path / "failed")


def test_the_clip_has_its_frames(tmp_path: Path) -> None:
    decoded = read_frames(profile_gpu.write_clip(tmp_path / "clip.mp4"), 5)
    assert decoded.indices_T[-1] == profile_gpu.CLIP_FRAMES - 1


def test_a_mistake_in_one_cell_loses_no_other_and_is_told_at_the_end(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    once_more = Workload.first_token

    def broken(work: Workload, hidden_BLD: torch.Tensor) -> torch.Tensor:
        if work.frames == 4 and hidden_BLD.device.type == "cpu":
            raise ValueError("a mistake, of mine")
        return once_more(work, hidden_BLD)

    monkeypatch.setattr(Workload, "first_token", broken)
    typed = ["device=cpu", "scale=mini", "encoder=tiny", "dtype=float32", "frames=[4,8]", "rounds=1"]
    assert main(["profile-gpu", *typed, "architectures=[slow_fast]", f"output={tmp_path / 'rows.csv'}"]) == 1
    said = capsys.readouterr().err
    assert "in broken" in said
    assert said.endswith("error: 1 cells crashed, see above; all other rows are written\n")
    rows = pd.read_csv(tmp_path / "rows.csv").set_index(["frames", "stage"])
    assert rows.loc[(4, "prefill"), "error"] == "crashed: ValueError: a mistake; of mine"
    assert rows.loc[(8, "prefill"), "median_ms"] > 0
