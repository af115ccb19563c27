"""Real tables checked and made into suites: the same rows, deterministic fingerprints, faults named."""

import json
import os
import shutil
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest
from omegaconf import OmegaConf
from stand_in_hub import COUNTS, EVERY, FIVE, stand_in_data

from harness.benchmarks import all_benchmarks, benchmark_named
from harness.errors import UserError
from harness.mini.suite import INDEX_COLUMNS, load_index, load_suite
from harness.real import verb
from harness.real.suite import REAL_COLUMNS, real_suite
from harness.real.tables import read_table, read_tables, table_files
from harness.real.videos import broken, find_videos


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete data root of every benchmark; not to be changed."""
    return stand_in_data(tmp_path_factory.mktemp("stand-ins"))


@pytest.fixture
def data(pristine: Path, tmp_path: Path) -> Path:
    """A copy of it, to be damaged; without suites."""
    return shutil.copytree(pristine, tmp_path / "data", ignore=shutil.ignore_patterns("suites"))


def rewrite(path: Path, **columns: list[object]) -> None:
    """A table with other values in some columns, None for a column that goes."""
    frame = pd.read_parquet(path)
    for name, values in columns.items():
        frame = frame.drop(columns=name) if values is None else frame.assign(**{name: values})
    frame.to_parquet(path, index=False)


# --------------------------------------------------------------------------------------------------------- suite


def test_the_index_has_every_question_with_its_video_and_answer(pristine: Path) -> None:
    suite = real_suite(pristine, EVERY)
    index = load_index(suite)
    assert tuple(index.columns) == REAL_COLUMNS
    assert set(REAL_COLUMNS) == set(INDEX_COLUMNS) - {"family", "clip_seed", "clip_index"}
    assert index.groupby("benchmark").size().to_dict() == {name: count for name, (count, _) in COUNTS.items()}
    assert index.groupby("benchmark")["video"].nunique().to_dict() == {n: videos for n, (_, videos) in COUNTS.items()}
    assert all((suite / "home" / video).is_file() for video in index["video"])
    assert load_suite(suite)["questions"] == {name: count for name, (count, _) in COUNTS.items()}
    rows = {benchmark: part.reset_index(drop=True) for benchmark, part in index.groupby("benchmark")}
    # By hand, from what the stand-ins say.
    assert rows["videomme"].loc[4, ["video", "answer", "n_options"]].tolist() == ["videomme/data/mme_1.mp4", "C", 4]
    assert rows["longvideobench"]["n_options"].tolist() == [3, 4, 5, 3]
    assert rows["longvideobench"]["answer"].tolist() == ["A", "B", "C", "A"]
    assert rows["egoschema_full"]["answer"].isna().all()
    assert rows["activitynetqa"]["n_options"].tolist() == [0, 0]
    assert rows["nextqa_mc_test"]["video"][2] == "nextqa/NExTVideo/4010069383.mp4"
    assert list(rows["longvideobench"]["options"][0]) == ["red", "green", "blue"]
    assert list(rows["nextqa_mc_test"]["options"][0]) == ["red", "green", "blue", "yellow", "white"]
    assert rows["mvbench"]["task"].nunique() == 20
    assert (rows["mvbench"]["doc_id"] == 0).all()


def test_a_suites_tables_are_the_hubs_rows_as_datasets_reads_them(
    pristine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second library: `datasets`, which lmms-eval reads tables with, on the hub's layout and on the suite's."""
    import datasets

    suite, known = real_suite(pristine, EVERY), all_benchmarks()
    tasks = ["videomme", "mlvu_dev", "mvbench_action_sequence", "mvbench_moving_count", "egoschema_subset", "egoschema"]
    tasks += ["longvideobench_val_v", "perceptiontest_val_mc", "nextqa_mc_test", "tempcompass_multi_choice"]
    for benchmark in known.values():
        for task in set(benchmark.tasks) & set(tasks):
            folders = {
                "hub": pristine / "hub" / benchmark.hub,
                "suite": suite / "hub" / benchmark.hub,
            }
            read = {
                name: datasets.load_dataset(
                    str(folder), benchmark.config_of(task), split=benchmark.split, cache_dir=str(tmp_path / name)
                )
                for name, folder in folders.items()
            }
            assert read["suite"].to_list() == read["hub"].to_list(), task
            assert read["suite"].to_list() == read_table(pristine, benchmark, task).docs, task


def test_the_same_data_make_the_same_suite_and_other_data_another(data: Path) -> None:
    first = real_suite(data, FIVE)
    assert real_suite(data, FIVE) == first
    assert first.name != real_suite(data, FIVE, limit=1).name
    assert first.name != real_suite(data, FIVE[:2]).name
    moved = data.rename(data.with_name("moved"))
    assert real_suite(moved, FIVE).name == first.name
    assert (moved / "suites" / first.name / "home" / "mlvu" / "count_1.mp4").is_file()  # the link came along
    with (moved / "home/mlvu/count_1.mp4").open("ab") as file:
        file.write(b"0")
    second = real_suite(moved, FIVE)
    assert second.name != first.name
    table = moved / "hub/sy1998/MLVU_dev/mlvu/test-00000-of-00001.parquet"
    rewrite(table, answer=["A"] * 7)
    assert real_suite(moved, FIVE).name not in (first.name, second.name)


def test_rows_in_another_file_are_the_same_suite(data: Path) -> None:
    first = real_suite(data, ["egoschema"])
    path = data / "hub/lmms-eval/egoschema/Subset/test-00000-of-00001.parquet"
    whole = pq.read_table(path)
    path.unlink()
    pq.write_table(whole.slice(0, 2), path.with_name("test-00000-of-00002.parquet"))
    pq.write_table(whole.slice(2), path.with_name("test-00001-of-00002.parquet"))
    assert real_suite(data, ["egoschema"]) == first


def test_a_limit_is_of_each_task(pristine: Path) -> None:
    suite = real_suite(pristine, ["videomme", "mvbench"], limit=2)
    assert load_index(suite).groupby("benchmark").size().to_dict() == {"videomme": 2, "mvbench": 20}
    [table] = (suite / "hub/lmms-eval/Video-MME").rglob("*.parquet")
    assert pq.read_table(table).num_rows == 2


def test_videos_with_other_endings_are_found_where_the_packaged_task_finds_them(data: Path) -> None:
    video = data / "home/videomme/data/mme_1.mp4"
    video.rename(video.with_suffix(".MP4"))
    index = load_index(real_suite(data, ["videomme"]))
    assert index["video"].tolist() == ["videomme/data/mme_0.mp4"] * 3 + ["videomme/data/mme_1.MP4"] * 3


def test_the_verb_prints_the_folder(pristine: Path, capsys: pytest.CaptureFixture) -> None:
    asked = OmegaConf.create({"data": str(pristine), "benchmarks": ["mlvu"], "limit": 3})
    verb.real_suite(asked, [])
    assert capsys.readouterr().out.strip() == str(real_suite(pristine, ["mlvu"], 3))
    for wrong, words in (
        ({"benchmarks": ["mlvu", "mlvu"]}, "each only once"),
        ({"benchmarks": ["mvlu"]}, "unknown benchmark|there is no"),
        ({"limit": 0}, "limit=0"),
    ):
        with pytest.raises(UserError, match=words):
            verb.real_suite(OmegaConf.create({"data": str(pristine), **wrong}), [])


# ------------------------------------------------------------------------------------------------- damaged tables

VIDEOMME = "lmms-eval/Video-MME/videomme/test-00000-of-00001.parquet"
FAULTS = {
    "no answer": ({"answer": None}, "has no column answer"),
    "no question and no options": ({"question": None, "options": None}, "has no column question and no options"),
    "a wrong letter": ({"answer": ["A", "B", "Q", "A", "B", "C"]}, r"row 2: its answer, options or video cannot be"),
    "too few options": ({"options": [["A. x"] * 3] * 6}, r"row 0: it has 3 options, not 4"),
    "a category of its own": ({"task_type": ["Counting Problem"] * 5 + ["Cooking"]}, r"row 5: its category 'Cooking'"),
    "an answer behind the options": (
        {"answer": ["A", "E", "A", "A", "A", "A"]},
        r"row 1: its answer is option number 5 of 4",
    ),
    "a video outside": ({"videoID": ["a"] * 5 + ["../../x"]}, r"row 5: its video .* outside the data root"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_table_that_does_not_fit_is_named_with_its_row(data: Path, fault: str) -> None:
    columns, words = FAULTS[fault]
    path = data / "hub" / VIDEOMME
    rewrite(path, **columns)
    with pytest.raises(UserError, match=words) as raised:
        real_suite(data, ["videomme"])
    assert str(path) in str(raised.value)
    assert "fetch it again" in str(raised.value)
    assert not (data / "suites").exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "cannot be read as a table"),
        ('{"a": 1}', "a list of objects"),
        ("[]", "has no column"),
        ("[1]", "objects"),
    ],
    ids=["no JSON", "an object", "no rows", "numbers"],
)
def test_broken_json_is_named(data: Path, content: str, words: str) -> None:
    path = data / "hub/OpenGVLab/MVBench/json/action_count.json"
    path.write_text(content)
    with pytest.raises(UserError, match=words) as raised:
        read_tables(data, benchmark_named("mvbench"))
    assert str(path) in str(raised.value)


def test_a_table_without_rows_is_named(data: Path) -> None:
    path = data / "hub" / VIDEOMME
    pq.write_table(pq.read_table(path).slice(0, 0), path)
    with pytest.raises(UserError, match="has no rows"):
        real_suite(data, ["videomme"])


def test_missing_videos_are_named_and_counted(data: Path) -> None:
    for path in sorted((data / "home/mlvu").glob("*.mp4"))[:5]:
        path.unlink()
    with pytest.raises(
        UserError, match=r"lacks mlvu/.*, mlvu/.*, mlvu/.* and 2 more; fetch them: .*benchmarks=\[mlvu\]"
    ):
        real_suite(data, ["mlvu"])


def test_a_card_says_where_the_table_is_if_it_was_moved(data: Path) -> None:
    folder = data / "hub/lmms-eval/egoschema"
    (folder / "Subset").rename(folder / "elsewhere")
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: Subset\n  data_files:\n  - split: test\n    path: elsewhere/test-*\n---\n"
    )
    benchmark = benchmark_named("egoschema")
    assert table_files(data, benchmark, "egoschema_subset") == [folder / "elsewhere/test-00000-of-00001.parquet"]
    assert read_tables(data, benchmark)[0].rows.num_rows == 3


def test_json_lines_are_a_table_too(data: Path) -> None:
    folder = data / "hub/OpenGVLab/MVBench"
    docs = json.loads((folder / "json/action_count.json").read_text()) * 2
    (folder / "lines.jsonl").write_text("".join(json.dumps(doc) + "\n" for doc in docs))
    (folder / "json/action_count.json").unlink()
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: action_count\n  data_files: [{split: train, path: lines.jsonl}]\n---\n"
    )
    assert read_table(data, benchmark_named("mvbench"), "mvbench_action_count").docs == docs


# --------------------------------------------------------------------------------------------------------- videos


def test_all_videos_are_read_or_a_sample_of_them(data: Path) -> None:
    videos = find_videos(read_tables(data, benchmark_named("mvbench")), data / "home")
    assert (len(videos.there), videos.missing) == (20, [])
    bad = {videos.there[1]: b"", videos.there[19]: videos.there[19].read_bytes()[:900]}
    for path, content in bad.items():
        path.write_bytes(content)
    assert set(broken(videos.there, "all")) == set(bad)
    assert set(broken(videos.there, "sampled")) == {videos.there[19]}  # the last is in the sample, the second is not
    with pytest.raises(UserError, match="check=some"):
        broken(videos.there, "some")


# ---------------------------------------------------------------------------------------------- lmms-eval's tasks


@pytest.mark.slow
def test_the_packaged_tasks_find_tables_and_videos_and_an_oracle_is_right(
    pristine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of the multiple choice, by lmms-eval itself: every video is the index's, every right answer scores."""
    judged = ("activitynetqa", "egoschema_full", "videomme_w_subtitle")
    names = [name for name in EVERY if name not in judged]
    suite = real_suite(pristine, names)
    index = load_index(suite).set_index(["task", "doc_id"])
    monkeypatch.setenv("HF_HOME", str(suite / "home"))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("nltk.download", lambda *args, **options: False)  # NExT-QA's module asks for word lists
    from lmms_eval.api.model import lmms
    from lmms_eval.evaluator import simple_evaluate

    seen: dict[tuple[str, int], str] = {}

    class Oracle(lmms):
        """Answers with the index's letter."""

        is_simple = True

        def generate_until(self, requests: list[object]) -> list[str]:
            answers = []
            for request in requests:
                _, _, doc_to_visual, doc_id, task, split = request.args
                [video] = doc_to_visual(self.task_dict[task][split][doc_id])
                seen[task, doc_id] = os.path.relpath(video, suite / "home")
                answers.append(index.loc[(task, doc_id), "answer"])
            return answers

        def loglikelihood(self, requests: list[object]) -> list[object]:
            raise NotImplementedError

        def generate_until_multi_round(self, requests: list[object]) -> list[object]:
            raise NotImplementedError

    known = all_benchmarks()
    tasks = [
        {"task": task, "dataset_path": str(suite / "hub" / known[name].hub)}
        for name in names
        for task in known[name].tasks
    ]
    results = simple_evaluate(model=Oracle(), tasks=tasks, batch_size=1, process_docs_parallel=1)["results"]
    assert {key: index.loc[key, "video"] for key in seen} == seen
    assert len(seen) == len(index)
    for name in names:
        for task in known[name].tasks:
            assert results[task][f"{known[name].metric},none"] == known[name].scale, task
