"""A sweep from plan to rows with stages that take no time: what is skipped, retried, set aside, shared, told."""

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from fake_grids import GRID, calls, fake_suite, sweep

from harness.errors import UserError
from harness.grids.plans import Planner
from harness.grids.verb import CellsFailed
from harness.row_store import RowStore

ROWS = [(cell, seed) for cell in ("one", "two+", "three@3") for seed in (0, 1)]


def store(results: Path) -> RowStore:
    return RowStore(results, "fake", "mini", 0)


def rows(results: Path) -> list[tuple[str, int]]:
    return [(row.cell, row.base_seed) for row in store(results).rows()]


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
    assert "2 stored rows were of other content" in capsys.readouterr().err
    aside = pd.read_json(tmp_path / "runs" / "replaced" / "fake_mini_seed0.jsonl", lines=True)
    assert sorted(aside["content_hash"]) == sorted(old["three@3", seed] for seed in (0, 1))


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


def test_two_sweeps_at_once_compute_everything_once(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([os.environ["PYTHONPATH"], str(Path(__file__).parent)])}
    command = [sys.executable, "-m", "fake_grids", str(tmp_path), "workers=20"]  # a second for each stage
    sweeps = [subprocess.Popen(command, env=environment, stderr=subprocess.PIPE) for _ in range(2)]
    for each in sweeps:
        _, told = each.communicate(timeout=240)
        assert each.returncode == 0, told.decode()
    assert rows(tmp_path) == ROWS
    assert len(calls(tmp_path)) == len(set(calls(tmp_path))) == 10


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
