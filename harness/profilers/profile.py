"""The verb `profile`: what every variant costs against frames, printed, stored and drawn."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from omegaconf import DictConfig

from harness.models import check_variant, model_config
from harness.paths import expect_writable, write_text
from harness.profilers import headline, profile_figures, profile_report
from harness.profilers.grid import cost_row, grid, in_one_sentence
from harness.profilers.variants import REFERENCE, about_groups, compose_variant, reference, variants
from harness.progress import Display
from harness.table import group_of

AS_TYPED = "as_typed"  # the folder below results_dir for profiles with other settings than the shipped ones


def profile(settings: DictConfig, overrides: Sequence[str]) -> None:
    """Print and store what each variant costs; with `output` the rows alone, as a CSV file of that name.

    Raises UserError, one sentence, for settings that no model can have and for a place where nothing can be written.
    """
    chosen, typed = variants(settings, overrides), about_groups(overrides)
    if typed:
        expect_buildable({REFERENCE[0], *(variant.architecture for variant in chosen)}, typed, min(settings.frames))
    folder, name = place(settings, overrides), settings.scale.name
    expect_writable(Path(settings.output) if settings.output else folder / f"profile_{name}.csv")
    with Display() as display:
        rows = grid(
            chosen,
            reference(overrides),
            settings.frames,
            settings.text_tokens,
            settings.scale.name,
            display.progress(),
            typed,
        )
    if settings.output:
        write_text(Path(settings.output), rows.to_csv(index=False))
        print(f"{len(rows)} rows: {settings.output}")
        return
    found = headline.findings(typed)
    write_text(folder / f"profile_{name}.csv", rows.to_csv(index=False))
    write_text(folder / f"profile_{name}.md", profile_report.as_markdown(rows))
    write_text(folder / f"three_percent_{name}.csv", found.to_csv(index=False))
    figures = profile_figures.write(rows, folder / "figures", name)
    profile_report.show(rows)
    print("Is it really 3%? " + "\n".join(headline.sentences(found)))
    print(f"All {len(rows)} rows: {folder / f'profile_{name}.csv'}, .md; figures: {', '.join(map(str, figures))}")


def expect_buildable(architectures: Iterable[str], typed: Sequence[str], frames: int) -> None:
    """UserError for an architecture that cannot be under the typed settings; the closed form counts some of these."""
    for name in sorted(architectures):
        settings = compose_variant(name, (), typed)
        with in_one_sentence(name, frames):
            cost_row(model_config(settings), frames, text_tokens=1)
        check_variant(settings, frames)


def place(settings: DictConfig, overrides: Sequence[str]) -> Path:
    """The folder for rows, tables and figures: what the README shows is not written over by other settings' numbers."""
    typed = [group_of(text) for text in overrides]
    folder = Path(settings.results_dir)
    return folder if not typed or "results_dir" in typed else folder / AS_TYPED
