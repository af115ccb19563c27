"""Where attention goes: one sample through a checkpoint, and which frames its text tokens read in hybrid layers.

The files are those of attention_file. The weights are computed beside the model, from the queries that each fusion
asks its slow keys with; the model's own arithmetic is left alone, so that the answer is the one it gives without
being watched.

Letters as in architectures.tokens; T frames that the model was shown, S slow tokens, N reading tokens, Q heads.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from architectures import SlowFastForConditionalGeneration, SlowFastProcessor
from architectures.slow_memory import SlowKeysValues, SlowMemory
from architectures.video_mllm import slow_frames
from harness.benchmarks import LETTERS
from harness.errors import UserError
from harness.lmms_requests import cut, option_letter
from harness.mini.contact_sheet import find_sample
from harness.mini.questions import Question
from harness.mini.schema import prompt
from harness.mini.suite import load_suite, world_of
from harness.mini.world import COLOURS, GLYPHS, PLACES, Clip, draw_clip
from harness.reports.attention_file import FOLDER, RECORD_VERSION, write_record
from harness.video import Decoded, read_frames

THUMBNAILS, THUMBNAIL_SIZE = 32, 64
ANSWER_TOKENS = 8  # a mini answer is a word and a letter
DIGITS = 6  # of the probabilities and gates that are written


@dataclass
class Reading:
    """What one hybrid layer's readers read in one step of the model.

    Attributes:
        place_N: the readers' places in that step's sequence.
        weight_QNS: softmax over the slow tokens, float32.
        crossed_QNE: what the model's own cross-attention made of it.
        gate_N: mean over heads and channels of the gate's output.
    """

    place_N: torch.Tensor
    weight_QNS: torch.Tensor
    crossed_QNE: torch.Tensor
    gate_N: torch.Tensor | None = None


@dataclass
class Watch:
    """Readings by layer, in the order of the model's steps."""

    layers: dict[int, list[Reading]] = field(default_factory=dict)

    def by_frame(self, layer: int, frames: int) -> np.ndarray:
        """Head-mean attention of every reading, `weight_NT`: slow tokens of one frame added up."""
        weight_NS = torch.cat([reading.weight_QNS.mean(0) for reading in self.layers[layer]])
        return weight_NS.unflatten(1, (frames, -1)).sum(2).numpy()

    def gate(self, layer: int) -> np.ndarray:
        """The gate of every reading, `gate_N`."""
        return torch.cat([reading.gate_N for reading in self.layers[layer]]).numpy()

    def places(self, layer: int) -> list[int]:
        """Where each reader stands in prompt and answer together."""
        places, start = [], 0
        for step, reading in enumerate(self.layers[layer]):
            places += (reading.place_N + start).tolist()
            start = start + 1 if step else self.prompt_length
        return places

    prompt_length: int = 0


class WatchedKeys:
    """Slow keys and values that note what is asked of them, and answer as the model's own."""

    def __init__(self, own: SlowKeysValues, place_N: torch.Tensor, notes: list[Reading]):
        self.own, self.place_N, self.notes = own, place_N, notes

    def attend(self, query_GQNE: torch.Tensor, scaling: float | None) -> torch.Tensor:
        """As SlowKeysValues.attend."""
        crossed_GQNE = self.own.attend(query_GQNE, scaling)
        weight_QNS = attention_weights(query_GQNE, self.own, scaling)[0]
        self.notes.append(Reading(self.place_N.cpu(), weight_QNS.cpu(), crossed_GQNE[0].float().cpu()))
        return crossed_GQNE


class WatchedMemory:
    """A slow memory of one context whose readers are noted, by layer."""

    def __init__(self, own: SlowMemory, watch: Watch):
        self.own, self.watch = own, watch

    def reading(self, layer: int, readers: Any) -> Iterator[tuple[WatchedKeys, Any]]:
        """As SlowMemory.reading."""
        for keys_values, who in self.own.reading(layer, readers):
            yield WatchedKeys(keys_values, who.place_GN[0], self.watch.layers.setdefault(layer, [])), who


def attention_weights(query_GQNE: torch.Tensor, own: SlowKeysValues, scaling: float | None) -> torch.Tensor:
    """softmax(q k' scaling) over all slow tokens, `weight_GQNS` in float32; a key head serves its query heads."""
    key_GKSE = torch.cat([key for key, _ in own.chunks], dim=2).to(query_GQNE.device).float()
    scaling = query_GQNE.shape[-1] ** -0.5 if scaling is None else scaling
    key_GQSE = key_GKSE.repeat_interleave(query_GQNE.shape[1] // key_GKSE.shape[1], dim=1)
    return torch.softmax(query_GQNE.float() @ key_GQSE.transpose(2, 3) * scaling, dim=-1)


@contextmanager
def watching(model: SlowFastForConditionalGeneration) -> Iterator[Watch]:
    """While open, every hybrid layer's readings are noted; only for batches of one row. Hooks go again at the end."""
    watch, hooks = Watch(), []

    def watch_memory(module: torch.nn.Module, args: tuple) -> tuple:
        return tuple(WatchedMemory(each, watch) if isinstance(each, SlowMemory) else each for each in args)

    for _, fusion in model.hybrid():

        def watch_gate(
            module: torch.nn.Module, args: tuple, gate_GNQE: torch.Tensor, layer: int = fusion.layer_index
        ) -> None:
            reading, N = watch.layers[layer][-1], args[0].shape[1]
            reading.gate_N = gate_GNQE[0].float().flatten(1).mean(1).expand(N).cpu()

        hooks.append(fusion.register_forward_pre_hook(watch_memory))
        hooks.append(fusion.gate.register_forward_hook(watch_gate))
    try:
        yield watch
    finally:
        for hook in hooks:
            hook.remove()


@torch.inference_mode()
def watch_sample(
    model: SlowFastForConditionalGeneration, processor: SlowFastProcessor, video: Decoded, text: str
) -> tuple[Watch, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Answer one question greedily; returns (watch, prompt ids, new ids, times in [0, 1] of the slow frames)."""
    frames_BTCHW, times_BT = (
        processor.watchable([video.frames_THWC], [video.times_T])[name].to(model.device)
        for name in ("frames", "frame_times")
    )
    kept_BTCHW, times_BT = model.select(frames_BTCHW, times_BT)
    inputs = dict(processor(text=[text], n_frames=kept_BTCHW.shape[1]))
    features = model.encode_video(kept_BTCHW)
    with watching(model) as watch:
        ids_BL = model.generate(
            **inputs, features=features, frame_times=times_BT, max_new_tokens=ANSWER_TOKENS, do_sample=False
        )
    watch.prompt_length = inputs["input_ids"].shape[1]
    prompt_L, new_L = ids_BL[0, : watch.prompt_length], ids_BL[0, watch.prompt_length :]
    return watch, prompt_L, new_L, times_BT[0, slow_frames(times_BT.shape[1], model.config.slow_frames)]


def record_sample(checkpoint: Path, suite: Path, benchmark: str, doc_id: int, task: str | None, frames: int) -> dict:
    """The record of one sample, as plain data; "sheet" holds the thumbnails as an array (H, W, 3).

    Raises UserError for a folder that is no checkpoint, a model without slow path, or a sample that is not there.
    """
    model, processor = load(checkpoint)
    sample = find_sample(suite, benchmark, doc_id, task)
    video = read_frames(Path(suite) / "home" / sample.video, frames)
    asked = Question(sample.family, sample.question, tuple(sample.options), LETTERS.index(sample.answer))
    watch, prompt_L, new_L, time_T = watch_sample(model, processor, video, prompt(benchmark, asked, sample["task"]))
    answer = cut(processor.tokenizer.decode(new_L, skip_special_tokens=True), ("\n",))
    shown_T = np.round(time_T.cpu().numpy() * video.indices_T[-1]).astype(int)
    events = events_of(draw_clip(int(sample.clip_seed), int(sample.clip_index), world_of(suite)), asked)
    thumbnails = chosen_frames(shown_T, events)
    return {
        "record_version": RECORD_VERSION,
        "checkpoint": Path(checkpoint).resolve().name,
        "suite_fingerprint": load_suite(suite)["fingerprint"],
        **{"benchmark": benchmark, "task": sample["task"], "doc_id": int(doc_id), "video": sample.video},
        **{"category": sample.category, "family": sample.family},
        **{"question": sample.question, "options": list(sample.options), "target": sample.answer},
        **{"answer": answer, "letter": option_letter(answer, len(sample.options)) if answer else None},
        "video_frames": int(video.total),
        "frames": shown_T.tolist(),
        "tokens": token_list(watch, model, processor, torch.cat([prompt_L, new_L])),
        "layers": {
            str(layer): {
                "attention": watch.by_frame(layer, len(shown_T)).round(DIGITS).tolist(),
                "gate": watch.gate(layer).round(DIGITS).tolist(),
            }
            for layer in watch.layers
        },
        "events": events,
        "thumbnails": thumbnails,
        "sheet": contact_strip(video, thumbnails),
    }


def load(checkpoint: Path) -> tuple[SlowFastForConditionalGeneration, SlowFastProcessor]:
    """Model and processor of a checkpoint that has a slow path; UserError otherwise."""
    folder = Path(checkpoint)
    if not (folder / "config.json").is_file():
        raise UserError(f"checkpoint={folder}: no folder of a saved model (it has no config.json)")
    model = SlowFastForConditionalGeneration.from_pretrained(folder, local_files_only=True).eval()
    if not model.hybrid_layers:
        raise UserError(f"checkpoint={folder}: this model has no hybrid layer, so nothing reads slow tokens")
    if model.selector.needs_question:
        raise UserError(f"checkpoint={folder}: its selector needs the question, which this command does not give it")
    return model, SlowFastProcessor.from_pretrained(folder, local_files_only=True)


def token_list(
    watch: Watch, model: SlowFastForConditionalGeneration, processor: SlowFastProcessor, ids_L: torch.Tensor
) -> list[dict[str, Any]]:
    """Every reader: its place in the sequence, its text, and its part: "before" the video, "question", "answer"."""
    places = watch.places(next(iter(watch.layers)))
    last_video = max((ids_L == model.config.video_token_id).nonzero().flatten().tolist())
    texts = processor.tokenizer.convert_ids_to_tokens(ids_L.tolist())

    def part(place: int) -> str:
        if place >= watch.prompt_length:
            return "answer"
        return "question" if place > last_video else "before"

    return [{"place": place, "text": texts[place], "part": part(place)} for place in places]


def events_of(clip: Clip, asked: Question) -> list[dict[str, Any]]:
    """The clip's flashes in words, in order of time; `asked` says whether the question is about it.

    About a flash is a question that names its glyph, or (which comes first?) offers it. Nothing that flashes is
    asked about where the question is about the ball.
    """
    words = set(asked.text.replace("?", " ").split())
    if asked.family == "order":
        words |= set(asked.options)
    return [
        {
            "start": flash.start,
            "duration": flash.duration,
            "glyph": GLYPHS[flash.glyph],
            "colour": COLOURS[flash.colour],
            "place": PLACES[flash.place],
            "asked": GLYPHS[flash.glyph] in words,
        }
        for flash in clip.flashes
    ]


def chosen_frames(shown_T: np.ndarray, events: Sequence[dict[str, Any]], count: int = THUMBNAILS) -> list[int]:
    """At most `count` frames for thumbnails: evenly spread ones, and each asked-about event's first frame seen."""
    even = shown_T[np.linspace(0, len(shown_T) - 1, min(count, len(shown_T))).round().astype(int)]
    chosen = dict.fromkeys(even.tolist())
    for event in events:
        seen = [t for t in shown_T.tolist() if event["start"] <= t < event["start"] + event["duration"]]
        if not event["asked"] or not seen or seen[0] in chosen:
            continue
        if len(chosen) >= count:  # the nearest evenly spread one makes room
            del chosen[min(set(chosen) & set(even.tolist()), key=lambda t: abs(t - seen[0]))]
        chosen[seen[0]] = None
    return sorted(chosen)


def contact_strip(video: Decoded, thumbnails: Sequence[int]) -> np.ndarray:
    """The chosen frames of a video, small and side by side, uint8 (H, W, 3)."""
    place = {int(index): t for t, index in enumerate(video.indices_T)}
    size = (THUMBNAIL_SIZE, THUMBNAIL_SIZE)
    return np.concatenate(
        [np.asarray(Image.fromarray(video.frames_THWC[place[index]]).resize(size)) for index in thumbnails], axis=1
    )


def attention(settings: Any, overrides: Sequence[str]) -> None:
    """The verb: record one sample of a checkpoint and print the files."""
    from harness.commands import suite_of

    if settings.checkpoint is None:
        raise UserError("attention needs checkpoint=FOLDER, the folder of a saved model with hybrid layers")
    record = record_sample(
        Path(settings.checkpoint),
        suite_of(settings),
        settings.benchmark,
        settings.sample,
        settings.task,
        settings.frames,
    )
    name = f"{record['checkpoint']}_{record['task']}_{record['doc_id']}"
    stem = Path(settings.output) if settings.output else Path(settings.results_dir) / FOLDER / name
    print(*write_record(record, stem), sep="\n")
