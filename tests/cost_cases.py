"""Every variant that the configuration groups offer, at three sizes, for comparing counts with the closed form."""

from typing import Any

from small_models import CHOICES, small_config

from architectures import SlowFastConfig
from harness.compose import compose
from harness.models import model_config

CASES = [f"{group}={name}" for group, names in CHOICES.items() if group != "scale" for name in names]
MIDDLE = {  # no two numbers that a formula could take for each other; heads wider than 60 / 6, shared by three
    "model_type": "llama",
    "hidden_size": 60,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 90,
    "vocab_size": 53,
}
SIZES = ("mini", "middle", "paper")
LENGTHS = {"mini": (40, 13), "middle": (37, 11), "paper": (64, 96)}  # frames, text tokens


def config_at(size: str, case: str) -> SlowFastConfig:
    """The configuration that differs in `case` ("gate=none") from the default, at one of the `SIZES`.

    The released tower is counted where encoders are compared; elsewhere a small one makes as many patches.
    """
    if size == "mini":
        return small_config(case)
    if size == "middle":
        config = small_config(case, text_config=MIDDLE, projector_depth=3)
        config.vision = resized(config.vision)
        return config
    config = model_config(compose(["scale=paper", "encoder=convnext_xxlarge", case]))
    if not case.startswith("encoder="):
        config.vision = {"name": "tiny", "image_size": 288}
    return config


def resized(vision: dict[str, Any]) -> dict[str, Any]:
    """An encoder of few layers on smaller frames, which every patch size and stride divides or rounds in its way."""
    return {**vision, **{option: n for option, n in (("image_size", 160), ("depth", 3)) if option in vision}}
