"""The Hydra app behind `python -m harness ablate`: a multirun over cells and base seeds, a job for each pair.

    python -m harness.grids.sweep --multirun grid=gates cell=none,sigmoid base_seed=0,1 hydra/launcher=sweep_joblib

The verb starts it so, when it has planned what is to be done and begun the grid's store. Its launchers are in
conf/hydra/launcher: sweep_joblib (processes here), sweep_submitit_local (the same through submitit, as a rehearsal
for a cluster) and sweep_submitit_slurm. Jobs share nothing but files: stages and rows, on a file system that every
node sees and whose locks work.

Ray is one line more, untested here: `pip install hydra-ray-launcher`, let the verb begin the grid (Ctrl-C once the
first row is at work), then start this app by hand, as above, with hydra/launcher=ray on a Ray cluster that is up;
runs_dir= and results_dir= as absolute paths.
"""

import hydra
from omegaconf import DictConfig

from harness.compose import CONF


@hydra.main(config_path=str(CONF), config_name="sweep", version_base="1.3")
def main(config: DictConfig) -> None:
    """One job; that it failed is in the store, so that the others go on."""
    from harness.grids.job import job_of, work_on  # here: the process that submits jobs needs no torch

    if f"{config.cell}/{config.base_seed}" not in config.skip:
        work_on(job_of(config), config.cell, config.base_seed)


if __name__ == "__main__":
    from harness.grids.guard import end_with_stdin

    end_with_stdin()
    main()
