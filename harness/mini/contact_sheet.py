"""A picture of one sample of a suite, from which a person can answer its question.

Every frame that the mp4 file shows, in reading order and numbered; frames with a flash are framed in white.
"""

from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw, ImageFont

from harness.benchmarks import LETTERS, benchmark_named
from harness.errors import UserError
from harness.mini.suite import load_index, world_of
from harness.mini.world import FRAMES, GLYPH_MASKS, GLYPH_SIZE, GLYPHS, draw_clip
from harness.video import read_frames

COLUMNS, ZOOM, MARGIN, LABEL_HEIGHT, HEADER_HEIGHT = 16, 2, 4, 14, 96
INK, PAPER, FAINT, MARK = (235, 235, 235), (20, 20, 20), (130, 130, 130), (255, 255, 255)


def contact_sheet(suite: Path, benchmark: str, doc_id: int, out: Path, task: str | None = None) -> Path:
    """Write the sheet of one sample as a PNG; returns its path.

    Args:
        doc_id: the row in the task's table.
        task: the lmms-eval task; needed for MVBench only, whose first task it is by default.

    Raises UserError for an unknown benchmark, task or row, and for a video that cannot be read.
    """
    sample = find_sample(suite, benchmark, doc_id, task)
    path = Path(suite) / "home" / sample.video
    frames_THWC = read_frames(path, FRAMES).frames_THWC
    flashes = draw_clip(int(sample.clip_seed), int(sample.clip_index), world_of(suite)).flashes
    flashing = {t for flash in flashes for t in range(flash.start, flash.start + flash.duration)}
    sheet = _sheet(frames_THWC, flashing, _header(sample))
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(out, format="PNG")
    return out


def find_sample(suite: Path, benchmark: str, doc_id: int, task: str | None = None) -> pd.Series:
    """One row of a suite's index, or a UserError that says what there is."""
    entry = benchmark_named(benchmark)
    task = task or entry.tasks[0]
    if task not in entry.tasks:
        raise UserError(f"{entry.title} has no task {task!r}: use one of {', '.join(entry.tasks)}")
    index = load_index(suite)
    rows = index[index.task == task]
    if not 0 <= doc_id < len(rows):
        raise UserError(f"{task} has no row {doc_id} in {suite}: use 0 to {len(rows) - 1}")
    return rows[rows.doc_id == doc_id].iloc[0]


def _header(sample: pd.Series) -> list[str]:
    letters = LETTERS[: sample.n_options]
    right = sample.options[LETTERS.index(sample.answer)]
    return [
        f"{sample.task} {sample.doc_id}   category: {sample.category}   family: {sample.family}",
        f"{sample.question}   "
        + "   ".join(f"({a}) {option}" for a, option in zip(letters, sample.options, strict=True)),
        f"Answer: ({sample.answer}) {right}",
    ]


def _legend(pen: ImageDraw.ImageDraw, right: int) -> None:
    """What each glyph is called, in the upper right corner."""
    step = 5 * GLYPH_SIZE
    for i, (name, mask_HW) in enumerate(zip(GLYPHS, GLYPH_MASKS, strict=True)):
        x = right - step * (len(GLYPHS) - i)
        bitmap = Image.fromarray(mask_HW).resize((2 * GLYPH_SIZE, 2 * GLYPH_SIZE), Image.Resampling.NEAREST)
        pen.bitmap((x, 2 * MARGIN), bitmap, fill=INK)
        pen.text((x, 2 * MARGIN + 2 * GLYPH_SIZE + 4), name, fill=FAINT, font=ImageFont.load_default(14))


def _sheet(frames_THWC: np.ndarray, flashing: set[int], header: list[str]) -> Image.Image:
    total, height, width, _ = frames_THWC.shape
    cell_y, cell_x = height * ZOOM + LABEL_HEIGHT + 2 * MARGIN, width * ZOOM + 2 * MARGIN
    rows = -(-total // COLUMNS)
    sheet = Image.new("RGB", (cell_x * COLUMNS, HEADER_HEIGHT + cell_y * rows), PAPER)
    pen = ImageDraw.Draw(sheet)
    for line, text in enumerate(header):
        pen.text((2 * MARGIN, 6 + 28 * line), text, fill=INK, font=ImageFont.load_default(20))
    _legend(pen, sheet.width)
    small = ImageFont.load_default(11)
    for t, frame_HWC in enumerate(frames_THWC):
        x = t % COLUMNS * cell_x + MARGIN
        y = HEADER_HEIGHT + t // COLUMNS * cell_y + MARGIN + LABEL_HEIGHT
        image = Image.fromarray(frame_HWC).resize((width * ZOOM, height * ZOOM), Image.Resampling.NEAREST)
        sheet.paste(image, (x, y))
        pen.text((x, y - LABEL_HEIGHT), str(t), fill=MARK if t in flashing else FAINT, font=small)
        if t in flashing:
            pen.rectangle((x - 2, y - 2, x + width * ZOOM + 1, y + height * ZOOM + 1), outline=MARK, width=2)
    return sheet
