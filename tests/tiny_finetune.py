"""A training of seconds on conversations of random tensors, for test_finetune_*.py.

    torchrun --nproc_per_node 2 tests/tiny_finetune.py START WORK OUT PLAN [--die STEP] [--seen FOLDER]

trains by `harness.finetune.trainer` as PLAN (JSON) says. The conversations show no, one or two videos or an image, of
1 to 6 frames, so that processes and batches differ in every way that they can.
"""

import argparse
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import Dataset
from transformers import Qwen2Config, TrainerCallback

from architectures import SlowFastConfig, SlowFastForConditionalGeneration, SlowFastProcessor
from architectures.processing import IGNORED
from harness.finetune.collate import Collator
from harness.finetune.dataset import Item
from harness.finetune.parts import numel, trained
from harness.finetune.plan import Plan
from harness.finetune.trainer import Data, run, trainer_of
from harness.mini.tokenizer import build_tokenizer

WORDS = "red green blue yellow one two three left right up down what colour is the ball where how often"
SHOWN = ((3,), (), (1,), (6,), (4, 2), (5,))  # frames of each medium of the conversations, in turn
EXAMPLES = 96


def tiny_start(folder: Path, tied: bool = True, **changes: Any) -> Path:
    """A random slow-fast model whose gates are open, with its processor, in `folder`."""
    torch.manual_seed(0)
    tokenizer = build_tokenizer([WORDS], [])
    text = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=768,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=tied,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    given = {
        "compressor": {"name": "sample_and_average"},
        "placement": {"name": "every", "n": 2},
        "slow_time": {"name": "fourier", "harmonics": 4},
        "vision": {"name": "tiny", "width": 16, "image_size": 32},
    }
    video = tokenizer.convert_tokens_to_ids("<video>")
    config = SlowFastConfig(text_config=text, video_token_id=video, **{**given, **changes})
    model = SlowFastForConditionalGeneration(config)
    with torch.no_grad():
        for gate in model.gates():
            gate.warmup.fill_(0.5)
        for name, parameter in model.named_parameters():
            if parameter.dim() >= 2 and "embed" not in name:
                parameter.normal_(std=parameter[0].numel() ** -0.5)
    model.save_pretrained(folder)
    SlowFastProcessor.for_model(config, model.encoder, tokenizer).save_pretrained(folder)
    return folder


def saved_model(folder: Path) -> SlowFastForConditionalGeneration:
    """The model in a folder."""
    return SlowFastForConditionalGeneration.from_pretrained(folder).eval()


def forget_reporting(patch: pytest.MonkeyPatch) -> None:
    """Has a test's end undo what a training says in the environment: where reports go."""
    for name in ("WANDB_MODE", "WANDB_DIR", "TENSORBOARD_LOGGING_DIR"):
        patch.setenv(name, "")
        patch.delenv(name)


class Conversations(Dataset):
    """Items of random words and pixels, by number; `seen` gets a line for every one that is asked for."""

    def __init__(self, processor: SlowFastProcessor, size: int, examples: int = EXAMPLES, seen: Path | None = None):
        self.processor, self.size, self.examples, self.seen = processor, size, examples, seen
        self.lengths = [self._length(index) for index in range(examples)]

    def __len__(self) -> int:
        return self.examples

    def __getitem__(self, index: int) -> Item:
        if self.seen is not None:
            with self.seen.open("a") as file:
                file.write(f"{index}\n")
        draw = torch.Generator().manual_seed(index)
        videos = [torch.randn(T, 3, self.size, self.size, generator=draw) for T in SHOWN[index % len(SHOWN)]]
        times = [torch.linspace(0, 1, len(video)) for video in videos]
        fast = [self.processor.fast_token_count(len(video)) for video in videos]
        words = torch.randint(5, 20, (3 + index % 7,), generator=draw).tolist()
        answer = [5 + index % 3, 6 + index % 5, 7][: 1 + index % 3]
        ids = [token for n in fast for token in [self.processor.placeholder()] * n] + words + answer
        labels = [IGNORED] * (len(ids) - len(answer)) + answer
        return Item([(ids, labels)], 0, videos, times, False)

    def _length(self, index: int) -> int:
        return sum(map(self.processor.fast_token_count, SHOWN[index % len(SHOWN)])) + index % 7


def tiny_data(start: Path, seen: Path | None = None, examples: int = EXAMPLES) -> Data:
    """The conversations for the model in a folder."""
    processor = SlowFastProcessor.from_pretrained(start)
    size = SlowFastConfig.from_pretrained(start).vision["image_size"]
    dataset = Conversations(processor, size, examples, seen)
    return Data(dataset, dataset.lengths, Collator(processor, always_watch=True), processor)


class Dies(TrainerCallback):
    """Kills this process after a step, as a machine may."""

    def __init__(self, step: int):
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


class Notes(TrainerCallback):
    """What DeepSpeed made of the model, in a file per process; once a step is done, also the bytes that it holds."""

    def __init__(self, trainer: Any, file: Path):
        self.trainer, self.file = trainer, file

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        from harness.finetune.distributed import sharded

        engine = self.trainer.model_wrapped
        optimizer = getattr(engine, "optimizer", None)
        flat = getattr(optimizer, "single_partition_of_fp32_groups", None) or getattr(
            optimizer, "fp32_partitioned_groups_flat", []
        )
        noted = {
            "engine": type(engine).__name__,
            "world": args.world_size,
            "stage": engine.zero_optimization_stage() if hasattr(engine, "zero_optimization_stage") else 0,
            "sharded": sharded(self.trainer.model),
            "optimised_here": sum(part.numel() for part in flat),
            "trained": sum(numel(parameter) for _, parameter in trained(self.trainer.model)),
            "resumed_at": state.global_step,
        }
        self.file.write_text(json.dumps(noted))
        self.noted, self.flat = noted, flat

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step != self.noted["resumed_at"] + 1 or not self.noted["stage"]:
            return
        parameters = list(self.trainer.model.parameters())
        shares = [parameter.ds_tensor for parameter in parameters if hasattr(parameter, "ds_tensor")]
        kept = self.trainer.model_wrapped.optimizer.optimizer.state.values()
        averages = [tensor for some in kept for name, tensor in some.items() if name != "step"]
        held = {"weights": (*parameters, *shares), "optimiser": (*self.flat, *averages)}
        held = {name: sum(tensor.nbytes for tensor in tensors) for name, tensors in held.items()}
        self.file.write_text(json.dumps({**self.noted, "held": held}))


def main() -> None:
    """One process of a training."""
    parser = argparse.ArgumentParser()
    for name in ("start", "work", "out"):
        parser.add_argument(name, type=Path)
    parser.add_argument("plan", type=json.loads)
    parser.add_argument("--die", type=int)
    parser.add_argument("--seen", type=Path, required=True)
    given = parser.parse_args()
    rank = int(os.environ["RANK"])
    data = tiny_data(given.start, given.seen / f"seen-{rank}.txt")
    trainer = trainer_of(given.start, data, Plan(**given.plan), given.work)
    trainer.add_callback(Notes(trainer, given.seen / f"notes-{rank}.json"))
    if given.die is not None and rank == 1:
        trainer.add_callback(Dies(given.die))
    run(trainer, data, given.out)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
