"""lmms-eval's own models: what their command line writes, as an Evaluation; its silent failures, as sentences."""

import json
import os
from pathlib import Path

import pandas as pd
import pytest
from tiny import small_suite

from harness import external
from harness.asking import chosen_index, tasks_of
from harness.benchmarks import BENCHMARKS
from harness.errors import UserError
from harness.evaluate import load_evaluation
from harness.external import answer_of, evaluate_external, judge_answer, read_results
from harness.journal import EMPTY_ANSWER, UNPARSED
from harness.packets import UNREADABLE

STAND_IN = '''
import os
from lmms_eval.api.model import lmms
from lmms_eval.models.registry_v2 import ModelManifest

manifest = ModelManifest("stand_in", simple_class_path="stand_in.StandIn")


class StandIn(lmms):
    """Answers question i of a task with the letter ABC[i % 3]; every third with `third` instead, if that is given."""

    is_simple = True

    def __init__(self, third=None, device=None, batch_size=1, max_batch_size=None):
        super().__init__()
        import torch

        self.device, self.third = torch.device("cpu"), third

    def generate_until(self, requests):
        return [self.answer(request.args[3]) for request in requests]

    def answer(self, doc_id):
        if self.third is None or doc_id % 3:
            return "ABC"[doc_id % 3] + "."
        if self.third == "raise":
            raise ValueError("boom: the model cannot")
        return "" if self.third == "nothing" else str(self.third)

    def loglikelihood(self, requests):
        raise NotImplementedError

    def generate_until_multi_round(self, requests):
        raise NotImplementedError
'''


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A model in a package of its own, which lmms-eval's child processes find by its entry point."""
    package = tmp_path / "package"
    (package / "stand_in-1.0.dist-info").mkdir(parents=True)
    (package / "stand_in.py").write_text(STAND_IN)
    (package / "stand_in-1.0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: stand_in\nVersion: 1.0\n"
    )
    (package / "stand_in-1.0.dist-info" / "entry_points.txt").write_text("[lmms_eval.models]\nit=stand_in:manifest\n")
    monkeypatch.setenv("PYTHONPATH", str(package), prepend=os.pathsep)
    return "stand_in"


def by_hand(index: pd.DataFrame, third: str | None = None) -> list[bool]:
    """Which of the stand-in's answers are right: with a `third`, a third of them never is."""
    return [
        "ABC"[doc_id % 3] == answer and (third is None or doc_id % 3 > 0)
        for doc_id, answer in zip(index["doc_id"], index["answer"], strict=True)
    ]


# ------------------------------------------------------------------------------- what it wrote, without running it


def write_results(out: Path, index: pd.DataFrame, third: str = "A.", reported: float | None = None) -> None:
    """Files as lmms-eval 0.7.3 leaves them after the stand-in answered MVBench's questions: names, nesting, keys."""
    folder = out / external.OUTPUT / "stand_in"
    folder.mkdir(parents=True)
    results = {}
    for task, lines in index.groupby("task"):
        samples = []
        for doc_id, target in zip(lines["doc_id"], lines["answer"], strict=True):
            text = "ABC"[doc_id % 3] + "." if doc_id % 3 else third
            value = {"pred_answer": text, "gt_answer": target, "score": int(text[:1] == target)}
            samples.append({"doc_id": doc_id, "filtered_resps": text, "mvbench_accuracy": value})
        (folder / f"now_samples_{task}.jsonl").write_text("".join(f"{json.dumps(s)}\n" for s in samples))
        # The packaged task leaves empty answers out of its average.
        scored = [s["mvbench_accuracy"]["score"] for s in samples if s["filtered_resps"]]
        mean = 100 * sum(scored) / max(len(scored), 1)
        results[task] = {"mvbench_accuracy,none": mean if reported is None else reported}
    (folder / "now_results.json").write_text(json.dumps({"results": results}))


@pytest.fixture
def mvbench() -> pd.DataFrame:
    return chosen_index(small_suite(), ["mvbench"])


def test_what_lmms_eval_wrote_is_the_evaluation(tmp_path: Path, mvbench: pd.DataFrame) -> None:
    write_results(tmp_path, mvbench)
    evaluation, reported = read_results(mvbench, tmp_path)
    right = by_hand(mvbench)
    assert evaluation.samples["correct"].tolist() == right
    assert 0 < sum(right) < len(right)
    categories = mvbench.assign(right=right).groupby("category")["right"].mean()
    assert evaluation.scores == reported == {"mvbench": pytest.approx(100 * categories.mean())}
    assert evaluation.samples["answer"].tolist() == ["ABC"[doc_id % 3] + "." for doc_id in mvbench["doc_id"]]
    assert evaluation.samples["prediction"].tolist() == ["ABC"[doc_id % 3] for doc_id in mvbench["doc_id"]]
    assert evaluation.samples["target"].tolist() == mvbench["answer"].tolist()
    assert evaluation.samples["seconds"].isna().all()
    assert len(evaluation.failed) == 0


def test_an_empty_answer_is_a_failure_in_the_full_denominator(tmp_path: Path, mvbench: pd.DataFrame) -> None:
    """MVBench's packaged task leaves it out; every task here has one question, number 0."""
    index = mvbench.assign(doc_id=range(len(mvbench)), task=mvbench["task"].iloc[0])
    index["category"] = index["task"].str.removeprefix("mvbench_")
    write_results(tmp_path, index, third="")
    samples, scores = _read(index, tmp_path)
    assert (samples["failure"] == EMPTY_ANSWER).tolist() == [doc_id % 3 == 0 for doc_id in index["doc_id"]]
    assert samples["correct"].tolist() == by_hand(index, third="")
    of_all = 100 * sum(by_hand(index, third="")) / len(index)
    assert scores["reported"] > scores["measured"] == pytest.approx(of_all / 20)  # one of twenty categories


def _read(index: pd.DataFrame, out: Path) -> tuple[pd.DataFrame, dict[str, float]]:
    """One task's results; what lmms-eval reports of it as a mean over all twenty."""
    results = json.loads((file := next(out.rglob("*_results.json"))).read_text())["results"]
    (task,) = results
    zero = {other: {"mvbench_accuracy,none": 0.0} for other in BENCHMARKS["mvbench"].tasks}
    file.write_text(json.dumps({"results": zero | results}))
    evaluation, reported = read_results(index, out)
    assert reported["mvbench"] == pytest.approx(results[task]["mvbench_accuracy,none"] / 20)
    return evaluation.samples, {"measured": evaluation.scores["mvbench"], "reported": reported["mvbench"]}


def test_a_video_that_cannot_be_read_is_a_failure_whatever_was_answered(
    tmp_path: Path, mvbench: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = by_hand(mvbench)
    damaged = mvbench["video"].iloc[right.index(True)]
    write_results(tmp_path, mvbench)
    evaluation, reported = read_results(mvbench, tmp_path, {damaged: "truncated video"})
    about = mvbench["video"].eq(damaged)
    assert evaluation.samples["failure"].tolist() == ["truncated video" if is_about else "" for is_about in about]
    assert not evaluation.samples.loc[about, "correct"].any()
    assert evaluation.scores["mvbench"] < reported["mvbench"]
    assert "the model answered all the same" in evaluation.failed["message"].iloc[0]
    suite = tmp_path / "suite"
    for video in mvbench["video"]:
        (suite / "home" / video).parent.mkdir(parents=True, exist_ok=True)
        (suite / "home" / video).symlink_to(small_suite() / "home" / video)
    (suite / "home" / damaged).unlink()
    (suite / "home" / damaged).write_bytes((small_suite() / "home" / damaged).read_bytes()[:500])
    assert list(external.unreadable(suite, mvbench)) == [damaged]
    assert external.unreadable(small_suite(), mvbench) == {}


def test_answers_without_their_videos_are_no_score(tmp_path: Path) -> None:
    """LLaVA-OneVision's model logs that it cannot load a video, and answers."""
    said = "2026-01-01 | ERROR | x:1 - Error [12:00:00] cannot read\nmore in loading video\n" * 2
    external._expect_seen(said, 2, "llava_onevision", tmp_path)  # as many as about videos that nobody can read
    with pytest.raises(UserError, match="llava_onevision: 1 questions were answered without their videos"):
        external._expect_seen(said, 1, "llava_onevision", tmp_path)


def test_samples_must_add_up_and_be_those_asked_about(tmp_path: Path, mvbench: pd.DataFrame) -> None:
    write_results(tmp_path, mvbench, reported=99.0)
    with pytest.raises(RuntimeError, match=r"mvbench: lmms-eval reports 99.0, its samples add up to"):
        read_results(mvbench, tmp_path)
    more = pd.concat([mvbench, mvbench.tail(1).assign(doc_id=7)])
    with pytest.raises(RuntimeError, match="lmms-eval scored 20 questions, the suite has 21"):
        read_results(more, tmp_path)
    next(tmp_path.rglob("*_samples_mvbench_state_change.jsonl")).unlink()
    with pytest.raises(UserError, match=r"lmms-eval wrote no samples of mvbench_state_change there"):
        read_results(mvbench, tmp_path)


@pytest.mark.parametrize(
    ("wrapped", "text"), [("B.", "B."), (["B."], "B."), ([["B."]], "B."), ([], ""), ("", ""), ([""], "")]
)
def test_an_answer_comes_wrapped_or_not(wrapped: object, text: str) -> None:
    assert answer_of({"filtered_resps": wrapped}) == text


@pytest.mark.parametrize(
    ("answer", "n_options", "letter", "failure"),
    [
        ("B. red", 4, "B", ""),
        (" \n", 4, "", EMPTY_ANSWER),
        ("something red", 4, "", UNPARSED),
        ("red", 0, "", ""),  # an open question
        ("Video /data/A/x.mp4 can not load, check the source", 4, "", UNREADABLE),  # LLaVA-Video's model says so
    ],
)
def test_what_an_answer_is_taken_for(answer: str, n_options: int, letter: str, failure: str) -> None:
    assert judge_answer(answer, n_options)[:2] == (letter, failure)


# --------------------------------------------------------------------------------------- how the child is started


def test_the_users_models_and_token_stay_where_they_are(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HOME", "/mine")
    for name in ("HF_HUB_CACHE", "HF_TOKEN_PATH", "HF_MODULES_CACHE", "OPENAI_API_URL"):
        monkeypatch.delenv(name, raising=False)
    variables = external._environment(tmp_path, 1, "cpu", online=False)
    assert variables["HF_HOME"] == str(tmp_path / "home")
    assert variables["HF_HUB_CACHE"] == "/mine/hub"
    assert variables["HF_TOKEN_PATH"] == "/mine/token"
    assert variables["HF_HUB_OFFLINE"] == "1"
    assert variables["OPENAI_API_URL"] == "http://127.0.0.1:9/"
    monkeypatch.setenv("OPENAI_API_URL", "http://localhost:8000/v1/chat/completions")  # a judge of one's own
    assert external._environment(tmp_path, 1, "cpu", online=False)["OPENAI_API_URL"].startswith("http://localhost:8000")
    online = external._environment(tmp_path, 1, "cpu", online=True)
    assert online["HF_HUB_OFFLINE"] == "0"
    monkeypatch.setenv("OPENAI_API_URL", "https://judge.example/v1")
    assert external._environment(tmp_path, 1, "cpu", online=True)["OPENAI_API_URL"] == "http://127.0.0.1:9/"
    allowed = external._environment(tmp_path, 1, "cpu", online=True, hosts=["judge.example"])
    assert allowed["OPENAI_API_URL"] == "https://judge.example/v1"


def test_what_the_command_line_is_given(tmp_path: Path) -> None:
    arguments = external._arguments("m", {"pretrained": "x", "n": 8}, ["a", "b"], tmp_path, None, 2, "auto")
    assert arguments == [
        *("--model", "m", "--model_args", "pretrained=x,n=8", "--tasks", "a,b", "--batch_size", "2"),
        *("--output_path", str(tmp_path.resolve() / "lmms_eval"), "--process_docs_parallel", "1", "--log_samples"),
    ]


def test_a_task_that_posts_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = chosen_index(small_suite(), ["egoschema"]).assign(benchmark="egoschema_full", task="egoschema")
    monkeypatch.setattr(external, "chosen_index", lambda *args: index)
    with pytest.raises(UserError, match="egoschema_full: lmms-eval's task would post the predictions"):
        evaluate_external("stand_in", {}, small_suite(), tmp_path / "out")


# --------------------------------------------------------------------------------- the real command line (slow)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_model_of_lmms_evals_is_scored_as_by_hand(stand_in: str, tmp_path: Path) -> None:
    index = chosen_index(small_suite())
    evaluation = evaluate_external(stand_in, {}, small_suite(), tmp_path / "one")
    assert evaluation.samples["correct"].tolist() == by_hand(index)
    for name, own in index.assign(right=by_hand(index)).groupby("benchmark"):
        score = BENCHMARKS[name].score(own["right"].tolist(), own["category"].tolist())
        assert evaluation.scores[name] == pytest.approx(score, abs=1e-3)
    pd.testing.assert_frame_equal(load_evaluation(tmp_path / "one").samples, evaluation.samples)
    again = evaluate_external(stand_in, {}, small_suite(), tmp_path / "two", processes=2, device="cpu")
    assert again.scores == evaluation.scores
    pd.testing.assert_frame_equal(again.samples, evaluation.samples)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_silence_is_a_failure(stand_in: str, tmp_path: Path) -> None:
    """MVBench (a question for each task) and MLVU: answers of nothing count, beside those that are there."""
    names = ["mvbench", "mlvu"]
    index = chosen_index(small_suite(), names)
    evaluation = evaluate_external(stand_in, "third=nothing", small_suite(), tmp_path / "out", benchmarks=names)
    assert evaluation.samples["correct"].tolist() == by_hand(index, "nothing")
    failed = evaluation.samples["failure"] == EMPTY_ANSWER
    assert failed.tolist() == [doc_id % 3 == 0 for doc_id in index["doc_id"]]
    summary = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert len(summary["failures"]) == failed.sum() > 0
    assert len(tasks_of(index)) == 21


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_model_that_raises_is_a_failure_though_the_command_line_says_0(stand_in: str, tmp_path: Path) -> None:
    with pytest.raises(
        UserError,
        match=r"stand_in: lmms-eval ended without results \(exit code 0\): ValueError: boom: the model cannot",
    ):
        evaluate_external(stand_in, {"third": "raise"}, small_suite(), tmp_path / "out", benchmarks=["mlvu"], limit=3)
    assert not (tmp_path / "out" / "scores.json").exists()
    with pytest.raises(UserError, match="no_such_model: lmms-eval ended without results"):
        evaluate_external("no_such_model", {}, small_suite(), tmp_path / "out", benchmarks=["mlvu"], limit=3)
