"""A sweep from plan to rows with stages that take no time: what is skipped, retried, set aside, shared, told."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
from fake_grids import GRID, ROWS, calls, fake_suite, rows, store, sweep

from harness.errors import TooManyFailures, UserError
from harness.grids.launch import _in_this_process
from harness.grids.notes import Notes
from harness.grids.plans import Planner, code_on_disk
from harness.grids.status import DONE, TO_DO
from harness.grids.verb import CellsFailed
from harness.row_store import RowStore
from harness.rows import load_rows


def broken(results: Path) -> Path:
    """The file that makes stages of this name fail."""
    file = results / "runs" / "broken"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.touch()
    return file


def test_every_row_once_and_again_all_done(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    sweep(tmp_path)
    assert rows(tmp_path) == ROWS
    assert sorted(calls(tmp_path)) == sorted(
        [
            "shared",
            "base0",
            "base1",
            "cost",
            *(f"{kind}{seed}" for kind in ("model", "broken", "refused") for seed in (0, 1)),
        ]
    )
    first = store(tmp_path).path.read_bytes()
    told = capsys.readouterr().err
    assert "one/0" in told
    sweep(tmp_path)
    assert "fake: all done (6 rows)" in capsys.readouterr().err
    assert len(calls(tmp_path)) == 10
    assert store(tmp_path).path.read_bytes() == first


def test_a_row_without_its_line_is_made_from_its_stages(tmp_path: Path) -> None:
    sweep(tmp_path)
    store(tmp_path).set_aside(set(), tmp_path / "elsewhere")
    assert rows(tmp_path) == []
    sweep(tmp_path)
    assert rows(tmp_path) == ROWS
    assert len(calls(tmp_path)) == 10


def test_a_failed_cell_is_recorded_skipped_and_tried_again_on_request(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    switch = broken(tmp_path)
    with pytest.raises(CellsFailed) as failed:
        sweep(tmp_path)
    assert failed.value.exit_code == 1
    assert str(failed.value).startswith("4 rows failed: fake two+/0, fake two+/1, fake three@3/0, fake three@3/1; ")
    assert rows(tmp_path) == ROWS[:2]
    by_cell = {failure.cell: failure for failure in store(tmp_path).failures()}
    assert by_cell["two+"].stage == "model1"
    assert by_cell["two+"].error == "ZeroDivisionError: in the middle of it"
    assert "in note" in by_cell["two+"].traceback
    assert by_cell["three@3"].error == "the clips are missing; build the suite first"

    tried = len(calls(tmp_path))
    switch.unlink()
    capsys.readouterr()
    with pytest.raises(CellsFailed):
        sweep(tmp_path)
    assert "skipped, since they failed before (retry=true tries again): two+/0, two+/1" in capsys.readouterr().err
    assert len(calls(tmp_path)) == tried
    sweep(tmp_path, "retry=true")
    assert rows(tmp_path) == ROWS
    assert store(tmp_path).failures() == []
    assert calls(tmp_path)[tried:] == ["broken0", "broken1", "refused0", "refused1"]


def test_a_changed_setting_computes_anew_what_it_changes_and_sets_the_old_rows_aside(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    sweep(tmp_path)
    old = {(row.cell, row.base_seed): row.content_hash for row in store(tmp_path).rows()}
    sweep(tmp_path, grid=GRID.replace("gate.bias=1", "gate.bias=2"))
    new = {(row.cell, row.base_seed): row.content_hash for row in store(tmp_path).rows()}
    assert list(new) == ROWS
    assert {key for key in new if new[key] != old[key]} == {("three@3", 0), ("three@3", 1)}
    assert calls(tmp_path)[10:] == ["refused0", "refused1"]
    assert "2 stored rows are of other content" in capsys.readouterr().err
    assert set_aside(tmp_path) == [old["three@3", seed] for seed in (0, 1)]


def hashes(results: Path) -> dict[tuple[str, int], str]:
    return {(row.cell, row.base_seed): row.content_hash for row in store(results).rows()}


def set_aside(results: Path) -> list[str]:
    """The content hashes of the rows that were moved."""
    path = results / "runs" / "replaced" / "fake_mini_seed0.jsonl"
    return [row.content_hash for row in load_rows(path)] if path.is_file() else []


def test_a_row_stays_until_its_replacement_is_there(tmp_path: Path) -> None:
    sweep(tmp_path)
    old, changed = hashes(tmp_path), GRID.replace("gate.bias=1", "gate.bias=2")
    switch = broken(tmp_path)
    with pytest.raises(CellsFailed, match=r"2 rows failed: fake three@3/0, fake three@3/1"):
        sweep(tmp_path, grid=changed)
    assert (hashes(tmp_path), set_aside(tmp_path)) == (old, [])
    switch.unlink()
    sweep(tmp_path, "retry=true", grid=changed)
    assert rows(tmp_path) == ROWS
    assert set_aside(tmp_path) == [old["three@3", 0], old["three@3", 1]]


def test_renamed_and_swapped_cells_are_rows_of_their_new_names(tmp_path: Path) -> None:
    sweep(tmp_path)
    old = hashes(tmp_path)
    sweep(tmp_path, grid=GRID.replace("two+:", "deux:"))
    assert rows(tmp_path) == [(cell, seed) for cell in ("one", "deux", "three@3") for seed in (0, 1)]
    assert hashes(tmp_path)["deux", 1] == old["two+", 1]
    assert set_aside(tmp_path) == [old["two+", 0], old["two+", 1]]
    swapped = GRID.replace("two+: [gate=none]", "two+: [gate=sigmoid, gate.bias=1]")
    sweep(tmp_path, grid=swapped.replace("three@3: [gate=sigmoid, gate.bias=1]", "three@3: [gate=none]"))
    new = hashes(tmp_path)
    assert [new["two+", 0], new["three@3", 0]] == [old["three@3", 0], old["two+", 0]]
    assert len(calls(tmp_path)) == 10


def test_committed_rows_are_never_moved_before_others_replace_them(tmp_path: Path) -> None:
    sweep(tmp_path)
    fewer = GRID.replace("  two+: [gate=none]\n", "")
    sweep(tmp_path, "reuse=committed", grid=fewer)
    assert sorted(rows(tmp_path)) == sorted(ROWS)
    sweep(tmp_path, grid=fewer)
    assert {cell for cell, _ in rows(tmp_path)} == {"one", "three@3"}


def test_a_failure_of_other_content_is_tried_again(tmp_path: Path) -> None:
    switch = broken(tmp_path)
    with pytest.raises(CellsFailed):
        sweep(tmp_path)
    switch.unlink()
    with pytest.raises(CellsFailed, match=r"2 rows failed: fake two\+/0, fake two\+/1"):
        sweep(tmp_path, grid=GRID.replace("gate.bias=1", "gate.bias=2"))
    assert {cell for cell, _ in rows(tmp_path)} == {"one", "three@3"}


def test_a_row_without_its_samples_is_not_done(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    sweep(tmp_path)
    (store(tmp_path).folder / store(tmp_path).rows()[0].samples).unlink()
    sweep(tmp_path)
    assert "one/0" in capsys.readouterr().err
    assert len(store(tmp_path).samples()) > 0


def test_a_suite_of_another_world_is_refused(tmp_path: Path) -> None:
    sentence = r"cell two\+: suite=.* shows flashes of one or two frames and 0 distractors, .* 24 distractors; leave"
    with pytest.raises(UserError, match=sentence):
        sweep(tmp_path, grid=GRID.replace("[gate=none]", "[gate=none, world=distractors]"))
    assert calls(tmp_path) == []


# ------------------------------------------------------------------------------- code that changes, processes that die


@pytest.mark.parametrize("looks", [0, 1], ids=["before the work", "before the row is stored"])
def test_rows_of_changed_code_are_left_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, looks: int
) -> None:
    unchanged = iter([code_on_disk()] * looks)
    monkeypatch.setattr("harness.grids.job.code_on_disk", lambda: next(unchanged, "changed"))
    with pytest.raises(CellsFailed, match="fake: the sweep ended early, 6 rows are left"):
        sweep(tmp_path)
    assert capsys.readouterr().err.count("is left to do: the code has changed since the sweep began") == 6
    assert bool(calls(tmp_path)) == bool(looks)
    assert (rows(tmp_path), store(tmp_path).failures()) == ([], [])


def test_a_row_whose_process_dies_is_recorded_and_the_others_are_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deadly, launches = [("two+", 0), ("three@3", 1)], []

    def launch(command, grid, status, sweep, begun, jobs, view) -> None:
        """Side by side nothing gets done while a deadly row is there; alone, all before it."""
        launches.append(jobs)
        to_do = status.rows(TO_DO)
        if jobs > 1 and any((row.cell, row.base_seed) in deadly for row in to_do):
            for row in to_do[:jobs]:
                notes = Notes(sweep, row.cell, row.base_seed, sys.stderr)
                notes.path = notes.path.with_stem(f"{row.cell}-{row.base_seed}")
                notes.__enter__()
            return
        for row in to_do:
            if (row.cell, row.base_seed) in deadly:
                Notes(sweep, row.cell, row.base_seed, sys.stderr).__enter__()
                return
            one = replace(status, states=dict.fromkeys(status.states, DONE) | {(row.cell, row.base_seed): TO_DO})
            _in_this_process(command, grid, one, sweep, begun, view)

    monkeypatch.setattr("harness.grids.launch._launch", launch)
    with pytest.raises(CellsFailed, match=r"^2 rows failed: fake two\+/0, fake three@3/1; "):
        sweep(tmp_path, "jobs=3")
    assert rows(tmp_path) == [row for row in ROWS if row not in deadly]
    failures = store(tmp_path).failures()
    assert [(each.cell, each.base_seed) for each in failures] == deadly
    assert all(each.error.startswith("its process died") and each.content_hash for each in failures)
    assert launches[:2] == [3, 1]


# ------------------------------------------------------------------------------------------------- the whole book


def test_a_grid_that_cannot_run_keeps_no_other_from_running(tmp_path: Path) -> None:
    sweep(tmp_path)
    (tmp_path / "ablations" / "early.yaml").write_text(GRID.replace("order: 7", "order: 1"))
    store(tmp_path).failures_path.write_text("no failure\n")
    with pytest.raises(CellsFailed) as ended:
        sweep(tmp_path, "grid=all", grid=GRID.replace("order: 7", "order: 0"))
    assert "fake: " in str(ended.value)
    assert "holds a line that is no failure" in str(ended.value)
    early = RowStore(tmp_path, "early", "mini", 0)
    assert len(early.rows()) == 6


def test_a_mistake_in_the_last_grid_is_told_before_the_first_runs(tmp_path: Path) -> None:
    (tmp_path / "ablations").mkdir()
    late = GRID.replace("order: 7", "order: 9").replace("gate.bias=1", "gate.bais=1")
    (tmp_path / "ablations" / "late.yaml").write_text(late)
    with pytest.raises(UserError, match=r"grid late, cell three@3: gate\.bais=1"):
        sweep(tmp_path, "grid=all")
    assert calls(tmp_path) == []


def test_too_many_failed_questions_do_not_hide_failed_cells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def complain(*_: object) -> None:
        raise TooManyFailures("17 of 100 samples failed")

    monkeypatch.setattr("harness.grids.verb.complain_of", complain)
    switch = broken(tmp_path)
    with pytest.raises(CellsFailed, match=r"4 rows failed: .*; 17 of 100 samples failed") as failed:
        sweep(tmp_path)
    assert failed.value.exit_code == 1
    switch.unlink()
    with pytest.raises(TooManyFailures):
        sweep(tmp_path, "retry=true")


def test_fewer_base_seeds_leave_the_others_rows(tmp_path: Path) -> None:
    sweep(tmp_path)
    sweep(tmp_path, "base_seeds=[0]")
    assert rows(tmp_path) == ROWS
    sweep(tmp_path, "base_seeds=[2]")
    assert [row for row in rows(tmp_path) if row[1] == 2] == [(cell, 2) for cell in ("one", "two+", "three@3")]
    assert len(rows(tmp_path)) == 9


def test_committed_rows_count_only_when_asked(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    sweep(tmp_path)
    (tmp_path / "runs").rename(tmp_path / "gone")  # as in a fresh clone
    sweep(tmp_path, "reuse=committed")
    assert "all done" in capsys.readouterr().err
    assert calls(tmp_path) == []
    sweep(tmp_path)
    assert len(calls(tmp_path)) == 10


def test_rows_that_came_with_a_clone_are_not_told_as_done(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    sweep(tmp_path)
    (tmp_path / "runs").rename(tmp_path / "gone")
    broken(tmp_path)
    capsys.readouterr()
    with pytest.raises(CellsFailed, match="4 rows failed"):
        sweep(tmp_path)
    lines = capsys.readouterr().err.splitlines()
    told = {name: [line for line in lines if line.startswith(f"{name}/")] for name in ("one", "two+", "three@3")}
    assert len(told["one"]) == 2
    assert len(told["two+"]) == len(told["three@3"]) == 2
    assert all("failed in" in line for line in (*told["two+"], *told["three@3"]))


def test_a_dry_run_lists_rows_and_runs_nothing(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    sweep(tmp_path, "dry_run=true")
    told = capsys.readouterr().out
    assert calls(tmp_path) == []
    assert not store(tmp_path).folder.exists()
    assert max(map(len, told.splitlines())) <= 80
    assert "0 of 6 rows done, 6 to do" in told
    assert "10 by guesses" in told
    # shared 1 + cost 5 + bases 2 x 30 + models 6 x 20 seconds
    assert "10 stages, 3 minutes of one core" in told
    # One worker: all of it, 186 s.
    assert "6 to do: 3:06 with 1 jobs" in told

    broken(tmp_path)
    with pytest.raises(CellsFailed):
        sweep(tmp_path)
    capsys.readouterr()
    sweep(tmp_path, "dry_run=true")
    lines = capsys.readouterr().out.splitlines()
    states = {line.split()[0]: line.split()[1:3] for line in lines[2:5]}
    assert states == {"one": ["done", "done"], "two+": ["failed", "failed"], "three@3": ["failed", "failed"]}
    assert "2 of 6 rows done, 4 failed before (retry=true tries again), 0 to do: nothing is left" in "\n".join(lines)


@pytest.mark.parametrize(
    ("grid", "typed", "sentence"),
    [
        (GRID.replace("gate=none", "seed=1"), (), r"cell two\+: seed is a setting of the whole command, not of a cell"),
        (GRID, ("gaet=none",), "there is no setting 'gaet'"),
        (GRID, ("grid=null",), "ablate needs grid=NAME, one of fake, or all"),
        (GRID, ("grid=fkae",), "there is no .*fkae.yaml; choose one of all, fake"),
        (GRID, ("launcher=slurm",), "launcher takes one of joblib, submitit_local, submitit_slurm"),
        (
            GRID.replace("one: []", "one: [gate=none]"),
            ("gate=dynamic",),
            "gate=dynamic changes no cell of the grid fake",
        ),
    ],
    ids=["reserved", "unknown", "no-grid", "misspelt", "launcher", "superseded"],
)
def test_a_mistake_is_found_before_any_work(tmp_path: Path, grid: str, typed: tuple[str, ...], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        sweep(tmp_path, *typed, grid=grid)
    assert calls(tmp_path) == []


def test_plans_are_found_out_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fake_grids import FakePlan

    from harness.grids import cells
    from harness.grids.grid import load_grid

    monkeypatch.setattr(cells, "CellPlan", FakePlan)
    (tmp_path / "fake.yaml").write_text(GRID)
    grid = load_grid("fake", tmp_path, composed=False)
    suite = fake_suite(tmp_path / "suite")
    first = Planner(tmp_path, (), suite).rows(grid, (0, 1))
    monkeypatch.setattr(cells, "CellPlan", None)  # cannot be asked any more
    assert Planner(tmp_path, (), suite).rows(grid, (0, 1)) == first
    with pytest.raises(TypeError):
        Planner(tmp_path, ("frames=8",), suite).rows(grid, (0, 1))
    (suite / "suite.json").write_text('{"fingerprint": "1", "parameters": {}}')
    with pytest.raises(TypeError):
        Planner(tmp_path, (), suite).rows(grid, (0, 1))
