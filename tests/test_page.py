"""The page and the figures across the book: structure, links, numbers, bytes."""

import json
import re
import shutil
from html.parser import HTMLParser

import matplotlib
import numpy as np
import pandas as pd
import pytest
from page_results import GRIDS, RESULTS, make_results

from harness.errors import UserError
from harness.figures import SETTINGS, save
from harness.reports import ablations, grid_foot, grids, heat, page_figures, pareto, published
from harness.reports.html import render, write_page
from harness.reports.page_points import grid_parts, left_out, main_parts, plain_points, points
from harness.reports.page_svg import Figures
from harness.reports.page_tables import interval
from harness.row_store import Failure, RowStore
from harness.rows import load_rows

LOADING = {"src", "srcset", "poster", "data", "action", "formaction", "background"}


class Page(HTMLParser):
    """What a test wants to know of a page: ids, links, what it would load, the text of tables' cells."""

    def __init__(self, text):
        super().__init__()
        self.ids, self.links, self.loads, self.tags = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.tags.append(tag)
        self.ids += [given["id"]] if "id" in given else []
        if tag == "a":
            self.links.append(given["href"])
        elif "href" in given and not given["href"].startswith("#"):
            self.loads.append(given["href"])
        self.loads += [value for name, value in attributes if name in LOADING]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    out = make_results(tmp_path_factory.mktemp("page") / "results")
    page_figures.write_book(out)
    return out


@pytest.fixture(scope="module")
def text(results):
    return write_page(results).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(text):
    return Page(text)


def test_every_link_leads_somewhere_and_no_id_is_there_twice(page, results):
    assert len(page.ids) == len(set(page.ids))
    inside = {link[1:] for link in page.links if link.startswith("#")}
    assert len(inside) > 20
    assert inside <= set(page.ids)
    files = {link for link in page.links if not link.startswith("#")}
    assert files
    assert all((results / file).is_file() for file in files)


def test_nothing_is_loaded(page, text):
    assert all(load.startswith("data:") for load in page.loads)
    assert not re.search(r"@import|url\((?!#)", text)
    assert not re.search(r"""(src|href)=["']https?:""", text)
    assert page.tags.count("script") == 1
    assert "link" in page.tags


def test_references_within_figures_resolve(text, page):
    used = set(re.findall(r'<use[^>]* href="#([^"]+)"', text)) | set(re.findall(r"url\(#([^)]+)\)", text))
    assert len(used) > 100
    assert used <= set(page.ids)


def test_what_comes_from_files_is_escaped(text):
    assert "<script>alert(1)" not in text
    assert "&lt;script&gt;alert(1)" in text
    assert "matter <b>at all</b>" not in text
    assert "&lt;b&gt;at all&lt;/b&gt; &amp; which one?" in text


def test_every_number_of_the_tables_leads_to_the_rows_of_its_cell(text, results):
    for part in [*main_parts(results), *grid_parts(results)]:
        section = text[text.index(f'<section id="{part.stem}"') :]
        table = section[section.index("<tbody>") : section.index("</tbody>")]
        lines = [line.partition("</tr>")[0] for line in table.split("<tr>")[1:]]
        for cell, line in zip(part.cells, lines, strict=True):
            numbers = re.findall(r"<td[^>]*>(.*?)</td>", line)
            linked = [number for number in numbers if any(digit in number for digit in "0123456789")]
            assert linked
            assert all(f'href="#row-{part.stem}-{cell}"' in number for number in linked)


def test_a_cell_shows_the_tables_number_and_its_rows_their_own(text, results):
    made = pd.read_csv(results / "tables" / "ablations" / "gates_mini.csv").set_index("cell")
    line = made.loc["none+bias"]
    assert f">{line['average']:.1f} [{line['average_lo']:.1f}, {line['average_hi']:.1f}]<" in text
    assert f">{line['difference']:+.1f} [{line['difference_lo']:+.1f}, {line['difference_hi']:+.1f}]<" in text
    place = text.index('<article id="row-gates_mini-none+bias">')
    article = text[place : text.index("</article>", place)]
    for row in load_rows(results / "rows" / "ablations" / "gates_mini_seed0.jsonl"):
        if row.cell == "none+bias":
            assert row.content_hash in article
            assert row.code_commit[:12] in article
            assert f"{row.average:.4g}" in article
            assert row.samples in article


def test_claims_come_with_their_interval_and_lead_to_their_grid(text):
    claims = text[text.index('<section id="claims">') : text.index('<section id="published">')]
    assert ">1.235 [0.5, 1.5] points<" in claims
    assert '<td class="up">reproduced</td>' in claims
    assert "2 reproduced, 2 owed. Each verdict is" in claims
    assert '<a href="#gates_mini">make ablate GRID=gates</a>' in claims
    assert '<td data-s="1.23456"><a href="#gates_mini">1.235 [0.5, 1.5] points</a></td>' in claims
    assert "<td>python -m harness table scale=paper (not there yet)</td>" in claims
    assert '<a href="#profiles">make scaling</a>' in claims
    assert "<td>make ablate GRID=unknown</td>" in claims


def test_controls_study_and_profiles_have_sections(text, page, results):
    assert {"controls", "plug-and-play", "profiles"} <= set(page.ids)
    section = text[text.index('<section id="controls">') : text.index('<section id="plug-and-play">')]
    line = pd.read_csv(results / "tables" / "controls_mini.csv").iloc[0]
    assert f">{line['average']:+.1f} [{line['average_lo']:+.1f}, {line['average_hi']:+.1f}]<" in section
    assert "slow_fast minus compressor_only at 128 frames" in section
    profiles = text[text.index('<section id="profiles">') : text.index('<section id="claims">')]
    assert ">slow K/V projected again<" in profiles
    drawn = [path.stem for path in (results / "profiles" / "figures").glob("*.svg")]
    assert {f"profiles-figures-{name}" for name in drawn} <= set(page.ids)
    assert {"figures-accuracy_vs_frames", "figures-book-accuracy_vs_frames"} <= set(page.ids)


def test_a_grids_table_begins_with_what_is_compared_and_ends_in_a_sentence(text, results):
    section = text[text.index('<section id="gates_mini"') :]
    heads = re.findall(r'<th scope="col"[^>]*>(.*?)</th>', section[: section.index("</thead>")])
    assert heads[:7] == ["cell", "average", "difference", "p (Holm)", "prefill 7B", "fast tokens 7B", "model 7B"]
    made = pd.read_csv(results / "tables" / "ablations" / "gates_mini.csv")
    below = int(((made["p_holm"] < 0.05) & (made["difference"] < 0)).sum())
    assert below
    assert f"Against the reference: {below} below" in section
    assert f"A difference of {made['detectable'].median():.1f} points" in section


def test_the_list_of_the_front_stands_above_all_points(results):
    with matplotlib.rc_context(SETTINGS):
        figure = pareto.pareto(points([*main_parts(results), *grid_parts(results)]))
        figure.draw_without_rendering()
        for axes in figure.axes:
            (listed,) = [text for text in axes.texts if text.get_text().startswith("on the front")]
            bottom = axes.transData.inverted().transform(listed.get_window_extent().p0)[1]
            tops = [line.get_ydata().max() for line in axes.lines if len(line.get_ydata())]
            assert bottom > max(tops)
            assert max(axes.get_yticks()) <= 100


def test_points_of_the_front_that_cover_each_other_share_a_label():
    axes = matplotlib.figure.Figure().subplots()
    axes.set(xlim=(0, 100), ylim=(0, 100))
    points = [(1.0, 40.0), (50.0, 80.0), (51.0, 81.0), (51.5, 82.0), (52.0, 90.0)]
    labels = pareto._labels(axes, points)
    assert labels == [("1", points[0]), ("2-4", points[3]), ("5", points[4])]


def test_a_difference_is_coloured_by_its_corrected_p():
    made = interval("difference", signed=True)
    line = {"difference": 2.0, "difference_lo": 0.5, "difference_hi": 3.5}
    assert made({**line, "p_holm": 0.01}, "").kind == "up"
    assert made({**line, "difference": -2.0, "p_holm": 0.01}, "").kind == "down"
    assert made({**line, "p_holm": 0.2}, "").kind == ""


@pytest.mark.slow
def test_processes_side_by_side_write_the_same_files(results, tmp_path):
    shutil.copytree(results, tmp_path / "results")
    shutil.rmtree(tmp_path / "results" / page_figures.BOOK)
    with grids.workers(2) as pool:
        assert [found.grid.name for found in grids.write_all(tmp_path / "results", pool)] == list(GRIDS)
        drawn = page_figures.write_book(tmp_path / "results", pool)
    assert {path.name for path in drawn} == {path.name for path in (results / page_figures.BOOK).iterdir()}
    for path in (path for path in results.rglob("*") if path.is_file()):
        assert (tmp_path / "results" / path.relative_to(results)).read_bytes() == path.read_bytes(), path


def test_the_page_says_its_scale_commit_and_suite(text, results):
    row = load_rows(results / "rows" / "main_mini_seed0.jsonl")[0]
    assert "Scale: mini." in text
    assert row.code_commit[:12] in text
    assert row.suite_fingerprint in text
    assert 'lang="en"' in text
    assert 'name="viewport"' in text
    assert "prefers-color-scheme: dark" in text


def test_the_same_results_give_the_same_bytes(results, text, tmp_path):
    assert render(results, results / "report.html") == text
    copy = tmp_path / "elsewhere"
    shutil.copytree(results, copy)
    assert write_page(copy).read_text(encoding="utf-8") == text
    with matplotlib.rc_context(SETTINGS):
        book = points([*main_parts(copy), *grid_parts(copy)])
        again = save(pareto.pareto(book), tmp_path / "pareto")
    before = [results / "figures" / "book" / f"pareto{path.suffix}" for path in again]
    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in before]


def test_failures_stand_on_the_page(results, text, tmp_path):
    assert "No cell and no answer failed." in text
    copy = tmp_path / "results"
    shutil.copytree(results, copy)
    failure = {
        "cell": "none+bias",
        "base_seed": 1,
        "stage": "adapt",
        "error": "it <burst>",
        "traceback": "line 7",
        "when": "2026-01-02T03:04:05Z",
        "code_commit": None,
    }
    (copy / "rows" / "ablations" / "gates_mini_seed0.failures.jsonl").write_text(json.dumps(failure) + "\n")
    spoilt = render(copy, copy / "report.html")
    assert "none+bias, base seed 1 failed in adapt: it &lt;burst&gt;" in spoilt
    assert "line 7" in spoilt


def test_what_is_missing_and_grids_without_any_row_stand_on_the_page(results, tmp_path):
    copy = tmp_path / "results"
    shutil.copytree(results, copy)
    rows = copy / "rows" / "ablations" / "gates_mini_seed0.jsonl"
    rows.write_text("".join(rows.read_text().splitlines(keepends=True)[:-1]))
    store = RowStore(copy, "hopeless", "mini", 0)
    grid = RowStore(copy, "gates", "mini", 0).grid().model_copy(update={"name": "hopeless"})
    store.begin(grid)
    failure = {"stage": "adapt", "error": "no <disk> | left", "traceback": "", "when": "now", "code_commit": None}
    store.fail(Failure(cell="closed", base_seed=0, **failure))
    spoilt = render(copy, copy / "report.html")
    assert "<li>Not there yet: closed, base seed 1.</li>" in spoilt
    assert "hopeless_mini: closed, base seed 0 failed in adapt: no &lt;disk&gt; | left" in spoilt
    told = ablations.text([grid], [], "../results", {"hopeless": grid_foot.missing_rows(store.failures(), {})})
    assert "- Failed: closed, base seed 0, at adapt: no &lt;disk> \\| left" in told
    assert "no cell has rows" in told
    assert "**Not run at mini scale yet:**" not in told


def test_a_page_of_nothing_and_of_rows_without_a_table(results, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "There are no rows yet." in write_page(tmp_path / "empty").read_text(encoding="utf-8")
    assert page_figures.write_book(tmp_path / "empty") == []
    copy = tmp_path / "results"
    shutil.copytree(results, copy)
    (copy / "tables" / "ablations" / "gates_mini.csv").unlink()
    with pytest.raises(UserError, match="has rows but no table"):
        write_page(copy)
    assert [part.name for part in grid_parts(copy, strict=False)] == ["frames"]
    (copy / "tables" / "main_mini.csv").unlink()
    assert main_parts(copy, strict=False) == []


@pytest.mark.slow
def test_twenty_grids_are_less_than_six_megabytes(tmp_path):
    out = make_results(tmp_path / "results", copies=18)
    page_figures.write_book(out)
    assert write_page(out).stat().st_size < 6e6


# ------------------------------------------------------------------------------------------------ figures


def test_the_front_is_what_a_loop_over_all_pairs_finds():
    random = np.random.default_rng(3)
    for _ in range(30):
        cost, score = random.integers(0, 6, 12).astype(float), random.integers(0, 6, 12).astype(float)
        cost[random.integers(12)] = np.nan
        slow = []
        for i in range(12):
            dominated = any(
                cost[j] <= cost[i] and score[j] >= score[i] and (cost[j] < cost[i] or score[j] > score[i])
                for j in range(12)
            )
            slow.append(not dominated and not np.isnan(cost[i]))
        assert pareto.front(pd.Series(cost), pd.Series(score)).tolist() == slow


def test_points_are_the_tables_and_equal_rows_are_one_point(results):
    mains, grids = main_parts(results), grid_parts(results)
    book = points([*mains, *grids])
    assert [part.name for part in grids] == list(GRIDS)
    in_the_main_table = pd.read_csv(results / "tables" / "main_mini.csv")["architecture"].ne("chance").sum()
    assert len(book) == in_the_main_table + sum(len(cells) for *_, cells in GRIDS.values())
    made = pd.read_csv(results / "tables" / "ablations" / "frames_mini.csv").set_index("cell")
    found = book[book["source"].eq("frames")].set_index("cell")
    assert found["average"].to_dict() == made["average"].dropna().drop("chance").to_dict()
    assert found.loc["slow_fast@64", "prefill_over_pct"] == pytest.approx(
        100 * (made.loc["slow_fast@64", "prefill_tflop_7b"] / made.loc["self_attention@16", "prefill_tflop_7b"] - 1),
        abs=1e-3,
    )
    assert len(plain_points(book)) == in_the_main_table  # the grids' rows are the main table's
    remade = plain_points(book.assign(hashes=range(len(book))))
    assert len(remade) == in_the_main_table  # made again by other code: the same points


def test_cells_of_another_base_encoder_or_budget_are_no_plain_points(results):
    book = points(main_parts(results))
    apart = {
        "slow_fast@128": "frames=128 scale.base.first_layer_reading=0",
        "slow_fast@64": "encoder.width=24",
        "slow_fast@16": "compressor=official gate.scale=2",
    }
    book["overrides"] = book["cell"].map(apart).fillna("")
    book["budget_7b"] = book["cell"].map({"slow_fast@32": "other", "self_attention@32": "scaled"}).fillna("same")
    assert left_out(book) == ["slow_fast@32", "slow_fast@64", "slow_fast@128"]
    assert set(book["cell"]) - set(plain_points(book)["cell"]) == set(left_out(book))
    with matplotlib.rc_context(SETTINGS):
        assert "slow_fast@32" in pareto.pareto(book)._suptitle.get_text()


def test_categories_add_base_seeds_up(results):
    (main,) = main_parts(results)
    found = heat.categories(main.rows).set_index(["cell", "benchmark", "category"])
    rows = [row for row in load_rows(main.rows_file) if (row.architecture, row.frames) == ("slow_fast", 64)]
    right = sum(row.by_category["mlvu"]["needle"].correct for row in rows)
    asked = sum(row.by_category["mlvu"]["needle"].asked for row in rows)
    line = found.loc[("slow_fast@64", "mlvu", "needle")]
    assert (line["correct"], line["asked"]) == (right, asked)
    assert line["share"] == pytest.approx(100 * right / asked)
    families = heat.families(main.rows)
    assert families.groupby("cell")["asked"].sum().eq(sum(row.n_samples for row in rows)).all()


def test_colours_of_heat_maps_rise_in_lightness():
    """Read in grey: the colour map's luminance never falls."""
    from matplotlib import colormaps

    red, green, blue, _ = colormaps[heat.COLOURS](np.linspace(0, 1, 50)).T
    assert (np.diff(0.2126 * red + 0.7152 * green + 0.0722 * blue) > 0).all()


def test_inlined_figures_share_letters_and_nothing_else(results):
    figures = Figures()
    path = results / "figures" / "book" / "pareto.svg"
    first, second = figures.inline(path, "a <title>"), figures.inline(path, "b")
    own = [set(re.findall(r'\bid="([^"]+)"', svg)) for svg in (first, second)]
    letters = set(re.findall(r'\bid="([^"]+)"', figures.glyphs))
    assert own[0]
    assert letters
    assert not own[0] & own[1]
    assert not (own[0] | own[1]) & letters
    assert 'aria-label="a &lt;title&gt;"' in first
    assert "metadata" not in first
    assert "xmlns" not in first.split(">")[0]
    assert len(first) < 0.7 * path.stat().st_size


# ---------------------------------------------------------------------------------------------- published


def test_published_numbers_are_as_their_sources_say():
    """A few of each file, typed from the sources a second time."""
    made = published.read_published(RESULTS)
    found = made.set_index(["model", "frames", "benchmark"])["score"]
    first = "Slow-Fast Qwen2-7B ConvNeXt-XXL-576"
    assert found[f"{first} s1t4", 64, "MVBench"] == 68.9
    assert found[f"{first} s1t6", 96, "LongVideoBench"] == 58.0
    assert found[f"{first} s1t6", 96, "TempCompass"] == 67.7
    assert found["Qwen2.5-VL-7B", 256, "MLVU"] == 69.2
    assert found["Qwen2.5-VL-7B", 64, "Video-MME long"] == 51.3
    assert made["score"].between(0, 100).all()
    assert len(made) == 24 + 38 + 1 + 3


def test_measured_numbers_stand_beside_those_of_their_kind_only(results):
    (main,) = main_parts(results)
    made = published.beside(published.read_published(results), main.measured)
    row = main.measured.set_index("cell").loc["slow_fast@64"]
    mlvu = made[made["benchmark"].eq("MLVU") & made["frames"].eq(64) & made["model"].str.startswith("Slow-Fast")].iloc[
        0
    ]
    rows = [row for row in load_rows(main.rows_file) if (row.architecture, row.frames) == ("slow_fast", 64)]
    by_samples = np.mean([row.aggregations["mlvu"]["samples"] for row in rows])
    assert (mlvu["score"], mlvu["measured"], mlvu["measured_row"]) == (67.3, pytest.approx(by_samples), "slow_fast@64")
    moved = main.measured.assign(mlvu_samples=1.5)  # both means are one where categories are equally large
    assert published.beside(published.read_published(results), moved).loc[mlvu.name, "measured"] == 1.5
    assert "samples" in mlvu["metric"]
    assert "samples" in mlvu["measured_metric"]
    assert mlvu["measured"] == pytest.approx(row["mlvu_samples"])
    gain = made[made["benchmark"].eq("average of five benchmarks")].iloc[0]
    assert gain["measured"] == main.measured.set_index("cell").loc["slow_fast@128", "relative_gain_pct"]
    assert made[made["frames"].eq(96) | made["benchmark"].eq("Video-MME long")]["measured"].isna().all()
    assert made[made["model"].str.startswith("LLaVA")]["measured"].isna().all()


def test_a_published_number_without_a_source_is_refused(tmp_path):
    (tmp_path / "published").mkdir()
    head = ",".join(published.COLUMNS)
    (tmp_path / "published" / "a.csv").write_text(f"{head}\nA,16,MLVU,60,accuracy %,,lmms-eval,\n")
    with pytest.raises(UserError, match="lacks its model"):
        published.read_published(tmp_path)
    (tmp_path / "published" / "a.csv").write_text("model,score\nA,60\n")
    with pytest.raises(UserError, match="has the columns"):
        published.read_published(tmp_path)
