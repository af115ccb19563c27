"""What slow tokens cost on this machine: memory of long videos, time of a prefill and of a decoded token.

    python -m architectures.bench long [--frames 384,768,1536] [--chunk 4096] [--device cpu]
    python -m architectures.bench decode

Small decoders with random weights: what they say is of no interest here, only what they take.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import linear_regression, quantiles
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode

from architectures import SlowFastConfig, SlowFastForConditionalGeneration
from architectures.cost import decode_cost
from architectures.hybrid import SlowFastCache, remember
from architectures.tokens import SlowContext

TEXT_TOKENS = 64
MB = 1e6
ALLOWED_STEP = 1.3  # a measured decode step at most so many times that of the model without hybrid layers
ALLOWED_COUNT = 1.05  # the same, counted at 7B, 128 frames against a baseline of 16
PROC_STATUS, CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")
RESET_PEAK = "5"  # proc(5), /proc/pid/clear_refs: sets the peak resident size to the current one

STDERR, STDOUT = Console(file=sys.stderr), Console(width=max(100, Console().width))


def config_of(text: dict[str, Any], image_size: int, **changes: Any) -> SlowFastConfig:
    """A Qwen2 decoder of the sizes `text` behind the tiny encoder, 16 frames of fast tokens."""
    sizes = {
        "text_config": {"model_type": "qwen2", "eos_token_id": None, **text},
        "vision": {"name": "tiny", "image_size": image_size},
        "projector_depth": 1,
        "compressor": {"name": "sample_and_average"},
        "video_token_id": text["vocab_size"] - 1,
    }
    return SlowFastConfig(**{**sizes, **changes})


@torch.no_grad()
def open_model(config: SlowFastConfig) -> SlowFastForConditionalGeneration:
    """A random model whose gates are open: none of it can be skipped."""
    model = SlowFastForConditionalGeneration(config).eval()
    for gate in model.gates():
        for parameter in gate.parameters():
            parameter.fill_(0.5)
    return model


class Session:
    """One video and its question in one cache."""

    def __init__(self, model: SlowFastForConditionalGeneration, frames: int):
        self.model, self.cache = model, SlowFastCache(model.config.text_config)
        patches = model.encoder.grid[0] * model.encoder.grid[1]
        self.features_BTPV = torch.randn(1, frames, patches, model.encoder.width)
        video = torch.full((1, model.fast_token_count(frames)), model.config.video_token_id)
        self.text_BL = torch.randint(0, model.config.video_token_id, (1, TEXT_TOKENS))
        self.prompt_BL = torch.cat([video, self.text_BL], dim=1)

    @torch.no_grad()
    def prefill(self) -> float:
        """Seconds from the encoder's features to the first answer token's logits, in an empty cache."""
        self.cache = SlowFastCache(self.model.config.text_config)
        start = time.perf_counter()
        self.model(self.prompt_BL, features=self.features_BTPV, past_key_values=self.cache, logits_to_keep=1)
        return time.perf_counter() - start

    @torch.no_grad()
    def step(self) -> float:
        """Seconds of one more token."""
        start = time.perf_counter()
        self.model(self.text_BL[:, :1], past_key_values=self.cache)
        return time.perf_counter() - start


# ------------------------------------------------------------------------------------------------- long videos


@dataclass(frozen=True)
class LongRun:
    """What a process of its own measured of one video: bytes, seconds."""

    frames: int
    slow_tokens: int
    input_bytes: int  # the encoder's features, which the caller holds
    kv_bytes: int
    peak_bytes: int  # resident, above what the process held with model and input in place
    prefill_s: float
    step_s: float


def long_config(chunk: int | None, device: str | None) -> SlowFastConfig:
    """64 slow tokens a frame of width 128, 4 layers, 4 query and 2 key heads, hybrid layers 0 and 2."""
    text = {
        "hidden_size": 128,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 352,
        "vocab_size": 1000,
    }
    bounds = {"frames_at_once": 64, "slow_chunk": chunk, "slow_device": device}
    compressor = {"name": "strided_sampling"}
    return config_of(text, 128, video_pooling=1, placement={"name": "every", "n": 2}, compressor=compressor, **bounds)


def resident(field: str) -> int:
    """Bytes that /proc counts for this process: "VmRSS" now, "VmHWM" at most so far."""
    if not PROC_STATUS.exists():
        raise OSError(f"bench long reads memory from {PROC_STATUS}, which this system does not have: run it on Linux.")
    line = next(line for line in PROC_STATUS.read_text().splitlines() if line.startswith(field))
    return 1024 * int(line.split()[1])


def long_run(frames: int, steps: int, chunk: int | None, device: str | None) -> LongRun:
    """Prefill and some decoded tokens of a video of `frames` frames, in this process."""
    model = open_model(long_config(chunk, device))
    warm = Session(model, 32)
    warm.prefill(), warm.step()
    session = Session(model, frames)
    CLEAR_REFS.write_text(RESET_PEAK)
    before = resident("VmRSS")
    prefill_s = session.prefill()
    step_s = sum(session.step() for _ in range(steps)) / steps
    memory = session.cache.slow_memory
    S = frames * model.encoder.grid[0] * model.encoder.grid[1]
    peak = resident("VmHWM") - before
    return LongRun(frames, S, session.features_BTPV.nbytes, memory.nbytes, peak, prefill_s, step_s)


def in_a_process_of_its_own(options: argparse.Namespace, frames: int) -> LongRun:
    """`long_run` in a fresh interpreter, whose peak is its own."""
    command = [
        sys.executable,
        "-m",
        "architectures.bench",
        "long-once",
        f"--frames={frames}",
        f"--steps={options.steps}",
    ]
    command += [f"--chunk={options.chunk}", f"--threads={options.threads}"]
    command += [f"--device={options.device}"] if options.device else []
    answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return LongRun(**json.loads(answer.stdout))


@dataclass(frozen=True)
class Line:
    """The straight line through (x, y) of least squares."""

    slope: float
    start: float
    r2: float

    @classmethod
    def of(cls, x: list[float], y: list[float]) -> "Line":
        slope, start = linear_regression(x, y)
        mean = sum(y) / len(y)
        left = sum((b - start - slope * a) ** 2 for a, b in zip(x, y, strict=True))
        return cls(slope, start, 1 - left / sum((b - mean) ** 2 for b in y))


def bytes_per_slow_token(config: SlowFastConfig) -> tuple[int, int]:
    """Closed form, float32: (of the token itself, of its keys and values in all hybrid layers)."""
    S = 64  # any number: both are per token
    return 4 * config.text_config.hidden_size, decode_cost(config, S // 64, 1, 4).slow_kv_bytes // S


def long(options: argparse.Namespace) -> int:
    """The table of `long_run` for growing videos, and whether memory grows as the closed form says."""
    runs = [
        in_a_process_of_its_own(options, frames)
        for frames in track(options.frames, "long videos", console=STDERR, transient=True)
    ]
    title = f"{options.threads} threads, float32, slow_chunk {options.chunk or 'none'}, {options.steps} decoded tokens"
    table = Table(title=title)
    for name in ("frames", "slow tokens", "input MB", "slow K/V MB", "peak MB", "prefill s", "token s"):
        table.add_column(name, justify="right")
    for run in runs:
        megabytes = [f"{count / MB:,.1f}" for count in (run.input_bytes, run.kv_bytes, run.peak_bytes)]
        table.add_row(
            f"{run.frames:,}", f"{run.slow_tokens:,}", *megabytes, f"{run.prefill_s:.2f}", f"{run.step_s:.3f}"
        )
    STDOUT.print(table)
    token, keys_values = bytes_per_slow_token(long_config(None, None))
    STDOUT.print("peak: resident memory above model and input, of prefill and decoding; each row a fresh process.")
    STDOUT.print(
        f"closed form per slow token: {token} bytes + {keys_values} of keys and values = {token + keys_values}"
    )
    if len(runs) > 1:
        line = Line.of([run.slow_tokens for run in runs], [run.peak_bytes for run in runs])
        STDOUT.print(
            f"measured: {line.slope:,.0f} bytes per slow token + {line.start / MB:,.1f} MB, R2 = {line.r2:.5f} "
            f"({line.slope / (token + keys_values):.3f} x the closed form)"
        )
    return 0


# ------------------------------------------------------------------------------------------- prefill and decoding

MEASURED = {
    "hidden_size": 512,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "intermediate_size": 1408,
    "vocab_size": 8000,
}
QWEN2_7B = {  # its published configuration
    "hidden_size": 3584,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "intermediate_size": 18944,
    "vocab_size": 152064,
}
GRID_18 = 288  # pixels from which the tiny encoder makes the paper's 18 x 18 grid, pooled to 9 x 9
FRAMES, BASELINE_FRAMES = 128, 16


def interleaved(runs: list[Callable[[], float]], rounds: int, name: str) -> list[list[float]]:
    """Seconds of each of `runs`, one after the other in every round, after one unmeasured round."""
    seconds: list[list[float]] = [[] for _ in runs]
    for number in track(range(rounds + 1), name, console=STDERR, transient=True):
        order = range(len(runs)) if number % 2 else reversed(range(len(runs)))  # nobody always runs first
        for index in order:
            taken = runs[index]()
            if number:
                seconds[index].append(taken)
    return seconds


def decode(options: argparse.Namespace) -> int:
    """Prefill and decoded token with and without hybrid layers; 1 if a limit is exceeded, else 0."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    placements = {"slow-fast": {"name": "list", "layers": [0, 4]}, "without": {"name": "none"}}
    sessions = [
        Session(open_model(config_of(MEASURED, GRID_18, placement=spec)), FRAMES) for spec in placements.values()
    ]
    table = Table(title=f"ms on one thread: {sessions[0].prompt_BL.shape[1]:,} prompt tokens, float32")
    for name in ("", *placements, "ratio of medians", "of minima"):
        table.add_column(name, justify="right")
    prefill = interleaved([session.prefill for session in sessions], options.prefills, "prefill")
    step = interleaved([session.step for session in sessions], options.steps, "decode")
    for name, seconds in (("prefill", prefill), ("decode step", step)):
        middle, least = (ratio([f(run) for run in seconds]) for f in (median, min))
        table.add_row(name, *map(spread, seconds), f"{middle:.3f}", f"{least:.3f}")
    STDOUT.print(table)
    (memory,) = (session.cache.slow_memory for session in sessions if session.cache.slow_memory)
    STDOUT.print(f"slow keys and values: {memory.nbytes / MB:.1f} MB; cells are median (quartiles; minimum)")
    measured, counted = ratio([median(run) for run in step]), counted_ratio()
    STDOUT.print(f"decode step: {measured:.3f} x, at most {ALLOWED_STEP} x wanted")
    STDOUT.print(
        f"decode step at 7B, counted: {counted:.4f} x ({FRAMES} frames against the baseline's {BASELINE_FRAMES}), "
        f"at most {ALLOWED_COUNT} x wanted"
    )
    return int(measured > ALLOWED_STEP or counted > ALLOWED_COUNT)


def median(values: list[float]) -> float:
    """The middle of `values`."""
    return quantiles(values, n=4, method="inclusive")[1]


def ratio(pair: list[float]) -> float:
    """The first over the second."""
    return pair[0] / pair[1]


def spread(seconds: list[float]) -> str:
    """Milliseconds: median (quartiles; minimum)."""
    low, middle, high = (1000 * value for value in quantiles(seconds, n=4, method="inclusive"))
    return f"{middle:.1f} ({low:.1f} to {high:.1f}; {1000 * min(seconds):.1f})"


def counted_ratio() -> float:
    """A decoded token's FLOPs at 7B over those of the self-attention baseline that sees 16 frames."""
    hybrid = config_of(QWEN2_7B, GRID_18, placement={"name": "every", "n": 8})
    baseline = config_of(QWEN2_7B, GRID_18, compressor={"name": "identity"})
    return counted_step(hybrid, FRAMES) / counted_step(baseline, BASELINE_FRAMES)


@torch.no_grad()
def counted_step(config: SlowFastConfig, frames: int) -> int:
    """FLOPs of one decoded token as torch counts them on the meta device, where nothing is computed.

    Raises RuntimeError if the closed form of `architectures.cost` says otherwise.
    """
    with torch.device("meta"):
        model = SlowFastForConditionalGeneration(config)
        decoder, width = model.language_model.model, config.text_config.hidden_size
        embeds_BLD = torch.empty(1, model.fast_token_count(frames) + TEXT_TOKENS, width)
        slow_SD = torch.empty(slow_tokens(model, frames), width)
        ids = torch.zeros(1, 1, dtype=torch.long)
    cache = SlowFastCache(config.text_config)
    decoder(inputs_embeds=embeds_BLD, past_key_values=cache, use_cache=True)
    if model.hybrid_layers:
        cache.slow_memory = remember(decoder, [SlowContext(slow_SD)])
    with FlopCounterMode(display=False) as counter:
        model(ids, past_key_values=cache)
    counted, closed = counter.get_total_flops(), decode_cost(config, frames, TEXT_TOKENS).step
    if counted != closed:
        raise RuntimeError(f"A decoded token takes {counted:,} FLOPs by torch's count, {closed:,} by the closed form.")
    return counted


def slow_tokens(model: SlowFastForConditionalGeneration, frames: int) -> int:
    """Slow tokens of a video."""
    rows, columns = model.encoder.grid
    pooling = model.config.pooling_of(frames)
    return frames * (rows // pooling) * (columns // pooling)


# ------------------------------------------------------------------------------------------------- command line


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m architectures.bench", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("long", "long-once"):
        command = commands.add_parser(name)
        command.add_argument("--frames", type=lambda text: [int(n) for n in text.split(",")], default=[384, 768, 1536])
        command.add_argument("--steps", type=int, default=4, help="decoded tokens")
        command.add_argument("--chunk", type=int, default=4096, help="slow tokens at a time (0: all)")
        command.add_argument("--device", help="where slow keys and values wait")
        command.add_argument("--threads", type=int, default=1)
    command = commands.add_parser("decode")
    command.add_argument("--prefills", type=int, default=9, help="measured prefills of each model")
    command.add_argument("--steps", type=int, default=100, help="measured decoded tokens of each model")
    options = parser.parse_args(arguments)
    if options.command == "decode":
        return decode(options)
    if options.command == "long":
        return long(options)
    torch.set_num_threads(options.threads)
    print(json.dumps(asdict(long_run(options.frames[0], options.steps, options.chunk or None, options.device))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
