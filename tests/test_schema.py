"""Documents in the five published schemas, and prompts that are lmms-eval's own."""

import importlib
import random
from functools import cache

import pytest

from harness.benchmarks import BENCHMARKS, benchmark_named, benchmark_of_task
from harness.errors import UserError
from harness.mini import schema
from harness.mini.questions import FAMILIES, MAX_OPTIONS, Question, draw_question
from harness.mini.world import draw_clip

KINDS = [(name, n) for name, entry in BENCHMARKS.items() for n in entry.option_counts]
QUESTION = Question("needle", "What colour is the plus?", ("red", "cyan", "blue", "green"), 1)
FIVE = Question("needle", QUESTION.text, ("red", "cyan", "blue", "green", "yellow"), 3)


@cache
def some_questions(n_options: int) -> list[Question]:
    rng = random.Random(n_options)
    families = [family for family in FAMILIES if MAX_OPTIONS[family] >= n_options]
    return [draw_question(rng, draw_clip(3_000_000, i), families[i % len(families)], n_options) for i in range(40)]


@pytest.mark.parametrize(("name", "n_options"), KINDS)
def test_a_template_renders_lmms_evals_own_prompt(name, n_options):
    template = schema.prompt_template(name, n_options)
    for question in some_questions(n_options):
        text = template.render(question)
        assert text == schema.prompt(name, question)
        positions = [text.index(question.text), *(text.index(option) for option in question.options[:1])]
        assert positions == sorted(positions)
    assert len(template.boilerplate) == n_options + 2
    other = n_options - 1 if n_options > 2 else 3
    with pytest.raises(ValueError, match=f"takes {n_options} options"):
        template.render(some_questions(other)[0])


def test_all_mvbench_tasks_word_a_question_alike():
    texts = {schema.prompt("mvbench", QUESTION, task) for task in BENCHMARKS["mvbench"].tasks}
    assert len(texts) == 1


def test_the_prompts_read_as_known():
    """Written out by hand from the packaged tasks, so that a change there is noticed."""
    assert schema.prompt("mlvu", QUESTION) == (
        "What colour is the plus?\n(A) red\n(B) cyan\n(C) blue\n(D) green\nOnly give the best option.\nBest option: ("
    )
    assert schema.prompt("mvbench", QUESTION) == (
        "Question:What colour is the plus?\nOption:\n(A) red\n(B) cyan\n(C) blue\n(D) green\n"
        "Only give the best option.\n"
    )
    assert schema.prompt("egoschema", FIVE) == (
        "What colour is the plus?\nA. red\nB. cyan\nC. blue\nD. green\nE. yellow\n"
        "Answer with the option's letter from the given choices directly."
    )


@pytest.mark.parametrize(("name", "n_options"), KINDS)
def test_the_registry_reads_back_what_a_document_says(name, n_options):
    entry = BENCHMARKS[name]
    for task, category in zip(entry.tasks * 40, entry.categories * 40, strict=False):
        for question in some_questions(n_options)[:2]:
            doc = schema.document(name, question, category, "clip_1", video_number=3, number=5)
            assert entry.target_letter(doc) == "ABCDE"[question.answer]
            assert entry.n_options(doc) == n_options
            assert entry.category_of(doc, task) == category
            assert entry.video_of(doc, task).endswith("/clip_1.mp4")


def test_documents_hold_the_columns_that_the_tasks_read():
    columns = {
        "videomme": "videoID question_id duration domain sub_category task_type question options answer",
        "mlvu": "video_name question answer task_type",
        "mvbench": "video question candidates answer",
        "egoschema": "video_idx question option answer",
        "longvideobench": "id video_path question option0 option1 option2 option3 option4 correct_choice "
        "duration_group question_category",
    }
    for name, entry in BENCHMARKS.items():
        question = FIVE if 4 not in entry.option_counts else QUESTION
        doc = schema.document(name, question, entry.categories[0], "clip")
        assert set(columns[name].split()) <= set(doc)
    padded = schema.document("longvideobench", QUESTION, "S2E", "clip")
    assert [padded[f"option{i}"] for i in range(5)] == ["red", "cyan", "blue", "green", "N/A"]


def test_every_category_of_the_packaged_tasks_has_a_family():
    videomme = importlib.import_module("lmms_eval.tasks.videomme.utils")
    mvbench = importlib.import_module("lmms_eval.tasks.mvbench.utils")
    assert set(schema.FAMILY_OF["videomme"]) == set(videomme.TASK_CATEGORIES)
    assert list(schema.VIDEOMME_SUB_CATEGORIES) == videomme.SUB_CATEGORIES
    assert set(schema.VIDEOMME_SUB_CATEGORIES.values()) == set(videomme.CATEGORIES)
    assert list(schema.VIDEOMME_DURATIONS) == videomme.VIDEO_TYPE
    for name, folder in mvbench.DATA_LIST.items():
        doc = schema.document("mvbench", QUESTION, name, "clip")
        path = BENCHMARKS["mvbench"].video_of(doc, f"mvbench_{name}")
        assert path == f"mvbench_video/{folder}/clip.mp4"
    for name, families in schema.FAMILY_OF.items():
        assert set(families) == set(BENCHMARKS[name].categories)
        assert set(families.values()) == set(FAMILIES)
    for category, n_options in schema.MVBENCH_OPTIONS.items():
        assert n_options <= MAX_OPTIONS[schema.FAMILY_OF["mvbench"][category]]


def test_scores_follow_each_benchmarks_own_average():
    # Two of one category right, one of another wrong: 2/3 of the samples; 1 of 7 categories.
    correct, categories = [1, 1, 0], ["needle", "needle", "order"]
    assert BENCHMARKS["mlvu"].score(correct, categories) == pytest.approx(100 / 7)
    labels = ["OCR Problems", "OCR Problems", "Counting Problem"]
    assert BENCHMARKS["videomme"].score(correct, labels) == pytest.approx(200 / 3)
    assert BENCHMARKS["egoschema"].chance([5, 5], ["all", "all"]) == pytest.approx(20)
    assert BENCHMARKS["longvideobench"].chance([2, 5], ["S2E", "TAA"]) == pytest.approx((50 + 20) / 2)
    with pytest.raises(ValueError, match="no category 'tutorialQA'"):
        BENCHMARKS["mlvu"].score([1], ["tutorialQA"])
    with pytest.raises(ValueError, match="0 values"):
        BENCHMARKS["videomme"].score([], [])


def test_unknown_names_are_refused():
    with pytest.raises(UserError, match="videomme, mlvu, mvbench, egoschema, longvideobench"):
        benchmark_named("video-mme")
    with pytest.raises(UserError, match="mvbench_action_count"):
        benchmark_of_task("mvbench")
    assert benchmark_of_task("mvbench_action_count").name == "mvbench"
    with pytest.raises(ValueError, match="no category 'colour'"):
        schema.document("mlvu", QUESTION, "colour", "clip")
    with pytest.raises(ValueError, match="not 5"):
        schema.document("videomme", FIVE, "OCR Problems", "clip")
