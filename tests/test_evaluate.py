"""Evaluation from clip to score: lmms-eval's numbers, its command line, kill -9, and broken videos."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import av
import pandas as pd
import pytest
from tiny import small_suite, tiny_checkpoint

from harness.benchmarks import BENCHMARKS
from harness.errors import UserError
from harness.evaluate import Evaluation, command_line, evaluate, load_evaluation
from harness.journal import UNPARSED
from harness.lmms_plugin import SlowFastMLLM
from harness.mini.suite import load_index
from harness.rows import SAMPLE_COLUMNS
from harness.video import SAMPLING_RULE, read_frames, uniform_indices

FRAMES = 8
ANSWERED = ["task", "doc_id", "prediction", "correct", "failure", "answer"]


def run(out: Path, suite: Path | None = None, frames: int = FRAMES) -> Evaluation:
    return evaluate(tiny_checkpoint(), suite or small_suite(), out, frames)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Evaluation]:
    """One finished evaluation of the small suite, and its folder."""
    out = tmp_path_factory.mktemp("done")
    return out, run(out)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """The questions that the model is really asked from here on."""
    keys: list[tuple[str, int]] = []
    answer = SlowFastMLLM._answer

    def noted(self: SlowFastMLLM, batch: list, videos: dict) -> list:
        keys.extend(q.key for q in batch)
        return answer(self, batch, videos)

    monkeypatch.setattr(SlowFastMLLM, "_answer", noted)
    return keys


def test_every_question_of_the_suite_is_a_sample(done: tuple[Path, Evaluation]) -> None:
    _, evaluation = done
    index, samples = load_index(small_suite()), evaluation.samples
    for name in ("benchmark", "task", "doc_id", "video", "category", "family", "n_options"):
        assert samples[name].tolist() == index[name].tolist()
    assert samples["target"].tolist() == index["answer"].tolist()
    assert {*SAMPLE_COLUMNS} - {*samples.columns} == {"architecture", "frames", "control", "base_seed"}


def test_correct_is_the_prediction_being_the_target(done: tuple[Path, Evaluation]) -> None:
    """Where an answer names a single letter, lmms-eval's parsers and ours must read the same."""
    samples = done[1].samples
    single = samples[samples["answer"].str.count("[A-E]") == 1]
    assert len(single) > 5
    assert (single["correct"] == (single["prediction"] == single["target"])).all()
    wrong = samples[samples["failure"] != ""]
    assert len(wrong) > 0  # this random model leaves answers empty, and letters out
    assert not wrong["correct"].any()


def test_scores_are_the_benchmarks_own_averages(done: tuple[Path, Evaluation]) -> None:
    _, evaluation = done
    samples, scores = evaluation.samples, evaluation.scores
    right = samples.groupby("benchmark")["correct"].mean() * 100
    for name in ("videomme", "egoschema", "longvideobench"):  # means over samples; the last is rounded
        assert scores[name] == pytest.approx(right[name], abs=6e-4)
    for name, categories in (("mlvu", 7), ("mvbench", 20)):  # means over categories
        of_categories = samples[samples["benchmark"] == name].groupby("category")["correct"].mean()
        assert len(of_categories) == categories
        assert scores[name] == pytest.approx(100 * of_categories.mean())


def test_what_is_written(done: tuple[Path, Evaluation]) -> None:
    out, evaluation = done
    assert sorted(path.name for path in out.iterdir()) == [
        *("journal.jsonl", "lmms_eval.log", "samples.parquet", "scores.json", "videos.parquet")
    ]
    again = load_evaluation(out)
    assert again.scores == evaluation.scores
    pd.testing.assert_frame_equal(again.samples, evaluation.samples)


def test_how_each_video_was_read_is_recorded(done: tuple[Path, Evaluation]) -> None:
    out, evaluation = done
    videos = pd.read_parquet(out / "videos.parquet").set_index("video")
    assert sorted(videos.index) == sorted(evaluation.samples["video"].unique())
    assert (videos["total"] == 128).all()
    expected = uniform_indices(128, FRAMES).tolist()
    assert all(indices.tolist() == expected for indices in videos["indices"])
    version = f"pyav {av.__version__} (FFmpeg {av.ffmpeg_version_info})"
    assert set(videos["decoder"]) == {version}
    assert set(videos["reading"]) <= {"seek", "through"}
    assert (videos["seconds"] > 0).all()
    assert (videos["failure"] == "").all()
    scores = json.loads((out / "scores.json").read_text())
    assert scores["decoder"] == version
    assert scores["sampling"] == SAMPLING_RULE
    header = json.loads((out / "journal.jsonl").read_text().splitlines()[0])["journal_of"]
    assert (header["decoder"], header["sampling"]) == (version, SAMPLING_RULE)


def test_a_choice_of_benchmarks_and_the_first_questions_of_each_task(
    done: tuple[Path, Evaluation], tmp_path: Path
) -> None:
    chosen = ["mlvu", "mvbench"]
    evaluation = evaluate(tiny_checkpoint(), small_suite(), tmp_path, FRAMES, benchmarks=chosen, limit=3)
    whole = done[1].samples
    expected = whole[whole["benchmark"].isin(chosen) & (whole["doc_id"] < 3)].reset_index(drop=True)
    assert len(expected) == 23  # of MVBench's tasks each has one
    pd.testing.assert_frame_equal(evaluation.samples[ANSWERED], expected[ANSWERED])
    assert list(evaluation.scores) == chosen
    assert evaluation.scores["mvbench"] == done[1].scores["mvbench"]
    written = json.loads((tmp_path / "scores.json").read_text())
    assert (written["limit"], written["n_samples"]) == (3, 23)
    with pytest.raises(UserError, match="journal of another run: its limit is 3, this run's is none"):
        evaluate(tiny_checkpoint(), small_suite(), tmp_path, FRAMES, benchmarks=chosen)


def test_environment_is_put_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", "/mine")
    monkeypatch.delenv("LMMS_EVAL_DATASETS_CACHE", raising=False)
    with pytest.raises(UserError, match="no checkpoint folder"):
        evaluate(tmp_path / "nothing", small_suite(), tmp_path / "out", FRAMES)
    assert os.environ["HF_HOME"] == "/mine"
    assert "LMMS_EVAL_DATASETS_CACHE" not in os.environ


def test_a_finished_run_asks_nothing_again(done: tuple[Path, Evaluation], asked: list) -> None:
    out, evaluation = done
    again = run(out)
    assert asked == []
    assert again.scores == evaluation.scores
    pd.testing.assert_frame_equal(again.samples, evaluation.samples)


def test_features_that_are_kept_change_no_answer(
    done: tuple[Path, Evaluation], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With an empty folder of features, and with the full one, when nothing is decoded any more."""
    decoded = []

    def noted(path: Path, *args: Any, **kwargs: Any) -> Any:
        decoded.append(path)
        return read_frames(path, *args, **kwargs)

    monkeypatch.setattr("harness.video.read_frames", noted)
    tables = []
    for name in ("cold", "warm"):
        evaluation = evaluate(tiny_checkpoint(), small_suite(), tmp_path / name, FRAMES, features=tmp_path / "kept")
        assert evaluation.scores == done[1].scores
        pd.testing.assert_frame_equal(evaluation.samples[ANSWERED], done[1].samples[ANSWERED])
        tables.append(pd.read_parquet(tmp_path / name / "videos.parquet"))
        assert len(decoded) == len(tables[0]) == 64
    pd.testing.assert_frame_equal(*tables)  # as they were watched when they were decoded, `seconds` too


def test_another_run_does_not_take_over_the_answers(done: tuple[Path, Evaluation]) -> None:
    with pytest.raises(UserError, match="journal of another run: its frames is 8, this run's is 16"):
        run(done[0], frames=16)


DIES = """
import os, signal, sys
from pathlib import Path
from harness.evaluate import evaluate
from harness.journal import Journal

append, batches = Journal.append, []

def append_and_die(self, entries, watched):
    append(self, entries, watched)
    batches.append(1)
    if len(batches) == 5:
        with self.path.open("ab") as file:
            file.write(b'{"task": "mvben')  # the next line, cut off
        os.kill(os.getpid(), signal.SIGKILL)

Journal.append = append_and_die
checkpoint, suite, out = map(Path, sys.argv[1:])
evaluate(checkpoint, suite, out, 8)
"""


@pytest.mark.slow
@pytest.mark.timeout(1200)  # another Python imports lmms-eval meanwhile
def test_kill_9_loses_nothing_that_was_answered(done: tuple[Path, Evaluation], tmp_path: Path, asked: list) -> None:
    arguments = [str(path) for path in (tiny_checkpoint(), small_suite(), tmp_path)]
    killed = subprocess.run([sys.executable, "-c", DIES, *arguments], capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (tmp_path / "scores.json").exists()
    lines = (tmp_path / "journal.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines[1:-1]]
    kept = {(entry["task"], entry["doc_id"]) for entry in records if "watched" not in entry}
    assert len(kept) > 20
    evaluation = run(tmp_path)
    everything = set(zip(evaluation.samples["task"], evaluation.samples["doc_id"], strict=True))
    assert set(asked) == everything - kept
    assert evaluation.scores == done[1].scores
    pd.testing.assert_frame_equal(evaluation.samples[ANSWERED], done[1].samples[ANSWERED])
    videos = [pd.read_parquet(out / "videos.parquet").drop(columns="seconds") for out in (tmp_path, done[0])]
    pd.testing.assert_frame_equal(*videos)  # those watched before the kill, too


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """A copy of the small suite; in each benchmark one video is truncated, one empty, one missing."""
    suite = shutil.copytree(small_suite(), tmp_path / "suite")
    for _, questions in load_index(suite).groupby("benchmark"):
        videos = sorted(questions["video"].unique())
        truncated, empty, missing = (suite / "home" / video for video in videos[:3])
        truncated.write_bytes(truncated.read_bytes()[:20000])
        empty.write_bytes(b"")
        missing.unlink()
    return suite


def test_broken_videos_are_counted_named_and_wrong(done: tuple[Path, Evaluation], broken: Path, tmp_path: Path) -> None:
    evaluation = run(tmp_path / "out", suite=broken)
    samples, whole = evaluation.samples, done[1].samples
    assert len(samples) == len(whole)  # nothing is dropped from the denominator
    videos = samples[samples["failure"].str.contains("video")]
    per_video = {"videomme": 3, "mlvu": 2, "mvbench": 1, "egoschema": 1, "longvideobench": 2}
    for name, questions in per_video.items():
        kinds = videos[videos["benchmark"] == name]["failure"].value_counts().to_dict()
        assert sorted(kinds.values()) == [questions] * 3
        assert set(kinds) == {"unreadable video", "empty video", "missing video"}
    assert not videos["correct"].any()
    assert (videos["prediction"] != videos["target"]).all()
    for video, message in zip(videos["video"], videos["message"], strict=True):
        assert Path(video).name in message
    intact = ~samples.index.isin(videos.index)
    pd.testing.assert_frame_equal(samples.loc[intact, ANSWERED], whole.loc[intact, ANSWERED])
    assert len(evaluation.failed) == len(videos) + (samples["failure"] == "empty answer").sum()
    watched = pd.read_parquet(tmp_path / "out" / "videos.parquet").set_index("video")
    assert watched["failure"].value_counts()[["", "unreadable video", "empty video"]].tolist() == [49, 5, 5]
    assert (watched["total"] == 0).equals(watched["failure"] != "")  # a missing one may never have been opened
    written = json.loads((tmp_path / "out" / "scores.json").read_text())["failures"]
    assert {entry["video"] for entry in written} >= set(videos["video"])
    for name, score in evaluation.scores.items():  # 0 for what failed, in the full denominator
        own = samples[samples["benchmark"] == name]
        assert score == pytest.approx(
            BENCHMARKS[name].score(own["correct"].tolist(), own["category"].tolist()), abs=6e-4
        )


def test_unparsed_answers_are_no_failures(done: tuple[Path, Evaluation]) -> None:
    evaluation = done[1]
    kinds = evaluation.samples["failure"].value_counts()
    assert kinds[UNPARSED] > 0
    assert len(evaluation.failed) == kinds["empty answer"]


@pytest.mark.slow
def test_lmms_evals_command_line_gives_the_same_numbers(done: tuple[Path, Evaluation], tmp_path: Path) -> None:
    """The very command that the harness prints, in a shell, with files to read the numbers from."""
    command = command_line(tiny_checkpoint(), small_suite(), FRAMES)
    command = command.replace(" python -m ", f" {sys.executable} -m ") + f" --output_path {tmp_path}"
    finished = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    files = list(tmp_path.rglob("*_results.json"))
    assert len(files) == 1, finished.stdout + finished.stderr
    results = json.loads(files[0].read_text())["results"]
    for name, benchmark in BENCHMARKS.items():
        values = [results[task][f"{benchmark.metric},none"] for task in benchmark.tasks]
        assert sum(values) / len(values) * 100 / benchmark.scale == done[1].scores[name]


def test_the_command_line_names_control_and_batch() -> None:
    command = command_line(tiny_checkpoint(), small_suite(), 16, "gate_closed", 8)
    assert "frames=16,control=gate_closed,batch=8" in command
    assert "--tasks videomme,mlvu_dev,mvbench,egoschema_subset,longvideobench_val_v" in command


def test_bad_folders_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no evaluation suite"):
        evaluate(tiny_checkpoint(), tmp_path, tmp_path / "out", FRAMES)
    with pytest.raises(UserError, match="holds no finished evaluation"):
        load_evaluation(tmp_path)
