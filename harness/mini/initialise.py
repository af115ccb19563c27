"""How the mini base starts: weights from which a tiny decoder learns to look things up within minutes."""

import torch
from torch import nn

from architectures import SlowFastForConditionalGeneration
from architectures.time_positions import FourierTimePosition

MATRIX_GAIN = 0.7
EMBEDDING_STD = 0.5
FINAL_NORM = 0.5  # keeps the logits of the tied, wide-spread embeddings small
TIME_STD = 0.4
QUERY_KEY_CORRELATION, QUERY_GAIN = 0.7, 1.5


@torch.no_grad()
def initialise(model: SlowFastForConditionalGeneration, seed: int) -> None:
    """Draws all trained weights of a self-attention model anew from `seed`; the encoder is left as it is.

    Each head's queries start correlated with its keys, so that attention begins as similarity, not noise.
    """
    torch.manual_seed(seed)
    language = model.language_model
    for part in (model.projector, language.model.layers):
        for module in part.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=MATRIX_GAIN * module.in_features**-0.5)
                if module.bias is not None:
                    nn.init.uniform_(module.bias, -(module.in_features**-0.5), module.in_features**-0.5)
    nn.init.normal_(language.model.embed_tokens.weight, std=EMBEDDING_STD)
    nn.init.constant_(language.model.norm.weight, FINAL_NORM)
    for module in model.time_positions.modules():
        if isinstance(module, FourierTimePosition):
            nn.init.normal_(module.projection.weight, std=TIME_STD)
    for layer in language.model.layers:
        _correlate(layer.self_attn)


def _correlate(attention: nn.Module) -> None:
    """Sets query weights to a mixture of their key head's weights and noise of the same size."""
    key_KED = attention.k_proj.weight.unflatten(0, (-1, attention.head_dim))
    shape = (len(key_KED), attention.num_key_value_groups, *key_KED.shape[1:])
    noise_KGED = torch.randn(shape) * MATRIX_GAIN * key_KED.shape[-1] ** -0.5
    r = QUERY_KEY_CORRELATION
    mixed_KGED = r * key_KED[:, None] + (1 - r**2) ** 0.5 * noise_KGED
    attention.q_proj.weight.copy_(QUERY_GAIN * mixed_KGED.flatten(0, 2))
