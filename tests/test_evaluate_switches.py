"""Evaluation of real layouts: a choice of benchmarks, prompts, sampling, a judge, answers that are not public."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from stand_in_hub import FRAMES as CLIP
from stand_in_hub import stand_in_data
from tiny import small_suite, tiny_checkpoint

from harness.asking import COLUMNS
from harness.benchmarks import LETTERS, benchmark_named
from harness.errors import UserError
from harness.evaluate import Evaluation, command_line, evaluate
from harness.mini.suite import load_index
from harness.real.suite import real_suite
from harness.sampling import find_rule
from harness.submission import write_submission

SCORED = ("mlvu", "egoschema", "perceptiontest_val_mc", "nextqa_mc_test", "tempcompass")
ASKED = (*SCORED, "egoschema_full")
OPEN = "activitynetqa"


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stand-ins of real benchmarks as a suite."""
    data = stand_in_data(tmp_path_factory.mktemp("data"), (*ASKED, OPEN))
    return real_suite(data, (*ASKED, OPEN))


@pytest.fixture(scope="module")
def done(suite: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Evaluation]:
    """An evaluation of them, with the official prompts and frames."""
    out = tmp_path_factory.mktemp("done")
    options: dict[str, Any] = {"prompts": "official", "sampling": "official", "answer_tokens": 6}
    return out, evaluate(tiny_checkpoint(), suite, out, 64, benchmarks=ASKED, dtype="float32", **options)


def test_real_layouts_are_asked_and_scored(suite: Path, done: tuple[Path, Evaluation]) -> None:
    _, evaluation = done
    index, samples = load_index(suite), evaluation.samples
    index = index[index["benchmark"] != OPEN]
    assert samples.columns.tolist() == COLUMNS
    for name in ("benchmark", "task", "doc_id", "video", "category", "n_options"):
        assert samples[name].tolist() == index[name].tolist()
    assert samples["target"].tolist() == index["answer"].fillna("").tolist()
    assert set(samples["family"]) == {""}
    assert set(evaluation.scores) == set(SCORED)
    for name in SCORED:
        own = samples[samples["benchmark"] == name]
        right = (own["prediction"] == own["target"]) & (own["failure"] == "")
        plain = (own["answer"].str.count("[A-E]") == 1) | (own["failure"] != "")  # of two letters parsers may differ
        assert own["correct"][plain].tolist() == right[plain].tolist()
        score = benchmark_named(name).score(own["correct"].tolist(), own["category"].tolist())
        assert evaluation.scores[name] == pytest.approx(score, abs=1e-3)
    assert samples["answer"].nunique() > 3


def test_what_is_recorded_of_a_run(done: tuple[Path, Evaluation]) -> None:
    out, _ = done
    header = json.loads((out / "journal.jsonl").read_text().splitlines()[0])["journal_of"]
    rule = find_rule("official").formula
    expected = {"prompt_style": "official", "sampling": rule, "dtype": "float32", "device": "cpu", "limit": "none"}
    assert {name: header[name] for name in expected} == expected
    written = json.loads((out / "scores.json").read_text())
    assert (written["prompts"], written["sampling"], written["dtype"]) == ("official", rule, "float32")
    videos = pd.read_parquet(out / "videos.parquet")
    indices = find_rule("official").indices(CLIP, 8, 64).tolist()  # at 2 a second, of 3 seconds: six, not 64
    assert [found.tolist() for found in videos["indices"]] == [indices] * len(videos)
    assert len(indices) == 6


def test_answers_that_are_not_public_become_a_file_and_no_score(done: tuple[Path, Evaluation], tmp_path: Path) -> None:
    out, evaluation = done
    own = evaluation.samples[evaluation.samples["benchmark"] == "egoschema_full"]
    assert not own["correct"].any()
    said = own[own["failure"] == ""]
    expected = {Path(v).stem: LETTERS.index(p) for v, p in zip(said["video"], said["prediction"], strict=True)}
    write_submission(tmp_path / "expected.json", expected)
    assert (out / "submission.json").read_text() == (tmp_path / "expected.json").read_text()
    assert 0 < len(expected) <= len(own)


def test_other_prompts_are_another_run(suite: Path, done: tuple[Path, Evaluation]) -> None:
    with pytest.raises(UserError, match=r"journal of another run: its \w+ is"):
        evaluate(tiny_checkpoint(), suite, done[0], 64, benchmarks=ASKED, sampling="official", answer_tokens=6)


class Judge(BaseHTTPRequestHandler):
    """Finds the first answer right, and the others wrong."""

    asked: list[str]

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append(body["messages"][-1]["content"])
        verdict = "{'pred': 'yes', 'score': 5}" if len(self.asked) == 1 else "{'pred': 'no', 'score': 0}"
        reply = json.dumps({"model": "a judge", "choices": [{"message": {"content": verdict}}]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(reply)))
        self.end_headers()
        self.wfile.write(reply)

    def log_message(self, *args: Any) -> None:
        """Nothing."""


@pytest.fixture
def judge(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What a judge on this machine is asked."""
    Judge.asked = []
    server = HTTPServer(("127.0.0.1", 0), Judge)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setenv("OPENAI_API_URL", f"http://127.0.0.1:{server.server_port}/v1/chat/completions")
    yield Judge.asked
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_judge_of_one_s_own_scores_open_answers(suite: Path, judge: list[str], tmp_path: Path) -> None:
    evaluation = evaluate(tiny_checkpoint(), suite, tmp_path / "out", 8, benchmarks=[OPEN], answer_tokens=4)
    assert evaluation.scores == {OPEN: 50.0}
    assert evaluation.samples["correct"].tolist() == [True, False]
    assert set(evaluation.samples["prediction"]) == {""}
    assert len(judge) == 2
    for asked, answer, failure in zip(judge, *(evaluation.samples[c] for c in ("answer", "failure")), strict=True):
        assert f"Predicted Answer: {answer if not failure else 'The question cannot'}" in asked


@pytest.mark.parametrize(
    ("online", "key", "complaint"),
    [
        (False, "k", "activitynetqa: answers are judged by a language model at api.openai.com; allow it with"),
        (True, "", "activitynetqa: the judge at api.openai.com wants a key; set OPENAI_API_KEY"),
    ],
    ids=["offline", "no key"],
)
def test_a_judge_elsewhere_must_be_asked_for(
    suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, online: bool, key: str, complaint: str
) -> None:
    monkeypatch.delenv("OPENAI_API_URL", raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(UserError, match=complaint):
        evaluate(tiny_checkpoint(), suite, tmp_path / "out", 8, benchmarks=[OPEN, "mlvu"], online=online)
    assert not (tmp_path / "out").exists()


def test_a_choice_that_cannot_be_is_one_sentence(tmp_path: Path) -> None:
    def run(**options: Any) -> None:
        evaluate(tiny_checkpoint(), small_suite(), tmp_path / "out", 8, **options)

    with pytest.raises(UserError, match=r"benchmarks=tempcompass: .* has no questions of it, only of egoschema, long"):
        run(benchmarks=["mlvu", "tempcompass"])
    with pytest.raises(UserError, match="unknown benchmark 'mlv'"):
        run(benchmarks=["mlv"])
    with pytest.raises(UserError, match="limit=0: give a whole number of at least 1"):
        run(limit=0)
    assert not (tmp_path / "out").exists()


def test_videos_that_are_not_there_are_not_downloaded(suite: Path, tmp_path: Path) -> None:
    """lmms-eval would ask the hub for them, five times."""
    bare = tmp_path / "bare"
    (bare / "home").mkdir(parents=True)
    for name in ("suite.json", "index.parquet"):
        (bare / name).write_bytes((suite / name).read_bytes())
    with pytest.raises(UserError, match=r"mlvu: there is no folder .*home/mlvu, in which its videos are looked for"):
        evaluate(tiny_checkpoint(), bare, tmp_path / "out", 8, benchmarks=["mlvu"])


def test_the_command_line_of_a_choice() -> None:
    options = {"prompts": "official", "sampling": "official", "dtype": None}
    command = command_line(tiny_checkpoint(), small_suite(), 16, benchmarks=["mlvu", "mvbench"], **options)
    assert ",frames=16,prompts=official,sampling=official --tasks" in command
    assert command.endswith("--tasks mlvu_dev,mvbench")
    assert "dtype" not in command
