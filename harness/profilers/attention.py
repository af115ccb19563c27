"""What computes attention while it is measured: torch's choice, one of its kernels, plain products, flash-attn."""

from contextlib import AbstractContextManager, nullcontext

from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface, eager_mask
from transformers.modeling_utils import AttentionInterface
from transformers.models.qwen2.modeling_qwen2 import eager_attention_forward

from architectures.hybrid import SUFFIX, register_hybrid

KERNELS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
}
PLAIN = "plain_products"
"""The name under which "eager" is known to transformers here: its own eager functions live in each model's file."""


def use_attention(model: PreTrainedModel, name: str) -> None:
    """Has the decoder compute attention as `name` says.

    Raises ImportError or ValueError, as transformers words it, where that is not to be had.
    """
    if name == "eager":
        _register_plain()
        model.language_model.config._attn_implementation = PLAIN + SUFFIX
    elif name == "flash_attention_2":
        model.set_attn_implementation(name)
    else:
        model.set_attn_implementation("sdpa")


def kernel(name: str) -> AbstractContextManager:
    """The context in which torch takes that kernel and no other; it refuses what the kernel cannot do."""
    return sdpa_kernel(KERNELS[name]) if name in KERNELS else nullcontext()


def _register_plain() -> None:
    """Plain products with a causal mask of L x L: those of Qwen2, which Llama, Mistral and Qwen3 share."""
    if PLAIN + SUFFIX not in AttentionInterface():
        AttentionInterface.register(PLAIN, eager_attention_forward)
        AttentionMaskInterface.register(PLAIN, eager_mask)
        register_hybrid(PLAIN)
