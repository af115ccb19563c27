"""No test hears what an earlier one left in the environment: a reporter once told to stay offline says so on stdout."""

import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
LEAVES = """
import os
import pytest

@pytest.fixture(scope="module")
def trained():
    os.environ["WANDB_MODE"] = "offline"

def test_leaves_a_word(trained):
    os.environ["WANDB_DIR"] = "here"
    assert os.environ["WANDB_MODE"] == "offline"

def test_of_the_same_module():
    assert os.environ["WANDB_MODE"] == "offline" and "WANDB_DIR" not in os.environ
"""
FINDS = """
import os

def test_of_another_module():
    assert "WANDB_MODE" not in os.environ
"""


def test_neither_a_test_nor_a_fixture_of_a_module_leaves_the_environment_changed(tmp_path: Path) -> None:
    shutil.copy(HERE / "conftest.py", tmp_path)
    shutil.copytree(HERE / "no_network", tmp_path / "no_network")
    (tmp_path / "test_1_leaves.py").write_text(LEAVES)
    (tmp_path / "test_2_finds.py").write_text(FINDS)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert "3 passed" in done.stdout, done.stdout + done.stderr
