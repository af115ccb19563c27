"""Models of random weights that share one set of tensors: a 7B baseline and its variants on one GPU.

Weights do not change what a forward pass costs, so none are needed to measure it. Parameters are made without
memory, then drawn where they will stay, in the type they will have; two models get the same tensor where name and
shape agree. Gates are open: no part of a model can be skipped.
"""

import zlib

import torch
from accelerate import init_empty_weights
from torch import nn

from architectures import SlowFastConfig, SlowFastForConditionalGeneration

OPEN = 0.5  # of a gate's biases and warm-up: what a gate starts at zero with is away from it
BIAS_STD = 0.02


class RandomWeights:
    """Draws each tensor once, by its name and shape, and lends it to every model that has a place for it.

    A tensor depends on `seed`, name, shape, device and type, not on the order of the models.
    """

    def __init__(self, device: torch.device | str, dtype: torch.dtype, seed: int = 0):
        self.device, self.dtype, self.seed = torch.device(device), dtype, seed
        self.tensors: dict[tuple[str, torch.Size], nn.Parameter] = {}

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors drawn so far."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    @torch.no_grad()
    def model(self, config: SlowFastConfig) -> SlowFastForConditionalGeneration:
        """The model of `config`, in inference mode; its tensors belong to other models too: never train it."""
        with init_empty_weights(include_buffers=False):
            model = SlowFastForConditionalGeneration(config)
        model.tie_weights()  # making parameters empty untied them
        of_gates = {id(parameter) for gate in model.gates() for parameter in gate.parameters()}
        for name, parameter in list(model.named_parameters()):
            owner, _, last = name.rpartition(".")
            is_gate = id(parameter) in of_gates
            setattr(model.get_submodule(owner), last, self._tensor(name, parameter.shape, is_gate))
        model.tie_weights()
        self._move_buffers(model)
        return model.eval()

    def _tensor(self, name: str, shape: torch.Size, of_gate: bool) -> nn.Parameter:
        if (name, shape) not in self.tensors:
            tensor = torch.empty(shape, device=self.device, dtype=self.dtype)
            self._draw_(tensor, name, of_gate)
            self.tensors[name, shape] = nn.Parameter(tensor, requires_grad=False)
        return self.tensors[name, shape]

    def _draw_(self, tensor: torch.Tensor, name: str, of_gate: bool) -> None:
        """Matrices and kernels that keep the size of what they are given; norms and layer scales one."""
        if tensor.device.type == "meta":
            return
        generator = torch.Generator(tensor.device).manual_seed(zlib.crc32(name.encode()) + self.seed)
        if tensor.dim() >= 2:
            tensor.normal_(std=tensor[0].numel() ** -0.5, generator=generator)
        elif of_gate:
            tensor.fill_(OPEN)
        elif name.endswith("bias"):
            tensor.normal_(std=BIAS_STD, generator=generator)
        else:
            tensor.fill_(1.0)

    def _move_buffers(self, model: nn.Module) -> None:
        """Buffers that are saved take the type, as `from_pretrained` has it; others, rotary tables, stay float32."""
        for module in model.modules():
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    saved = name not in module._non_persistent_buffers_set and buffer.is_floating_point()
                    module._buffers[name] = buffer.to(self.device, self.dtype if saved else buffer.dtype)
