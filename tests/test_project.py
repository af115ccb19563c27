"""The project around the code: layout, what it depends on, the tested set, and the Makefile."""

import ast
import re
import socket
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import harness
from harness.paths import cache_dir, new_directory, write_text

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
REQUIREMENTS = [Requirement(text) for text in [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["dev"]]]


def canonical(name: str) -> str:
    """A distribution's name as the registry compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def constraints() -> dict[str, list[Requirement]]:
    """The tested set: canonical name -> its pins, several where they differ by Python or platform."""
    pins: dict[str, list[Requirement]] = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            pin = Requirement(line)
            pins.setdefault(canonical(pin.name), []).append(pin)
    return pins


def imported(folder: Path) -> set[str]:
    """The top-level modules that the Python files below a folder import."""
    names: set[str] = set()
    for file in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
                names.add(node.module.partition(".")[0])
    return names


def test_every_requirement_is_pinned_within_its_range() -> None:
    pins = constraints()
    for requirement in REQUIREMENTS:
        assert canonical(requirement.name) in pins, f"{requirement.name}: run `make constraints`"
        for pin in pins[canonical(requirement.name)]:
            (version,) = (specifier.version for specifier in pin.specifier)
            assert requirement.specifier.contains(version), f"{pin} is outside {requirement}"


def test_one_tested_version_serves_both_pythons() -> None:
    assert [name for name, pins in constraints().items() if len(pins) > 1] == []


@pytest.mark.parametrize("package", ["architectures", "harness", "tests"])
def test_whatever_is_imported_is_declared(package: str) -> None:
    own = {"architectures", "harness", *(file.stem for file in (ROOT / "tests").glob("*.py"))}
    declared = {canonical(requirement.name) for requirement in REQUIREMENTS}
    providers = metadata.packages_distributions()
    for name in sorted(imported(ROOT / package) - set(sys.stdlib_module_names) - own):
        found = {canonical(distribution) for distribution in providers.get(name, [])}
        assert found & declared, f"{package} imports {name}; declare one of {sorted(found)} in pyproject.toml"


def test_imports_point_one_way() -> None:
    assert "harness" not in imported(ROOT / "architectures")
    assert "hydra" not in imported(ROOT / "architectures")


def test_the_plug_in_is_registered() -> None:
    assert PROJECT["entry-points"]["lmms_eval.models"] == {"slowfast": "harness.lmms_plugin:manifest"}
    (entry,) = [e for e in metadata.entry_points(group="lmms_eval.models") if e.name == "slowfast"]
    assert callable(entry.load()) or entry.load() is not None
    assert metadata.version("slowfast-harness") == harness.__version__


def test_the_top_level_is_what_it_should_be() -> None:
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    top = {path.partition("/")[0] for path in tracked}
    folders = {"harness", "architectures", "ablations", "results", "notebooks", "tests"}
    files = {"Makefile", "pyproject.toml", "README.md", "LICENSE", "constraints.txt"}
    assert {name for name in top if not name.startswith(".")} == folders | files
    assert {name for name in top if name.startswith(".")} == {".ci", ".gitignore"}
    assert not [path for path in tracked if path.startswith("results/runs/")]


def test_help_explains_every_target() -> None:
    makefile = (ROOT / "Makefile").read_text()
    phony = re.search(r"\.PHONY: (.*?)\n\n", makefile, re.S).group(1).replace("\\\n", " ").split()
    said = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    explained = dict(re.findall(r"^  make ([a-z-]+) +(\S.*)$", said, re.M))
    rules = set(re.findall(r"^([a-z-]+):", makefile, re.M))
    assert set(phony) == rules == set(explained)
    assert set(explained) >= {"setup", "reproduce-table", "controls", "smoke", "test", "test-slow", "lint"}


def test_targets_call_verbs_that_exist_and_set_up_first() -> None:
    from harness.cli import VERBS

    makefile = (ROOT / "Makefile").read_text()
    assert set(re.findall(r"-m harness ([a-z-]+)", makefile)) <= set(VERBS)
    for target in re.findall(r"^([a-z-]+): .*\n\t.*\$\((?:RUN|PYTEST)\)", makefile, re.M):
        assert f"\n{target}: $(READY)" in makefile


def test_make_says_what_is_missing_where_there_is_no_python(tmp_path: Path) -> None:
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        (tmp_path / name).write_text((ROOT / name).read_text())
    done = subprocess.run(["make", "test", "PYTHON="], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert "No Python 3.11 or 3.12 with venv was found: install one, or name it: make test PYTHON=" in done.stderr


def test_files_stay_short_enough_to_read() -> None:
    lengths = {
        str(file.relative_to(ROOT)): len(file.read_text().splitlines())
        for package in ("architectures", "harness")
        for file in (ROOT / package).rglob("*.py")
    }
    assert {name: length for name, length in lengths.items() if length >= 400} == {}


def test_the_cache_is_where_it_is_told_to_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLOWFAST_HARNESS_CACHE", str(tmp_path / "here"))
    assert cache_dir() == tmp_path / "here"
    assert cache_dir().is_dir()
    monkeypatch.delenv("SLOWFAST_HARNESS_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    assert cache_dir().name == "slowfast-harness"
    assert cache_dir().is_relative_to(tmp_path)


def test_a_new_directory_is_complete_or_absent(tmp_path: Path) -> None:
    final = tmp_path / "suite"

    def half() -> None:
        with new_directory(final) as work:
            (work / "file").write_text("half")
            raise ValueError("cut off")

    with pytest.raises(ValueError, match="cut off"):
        half()
    assert list(tmp_path.iterdir()) == []
    with new_directory(final) as work:
        (work / "file").write_text("whole")
        assert not final.exists()
    with new_directory(final) as work:  # the same content by another process, later
        (work / "file").write_text("whole again")
    assert (final / "file").read_text() == "whole"
    assert [path.name for path in tmp_path.iterdir()] == ["suite"]


def test_a_text_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "text"
    write_text(path, "old")
    write_text(path, "new")
    assert path.read_text() == "new"
    assert [each.name for each in path.parent.iterdir()] == ["text"]
    assert path.stat().st_mode & 0o777 == 0o644


def test_tests_cannot_reach_the_network() -> None:
    """Neither here nor in a process that a test starts; 0.0.0.0 is this machine, should the guard fail."""
    attempt = "import socket; socket.create_connection(('0.0.0.0', 9), timeout=1)"
    with pytest.raises(BaseException, match=r"a connection to '0\.0\.0\.0', or a look-up of it, was tried"):
        exec(attempt)
    done = subprocess.run([sys.executable, "-c", attempt], capture_output=True, text=True)
    assert "NetworkReachedFor" in done.stderr
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(server.getsockname(), timeout=1).close()
