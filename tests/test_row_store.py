"""The grids' store: order, sharing, setting aside; many writers at once, and writers killed at any moment."""

import json
import multiprocessing
import random
import time
from functools import cache
from pathlib import Path

import pytest
from synthetic_rows import answers, evaluation, questions, row

from harness.errors import UserError
from harness.grids.grid import Grid
from harness.row_store import Failure, RowStore, grids_in
from harness.rows import KEYS, SAMPLE_COLUMNS

CELLS = ("dynamic_tanh", "static_tanh", "sigmoid", "none")
SHAPE = {"mlvu": (14, 2), "egoschema": (10, 1)}
LATENCY = ("prefill_ms", "prefill_ms_quartiles", "decode_ms_per_token", "decode_ms_quartiles")
COST = {"fast_tokens": 64, "slow_tokens": 512, "prefill_mflop_mini": 80, "prefill_tflop_7b": 20, "model_tflop_7b": 277}


def grid(name="gates", cells=CELLS, order=60) -> Grid:
    text = {"question": "Which gate?", "paper": "Table 5", "cost": "nothing", "time": "minutes"}
    differences = {cell: {"set": [f"gate={cell}"]} for cell in cells}
    return Grid.model_validate(dict(name=name, order=order, reference=cells[0], cells=differences, **text))


def store_in(results: Path, name="gates", **changes) -> RowStore:
    store = RowStore(results, name, "mini", 0)
    store.begin(grid(name, **changes))
    return store


@cache
def measured(number=0):
    return evaluation(answers(questions(SHAPE), 0.3 + 0.1 * number, seed=number))


def made(cell="dynamic_tanh", base_seed=0, name="gates", content=None, number=0):
    """A row of a grid and its samples."""
    fields = {"grid": name, "cell": cell, "base_seed": base_seed, "table": "ablations", "cost": COST}
    content = content or f"{cell}-{base_seed}"
    one = row(measured(number), content_hash=content, overrides=[f"gate={cell}"], **fields)
    return one, measured(number).samples


def failure(cell="sigmoid", base_seed=1, error="out of memory") -> Failure:
    when = "2026-01-02T03:04:05+00:00"
    return Failure(
        cell=cell, base_seed=base_seed, stage="model", error=error, traceback="", when=when, code_commit=None
    )


def keys_of(store: RowStore) -> list[tuple[str, int]]:
    return [(each.cell, each.base_seed) for each in store.rows()]


def test_rows_stand_in_the_grids_order_whoever_came_first(tmp_path):
    store = store_in(tmp_path)
    assert (store.rows(), len(store.frame()), len(store.samples())) == ([], 0, 0)
    for cell, base_seed in (("none", 0), ("static_tanh", 1), ("dynamic_tanh", 1), ("static_tanh", 0)):
        store.put(*made(cell, base_seed))
    expected = [("dynamic_tanh", 1), ("static_tanh", 0), ("static_tanh", 1), ("none", 0)]
    assert keys_of(store) == expected
    store.begin(grid(cells=CELLS[::-1]))
    assert keys_of(store) == [("none", 0), ("static_tanh", 0), ("static_tanh", 1), ("dynamic_tanh", 1)]
    assert list(store.grid().cells) == list(CELLS[::-1])


def test_a_row_comes_back_as_it_was_put_and_in_place_of_the_one_before(tmp_path):
    store = store_in(tmp_path)
    first, samples = made(number=1)
    store.put(first, samples)
    assert store.rows() == [first]
    assert first.samples == "samples/dynamic_tanh-0.parquet"
    assert [getattr(first, name) for name in LATENCY] == [None] * 4
    assert store.frame()["prefill_ms"].isna().all()
    again, other = made(content="other", number=3)
    store.put(again, other)
    assert store.rows() == [again]
    assert store.samples()["correct"].mean() == pytest.approx(other["correct"].mean())


def test_samples_are_named_by_their_row_and_written_once(tmp_path):
    store, other = store_in(tmp_path), store_in(tmp_path, name="placement")
    store.put(*made(content="shared", number=1))
    path = tmp_path / "rows/ablations/samples/shared.parquet"
    written = path.stat().st_mtime_ns
    other.put(*made("none", name="placement", content="shared", number=1))
    assert path.stat().st_mtime_ns == written
    back = other.samples()
    assert set(back.columns) == {"cell", *SAMPLE_COLUMNS}
    assert back[[*KEYS, "cell"]].drop_duplicates().to_numpy().tolist() == [["slow_fast", 128, "none", 0, "none"]]
    assert back["correct"].tolist() == measured(1).samples["correct"].tolist()
    assert back["seconds"].eq(0.01).all()


def test_other_grids_rows_of_the_same_content_follow_when_another_machine_computed_it_anew(tmp_path):
    store, other = store_in(tmp_path), store_in(tmp_path, name="placement")
    theirs, samples = made("none", name="placement", content="shared", number=1)
    apart, _ = made("sigmoid", name="placement", number=2)
    other.put(theirs, samples)
    other.put(apart, measured(2).samples)
    mine, anew = made(content="shared", number=3)
    mine = mine.model_copy(update={"device": "another processor", "timings": {"evaluate": 7.0}})
    store.put(mine, anew)
    followed = next(row for row in other.rows() if row.cell == "none")
    assert followed.average == mine.average != theirs.average
    assert (followed.device, followed.timings, followed.scores) == (mine.device, mine.timings, mine.scores)
    assert (followed.grid, followed.overrides) == ("placement", ["gate=none"])
    assert apart in other.rows()
    share = other.samples().groupby("cell")["correct"].mean()["none"]
    assert share == pytest.approx(anew["correct"].mean())


def test_one_model_in_two_grids_is_not_stored_in_turns(tmp_path):
    store, other = store_in(tmp_path), store_in(tmp_path, name="placement")
    one, samples = made(content="shared", number=1)
    twin, _ = made("none", name="placement", content="shared", number=1)
    one, twin = (row.model_copy(update={"timings": {"evaluate": s}}) for row, s in ((one, 9.1), (twin, 8.7)))
    store.put(one, samples)
    other.put(twin, samples)
    assert (store.rows(), other.rows()) == ([one], [twin])


def test_a_second_cell_of_the_same_content_follows_too(tmp_path):
    store = store_in(tmp_path)
    store.put(*made("none", content="shared", number=1))
    mine, anew = made("sigmoid", content="shared", number=3)
    store.put(mine, anew)
    assert [(row.cell, row.average) for row in store.rows()] == [("sigmoid", mine.average), ("none", mine.average)]


def test_samples_are_there_before_their_row(tmp_path, monkeypatch):
    store = store_in(tmp_path)
    monkeypatch.setattr(RowStore, "_write_rows", lambda *_: pytest.fail("the row is about to be written"))
    with pytest.raises(pytest.fail.Exception):
        store.put(*made())
    assert (tmp_path / "rows/ablations/samples/dynamic_tanh-0.parquet").is_file()


def test_a_failure_is_kept_until_its_cell_is_done(tmp_path):
    store = store_in(tmp_path)
    store.fail(failure())
    store.fail(failure("static_tanh"))
    store.fail(failure(error="again"))
    assert [(each.cell, each.error) for each in store.failures()] == [
        ("static_tanh", "out of memory"),
        ("sigmoid", "again"),
    ]
    store.put(*made("sigmoid", 0))
    assert len(store.failures()) == 2  # another base seed's row
    store.put(*made("sigmoid", 1))
    assert [each.cell for each in store.failures()] == ["static_tanh"]
    store.clear_failure("static_tanh", 1)
    store.clear_failure("static_tanh", 1)
    assert store.failures() == []
    assert not store.failures_path.exists()


def test_what_is_set_aside_is_moved_and_not_lost(tmp_path):
    store, other = store_in(tmp_path), store_in(tmp_path, name="placement")
    for number, cell in enumerate(CELLS[:3]):
        store.put(*made(cell, content=cell, number=number))
    other.put(*made("none", name="placement", content="sigmoid", number=2))
    where = tmp_path / "aside"
    keep = {("dynamic_tanh", 0, "dynamic_tanh")}
    # One of another cell's content, or of another seed's, is not that row's.
    moved = store.set_aside({*keep, ("none", 0, "static_tanh"), ("sigmoid", 1, "sigmoid")}, where)
    assert [each.cell for each in moved] == ["static_tanh", "sigmoid"]
    assert keys_of(store) == [("dynamic_tanh", 0)]
    samples = {path.stem for path in (tmp_path / "rows/ablations/samples").iterdir()}
    assert samples == {"dynamic_tanh", "sigmoid"}  # the other grid's row needs the latter
    assert len(other.samples()) == len(measured().samples)
    assert {path.stem for path in (where / "samples").iterdir()} == {"static_tanh", "sigmoid"}
    store.put(*made("static_tanh", content="newer"))
    store.set_aside(keep, where)
    kept = [json.loads(line)["content_hash"] for line in (where / store.path.name).read_text().splitlines()]
    assert kept == ["static_tanh", "sigmoid", "newer"]
    assert store.set_aside(keep, where) == []


def test_what_a_row_replaces_is_moved_if_it_is_of_other_content(tmp_path):
    store, where = store_in(tmp_path), tmp_path / "aside"
    store.put(*made("none", content="old", number=1))
    store.put(*made("none", content="old", number=1), where)
    assert not where.exists()
    store.put(*made("none", content="new", number=2), where)
    assert [each.content_hash for each in store.rows()] == ["new"]
    aside = [json.loads(line)["content_hash"] for line in (where / store.path.name).read_text().splitlines()]
    assert aside == ["old"]
    assert {path.stem for path in (where / "samples").iterdir()} == {"old"}
    assert {path.stem for path in (tmp_path / "rows/ablations/samples").iterdir()} == {"new"}


def test_a_row_of_the_same_content_brings_its_own_samples(tmp_path):
    store = store_in(tmp_path)
    store.put(*made(content="same", number=1))
    again, samples = made(content="same", number=3)  # another machine answered a few questions otherwise
    store.put(again, samples)
    assert store.rows() == [again]
    assert is_whole(store)
    assert store.samples()["correct"].tolist() == samples["correct"].tolist()


def test_a_folders_grids_are_found_in_the_books_order(tmp_path):
    assert grids_in(tmp_path) == []
    for name, order in (("fast_tokens", 30), ("gates", 60), ("frames", 10)):
        store_in(tmp_path, name=name, order=order)
    RowStore(tmp_path, "gates", "smoke_2", 12).begin(grid())
    found = [(store.name, store.scale, store.seed) for store in grids_in(tmp_path)]
    assert found == [("frames", "mini", 0), ("fast_tokens", "mini", 0), ("gates", "mini", 0), ("gates", "smoke_2", 12)]
    assert grids_in(tmp_path)[0].grid() == grid("frames", order=10)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"name": "placement"}, "the row dynamic_tanh of the grid placement, .* does not belong to .*gates"),
        ({"cell": "unheard_of"}, "is of a cell that .*grid.json has not"),
    ],
    ids=["another grid", "another cell"],
)
def test_a_row_that_does_not_belong_is_refused(tmp_path, change, sentence):
    store = store_in(tmp_path)
    with pytest.raises(UserError, match=sentence):
        store.put(*made(**change))
    assert store.rows() == []


def test_what_is_missing_is_told_in_a_sentence(tmp_path):
    store = RowStore(tmp_path, "gates", "mini", 0)
    with pytest.raises(UserError, match=r"gates_mini_seed0.grid.json does not exist; .* ablate grid=gates"):
        store.put(*made())
    with pytest.raises(UserError, match="is for the grid gates, not for frames"):
        store.begin(grid("frames"))
    store.begin(grid())
    store.put(*made())
    (tmp_path / "rows/ablations/samples/dynamic_tanh-0.parquet").unlink()
    with pytest.raises(UserError, match=r"samples/dynamic_tanh-0.parquet does not exist"):
        store.samples()
    store.fail(failure())
    store.failures_path.write_text('{"cell": 1}\n')
    with pytest.raises(UserError, match="holds a line that is no failure"):
        store.failures()


# ------------------------------------------------------------------------------- many writers, dying writers


@pytest.fixture(scope="module")
def forks():
    """Processes forked from a server that has imported what takes long: real, and soon there."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["harness.row_store", "harness.grids.grid", "pyarrow.parquet", "pytest"])
    return context


def write_all(results: Path, base_seed: int) -> None:
    store = RowStore(results, "gates", "mini", 0)
    for cell in random.Random(base_seed).sample(CELLS, len(CELLS)):
        store.put(*made(cell, base_seed, number=base_seed))


def write_forever(results: Path, seed: int, wrote) -> None:
    store, drawn = RowStore(results, "gates", "mini", 0), random.Random(seed)
    while True:
        cell, base_seed, number = drawn.choice(CELLS), drawn.randrange(2), drawn.randrange(4)
        store.put(*made(cell, base_seed, content=f"{cell}-{base_seed}-{number}", number=number))
        store.fail(failure(drawn.choice(CELLS), 7, "x" * drawn.randrange(100_000)))
        wrote.set()


def is_whole(store: RowStore) -> bool:
    """Every line parses, no cell is there twice, every row's samples are there and are its own."""
    keys, samples = keys_of(store), store.samples()
    right = samples.groupby(["cell", "base_seed"])["correct"].sum()
    for each in store.rows():
        assert sum(tally.correct for tally in each.by_family.values()) == right[each.cell, each.base_seed]
    assert len({each.cell for each in store.failures()}) == len(store.failures())
    return len(set(keys)) == len(keys) and keys == sorted(keys, key=lambda key: (CELLS.index(key[0]), key[1]))


def test_four_writers_at_once_lose_nothing(tmp_path, forks):
    store = store_in(tmp_path)
    writers = [forks.Process(target=write_all, args=(tmp_path, base_seed)) for base_seed in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(120)
    assert [writer.exitcode for writer in writers] == [0] * 4
    assert keys_of(store) == [(cell, base_seed) for cell in CELLS for base_seed in range(4)]
    assert is_whole(store)
    assert len(store.samples()) == 16 * len(measured().samples)


def read_until(moment: float, store: RowStore) -> None:
    """A reader without a lock meets whole files only, with ever more lines."""
    seen, failed = 0, 0
    while time.monotonic() < moment:
        now, failures = len(store.rows()), len(store.failures())
        assert now >= seen
        assert failures >= failed
        seen, failed = now, failures


@pytest.mark.slow
def test_a_writer_killed_at_any_moment_leaves_whole_files(tmp_path, forks):
    store, drawn = store_in(tmp_path), random.Random(5)
    for kill in range(20):
        wrote = forks.Event()
        writer = forks.Process(target=write_forever, args=(tmp_path, kill, wrote))
        writer.start()
        assert wrote.wait(120), "the writer has not written once"
        read_until(time.monotonic() + drawn.uniform(0, 0.2), store)
        writer.kill()
        writer.join()
        assert is_whole(store)
    assert len(store.rows()) > 4
    store.clear_failure("none", 0)  # the next writer sweeps up
    left = [path for path in store.folder.rglob(".*") if path.name != ".lock"]
    assert left == []
