"""Every entry of the registry against the packaged task's own code, called directly on small docs."""

import random
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import videos
from real_docs import docs_of

from harness.benchmarks import BENCHMARKS, LETTERS, Benchmark, all_benchmarks, benchmark_named, benchmark_of_task
from harness.errors import UserError
from harness.further_benchmarks import FURTHER
from harness.prompt_styles import find_style
from harness.submission import nothing_posted

requests = pytest.importorskip("requests")  # by which lmms-eval's tasks post
pytestmark = pytest.mark.timeout(900)  # the first test waits for lmms-eval to be imported
NAMES = tuple(all_benchmarks())
ANSWERED = tuple(name for name in NAMES if not all_benchmarks()[name].submission)
SERVED = tuple(name for name in ANSWERED if not all_benchmarks()[name].judge)
NO_PLACE = {"mvbench", "longvideobench"}  # whose tasks hand on the path of a video that is not there


def asked_by(url: str, json: dict[str, Any], **options: Any) -> Any:
    """A judge that calls an answer right if it is the right one to the letter."""
    prompt = json["messages"][1]["content"]
    right, given = re.search(r"Correct Answer: (.*)\nPredicted Answer: (.*)\n", prompt).groups()
    reply = requests.Response()
    reply.status_code = 200
    verdict = "{'pred': '%s', 'score': 4}" % ("yes" if right == given else "no")
    reply._content = b'{"model": "judge", "choices": [{"message": {"content": "%s"}}]}' % verdict.encode()
    return reply


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """HF_HOME of the packaged tasks, which read it when their modules are loaded."""
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HOME", str(folder))
        patch.setitem(sys.modules, "nltk", None)  # seconds to import, and only open-ended tasks use it
        yield folder


class Packaged:
    """A task of lmms-eval as its YAML names it."""

    def __init__(self, benchmark: Benchmark, task: str) -> None:
        import lmms_eval.tasks
        from lmms_eval.utils import load_yaml_config

        path = Path(lmms_eval.tasks.__file__).parent / benchmark.definitions[task]
        with nothing_posted(tasks=[task]):
            self.config = load_yaml_config(path, mode="full")
        self.metric = benchmark.metric
        settings = self.config.get("lmms_eval_specific_kwargs") or {}
        self.settings = settings.get("default")

    def text(self, doc: dict) -> str:
        return self.config["doc_to_text"](doc, self.settings)

    def visual(self, doc: dict) -> list[str]:
        function = self.config["doc_to_visual"]
        return function(doc, self.settings) if "sub_task" in (self.settings or {}) else function(doc)

    def value(self, doc: dict, answer: str) -> Any:
        return self.config["process_results"](doc, [answer])[self.metric]

    def score(self, values: list[Any]) -> float:
        (metric,) = [each for each in self.config["metric_list"] if each["metric"] == self.metric]
        function = metric["aggregation"]
        if function == "mean":
            return float(np.mean(values))
        return function(values, **({"args": None} if "args" in function.__code__.co_varnames else {}))


@pytest.fixture(scope="module")
def packaged(home: Path) -> dict[str, Packaged]:
    """Benchmark -> its first task."""
    return {name: Packaged(entry, entry.tasks[0]) for name, entry in all_benchmarks().items()}


@pytest.fixture(autouse=True)
def judge(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests, "post", asked_by)


# --------------------------------------------------------------------------------------------- the registry


def test_the_five_stay_the_five() -> None:
    assert list(BENCHMARKS) == ["videomme", "mlvu", "mvbench", "egoschema", "longvideobench"]
    assert list(all_benchmarks()) == [*BENCHMARKS, *FURTHER]
    assert not BENCHMARKS.keys() & FURTHER.keys()
    assert all(name == entry.name for name, entry in all_benchmarks().items())
    assert [name for name, entry in FURTHER.items() if entry.judge] == ["activitynetqa"]
    assert [name for name, entry in FURTHER.items() if entry.submission] == ["egoschema_full"]


def test_every_task_belongs_to_one_benchmark() -> None:
    tasks = [task for entry in all_benchmarks().values() for task in entry.tasks]
    assert len(set(tasks)) == len(tasks) == 30
    for entry in all_benchmarks().values():
        assert benchmark_named(entry.name) is entry
        assert all(benchmark_of_task(task) is entry for task in entry.tasks)
    with pytest.raises(UserError, match=r"unknown benchmark 'lvbench': use one of videomme, .*, egoschema_full"):
        benchmark_named("lvbench")
    with pytest.raises(UserError, match=r"'nextqa_oe_test' belongs to no benchmark .* nextqa_mc_test, "):
        benchmark_of_task("nextqa_oe_test")


@pytest.mark.parametrize("name", NAMES)
def test_entries_are_what_the_packaged_yaml_says(name: str, packaged: dict[str, Packaged], home: Path) -> None:
    entry = all_benchmarks()[name]
    tasks = {task: Packaged(entry, task) for task in entry.tasks[1:3]} | {entry.tasks[0]: packaged[name]}
    for task, loaded in tasks.items():
        config = loaded.config
        assert (config["task"], config["dataset_path"], config["test_split"]) == (task, entry.hub, entry.split)
        assert config.get("dataset_name") == entry.config_of(task)
        assert entry.metric in [metric["metric"] for metric in config["metric_list"]]


@pytest.mark.parametrize("name", NAMES)
def test_a_doc_needs_the_named_columns_and_no_others(name: str, packaged: dict[str, Packaged], home: Path) -> None:
    entry, task = all_benchmarks()[name], packaged[name]
    doc = docs_of(name)[0]
    assert set(doc) == set(entry.columns)

    def read(doc: dict) -> None:
        entry.video_of(doc, entry.tasks[0]), entry.category_of(doc, entry.tasks[0])
        entry.target_letter(doc), entry.n_options(doc)
        task.text(doc), task.value(doc, "A")

    read(doc)
    for column in entry.columns:
        with pytest.raises((KeyError, TypeError)):
            read({name: value for name, value in doc.items() if name != column})


# ----------------------------------------------------------------------------------------------- the videos


@pytest.mark.parametrize("name", NAMES)
def test_videos_are_looked_for_as_the_packaged_task_does(name: str, packaged: dict[str, Packaged], home: Path) -> None:
    entry, task, doc = all_benchmarks()[name], packaged[name], docs_of(name)[0]
    first = home / entry.video_of(doc, entry.tasks[0])
    first.parent.mkdir(parents=True, exist_ok=True)
    files = [first, *(first.with_suffix(ending) for ending in entry.endings[1:])]
    try:
        for file in reversed(files):  # each time one that comes before the others
            file.touch()
            assert entry.find_video(doc, entry.tasks[0], home) == file
            assert task.visual(doc) == [str(file)]
    finally:
        for file in files:
            file.unlink(missing_ok=True)
    assert entry.find_video(doc, entry.tasks[0], home) is None
    if name in NO_PLACE:
        assert task.visual(doc) == [str(first)]
    else:
        with pytest.raises((SystemExit, FileNotFoundError)):
            task.visual(doc)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("ending", [".mov", ".MKV", ".WEBM"])
def test_other_endings_are_not_found(name: str, ending: str, packaged: dict[str, Packaged], home: Path) -> None:
    entry, task, doc = all_benchmarks()[name], packaged[name], docs_of(name)[0]
    file = (home / entry.video_of(doc, entry.tasks[0])).with_suffix(ending)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.touch()
    try:
        assert entry.find_video(doc, entry.tasks[0], home) is None
        if name not in NO_PLACE:
            with pytest.raises((SystemExit, FileNotFoundError)):
                task.visual(doc)
    finally:
        file.unlink()


# ---------------------------------------------------------------------------------------------- the answers


@pytest.mark.parametrize("name", SERVED)
def test_the_right_letter_alone_is_right(name: str, packaged: dict[str, Packaged]) -> None:
    entry, task = all_benchmarks()[name], packaged[name]
    targets = set()
    for doc in docs_of(name):
        offered = LETTERS[: entry.n_options(doc)]
        assert len(offered) in entry.option_counts
        targets.add(entry.target_letter(doc))
        for letter in offered:
            assert entry.is_correct(task.value(doc, letter)) == (letter == entry.target_letter(doc)), (doc, letter)
    assert targets == set(LETTERS[: max(entry.option_counts)])


@pytest.mark.parametrize("name", SERVED)
def test_an_oracle_gets_full_marks_and_wrong_letters_none(name: str, packaged: dict[str, Packaged]) -> None:
    entry, task, docs = all_benchmarks()[name], packaged[name], docs_of(name)
    right = [entry.target_letter(doc) for doc in docs]
    wrong = ["B" if letter == "A" else "A" for letter in right]
    assert task.score([task.value(doc, letter) for doc, letter in zip(docs, right, strict=True)]) == entry.scale
    assert task.score([task.value(doc, letter) for doc, letter in zip(docs, wrong, strict=True)]) == 0


@pytest.mark.parametrize("name", [name for name in SERVED if name != "mvbench"])  # which averages over tasks
def test_scores_are_the_packaged_aggregation(name: str, packaged: dict[str, Packaged]) -> None:
    entry, task = all_benchmarks()[name], packaged[name]
    docs = docs_of(name) * 5
    given = [random.Random(i).choice(LETTERS[: entry.n_options(doc)]) for i, doc in enumerate(docs)]
    values = [task.value(doc, letter) for doc, letter in zip(docs, given, strict=True)]
    categories = [entry.category_of(doc, entry.tasks[0]) for doc in docs]
    ours = entry.score([entry.is_correct(value) for value in values], categories)
    assert 5 < ours < 95
    assert ours == pytest.approx(task.score(values) * 100 / entry.scale, abs=1e-3)


@pytest.mark.parametrize("name", ANSWERED)
def test_who_asks_a_judge(name: str, packaged: dict[str, Packaged], monkeypatch: pytest.MonkeyPatch) -> None:
    """A benchmark with `judge` always, one with `letters_only` about whatever begins with no letter, others never."""
    entry, task, doc = all_benchmarks()[name], packaged[name], docs_of(name)[1]
    asked = []

    def post(*args: Any, **options: Any) -> None:
        asked.append(args)
        raise KeyboardInterrupt  # the tasks catch any Exception, and try again

    monkeypatch.setattr(requests, "post", post)
    for answer, needs_one in [("B", False), ("B. standing up", False), ("(B)", True), ("The answer is B.", True)]:
        asked.clear()
        if entry.judge or (entry.letters_only and needs_one):
            with pytest.raises(KeyboardInterrupt):
                task.value(doc, answer)
            assert asked
        else:
            assert entry.is_correct(task.value(doc, answer))
            assert not asked


def test_activitynetqa_is_scored_by_its_judge(packaged: dict[str, Packaged]) -> None:
    entry, task, docs = FURTHER["activitynetqa"], packaged["activitynetqa"], docs_of("activitynetqa")
    values = [task.value(doc, answer) for doc, answer in zip(docs, ["yes", "blue", "sitting down"], strict=True)]
    assert [entry.is_correct(value) for value in values] == [True, False, True]
    assert task.score(values) == pytest.approx(entry.score([1, 0, 1], ["3", "4", "0"])) == pytest.approx(200 / 3)
    assert [entry.target_letter(doc) for doc in docs] == [None] * 3
    assert entry.chance([entry.n_options(doc) for doc in docs], ["3", "4", "0"]) == 0


def test_the_full_egoschema_has_predictions_and_no_answers(packaged: dict[str, Packaged]) -> None:
    entry, task, docs = FURTHER["egoschema_full"], packaged["egoschema_full"], docs_of("egoschema_full")
    for doc, (index, letter) in zip(docs, enumerate(LETTERS), strict=True):
        assert task.value(doc, letter) == {doc["video_idx"]: index}
        assert entry.target_letter(doc) is None
        assert entry.n_options(doc) == 5
    with pytest.raises(UserError, match="its answers are not public"):
        entry.is_correct({"a": 1})


def test_an_answer_that_is_no_option_is_the_tables_fault() -> None:
    doc = docs_of("mvbench")[0] | {"answer": "flying"}
    with pytest.raises(UserError, match=r"the answer 'flying' about 166583\.webm is none of"):
        BENCHMARKS["mvbench"].target_letter(doc)


# ---------------------------------------------------------------------------------------------- the questions

OFFICIAL_PROMPTS = {
    "mlvu": """Select the best answer to the following multiple-choice question based on the video.
what is the man doing now?
A. sitting down
B. standing up
C. lying still
D. going away
Answer with the option's letter from the given choices directly.""",
    "longvideobench": """Select the best answer to the following multiple-choice question based on the video.
what is the man doing
A. sitting down
B. standing up
Answer with the option's letter from the given choices directly.
""",
    "perceptiontest_val_mc": """Select the best answer to the following multiple-choice question based on the video.
what is the man doing
A. sitting down
B. standing up
C. lying still
Answer with the option's letter from the given choices directly.""",
    "tempcompass": """Select the best answer to the following multiple-choice question based on the video.
what is the man doing?
A. sitting down
B. standing up
Please directly give the best option:""",
}


@pytest.mark.parametrize("name", NAMES)
def test_official_prompts_from_the_packaged_text(name: str, packaged: dict[str, Packaged]) -> None:
    entry, doc = all_benchmarks()[name], docs_of(name)[0]
    text = packaged[name].text(doc)
    assert find_style("lmms_eval").prompt(entry.tasks[0], doc, text) == text
    assert find_style("official").prompt(entry.tasks[0], doc, text) == OFFICIAL_PROMPTS.get(name, text)


def test_subtitles_are_those_of_the_frames_that_the_task_samples(packaged: dict[str, Packaged], home: Path) -> None:
    """32 frames of the .mp4, whatever the model samples; a video of another ending gets none."""
    doc = docs_of("videomme_w_subtitle")[0]
    (home / "videomme" / "data").mkdir(parents=True, exist_ok=True)
    (home / "videomme" / "subtitle").mkdir(exist_ok=True)
    clip = videos.write(home / "videomme" / "data" / f"{doc['videoID']}.mp4", "mpeg4", shown=50)  # 2 seconds
    spoken = '<font color="white" size=".72c">{}</font>'
    lines = [
        f"1\n00:00:00,000 --> 00:00:01,000\n{spoken.format('good morning')}",
        f"2\n00:01:00,000 --> 00:01:01,000\n{spoken.format('after the end')}",
    ]
    subtitles = home / "videomme" / "subtitle" / f"{doc['videoID']}.srt"
    try:
        assert "No subtitles available" in packaged["videomme_w_subtitle"].text(doc)
        subtitles.write_text("\n\n".join(lines) + "\n")
        text = packaged["videomme_w_subtitle"].text(doc)
        assert "\ngood morning\nSelect the best answer" in text
        assert "after the end" not in text
        assert packaged["videomme"].text(doc).count("good morning") == 0
        clip.rename(clip.with_suffix(".mkv"))
        assert "good morning" not in packaged["videomme_w_subtitle"].text(doc)
    finally:
        for file in (clip, clip.with_suffix(".mkv"), subtitles):
            file.unlink(missing_ok=True)
