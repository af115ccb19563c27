"""The plan of a table: its stages, what their keys depend on, and mistakes that are found before any work."""

import json
import shutil
from pathlib import Path

import pytest
from tiny import small_suite

from harness import cli
from harness.compose import compose, group_choices
from harness.disclosures import disclosures_of
from harness.errors import UserError
from harness.mini.suite import load_suite, suite_state
from harness.models import KV_INITS, check_variant
from harness.stages import DESCRIPTION, resolve
from harness.table import CONTROLS, Cell, Plan, model_name, scores_name

ARCHITECTURES = group_choices()["architecture"]
CELLS = (Cell("self_attention", 16), Cell("slow_fast", 32), Cell("slow_fast", 128))


def plan(*overrides: str, cells: tuple[Cell, ...] = CELLS, suite: Path | None = None) -> Plan:
    typed = ["scale=test", *overrides]
    return Plan(compose(typed), typed, cells).on(suite or small_suite())


def keys(made: Plan, controls: tuple[str, ...] = ()) -> dict[str, str]:
    """Every stage's key by its name."""
    stages = [*made.stages(controls), made.latency()]
    return {name: attempt.key for name, attempt in resolve(stages, Path("runs")).items()}


@pytest.fixture(scope="module")
def usual() -> dict[str, str]:
    """The keys of the rows above at the tests' scale."""
    return keys(plan())


def differing(usual: dict[str, str], *overrides: str, cells: tuple[Cell, ...] = CELLS) -> set[str]:
    """The stages that a change of settings makes anew; its own new ones are left out."""
    changed = keys(plan(*overrides, cells=cells))
    return {name for name in usual if name in changed and changed[name] != usual[name]}


def of_kind(usual: dict[str, str], *kinds: str) -> set[str]:
    """The names of the usual stages of these kinds."""
    return {name for name in usual if name.startswith(kinds)}


# ------------------------------------------------------------------------------------------------- stages


def test_shared_stages_are_there_once_and_rows_in_their_order() -> None:
    names = [stage.name for stage in plan().stages()]
    assert len(set(names)) == len(names)
    shared = ["encoder", *(f"pool{i}" for i in range(4)), "development", "base0", "base1"]
    costs = ["cost-self_attention", "cost-slow_fast"]
    models, scores = ([name(c, seed) for seed in (0, 1) for c in CELLS] for name in (model_name, scores_name))
    assert names == [*shared, *models, *costs, *scores]
    assert names[-1] == "scores1-slow_fast-128"


def test_a_rows_model_needs_its_own_base_and_its_scores_that_model() -> None:
    stages = {stage.name: stage for stage in plan().stages(CONTROLS)}
    assert stages["model1-slow_fast-32"].needs["base"] == "base1"
    assert stages["scores1-slow_fast-32"].needs["checkpoint"] == "model1-slow_fast-32"
    closed = stages["scores0-slow_fast-128-gate_closed"]
    assert closed.needs["checkpoint"] == "model0-slow_fast-128"
    assert closed.kwargs["control"] == "gate_closed"
    assert plan().latency().needs == {
        "model0": "model0-self_attention-16",
        "model1": "model0-slow_fast-32",
        "model2": "model0-slow_fast-128",
    }


def test_the_pools_parts_are_all_of_its_clips() -> None:
    parts = {stage.name: stage.kwargs for stage in plan().pool()}
    ranges = [(parts[f"pool{i}"]["start"], parts[f"pool{i}"]["stop"]) for i in range(4)]
    assert ranges == [(0, 6), (6, 12), (12, 18), (18, 24)]
    assert parts["development"]["clips"] == "development"


def test_training_one_row_needs_no_suite() -> None:
    settings = compose(["scale=test"])
    needed = {s.name for s in Plan(settings, ["scale=test"], CELLS[1:2]).needed_by(["model0-slow_fast-32"])}
    assert needed == {
        "model0-slow_fast-32",
        "base0",
        "encoder",
        "development",
        *(f"pool{i}" for i in range(4)),
    }


# ------------------------------------------------------------------------------------------------- keys


def test_what_shapes_no_result_changes_no_key(usual: dict[str, str]) -> None:
    assert differing(usual, "workers=7", "jobs=1", "results_dir=elsewhere", "frames=3", "sample=4") == set()


def test_more_rows_and_seeds_leave_what_is_done(usual: dict[str, str]) -> None:
    more = (*CELLS, Cell("compressor_only", 128))
    # Latency alone is measured anew: over all rows in turn.
    assert differing(usual, "base_seeds=[0,1,2]", cells=more) == {"latency"}


@pytest.mark.parametrize(
    ("override", "kinds"),
    [
        ("seed=1", ("encoder", "pool", "development", "base", "model", "scores", "latency")),
        (
            "scale.encoder_training.steps=11",
            ("encoder", "pool", "development", "base", "model", "scores", "latency"),
        ),
        ("scale.base.lr=0.001", ("base", "model", "scores", "latency")),
        ("scale.decoder.intermediate_size=96", ("base", "model", "scores", "latency", "cost")),
        ("scale.adapt.steps=9", ("model", "scores", "latency")),
        ("batch_size=8", ("scores",)),
    ],
)
def test_what_shapes_a_result_changes_its_key_and_all_after_it(
    usual: dict[str, str], override: str, kinds: tuple[str, ...]
) -> None:
    assert differing(usual, override) == of_kind(usual, *kinds)


def test_a_variants_option_changes_its_rows_alone_and_its_cost(usual: dict[str, str]) -> None:
    changed = differing(usual, "gate.bias=0.1")
    assert "base0" not in changed
    assert {"model0-slow_fast-32", "scores1-slow_fast-128", "cost-slow_fast"} <= changed
    own = plan("compressor.fast_frames=8", "architecture.kv_init=random", cells=CELLS[1:])
    here, at_7b = own.of_architecture["slow_fast"], own.at_7b["slow_fast"]
    assert here.compressor.fast_frames == at_7b.compressor.fast_frames == 8  # what is measured is counted
    assert here.architecture.kv_init == "random"
    assert own.base(0).kwargs["config"]["compressor"] == {"name": "identity"}


def test_a_suite_of_ones_own_is_known_by_what_is_in_it(tmp_path: Path) -> None:
    suite = Path(shutil.copytree(small_suite(), tmp_path / "suite"))
    before = keys(plan(suite=suite))
    assert before == keys(plan())  # where it is does not matter
    video = next((suite / "home").rglob("*.mp4"))
    whole = video.read_bytes()
    video.write_bytes(whole[:-1])
    changed = keys(plan(suite=suite))
    assert {name for name in before if changed[name] != before[name]} == of_kind(before, "scores")
    video.write_bytes(whole)
    assert keys(plan(suite=suite)) == before  # repaired
    state = suite_state(suite)
    video.unlink()
    assert suite_state(suite) != state


@pytest.mark.parametrize(
    ("architecture", "group", "override"),
    [
        ("compressor_only", "compressor", "compressor=identity"),
        ("compressor_only", "compressor", "compressor.fast_frames=8"),
        ("compressor_only", "placement", "placement=first"),
        ("self_attention", "compressor", "compressor=adaptive_average"),
        ("self_attention", "compressor", "compressor.fast_frames=8"),
        ("self_attention", "placement", "placement=first"),
        ("slow_fast_official", "slow_tokens", "slow_tokens=timed"),
    ],
)
def test_an_architecture_stays_what_its_name_says(architecture: str, group: str, override: str) -> None:
    changed, other = Cell(architecture, 16), Cell("slow_fast", 16)
    usual, made = plan(cells=(changed, other)), plan(override, cells=(changed, other))
    for name in ("of_architecture", "at_7b"):
        assert getattr(made, name)[architecture] == getattr(usual, name)[architecture]
    if "timed" not in override:  # slow_fast has timed ones anyway
        assert made.of_architecture["slow_fast"][group] != usual.of_architecture["slow_fast"][group]
    with pytest.raises(UserError, match=f"changes no row: {group} is fixed in {architecture}"):
        plan(override, cells=(changed,))


def test_a_row_says_who_computed_its_scores_and_what_was_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = plan(f"suite={tmp_path}")
    scores = tmp_path / "scores0-slow_fast-32-abc"
    scores.mkdir()
    made_by = {"code_commit": "c0ffee", "code_dirty": False, "versions": {"torch": "0.1"}, "device": "abacus"}
    (scores / DESCRIPTION).write_text(json.dumps({"made_by": made_by}))
    (scores / "journal.jsonl").write_text('{"journal_of": {"prompts": "0123"}}\n{"an answer": 1}\n')
    (scores / "scores.json").write_text('{"sampling": "every frame", "decoder": "pyav 15"}')
    monkeypatch.setattr("harness.evaluate.load_evaluation", lambda folder: folder)
    monkeypatch.setattr("harness.table.make_row", lambda evaluation, **fields: fields)
    for name in ("cost_of", "timings", "disclosures"):
        monkeypatch.setattr(Plan, name, lambda *arguments: {})
    closed, _ = made.row({"scores0-slow_fast-32-shuffled": scores}, CELLS[1], 0, "controls", "shuffled")
    assert closed["config"]["control"] == "shuffled"
    row, _ = made.row({"scores0-slow_fast-32": scores}, CELLS[1], 0, "main")
    assert row["config"]["control"] == "none"
    assert row["made_by"].fields() == made_by
    assert (row["config"]["frames"], row["config"]["suite"]) == (32, None)
    made_of = load_suite(small_suite())
    assert row["suite_fingerprint"] == row["suite"]["fingerprint"] == made_of["fingerprint"]
    assert (row["content_hash"], row["world"]) == ("abc", "plain")
    assert {key: row["suite"][key] for key in ("seed", "prompts", "sampling", "decoder")} == {
        "seed": 0,
        "prompts": "0123",
        "sampling": "every frame",
        "decoder": "pyav 15",
    }
    assert row["suite"]["sizes"]["mlvu"] == made_of["parameters"]["videos"]["mlvu"]
    assert (row["suite"]["split"]["mvbench"], row["suite"]["aggregation"]["mlvu"]) == ("train", "categories")


@pytest.mark.parametrize(
    ("typed", "said", "unsaid"),
    [
        ([], ["in 60% of base training's", "are not in this world"], ["without that rule", "grey patches"]),
        (["scale.base.first_layer_reading=0"], ["base training is without that rule here"], ["in 0%"]),
        (
            ["world=distractors"],
            ["in 24 frames of an adaptation clip and 24 of an evaluation clip"],
            ["are not in this world", "What is salient is what is asked"],
        ),
        (["world=dwell"], ["stay for 1 to 64 frames in adaptation", "are not in this world"], ["grey patches"]),
    ],
    ids=["usual", "no rule", "distractors", "dwell"],
)
def test_disclosures_say_what_is_so_of_the_settings(typed: list[str], said: list[str], unsaid: list[str]) -> None:
    base = {"accuracy": {"order": 0.9}, "mean": 0.9, "threshold": 0.8, "passed": True}
    text = "\n".join(disclosures_of(compose(typed), base))
    assert [part for part in said if part not in text] == []
    assert [part for part in unsaid if part in text] == []
    assert "right in 90% of cases (order 90%): it passes the threshold of 80%" in text


def test_latency_stands_in_a_row_where_it_was_measured_and_nowhere_else(tmp_path: Path) -> None:
    made = plan()
    flops = {"16": {"fast_tokens": 1}, "32": {"fast_tokens": 2}, "128": {"fast_tokens": 3}}
    (tmp_path / "cost.json").write_text(json.dumps(flops))
    (tmp_path / "latency.json").write_text(json.dumps([{"prefill_ms": number} for number in range(3)]))
    folders = {"cost-slow_fast": tmp_path}
    assert made.cost_of(folders, CELLS[1]) == {"fast_tokens": 2}
    assert made.cost_of({**folders, "latency": tmp_path}, CELLS[1]) == {"fast_tokens": 2, "prefill_ms": 1}


# ------------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    "text", ["slow_fast", "slow_fast@", "slow_fast@x", "slow_fast@0", "nonsense@16", "@16", "slow_fast@²"]
)
def test_a_row_that_is_none_is_a_sentence(text: str) -> None:
    with pytest.raises(UserError, match="is not ARCHITECTURE@FRAMES such as slow_fast@128; architectures are"):
        Cell.parse(text, ARCHITECTURES)


def test_a_row_is_written_as_it_is_read() -> None:
    assert str(Cell.parse("slow_fast@64", ARCHITECTURES)) == "slow_fast@64"


def test_every_row_of_the_shipped_table_can_be_built() -> None:
    settings = compose([])
    Plan(settings, [], [Cell.parse(text, ARCHITECTURES) for text in settings.rows])
    for how in KV_INITS:
        check_variant(compose([f"architecture.kv_init={how}"]), 1)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["table", "rows=[slow_fast@x]"], "rows: 'slow_fast@x' is not ARCHITECTURE@FRAMES"),
        (["table", "rows=[nonsense@16]"], "rows: 'nonsense@16' is not ARCHITECTURE@FRAMES"),
        (["table", "scale=paper"], "scale=paper needs data=FOLDER, the folder of the real benchmarks"),
        (["controls", "scale=paper"], "scale=paper: this verb trains models from scratch"),
        (["train", "scale=paper"], "scale=paper: this verb trains models from scratch"),
        (["suite", "scale=paper"], "name the folder of the real benchmarks: data=FOLDER"),
        (["table", "prompts=official"], "prompts=official changes nothing here: prompts is for scale=paper"),
        (["ablate", "grid=gates", "online=true"], "online=true changes nothing here: online is for scale=paper"),
        (["controls", "dry_run=true"], "the verb controls has no plan to print; ablate and finetune and table have"),
        (["table", "gate=nope"], "there is no gate 'nope'; choose one of"),
        (["table", "frames=many"], "frames takes a whole number, not 'many'"),
        (["table", "slow_tokens.time.name=x"], "Unknown time position 'x': choose one of fourier, none, rotary"),
        (["cost", "slow_tokens.time.name=x"], "Unknown time position 'x': choose one of fourier, none, rotary"),
        (["train", "slow_tokens.time.harmonics=3"], "must be equal"),
        (["table", "rows=[slow_fast@16]", "compressor.fast_frames=0"], "fast_frames is 0, must be at least 1"),
        (
            ["train", "placement.k=9", "placement=first"],
            "k is 9, must lie between 1 and the decoder's 4 layers",
        ),
        (["train", "compressor.sample_stride=2"], "give both sample_stride and average_stride, or neither"),
        (["train", "compressor.sample_stride=1.5", "compressor.average_stride=2"], "cannot be built"),
        (["train", "compressor.space_stride=3"], "its compressor leaves no token"),
        (["train", "gate.bias=null"], "cannot be built"),
        (
            ["train", "architecture.kv_init=swapped"],
            "Unknown kv_init 'swapped': choose one of copy, scrambled",
        ),
        (["table", "rows=[]"], "rows=[]: give at least one, each only once"),
        (["table", "rows=[slow_fast@16,slow_fast@16]"], "give at least one, each only once"),
        (["table", "rows=[slow_fast@16,slow_fast@016]"], "give each row only once"),
        (["table", "seed=1000000"], "seed 1000000 is out of range: use one from 0 to 999999"),
        (["train", "base_seeds=[1000000]"], "1000000 is not between"),
        (["table", "scale.pool_clips=11"], "scale.pool_clips=11: it is at least 16, so that"),
        (["train", "scale.adapt.steps=0"], "scale.adapt.steps=0: it is at least 1"),
        (["train", "scale.encoder_training.steps=0"], "scale.encoder_training.steps=0: it is at least 1"),
        (["suite", "suite=nowhere"], "nowhere is no evaluation suite"),
        (["table", "suite=nowhere"], "nowhere is no evaluation suite"),
        (["evaluate", "checkpoint=nowhere"], "checkpoint=nowhere: no folder of a saved model"),
        (["controls", "rows=[slow_fast@128]"], "controls need compressor_only@128 among the rows"),
        (["plot", "scale=paper"], "holds no rows of paper scale; `make reproduce-table SCALE=paper` makes them"),
    ],
)
def test_a_mistake_ends_in_one_sentence_before_any_work(
    arguments: list[str],
    complaint: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(arguments) == 2
    said = capsys.readouterr()
    assert said.err.startswith("error: ")
    assert complaint in said.err
    assert said.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
