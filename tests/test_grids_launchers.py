"""What the shipped launchers make of a sweep: composed for each; run for submitit's local one (slow)."""

import os
import subprocess
from pathlib import Path

import hydra
import kill_sweep
import pytest
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig
from tiny import small_suite

from harness.compose import CONF, compose
from harness.grids.launch import launcher_arguments, quoted
from harness.row_store import RowStore
from harness.settings import ABLATE


def composed(*typed: str, jobs: int = 3) -> DictConfig:
    """The Hydra app's configuration as the verb asks for it."""
    arguments = launcher_arguments(compose(typed, root=ABLATE), jobs)
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        named = ["grid=g", "cell=c", "base_seed=0", "folder=/runs/sweeps/g"]
        return hydra.compose("sweep", overrides=[*named, *arguments], return_hydra_config=True)


def test_joblib_runs_as_many_processes_as_jobs_and_hands_out_one_job_at_a_time() -> None:
    launcher = composed().hydra.launcher
    assert launcher._target_.endswith("JoblibLauncher")
    assert (launcher.n_jobs, int(launcher.batch_size), launcher.pre_dispatch) == (3, 1, "n_jobs")


def test_submitit_local_gets_jobs_in_batches() -> None:
    config = composed("launcher=submitit_local")
    assert config.hydra.launcher._target_.endswith("LocalLauncher")
    assert config.hydra.sweeper.max_batch_size == 3
    assert config.hydra.launcher.submitit_folder == "/runs/sweeps/g/jobs/submitit/%j"


def test_slurm_gets_partition_time_memory_and_gpus() -> None:
    typed = ["launcher=submitit_slurm", "partition=long", "minutes=90", "gigabytes=8", "gpus=1"]
    launcher = composed(*typed).hydra.launcher
    assert launcher._target_.endswith("SlurmLauncher")
    assert (launcher.partition, launcher.timeout_min, launcher.mem_gb, launcher.gpus_per_node) == ("long", 90, 8, 1)
    assert launcher.max_num_timeout > 0  # a job that runs into its time goes on later
    assert composed("launcher=submitit_slurm").hydra.launcher.partition is None


def test_hydras_own_files_stay_in_the_sweeps_folder() -> None:
    config = composed().hydra
    assert (config.sweep.dir, config.run.dir) == ("/runs/sweeps/g/jobs", "/runs/sweeps/g/jobs")
    assert config.output_subdir is None
    assert not config.job.chdir


@pytest.mark.parametrize("text", ["slow_fast@64", "a'b", r"c:\d", "back\\", "rows=[a@1,b@2]", 'say "x"', r"\'", ""])
def test_any_text_passes_through_hydras_command_line(text: str) -> None:
    (override,) = OverridesParser.create().parse_overrides([f"cell={quoted(text)}"])
    assert override.value() == text


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_sweep_by_submitit_on_this_machine(tmp_path: Path) -> None:
    small_suite()
    command = kill_sweep.command(tmp_path, "launcher=submitit_local")
    ran = subprocess.run(command, cwd=tmp_path, env=_environment(), capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    rows = RowStore(tmp_path / "results", "kills", "test", 0).rows()
    assert [(row.cell, row.base_seed) for row in rows] == [("open", 0), ("open", 1), ("sigmoid", 0), ("sigmoid", 1)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kills.yaml", "results", "runs"]  # no stray outputs/
    again = subprocess.run(command, cwd=tmp_path, env=_environment(), capture_output=True, text=True)
    assert "all done (4 rows)" in again.stderr


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_sweep_killed_at_twenty_random_moments_ends_as_an_undisturbed_one(tmp_path: Path) -> None:
    small_suite()
    kill_sweep.main(tmp_path)


def _environment() -> dict[str, str]:
    """This process's, with the checkout found from any folder."""
    root = str(Path(__file__).parent.parent)
    return {**os.environ, "PYTHONPATH": os.pathsep.join([os.environ["PYTHONPATH"], root])}
