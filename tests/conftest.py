"""What every test gets: a cache of its own, one thread of arithmetic, and no network."""

import os
import runpy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

NO_NETWORK = Path(__file__).parent / "no_network"
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")

# Before torch is imported anywhere: tests run side by side, and a pool of threads each would only fight.
for name in THREADS:
    os.environ.setdefault(name, "1")


@pytest.fixture(scope="session", autouse=True)
def surroundings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The session's own cache and a closed network, in this process and in those it starts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLOWFAST_HARNESS_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("PYTHONPATH", str(NO_NETWORK), prepend=os.pathsep)
        runpy.run_path(str(NO_NETWORK / "sitecustomize.py"))
        yield


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """One thread of arithmetic per test process."""
    import torch  # here, so that collecting tests does not wait for it

    torch.set_num_threads(1)


@contextmanager
def environment_as_found() -> Iterator[None]:
    """What is said in the environment meanwhile is not heard by the processes that later tests start."""
    before = dict(os.environ)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@pytest.fixture(scope="module", autouse=True)
def modules_leave_the_environment_as_found() -> Iterator[None]:
    """For what a module's own fixtures train before the first test of it begins."""
    with environment_as_found():
        yield


@pytest.fixture(autouse=True)
def tests_leave_the_environment_as_found() -> Iterator[None]:
    """For what a library says during a test."""
    with environment_as_found():
        yield
