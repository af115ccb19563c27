"""The counted profile: every variant is in it, its numbers are the closed form's, and its words are its numbers."""

import csv
import io
from pathlib import Path

import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from rich.console import Console
from small_models import CHOICES

from architectures.cost import STAGES, decode_cost, prefill_cost
from harness import cli
from harness.compose import compose
from harness.errors import UserError
from harness.layout import print_table
from harness.models import model_config
from harness.profilers import headline, profile_figures, profile_report
from harness.profilers.grid import COLUMNS, grid, hybrid_layers
from harness.profilers.variants import Variant, reference, variants
from harness.settings import PROFILE

SMALL = ["encoder=tiny", "encoder.image_size=288"]  # a tower that is built at once; 18 x 18 patches and LLM stay
RECORDED = list(csv.DictReader((Path(__file__).parent / "reference" / "flops_7b.csv").open()))


def found(*typed: str) -> list[Variant]:
    return variants(compose(typed, root=PROFILE), typed)


def rows_of(some: list[Variant], frames: list[int], text_tokens: list[int], *typed: str) -> pd.DataFrame:
    return grid(some, reference(typed), frames, text_tokens, "paper", typed=[*typed])


@pytest.fixture(scope="module")
def everything() -> list[Variant]:
    return found(*SMALL)


@pytest.fixture(scope="module")
def rows(everything: list[Variant]) -> pd.DataFrame:
    return rows_of(everything, [8, 16, 128, 1536], [64], *SMALL)


def test_every_architecture_compressor_and_placement_is_profiled(everything: list[Variant]) -> None:
    assert {variant.architecture for variant in everything} == set(CHOICES["architecture"])
    slow_fast = [variant.config for variant in everything if variant.architecture == "slow_fast"]
    assert {config.compressor["name"] for config in slow_fast} == set(CHOICES["compressor"])
    assert {config.placement["name"] for config in slow_fast} == set(CHOICES["placement"])
    assert len({str(variant) for variant in everything}) == len(everything) >= 30


def test_a_variant_is_what_its_name_composes(everything: list[Variant]) -> None:
    for variant in everything[::3]:
        words = [*SMALL, f"architecture={variant.architecture}", *variant.changes]
        assert variant.config.to_dict() == model_config(compose(words, root=PROFILE)).to_dict()


def test_what_was_typed_holds_where_the_variant_is_about_something_else() -> None:
    of = {str(variant): variant.config for variant in found(*SMALL, "placement.n=4", "compressor.fast_frames=8")}
    assert of["slow_fast"].placement["n"] == 4
    assert of["slow_fast"].compressor["fast_frames"] == 8
    assert of["slow_fast placement=last"].placement == {"name": "last", "k": 4}
    assert of["slow_fast placement=last"].compressor["fast_frames"] == 8
    assert of["slow_fast compressor=strided_sampling"].compressor["fast_frames"] == 16
    assert of["self_attention"].placement == {"name": "none"}


def test_fast_tokens_stay_or_grow_as_the_budget_says(rows: pd.DataFrame) -> None:
    tokens = rows.pivot(index=["architecture", "fast_budget"], columns="frames", values="fast_tokens")
    for (name, budget), of in tokens.iterrows():
        if budget == "fixed":
            assert of[1536] == of[128] <= 16 * 81, name
        elif name != "self_attention_selected":  # which keeps 16 frames before its compressor
            assert budget == "strides"
            assert of[1536] > 4 * of[128] or name.endswith("two_stream"), name
    two_stream = tokens.loc["two_stream", "strides"]
    assert two_stream[1536] - two_stream[128] == (1536 - 128)  # one token more for each frame


def test_the_numbers_are_the_closed_form_s(everything: list[Variant], rows: pd.DataFrame) -> None:
    by_cell = rows.set_index(["architecture", "frames"])
    baseline = prefill_cost(reference(SMALL).config, 16, 64)
    for variant in everything[::4]:
        for T in (8, 128):
            row, cost = by_cell.loc[(str(variant), T)], prefill_cost(variant.config, T, 64)
            assert [row[f"{stage}_flop"] for stage in STAGES] == [getattr(cost, stage) for stage in STAGES]
            assert row["model_flop"] == sum(row[f"{stage}_flop"] for stage in STAGES)
            llm = row["model_flop"] - row["vision_flop"] - row["projector_flop"] - row["compressor_flop"]
            assert row["llm_prefill_flop"] == llm == 2 * row["llm_prefill_mac"]
            every = llm + row["lm_head_flop"] * (row["fast_tokens"] + 64 - 1)
            assert row["llm_prefill_flop_all_logits"] == every
            assert row["llm_prefill_overhead"] == pytest.approx(llm / baseline.llm_prefill - 1)
            assert row["model_overhead"] == pytest.approx(row["model_flop"] / baseline.model - 1)
            step = decode_cost(variant.config, T, 64)
            assert (row["decode_step_flop"], row["kv_bytes"]) == (step.step, step.kv_bytes)
            assert row["hybrid_layers"] == layers(variant)
            assert row["slow_kv_bytes"] == step.slow_kv_bytes == row["slow_tokens"] * layers(variant) * 2 * 512 * 2


def layers(variant: Variant) -> int:
    """Hybrid layers with keys of their own (8 and 4 of 28 here): 4 heads of width 128, key and value, 2 bytes."""
    return len(hybrid_layers(variant.config))


def test_the_command_writes_the_recorded_costs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "rows.csv"
    typed = ["frames=[16,32,64,96,128]", "text_tokens=[64,128,256]", "architectures=[self_attention,slow_fast]"]
    assert cli.main(["profile", *typed, *SMALL, f"output={out}"]) == 0
    assert capsys.readouterr().out == f"45 rows: {out}\n"
    assert [path.name for path in tmp_path.iterdir()] == ["rows.csv"]
    written = pd.read_csv(out)
    assert list(written) == list(COLUMNS)
    by_cell = written.set_index(["architecture", "frames", "text_tokens"])
    decode = {"cached": "decode_step_flop", "reprojected": "decode_step_flop_reprojecting"}
    for row in RECORDED:
        mine = by_cell.loc[(row["architecture"], int(row["frames"]), int(row["text_tokens"]))]
        assert mine["llm_prefill_flop_all_logits"] == int(row["prefill_flops"])
        assert mine[decode[row["decode"]]] == int(row["decode_step_flops"])
        assert [mine["fast_tokens"], mine["slow_tokens"]] == [int(row["fast_tokens"]), int(row["slow_tokens"])]


def test_what_cannot_be_profiled_is_one_sentence() -> None:
    with pytest.raises(UserError, match="there is no architecture 'slowfast'; there are slow_fast, "):
        found("architectures=[slowfast]")
    some = found(*SMALL, "slow_tokens.pooling=40", "architectures=[slow_fast]")
    with pytest.raises(UserError, match=r"^slow_fast at 16 frames cannot be profiled: .*pooling"):
        rows_of(some, [16], [64], *SMALL)


def test_a_typed_stride_makes_one_variant_and_no_claim_of_a_fixed_number() -> None:
    only = "architectures=[self_attention,slow_fast]"
    strides = ("compressor.sample_stride=4", "compressor.average_stride=2")
    made = {str(variant): variant for variant in found(*SMALL, only, *strides)}
    assert list(made) == ["self_attention", "slow_fast"]
    assert made["slow_fast"].budget == "own"
    assert made["slow_fast"].config.compressor["average_stride"] == 2
    rows = rows_of([*made.values()], [16, 64], [64], *SMALL, *strides)
    assert rows["fast_tokens"].tolist() == [16 * 81, 64 * 81, 2 * 81, 8 * 81]
    assert set(rows["typed"]) == {" ".join((*SMALL, *strides))}
    assert strides[0] in profile_report.title(rows)


def test_what_would_change_nothing_is_refused() -> None:
    with pytest.raises(UserError, match=r"^architecture=flamingo: .*write architectures=\[flamingo\]$"):
        found("architecture=flamingo")
    with pytest.raises(UserError, match=r"^architecture.generated_read_slow=false changes no variant"):
        found("architecture.generated_read_slow=false")
    with pytest.raises(
        UserError, match=r"^compressor=official changes no variant: compressor is fixed in self_attention"
    ):
        found("architectures=[self_attention]", "compressor=official")


@pytest.mark.parametrize(
    ("typed", "sentence"),
    [
        (
            ["scale.projector_depth=0"],
            "self_attention at 16 frames cannot be built: projector depth is 0",
        ),  # not -131 GFLOP
        (["scale.video_pooling=40"], "self_attention at 16 frames cannot be profiled: video_pooling is 40"),
        (
            ["scale.decoder.model_type=gpt2"],
            "frames cannot be profiled: There is no closed form of the cost of a 'gpt2' decoder",
        ),
        (["slow_tokens.pooling=40"], "at 128 frames cannot be profiled: slow_pooling is 40"),  # in the headline alone
        (["output=."], "output=.: it is a folder"),
        (["output=/dev/null/rows.csv"], "nothing can be written to the folder /dev/null"),
        (["results_dir=/dev/null/here"], "nothing can be written to the folder /dev/null/here"),
    ],
)
def test_the_command_says_what_it_cannot_do(
    typed: list[str], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["profile", "architectures=[self_attention]", "frames=[16]", *SMALL, *typed]) == 2
    (said,) = capsys.readouterr().err.splitlines()[-1:]
    assert said.startswith("error: ")
    assert sentence in said


def test_any_frames_of_any_architectures_are_drawn_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["profile", "architectures=[flamingo]", "frames=[1]", *SMALL]) == 0
    profiles = tmp_path / "results" / "profiles"
    assert [path.name for path in profiles.iterdir()] == ["as_typed"]  # apart from what the README shows
    assert len(list((profiles / "as_typed" / "figures").iterdir())) == 4
    rows = rows_of(found(*SMALL, "architectures=[slow_fast]"), [128, 16, 64], [64], *SMALL)
    drawn = profile_figures.overhead_against_frames(rows, "paper").axes[0].lines
    assert [list(line.get_xdata()) for line in drawn if line.get_label() == "slow_fast, 16 fast frames"] == [
        [16, 64, 128]
    ]


def test_the_notes_say_what_the_labels_leave_out(rows: pd.DataFrame) -> None:
    said = profile_report.strides(rows)
    assert said["compressor.stride=8"] == ["+ strided_sampling"]
    assert {"slow_fast", "flamingo", "+ official", "+ placement last"} <= set(
        said["compressor.sample_stride=2 compressor.average_stride=4"]
    )
    named = {name for names in said.values() for name in names}
    assert not named & {"self_attention", "two_stream", "+ identity"}  # whose strides are their own


def test_what_would_give_three_percent_is_where_it_first_does() -> None:
    made = headline.findings(SMALL).set_index("name")
    config = found(*SMALL, "architectures=[slow_fast]")[0].config
    overhead = headline.Overhead(reference(SMALL).config)
    assert made.loc["llm_prefill", "x"].tolist() == [64, 128, 256, 1024]
    text = int(made.loc["solved_text_tokens", "x"])
    assert overhead(config, 128, text) >= 0.03 > overhead(config, 128, text - 1)
    frames = int(made.loc["solved_frames", "x"])
    assert overhead(config, frames, 64) >= 0.03 > overhead(config, frames - 16, 64)
    assert made.loc["solved_hybrid_layers", "x"] == 7
    assert made.loc["all_tokens_read", "value"] > 2 * made.loc["hybrid_layers", "value"]
    assert headline.first(lambda n: n / 1000, 1, 20) is None
    assert headline.first(lambda n: n / 100, 1, 20) == 3
    assert headline.first(lambda n: 1 / n, 1, 20) in (1, None)  # shrinks: at once or never


def test_the_sentences_say_the_findings() -> None:
    said = " ".join(headline.sentences(headline.findings(SMALL)))
    for word in ("7 hybrid layers", "instead of 4", "text tokens", "frames", "at 1024"):
        assert word in said
    none = headline.findings([*SMALL, "scope=all_tokens"])  # above 3% from the start
    assert "Or at most 1 text tokens" in " ".join(headline.sentences(none))


def test_the_tables_fit_and_hold_every_variant(rows: pd.DataFrame) -> None:
    text = io.StringIO()
    console = Console(file=text, width=100)
    print_table(profile_report.blocks(rows), profile_report.title(rows), profile_report.notes(rows), console)
    lines = text.getvalue().splitlines()
    assert max(map(len, lines)) <= 100
    for name in rows["architecture"].unique():
        assert any(line.startswith(f"{profile_report.short(name)} ") for line in lines), name
    written = profile_report.as_markdown(rows)
    overhead = rows.set_index(["architecture", "frames"]).loc[("slow_fast", 128), "llm_prefill_overhead"]
    assert f"| {100 * overhead:+.2f} |" in written
    assert all(f"{name}: " in written for name in COLUMNS)


def test_the_figures_draw_the_rows(rows: pd.DataFrame) -> None:
    figure = profile_figures.overhead_against_frames(rows, "paper")
    FigureCanvasAgg(figure).draw()
    (line,) = [line for line in figure.axes[0].lines if line.get_label() == "slow_fast, 16 fast frames"]
    of = rows[rows["architecture"].eq("slow_fast") & rows["llm_prefill_overhead"].gt(0)]
    assert list(line.get_xdata()) == [16, 128, 1536]
    assert list(line.get_ydata()) == pytest.approx(list(100 * of["llm_prefill_overhead"]))
    stacked = profile_figures.by_stage(rows, "paper")
    tops: dict[float, float] = {}
    for bar in stacked.axes[0].patches:
        place = bar.get_x() + bar.get_width() / 2
        tops[place] = max(tops.get(place, 0), bar.get_y() + bar.get_height())
    by_cell = rows.set_index(["architecture", "frames"])["model_flop"] / 1e12
    cells = [(name, T) for T in (16, 128) for name in ("self_attention", "slow_fast")]
    assert [tops[place] for place in sorted(tops)] == pytest.approx([by_cell[cell] for cell in cells])
    assert set(profile_figures.FILLS) == set(STAGES)
