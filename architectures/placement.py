"""Placements: which decoder layers are hybrid. Pure functions, `n_layers -> tuple of layer indices`."""

from architectures.registry import Registry

PLACEMENTS = Registry("placement")


@PLACEMENTS.register("none")
def none(n_layers: int) -> tuple[int, ...]:
    """No hybrid layer: the self-attention baseline."""
    return ()


@PLACEMENTS.register("every")
def every(n_layers: int, n: int = 8) -> tuple[int, ...]:
    """Layers 0, n, 2n, ... (paper, section 3; n = 8 of Qwen2-7B's 28 layers in the released models)."""
    if n < 1:
        raise ValueError(f"placement 'every': n is {n}, must be at least 1.")
    return tuple(range(0, n_layers, n))


@PLACEMENTS.register("first")
def first(n_layers: int, k: int = 1) -> tuple[int, ...]:
    """The first k layers."""
    if not 1 <= k <= n_layers:
        raise ValueError(f"placement 'first': k is {k}, must lie between 1 and the decoder's {n_layers} layers.")
    return tuple(range(k))
