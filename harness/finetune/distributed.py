"""Several training processes: what has to be said before they start, and what is checked once they have.

Some launches train silently on something else than was asked for: with ACCELERATE_USE_CPU DeepSpeed is passed over;
on a CPU, DeepSpeed and the Trainer may disagree on how many processes there are, and every process then trains on the
same data; without a launcher, ZeRO has nothing to shard over, and one process that sees several GPUs takes batches as
many times as large. Each of these is refused here in a sentence.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import distributed, nn

from harness.errors import UserError
from harness.finetune.parts import LANGUAGE_MODEL, part_of

HOW = "torchrun --nproc_per_node N -m harness finetune ..., or say launch=torchrun processes=N"
USE_CPU, USE_DEEPSPEED = "ACCELERATE_USE_CPU", "ACCELERATE_USE_DEEPSPEED"


@dataclass(frozen=True)
class World:
    """The processes that a launcher started, as it says in the environment: this one's number, how many there are.

    `local_rank` is -1 and `launched` false where no launcher was at work.
    """

    rank: int
    size: int
    local_rank: int

    @classmethod
    def of(cls, environment: Mapping[str, str] | None = None) -> "World":
        """What the launcher said."""
        given = os.environ if environment is None else environment
        return cls(int(given.get("RANK", 0)), int(given.get("WORLD_SIZE", 1)), int(given.get("LOCAL_RANK", -1)))

    @property
    def launched(self) -> bool:
        """Whether a launcher started this process."""
        return self.local_rank >= 0


def expect_launch(world: World, stage: int, gpus: int, environment: Mapping[str, str] | None = None) -> None:
    """UserError for processes that would not train what was asked for. `stage` is ZeRO's; 0: no DeepSpeed."""
    given = os.environ if environment is None else environment
    if stage and given.get(USE_CPU, "false").lower() in ("1", "true", "yes"):
        raise UserError(f"{USE_CPU} is set, and DeepSpeed would be passed over in silence: unset it, or say zero=none")
    if stage and not world.launched:
        raise UserError(f"zero={stage} shards over processes, but none were launched: {HOW}, or say zero=none")
    if world.size > 1 and not world.launched:
        raise UserError(f"WORLD_SIZE is {world.size}, but LOCAL_RANK is not set: launch with {HOW}")
    if gpus > 1 and not world.launched:  # the Trainer would put a batch on each of them (torch's DataParallel)
        raise UserError(
            f"one process sees {gpus} GPUs and would train on batches {gpus} times as large: {HOW}, or let it see one "
            "(CUDA_VISIBLE_DEVICES=0)"
        )
    if gpus and world.local_rank >= gpus:
        raise UserError(f"process {world.local_rank} of this node has no GPU of its own: launch {gpus}, one for each")


def join(world: World, stage: int, on_cpu: bool) -> None:
    """Puts this process among the others where DeepSpeed would not do so itself: on CPUs.

    DeepSpeed on a CPU is for tests: it would compile an all-reduce over shared memory at the first start, for a
    minute or more; gloo does as well.
    """
    if not (stage and on_cpu):
        return
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    os.environ[USE_DEEPSPEED] = "true"
    import deepspeed.ops
    from accelerate import PartialState

    deepspeed.ops.__compatible_ops__ = {}  # what DeepSpeed asks before it compiles an operator of its own
    PartialState(backend="gloo")


def deepspeed_config(zero: Mapping[str, Any], whole: int) -> dict[str, Any] | None:
    """DeepSpeed's configuration for the group `zero`; None for stage 0. What the Trainer knows is left to it ("auto").

    There is no optimizer in it: the Trainer's own is used, and DeepSpeed compiles none. Under ZeRO-3, parameters of
    at most `whole` numbers stay whole in every process, see `whole_parameters`.
    """
    stage = zero["stage"]
    if not stage:
        return None
    sharding: dict[str, Any] = {"stage": stage, "contiguous_gradients": True, "overlap_comm": torch.cuda.is_available()}
    for what in zero.get("offload", ()):
        sharding[f"offload_{what}"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    if stage == 3:
        sharding |= {"stage3_param_persistence_threshold": whole, "stage3_gather_16bit_weights_on_model_save": True}
    return {
        "zero_optimization": sharding,
        "zero_allow_untested_optimizer": True,
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "train_batch_size": "auto",
        "gradient_clipping": "auto",
        "bf16": {"enabled": "auto"},
        "fp16": {"enabled": "auto"},
    }


def whole_parameters(model: nn.Module) -> int:
    """The largest parameter, in numbers, that is used as often as a batch has videos of different lengths.

    ZeRO-3 gathers a sharded parameter when its module is called, in all processes together: one that is called twice
    in one process and once in another leaves them waiting for each other forever. The decoder's layers are called
    once per batch, whatever is in it. Encoder, projector, time positions, compressor, slow keys and values are not:
    parameters up to this size stay whole. At 7B the decoder's MLPs and embeddings, which are larger, are sharded:
    four fifths of the model.
    """
    often = [p.numel() for name, p in model.named_parameters() if part_of(name) != LANGUAGE_MODEL]
    return max(often, default=0)


def leave_whole_alone(engine: Any) -> None:
    """Has ZeRO-3 pass over every module whose own parameters stay whole: they are there, nothing is to be gathered.

    DeepSpeed follows the order in which modules are called, which must be the same in all processes and steps, and
    while it does not know the order yet it shards persistent parameters as well. What is left to follow are the
    decoder's large modules, called once per batch whatever is in it. Call it once the engine is there.
    """
    offload = engine.optimizer.parameter_offload
    handles = {handle.id: handle for handle in (*offload.forward_hooks, *offload.backward_hooks)}
    for module in engine.module.modules():
        if module is not engine.module and all(p.ds_persist for p in module.parameters(recurse=False)):
            for number in (*module._forward_pre_hooks, *module._forward_hooks):
                if number in handles:
                    handles.pop(number).remove()


def gather_whole(engine: Any) -> None:
    """Gathers the parameters that stay whole where DeepSpeed sharded them: at its start, or for a checkpoint."""
    whole = engine.optimizer.persistent_parameters
    if whole:
        whole[0].all_gather(whole)  # passes over those that are here


# ------------------------------------------------------------------------------------------------------- checks


def expect_engine(trainer: Any, world: World, stage: int) -> None:
    """UserError unless training will run as asked: DeepSpeed's engine at this stage, over all processes, sharded."""
    if trainer.args.world_size != world.size or trainer.accelerator.num_processes != world.size:
        raise UserError(
            f"{world.size} processes were launched, but the Trainer sees {trainer.args.world_size}: all would train on "
            f"the same data; launch with {HOW}"
        )
    if not stage:
        return
    from deepspeed import DeepSpeedEngine

    engine = trainer.model_wrapped
    if not isinstance(engine, DeepSpeedEngine):
        raise UserError(
            f"zero={stage} was asked for, but DeepSpeed is not at work: the model is a {type(engine).__name__}"
        )
    if engine.zero_optimization_stage() != stage or engine.world_size != world.size:
        raise UserError(
            f"DeepSpeed runs stage {engine.zero_optimization_stage()} over {engine.world_size} processes, not stage "
            f"{stage} over {world.size}: another configuration of DeepSpeed is in the way"
        )


def sharded(model: nn.Module) -> dict[str, tuple[int, int]]:
    """(numbers held here, all) of every parameter that ZeRO-3 shards, by name."""
    return {
        name: (parameter.ds_tensor.numel(), parameter.ds_numel)
        for name, parameter in model.named_parameters()
        if hasattr(parameter, "ds_tensor") and not parameter.ds_persist
    }


def summed(values: Sequence[float], device: torch.device) -> list[float]:
    """Each value, summed over all processes."""
    if not distributed.is_initialized():
        return [float(value) for value in values]
    tensor = torch.tensor(values, dtype=torch.float64, device=device)
    distributed.all_reduce(tensor)
    return tensor.tolist()
