"""The verb `profile-gpu`: prefill, decoding and memory of the 7B models with random weights, measured on a GPU.

On a processor (`device=cpu`) the same code measures small sizes.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np
import torch
from omegaconf import DictConfig

from architectures import SlowFastConfig
from harness.errors import UserError
from harness.models import model_config
from harness.paths import expect_writable, write_text
from harness.profilers import measured_report
from harness.profilers.machine import find_device
from harness.profilers.measure import Options, measure
from harness.profilers.timing import Rounds
from harness.profilers.variants import about_groups, compose_variant, expect_known, refuse_idle
from harness.progress import Display

ARCHITECTURES = ("self_attention", "slow_fast")  # where the settings name none: the baseline and the paper's
CLIP_FRAMES, CLIP_FPS, CLIP_SIZE = 1200, 30, (320, 240)  # of the file whose reading is timed


def profile_gpu(settings: DictConfig, overrides: Sequence[str]) -> None:
    """Measure the architectures at each number of frames; print, store and draw.

    UserError where there is no GPU, unless a processor is asked for.
    """
    if settings.device == "auto" and not torch.cuda.is_available():
        raise UserError(
            "profile-gpu needs a CUDA GPU, and torch finds none on this machine: run it on one that has, "
            "or measure small sizes on the processor with device=cpu scale=mini encoder=tiny"
        )
    configs, options = configs_of(settings, overrides), options_of(settings)
    expect_writable(Path(settings.output or Path(settings.results_dir) / "rows.csv"))
    with Display() as display, tempfile.TemporaryDirectory() as folder:
        clip = write_clip(Path(folder) / "clip.mp4")
        measured = measure(configs, settings.frames, options, clip, display.progress())
    measured.video = f"{CLIP_FRAMES:,} frames of {CLIP_SIZE[0]} x {CLIP_SIZE[1]}, H.264"
    if settings.output:
        write_text(Path(settings.output), measured.rows.to_csv(index=False))
        print(f"{len(measured.rows)} rows: {settings.output}")
        return measured.complain()
    folder, name = Path(settings.results_dir), f"measured_{measured.machine.slug}"
    write_text(folder / f"{name}.csv", measured.rows.to_csv(index=False))
    write_text(folder / f"{name}.md", measured_report.as_markdown(measured))
    figures = measured_report.draw(measured, folder / "figures" / name)
    measured_report.show(measured)
    print(f"All {len(measured.rows)} rows: {folder / name}.csv, .md; figure: {', '.join(map(str, figures))}")
    measured.complain()


def options_of(settings: DictConfig) -> Options:
    """How the settings want it measured; UserError for a device or a backend of torch.compile that is not there."""
    if settings.compile is not None and settings.compile not in (backends := torch.compiler.list_backends(())):
        raise UserError(f"compile={settings.compile}: there is no such backend; there are {', '.join(backends)}")
    return Options(
        find_device(settings.device),
        getattr(torch, settings.dtype.name),
        Rounds(settings.rounds, settings.warmup, seconds=settings.seconds),
        tuple(settings.text_tokens),
        settings.new_tokens,
        settings.attention.name,
        settings.compile,
    )


def configs_of(
    settings: DictConfig, overrides: Sequence[str], names: Sequence[str] | None = None
) -> dict[str, SlowFastConfig]:
    """The configurations of the architectures that are measured (or of `names`), under the settings that were typed.

    UserError for an architecture that is not there, and for a typed setting that changes none of them.
    """
    chosen = list(names or settings.architectures or ARCHITECTURES)
    expect_known(chosen)
    if not names:
        refuse_idle(overrides, chosen)
    return {name: model_config(compose_variant(name, (), about_groups(overrides))) for name in chosen}


def write_clip(path: Path) -> Path:
    """A moving pattern as H.264, for the time of reading frames from a file."""
    width, height = CLIP_SIZE
    row_HW, column_HW = np.mgrid[0:height, 0:width]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=CLIP_FPS, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number in range(CLIP_FRAMES):
            image_HWC = np.stack([row_HW + 2 * number, column_HW - 3 * number, row_HW ^ column_HW], -1).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image_HWC, format="rgb24")))
        container.mux(stream.encode(None))
    return path
