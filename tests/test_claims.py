"""Claims: verdicts follow their rules, figures are those of the rows, and what has no rows is owed."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from synthetic_rows import answers, evaluation, questions, row, table_run

from harness import rows, statistics
from harness.grids.grid import load_grid
from harness.reports import claims
from harness.reports.claim_list import CLAIMS
from harness.reports.claim_rules import (
    GAINS,
    NEGLIGIBLE,
    SAME,
    SUFFICES,
    Claim,
    at_least,
    at_most,
    gains,
    is_about,
    more_than,
)
from harness.reports.evidence import (
    Evidence,
    Finding,
    Pool,
    best_minus,
    farthest,
    minus,
    minus_best,
    projecting_again_counted,
    projecting_again_measured,
    relative_gain,
    slope,
)
from harness.reports.grid_result import CATEGORY_MEANS, analyse
from harness.row_store import RowStore

ROOT = Path(__file__).parents[1]
SHAPE = {"videomme": (30, 2), "mlvu": (40, 2), "egoschema": (40, 1)}
SHARES = {"dynamic_tanh": 0.8, "sigmoid": 0.8, "static_tanh": 0.5, "dynamic": 0.5, "none": 0.5}


def found(lo, hi, **more):
    return Finding((lo + hi) / 2, lo, hi, "points", "control", "mini", **more)


@pytest.fixture(scope="module")
def gates(tmp_path_factory):
    """The grid of gates with real names, of which two are as good as each other."""
    store = RowStore(tmp_path_factory.mktemp("results"), "gates", "mini", 0)
    store.begin(load_grid("gates", ROOT / "ablations", composed=False))
    asked = questions(SHAPE)
    for number, cell in enumerate(store.grid().cells):
        for base_seed in (0, 1):
            samples = answers(asked, SHARES.get(cell, 0.5), seed=100 * base_seed + number)
            fields = {"grid": "gates", "cell": cell, "content_hash": f"{cell}-{base_seed}", "base_seed": base_seed}
            store.put(row(evaluation(samples), **fields), samples)
    return analyse(store)


@pytest.fixture(scope="module")
def main(tmp_path_factory):
    """A results folder with a main table alone."""
    folder = tmp_path_factory.mktemp("main")
    frame, samples = table_run(shape=SHAPE)
    rows.write_text(folder / "rows" / rows.rows_name("main", "mini", 0), frame.to_json(orient="records", lines=True))
    rows.write_samples(folder / "rows" / rows.samples_name("main", "mini", 0), [samples])
    return folder, frame, samples


@pytest.mark.parametrize(
    ("rule", "lo", "hi", "verdict"),
    [
        (GAINS, 0.1, 9, "reproduced"),
        (GAINS, -9, NEGLIGIBLE - 0.1, "refuted"),
        (GAINS, -1, 9, "owed"),
        (SUFFICES, -9, NEGLIGIBLE - 0.1, "reproduced"),
        (SUFFICES, NEGLIGIBLE + 0.1, 9, "refuted"),
        (SUFFICES, 1, 9, "owed"),
        (SUFFICES, -1, 9, "owed"),
        (GAINS, 0.5, 2.5, "reproduced"),
        (SUFFICES, 0.5, 2.5, "reproduced"),
        (gains(1), -1, 0.9, "refuted"),
        (gains(1), -1, 1.1, "owed"),
        (SAME, -2, 2, "reproduced"),
        (SAME, -9, -1, "owed"),
        (SAME, -9, -NEGLIGIBLE - 0.1, "refuted"),
        (SAME, -9, 1, "owed"),
        (at_least(16), 17, 30, "reproduced"),
        (at_least(16), 2, 15, "refuted"),
        (at_least(16), 2, 30, "owed"),
        (at_most(3), 1, 3, "reproduced"),
        (at_most(3), 4, 5, "refuted"),
        (at_most(3), 2, 5, "owed"),
        (more_than(100), 101, 300, "reproduced"),
        (more_than(100), 50, 100, "refuted"),
        (more_than(100), 50, 300, "owed"),
        (is_about(3, 0.5, "x"), 2.6, 3.4, "reproduced"),
        (is_about(3, 0.5, "x"), 1, 2, "refuted"),
        (is_about(3, 0.5, "x"), 1, 3, "owed"),
    ],
)
def test_verdicts_follow_the_interval(rule, lo, hi, verdict):
    assert rule.verdict(found(lo, hi)) == verdict


@pytest.mark.parametrize(
    ("rule", "finding", "verdict"),
    [
        (GAINS, found(1, 9, p_holm=0.04), "reproduced"),
        (GAINS, found(1, 9, p_holm=0.06), "owed"),
        (GAINS, found(1, 9, by_seed=(7.0, 3.0)), "reproduced"),
        (GAINS, found(1, 9, by_seed=(11.0, -1.0)), "owed"),
        (GAINS, found(-9, -4, by_seed=(-5.0, -7.0), p_holm=0.01), "refuted"),
        (GAINS, found(-1, 1, by_seed=(-0.3, 0.5), p_holm=1.0), "refuted"),
        (at_least(16), found(-3, 5, by_seed=(-1.0, 3.0)), "refuted"),
        (SUFFICES, found(4, 9, p_holm=0.06), "owed"),
        (at_least(16), found(17, 30, p_holm=0.06), "owed"),
        (at_least(16), found(17, 30, by_seed=(50.0, -3.0)), "owed"),
    ],
)
def test_a_difference_needs_the_corrected_p_and_base_seeds_that_agree(rule, finding, verdict):
    assert rule.verdict(finding) == verdict


A, B = ("a", 1.0, -0.5, 2.5), ("b", 0.5, -4.0, 5.0)


class _Family:
    """Evidence of cells with given differences from `ref`, and a corrected p."""

    def __init__(self, monkeypatch, cells, p=0.01):
        known = {name: Finding(figure, lo, hi, "", "ref", "mini", p_holm=p) for name, figure, lo, hi in cells}
        monkeypatch.setattr("harness.reports.evidence._difference", lambda pool, cell, second, level: known[cell])

    def scores(self, grid, cells):
        return Pool(None, "mini")


@pytest.mark.parametrize(
    ("cells", "ends", "suffices", "same"),
    [
        ([A, B], (1.0, -0.5, 5.0), "owed", "owed"),  # a alone would do; of b nothing is known
        ([A, ("b", 0.5, -2.0, 2.0)], (1.0, -0.5, 2.5), "reproduced", "reproduced"),
        ([A, ("b", -6.0, -8.0, -4.0)], (1.0, -0.5, 2.5), "reproduced", "refuted"),
        ([A, ("b", 6.0, 4.0, 8.0)], (6.0, 4.0, 8.0), "refuted", "refuted"),
    ],
)
def test_a_family_is_judged_by_all_of_its_cells(monkeypatch, cells, ends, suffices, same):
    evidence, names = _Family(monkeypatch, cells), ["a", "b"]
    best = best_minus("grid", names, "ref")(evidence)
    assert (best.figure, best.lo, best.hi) == ends
    assert SUFFICES.verdict(best) == suffices
    turned = minus_best("grid", "ref", names)(evidence)
    assert (turned.figure, turned.lo, turned.hi) == (-best.figure, -best.hi, -best.lo)
    assert SAME.verdict(farthest("grid", names, "ref")(evidence)) == same


def test_nothing_is_left_of_a_gain_only_where_there_was_one(monkeypatch):
    for gain, verdict in ((found(4, 9), "reproduced"), (found(-4, 9), "owed"), (None, "owed")):
        claim = Claim("id", "claim", "ours", lambda _: found(-1, 1), SUFFICES, "make", given=lambda _, gain=gain: gain)
        assert claim.verdict(found(-1, 1), None) == verdict
        assert "owed unless the gain itself is reproduced" in claim.rule_text


def test_p_is_that_of_the_grids_table_where_the_pair_stands_there(gates, tmp_path):
    evidence, compared = Evidence(tmp_path, [gates]), gates.differences
    assert minus("gates", "dynamic_tanh", "none")(evidence).p_holm == compared.loc["none", "p_holm"]
    other = minus("gates", "sigmoid", "none")(evidence)
    one = statistics.paired(gates.suites[0].scores, ("sigmoid",), ("none",)).set_index("benchmark").loc["average", "p"]
    assert other.p_holm == pytest.approx(statistics.holm([*compared["p"], one])[-1])
    scores = gates.rows.pivot(index="base_seed", columns="cell", values="average")
    assert other.by_seed == pytest.approx(tuple(scores["sigmoid"] - scores["none"]))


def test_claims_are_decided_at_known_scales_and_the_first_seed(gates, tmp_path):
    later, tiny = replace(gates, seed=1), replace(gates, scale="tiny")
    assert Evidence(tmp_path, [tiny, later, gates]).grids == {"gates": gates}
    assert Evidence(tmp_path, [tiny]).grids == {}


def test_the_command_writes_the_file_of_a_folder(tmp_path, capsys):
    assert claims.main([str(tmp_path)]) == 0
    assert (tmp_path / "claims.csv").is_file()
    assert "owed" in capsys.readouterr().out


def test_claims_on_a_grid_have_the_grids_figures(gates, tmp_path):
    table = claims.claims_table(Evidence(tmp_path, [gates])).set_index("id")
    line = table.loc["a_gate_is_needed"]
    average = gates.rows.groupby("cell")["average"].mean()
    assert line["verdict"] == "reproduced"
    assert line["figure"] == pytest.approx(average["dynamic_tanh"] - average["none"])
    assert line["lo"] < line["figure"] < line["hi"]
    assert len(line["by_seed"].split()) == 2
    assert line["p_holm"] < 0.05
    assert (line["control"], line["seeds"], line["n_samples"]) == ("none", 2, 360)
    assert table.drop(["a_gate_is_needed", "the_best_gate"])["verdict"].eq("owed").all()
    assert table["command"].notna().all()


def test_the_best_of_several_is_chosen_and_pays_for_it_with_a_wider_interval(gates, tmp_path):
    evidence, others = Evidence(tmp_path, [gates]), ["sigmoid", "static_tanh", "none"]
    best = best_minus("gates", others, "dynamic_tanh")(evidence)
    plain = statistics.paired(gates.suites[0].scores, ("sigmoid",), ("dynamic_tanh",)).set_index("benchmark")
    assert best.control == "dynamic_tanh (sigmoid minus it)"
    assert len(best.members) == 3
    assert best.figure == pytest.approx(plain.loc["average", "difference"])
    assert best.lo < plain.loc["average", "lo"] < plain.loc["average", "hi"] < best.hi
    turned = minus_best("gates", "dynamic_tanh", others)(evidence)
    assert (turned.figure, turned.lo, turned.hi) == (-best.figure, -best.hi, -best.lo)
    assert best_minus("gates", [*others, "missing"], "dynamic_tanh")(evidence) is None


def test_the_main_table_stands_in_for_the_grid_of_frames(main):
    folder, frame, samples = main
    evidence = Evidence(folder, [])
    gain = relative_gain("frames", "slow_fast@128", "self_attention@16")(evidence)
    average = frame.groupby(["architecture", "frames"])["average"].mean()
    assert gain.figure == pytest.approx(100 * (average["slow_fast", 128] / average["self_attention", 16] - 1))
    assert gain.lo < gain.figure < gain.hi
    cells = {f"slow_fast@{n}": n for n in (16, 32, 64, 128)}
    per_doubling = slope("frames", cells)(evidence)
    y = [average["slow_fast", n] for n in cells.values()]
    assert per_doubling.figure == pytest.approx(np.polyfit(np.log2(list(cells.values())), y, 1)[0])
    assert 0 < per_doubling.lo < per_doubling.hi
    scores = statistics.resample(samples, CATEGORY_MEANS)
    paired = statistics.paired(scores, ("slow_fast", 128, "none"), ("compressor_only", 128, "none"))
    table = claims.claims_table(evidence).set_index("id")
    expected = paired.set_index("benchmark").loc["average", ["difference", "lo", "hi"]].to_numpy(float)
    assert table.loc["beats_the_compressor", ["figure", "lo", "hi"]].to_numpy(float) == pytest.approx(expected)


def test_counted_claims_are_those_of_the_committed_profiles():
    counted = [claim for claim in CLAIMS if claim.command in ("make profile", "make scaling")]
    table = claims.claims_table(Evidence(ROOT / "results", []), counted).set_index("id")
    counted = pd.read_csv(ROOT / "results" / "profiles" / "three_percent_paper.csv")
    percent = 100 * counted[counted["name"].eq("llm_prefill")]["value"]
    line = table.loc["prefill_at_most_3_percent"]
    assert [line["figure"], line["lo"], line["hi"]] == pytest.approx([percent.iloc[0], percent.min(), percent.max()])
    assert table.loc["model_at_most_3_percent", "verdict"] == "refuted"
    assert table.loc["self_attention_is_linear", "verdict"] == "refuted"
    assert table.loc["linear_cost", "verdict"] == "reproduced"


def test_projecting_again_is_read_from_the_profiles(tmp_path):
    """In folders of imagined profiles: percent over the kept way, and the range that the quartiles leave open."""
    assert projecting_again_counted(Evidence(tmp_path, [])) is None
    assert projecting_again_measured(Evidence(tmp_path, [])) is None
    folder = tmp_path / "profiles"
    folder.mkdir()
    (folder / "profile_paper.csv").write_text(
        "architecture,frames,decode_step_flop,decode_step_flop_reprojecting\n"
        "self_attention,128,9,9\nslow_fast,16,10,30\nslow_fast,128,10,50\nslow_fast,128,10,50\n"
    )
    head = "part,what,variant,value,quartile_1,quartile_3,rounds\n"
    again = "decode step,one token behind 128 frames,slow K/V projected again,60,50,80,7\n"
    kept = "decode step,one token behind 128 frames,slow K/V kept,20,16,25,7\n"
    other = "decode step,one token behind 16 frames,slow K/V kept,1,1,1,7\n"
    (folder / "bench.csv").write_text(head + again + other)
    assert projecting_again_measured(Evidence(tmp_path, [])) is None
    (folder / "bench.csv").write_text(head + again + kept + other)
    counted, timed = (find(Evidence(tmp_path, [])) for find in (projecting_again_counted, projecting_again_measured))
    assert (counted.figure, counted.lo, counted.hi) == pytest.approx((400, 400, 400))
    assert (timed.figure, timed.lo, timed.hi) == pytest.approx((200, 100, 400))
    assert "quartiles of 7 rounds" in timed.unit
    lines = claims.claims_table(Evidence(tmp_path, [])).set_index("id")
    assert lines.loc["projecting_again", ["verdict", "command"]].tolist() == ["reproduced", "make profile"]
    assert lines.loc["projecting_again_measured", "verdict"] == "owed"  # twice as much is not more than twice


def test_the_committed_profiles_say_what_projecting_again_costs():
    table = pd.read_csv(ROOT / "results" / "profiles" / "profile_paper.csv")
    row = table[table["architecture"].eq("slow_fast") & table["frames"].eq(128)].iloc[0]
    projection = row["decode_step_flop_reprojecting"] - row["decode_step_flop"]
    assert projection == pytest.approx(row["slow_keys_values_flop"])  # all of what is more is the projection
    found = projecting_again_counted(Evidence(ROOT / "results", []))
    assert found.figure == pytest.approx(100 * projection / row["decode_step_flop"])


def test_every_claim_is_written_with_the_documented_columns(tmp_path):
    claims.write_claims(tmp_path, [])
    read = pd.read_csv(tmp_path / "claims.csv")
    assert list(read.columns) == list(claims.COLUMNS)
    assert read["id"].is_unique
    assert read["verdict"].eq("owed").all()
    assert len(read) == len(CLAIMS)


def test_claims_name_grids_and_cells_of_the_book():
    grids = {path.stem: load_grid(path.stem, ROOT / "ablations", composed=False) for path in _book()}
    for claim in CLAIMS:
        name = claim.command.partition("GRID=")[2]
        if not name:
            continue
        asked = {}
        claim.find(_Asked(asked))
        assert set(asked[name]) <= set(grids[name].cells), claim.id


class _Asked:
    """Evidence that has nothing, and remembers what it was asked for."""

    def __init__(self, asked):
        self.grids, self.asked = {}, asked

    def scores(self, grid, cells):
        self.asked[grid] = list(cells)


def _book():
    return sorted((ROOT / "ablations").glob("*.yaml"))
