"""Placements: which decoder layers are hybrid. Pure functions, `n_layers -> tuple of layer indices`."""

from collections.abc import Sequence

from architectures.registry import Registry

PLACEMENTS = Registry("placement")


@PLACEMENTS.register("none")
def none(n_layers: int) -> tuple[int, ...]:
    """No hybrid layer: the self-attention baseline."""
    return ()


@PLACEMENTS.register("all")
def every_layer(n_layers: int) -> tuple[int, ...]:
    """Every layer."""
    return tuple(range(n_layers))


@PLACEMENTS.register("every")
def every(n_layers: int, n: int = 8, minimum: int = 0, maximum: int | None = None) -> tuple[int, ...]:
    """Layers `minimum`, `minimum` + n, ... below `maximum` (None: the decoder's end).

    The official `cross_attn_every_n_layers` with `cross_attn_min_layer_depth` and
    `cross_attn_max_layer_depth`; n = 8 of Qwen2-7B's 28 layers in the released models (paper, section 3). A
    maximum beyond the decoder is its end, as there.
    """
    if n < 1:
        raise ValueError(f"placement 'every': n is {n}, must be at least 1.")
    end = n_layers if maximum is None else min(maximum, n_layers)
    if not 0 <= minimum < end:
        raise ValueError(
            f"placement 'every': minimum is {minimum}, must lie between 0 and {end - 1}, "
            f"below the maximum and the decoder's {n_layers} layers."
        )
    return tuple(range(minimum, end, n))


@PLACEMENTS.register("first")
def first(n_layers: int, k: int = 1) -> tuple[int, ...]:
    """The first k layers."""
    _check("first", k, n_layers)
    return tuple(range(k))


@PLACEMENTS.register("middle")
def middle(n_layers: int, k: int = 1) -> tuple[int, ...]:
    """The k layers in the middle; if they cannot be exactly there, half a layer earlier."""
    _check("middle", k, n_layers)
    start = (n_layers - k) // 2
    return tuple(range(start, start + k))


@PLACEMENTS.register("last")
def last(n_layers: int, k: int = 1) -> tuple[int, ...]:
    """The last k layers."""
    _check("last", k, n_layers)
    return tuple(range(n_layers - k, n_layers))


@PLACEMENTS.register("evenly")
def evenly(n_layers: int, k: int = 2) -> tuple[int, ...]:
    """k layers from layer 0 on, as evenly spaced as can be: layer floor(i x n_layers / k) for i = 0 .. k - 1.

    Distances, the one from the last of them to the decoder's end included, differ by at most 1.
    """
    _check("evenly", k, n_layers)
    return tuple(i * n_layers // k for i in range(k))


@PLACEMENTS.register("list")
def listed(n_layers: int, layers: Sequence[int]) -> tuple[int, ...]:
    """The given layers, counted from 0, in any order."""
    if not layers:
        raise ValueError("placement 'list': layers is empty, give at least one, or choose placement 'none'.")
    for layer in layers:
        if isinstance(layer, bool) or not isinstance(layer, int) or not 0 <= layer < n_layers:
            raise ValueError(
                f"placement 'list': {layer!r} is no layer of the decoder, whose {n_layers} layers are "
                f"0 to {n_layers - 1}."
            )
    if len(set(layers)) < len(layers):
        raise ValueError(f"placement 'list': layers is {list(layers)}, give each only once.")
    return tuple(sorted(layers))


def _check(name: str, k: int, n_layers: int) -> None:
    if not 1 <= k <= n_layers:
        raise ValueError(f"placement '{name}': k is {k}, must lie between 1 and the decoder's {n_layers} layers.")
