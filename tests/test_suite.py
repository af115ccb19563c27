"""The evaluation suite: complete, reproducible, readable by a person, scored by the packaged tasks."""

import hashlib
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from harness.benchmarks import BENCHMARKS, LETTERS, benchmark_of_task
from harness.errors import UserError
from harness.mini import schema, suite
from harness.mini.contact_sheet import contact_sheet, find_sample
from harness.mini.questions import FAMILIES, Question
from harness.mini.world import EVALUATION_SEEDS, FRAMES, draw_clip
from harness.video import count_frames

Answer = Callable[[str, dict[str, Any]], str]


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    return suite.build_suite(5, suite.SMALL, tmp_path_factory.mktemp("suites") / "small", workers=2)


def answer_rightly(task: str, doc: dict[str, Any]) -> str:
    return f"word {benchmark_of_task(task).target_letter(doc)}"


def answer_a(task: str, doc: dict[str, Any]) -> str:
    return "A"


def lmms_scores(tasks: list[Any], answer: Answer) -> tuple[dict[str, float], list[tuple[str, str, int, str]]]:
    """lmms-eval's own metric per task, and each request as (prompt, task, doc_id, path of the video)."""
    from lmms_eval.api.model import lmms
    from lmms_eval.evaluator import simple_evaluate

    seen = []

    class Answerer(lmms):
        def generate_until(self, requests: list[Any]) -> list[str]:
            answers = []
            for request in requests:
                context, _, doc_to_visual, doc_id, task, split = request.args
                doc = self.task_dict[task][split][doc_id]
                (video,) = doc_to_visual(doc)
                seen.append((context, task, doc_id, video))
                answers.append(answer(task, doc))
            return answers

        # lmms-eval's class is abstract without the next two; should a task ever ask them, the test must fail.
        def loglikelihood(self, requests: list[Any]) -> list[Any]:
            raise NotImplementedError("the five tasks generate")

        def generate_until_multi_round(self, requests: list[Any]) -> list[str]:
            raise NotImplementedError("the five tasks have one round")

    results = simple_evaluate(model=Answerer(), tasks=tasks, batch_size=1, log_samples=False, process_docs_parallel=1)[
        "results"
    ]
    names = [task for entry in BENCHMARKS.values() for task in entry.tasks]
    return {task: results[task][f"{benchmark_of_task(task).metric},none"] for task in names}, seen


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """Point lmms-eval at a suite's videos, and keep what it caches (one folder per process) in a test's."""
    monkeypatch.setenv("LMMS_EVAL_DATASETS_CACHE", str(tmp_path / "datasets"))
    return lambda folder: monkeypatch.setenv("HF_HOME", str(folder / "home"))


def tasks_of(folder: Path) -> list[dict[str, str]]:
    return [
        {"task": task, "dataset_path": str(folder / "hub" / entry.hub)}
        for entry in BENCHMARKS.values()
        for task in entry.tasks
    ]


def expected_for_a(index: pd.DataFrame) -> dict[str, float]:
    """What always answering A scores, by task, as a fraction."""
    return (index.answer == "A").groupby(index.task).mean().to_dict()


def check_requests(folder: Path, seen: list[tuple[str, str, int, str]]) -> None:
    """Each request's prompt and video are the ones the index and the training templates promise."""
    index = suite.load_index(folder).set_index(["task", "doc_id"])
    assert len(seen) == len(index)
    for context, task, doc_id, video in seen:
        row = index.loc[(task, doc_id)]
        question = Question(row.family, row.question, tuple(row.options), LETTERS.index(row.answer))
        assert context == schema.prompt_template(row.benchmark, row.n_options).render(question)
        assert Path(video) == folder / "home" / row.video
        assert Path(video).is_file()


def test_an_oracle_scores_full_marks_in_lmms_eval(small, offline):
    offline(small)
    scores, seen = lmms_scores(tasks_of(small), answer_rightly)
    for task, score in scores.items():
        assert score == pytest.approx(benchmark_of_task(task).scale), task
    check_requests(small, seen)


@pytest.mark.slow
def test_the_full_suite_by_name_oracle_and_constant(tmp_path, offline, monkeypatch):
    """The packaged tasks by their own names, from inside SUITE/hub: full marks, chance for a constant."""
    folder = suite.build_suite(5, suite.FULL, tmp_path / "full", workers=2)
    offline(folder)
    monkeypatch.chdir(folder / "hub")
    names = ["videomme", "mlvu_dev", "mvbench", "egoschema_subset", "longvideobench_val_v"]
    scores, seen = lmms_scores(names, answer_rightly)
    assert {task: score / benchmark_of_task(task).scale for task, score in scores.items()} == dict.fromkeys(scores, 1.0)
    check_requests(folder, seen)

    index = suite.load_index(folder)
    scores, _ = lmms_scores(names, answer_a)
    expected = expected_for_a(index)
    for name, entry in BENCHMARKS.items():
        rows = index[index.benchmark == name]
        measured = np.mean([scores[task] / entry.scale for task in entry.tasks])
        if name == "mlvu":
            assert 100 * measured == pytest.approx(entry.score(rows.answer == "A", rows.category))
        else:
            assert measured == pytest.approx(np.mean([expected[task] for task in entry.tasks]), abs=1e-5)
        chance = entry.chance(rows.n_options, rows.category)
        assert abs(100 * measured - chance) < 4 * 100 * np.sqrt(0.25 * 0.75 / len(rows)), name


def test_every_category_is_asked_about_and_families_are_balanced():
    items = list(suite.plan(0, suite.FULL))
    for name, entry in BENCHMARKS.items():
        mine = [item for item in items if item.benchmark is entry]
        assert len(mine) >= 230
        per_category = pd.Series([item.category for item in mine]).value_counts()
        assert set(per_category.index) == set(entry.categories)
        assert per_category.max() - per_category.min() <= 1
        assert {len(item.question.options) for item in mine} == set(entry.option_counts)
        for item in mine:
            if name in schema.FAMILY_OF:
                assert item.question.family == schema.FAMILY_OF[name][item.category]
    families = pd.Series([item.question.family for item in items]).value_counts(normalize=True)
    assert set(families.index) == set(FAMILIES)
    assert families.min() > 0.15
    assert families.max() < 0.25


def test_guessing_gives_chance():
    """Over ten suites every letter is right as often as the options say (five standard deviations)."""
    items = [item for seed in range(10) for item in suite.plan(seed, suite.FULL)]
    n_options_N = np.array([len(item.question.options) for item in items])
    answer_N = np.array([item.question.answer for item in items])
    for place in range(5):
        p_N = (place < n_options_N) / n_options_N
        assert abs((answer_N == place).sum() - p_N.sum()) < 5 * np.sqrt((p_N * (1 - p_N)).sum())


def test_no_video_is_shared_and_no_question_is_asked_twice():
    items = list(suite.plan(0, suite.FULL))
    by_clip = pd.DataFrame(
        {
            "clip": [item.clip.index for item in items],
            "video": [item.benchmark.video_of(item.doc, item.task) for item in items],
            "question": [(item.question.text, frozenset(item.question.options)) for item in items],
        }
    )
    assert (by_clip.groupby("clip").video.nunique() == 1).all()
    assert (by_clip.groupby("video").clip.nunique() == 1).all()
    assert not by_clip.duplicated(["clip", "question"]).any()
    assert {item.clip.seed for item in items} == {EVALUATION_SEEDS[0]}
    assert {item.clip.seed for item in suite.plan(7, suite.SMALL)} == {EVALUATION_SEEDS[7]}


def test_the_index_and_the_files_agree(small):
    index, summary = suite.load_index(small), suite.load_suite(small)
    assert list(index.columns) == list(suite.INDEX_COLUMNS)
    files = {path.relative_to(small / "home").as_posix() for path in (small / "home").rglob("*.mp4")}
    assert files == set(index.video)
    assert summary["videos"] == len(files) == sum(asdict(suite.SMALL).values())
    assert summary["questions"] == index.benchmark.value_counts().to_dict()
    for path in list(files)[:3]:
        assert count_frames(small / "home" / path) == FRAMES
    for row in index.itertuples():
        assert len(row.options) == row.n_options
        assert row.answer in LETTERS[: row.n_options]


def test_two_suites_keep_apart_in_a_shared_datasets_cache(small, tmp_path):
    """`datasets` would serve the first suite's questions for the second if only the folder differed."""
    import datasets

    other = suite.build_suite(6, suite.SMALL, tmp_path / "other", workers=1)
    for folder in (small, other):
        for benchmark, config in (("videomme", None), ("mvbench", "action_count"), ("egoschema", "Subset")):
            entry = BENCHMARKS[benchmark]
            table = datasets.load_dataset(str(folder / "hub" / entry.hub), config, cache_dir=str(tmp_path / "cache"))
            index = suite.load_index(folder)
            task = next(task for task in entry.tasks if entry.config_of(task) == config)
            docs = list(table[entry.split])
            assert [entry.target_letter(doc) for doc in docs] == list(index[index.task == task].answer)


def test_the_same_parameters_give_the_same_bytes(small, tmp_path):
    again = suite.build_suite(5, suite.SMALL, tmp_path / "again", workers=1)
    assert suite.load_suite(again) == suite.load_suite(small)
    for path in (again / "home").rglob("*.mp4"):
        twin = small / "home" / path.relative_to(again / "home")
        assert hashlib.sha256(path.read_bytes()).digest() == hashlib.sha256(twin.read_bytes()).digest()


def test_another_seed_gives_another_suite():
    first, second = ([item.question for item in suite.plan(seed, suite.SMALL)] for seed in (5, 6))
    assert sum(a == b for a, b in zip(first, second, strict=True)) < len(first) / 4


def test_a_finished_suite_is_found_in_the_cache_and_a_half_one_is_not(tmp_path, monkeypatch):
    monkeypatch.setenv("SLOWFAST_HARNESS_CACHE", str(tmp_path))
    sizes = replace(suite.SMALL, egoschema=3)
    first = suite.build_suite(1, sizes)
    assert first.parent == tmp_path.resolve() / "suites"
    written = (first / "suite.json").stat().st_mtime_ns
    assert suite.build_suite(1, sizes) == first
    assert (first / "suite.json").stat().st_mtime_ns == written

    with monkeypatch.context() as patch:
        patch.setattr(suite, "_write_tables", lambda items, hub: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            suite.build_suite(2, sizes)
    assert list(first.parent.iterdir()) == [first]
    second = suite.build_suite(2, sizes)
    assert second != first
    assert suite.load_suite(second)["fingerprint"] != suite.load_suite(first)["fingerprint"]


def test_a_folder_that_is_another_suite_is_refused(small, tmp_path):
    assert suite.build_suite(5, suite.SMALL, small) == small
    with pytest.raises(UserError, match="not the suite of seed 6"):
        suite.build_suite(6, suite.SMALL, small)
    (tmp_path / "notes").mkdir()
    with pytest.raises(UserError, match="not the suite of seed 5"):
        suite.build_suite(5, suite.SMALL, tmp_path / "notes")
    with pytest.raises(UserError, match="no evaluation suite"):
        suite.load_index(tmp_path)
    with pytest.raises(UserError, match="mvbench needs 20 videos"):
        replace(suite.SMALL, mvbench=19)


def test_a_contact_sheet_shows_the_flashes(small, tmp_path):
    path = contact_sheet(small, "mvbench", 0, tmp_path / "sheets" / "one.png", task="mvbench_moving_count")
    pixels_HWC = np.asarray(Image.open(path))
    sample = find_sample(small, "mvbench", 0, "mvbench_moving_count")
    flashes = draw_clip(sample.clip_seed, sample.clip_index).flashes
    flashing = {t for flash in flashes for t in range(flash.start, flash.start + flash.duration)}
    cell_y, cell_x = (pixels_HWC.shape[0] - 96) // 8, pixels_HWC.shape[1] // 16
    for t in range(FRAMES):
        y, x = 96 + t // 16 * cell_y, t % 16 * cell_x
        edge = pixels_HWC[y + cell_y // 2, x : x + 4]  # just left of the frame
        assert (edge == 255).all(1).any() == (t in flashing), t


def test_a_contact_sheet_of_nothing_is_refused(small, tmp_path):
    out = tmp_path / "none.png"
    with pytest.raises(UserError, match="use 0 to 13"):
        contact_sheet(small, "mlvu", 14, out)
    with pytest.raises(UserError, match="no task 'mvbench_colour'"):
        contact_sheet(small, "mvbench", 0, out, task="mvbench_colour")
    with pytest.raises(UserError, match="unknown benchmark 'mvlu'"):
        contact_sheet(small, "mvlu", 0, out)
    assert not out.exists()


def test_changed_generator_code_is_another_suite(tmp_path, monkeypatch):
    monkeypatch.setattr("harness.mini.suite.cache_dir", lambda: tmp_path)
    written = []
    monkeypatch.setattr("harness.mini.suite.new_directory", lambda folder: written.append(folder.name) or 1 / 0)
    for code in ("old", "new", "old"):
        monkeypatch.setattr("harness.mini.suite.code_hash", lambda modules, code=code: code)
        with pytest.raises(ZeroDivisionError):
            suite.build_suite(0, suite.SMALL)
    assert written[0] == written[2] != written[1]
