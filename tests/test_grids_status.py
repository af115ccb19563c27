"""Which stored rows are done: those that tell of the stages that are there, or committed ones where asked for."""

import json

import pytest
from synthetic_rows import MADE_BY, answers, evaluation, questions, row

from harness.grids.estimate import SCORES, SCORING
from harness.grids.grid import Grid
from harness.grids.plans import Planned, StageFacts
from harness.grids.status import DONE, TO_DO, status_of
from harness.row_store import RowStore
from harness.stages import DESCRIPTION

SHAPE = {"mlvu": (14, 2), "egoschema": (10, 1)}
COST = {"fast_tokens": 64, "slow_tokens": 512, "prefill_mflop_mini": 80, "prefill_tflop_7b": 20, "model_tflop_7b": 277}
STAGES = (("model0-abc", "harness.mini.training:adapt_stage"), ("scores0-abc", SCORING))


@pytest.fixture
def store(tmp_path) -> RowStore:
    store = RowStore(tmp_path / "results", "gates", "mini", 0)
    told = {"question": "Which gate?", "paper": "Table 5", "cost": "nothing", "time": "minutes"}
    store.begin(Grid(name="gates", order=60, reference="none", cells={"none": {}}, **told))
    measured = evaluation(answers(questions(SHAPE), 0.5, seed=1))
    fields = {"grid": "gates", "cell": "none", "base_seed": 0, "table": "ablations", "cost": COST}
    made = row(measured, content_hash="abc", timings={"adapt": 70.0, "evaluate": 9.25}, **fields)
    store.put(made, measured.samples)
    return store


def planned(content="abc") -> Planned:
    stages = tuple(StageFacts(folder, function, {}, 1.0, 0.0, ()) for folder, function in STAGES)
    return Planned("none", 0, content, stages, 20.0, {}, True)


def finish(runs, store, points=0.0, **changes):
    """Both stages' folders, as a machine left them; `points` more on one benchmark than the stored row has."""
    scores = store.rows()[0].scores
    for folder, _ in STAGES:
        (runs / folder).mkdir(parents=True, exist_ok=True)
        told = {"seconds": 7.5, "made_by": MADE_BY.fields() | changes}
        (runs / folder / DESCRIPTION).write_text(json.dumps(told))
        (runs / folder / SCORES).write_text(json.dumps({"scores": scores | {"mlvu": scores["mlvu"] + points}}))


def state(store, runs, committed=False, content="abc") -> str:
    one = planned(content)
    return status_of([one], store, runs, committed).of(one)


def test_a_row_is_done_once_the_stages_that_it_was_made_of_are_there(store, tmp_path):
    runs = tmp_path / "runs"
    assert state(store, runs) == TO_DO
    finish(runs, store)
    assert state(store, runs) == DONE
    assert state(store, runs, content="other") == TO_DO


@pytest.mark.parametrize("other", [{"points": 0.5}, {"device": "another processor"}])
def test_a_row_of_equal_content_that_another_machine_made_is_stored_anew(store, tmp_path, other):
    runs = tmp_path / "runs"
    finish(runs, store, **other)
    assert state(store, runs) == TO_DO
    assert state(store, runs, committed=True) == DONE


def test_the_same_model_under_another_name_has_times_of_its_own_and_is_done(store, tmp_path):
    finish(tmp_path / "runs", store, code_commit="f" * 40)
    assert store.rows()[0].timings["evaluate"] != 7.5
    assert state(store, tmp_path / "runs") == DONE


def test_a_stage_that_lost_its_files_is_no_crash(store, tmp_path):
    runs = tmp_path / "runs"
    finish(runs, store)
    (runs / "scores0-abc" / SCORES).write_text('{"scores": ')
    assert state(store, runs) == TO_DO
    (runs / "scores0-abc" / SCORES).unlink()
    assert state(store, runs) == TO_DO


def test_committed_rows_are_done_without_stages_if_their_samples_are_there(store, tmp_path):
    assert state(store, tmp_path / "runs", committed=True) == DONE
    (store.folder / store.rows()[0].samples).unlink()
    assert state(store, tmp_path / "runs", committed=True) == TO_DO
