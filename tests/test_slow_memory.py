"""Slow keys and values in chunks: exact against one softmax in double precision, bounded in memory, never copied."""

import pytest
import torch

from architectures import slow_memory
from architectures.slow_memory import SlowKeysValues, SlowMemory, in_chunks, partial_attention

G, Q, K, N, S, E = 2, 6, 2, 5, 37, 8
CHUNKS = [1, 7, 36, 37, 50]


def inputs(dtype: torch.dtype = torch.float32, readers: int = N) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries, keys and values whose softmax is far from uniform, and differs by chunk in its largest score."""
    generator = torch.Generator().manual_seed(3)
    query = 3 * torch.randn(G, Q, readers, E, generator=generator)
    key = torch.randn(G, K, S, E, generator=generator) * torch.linspace(0.2, 3, S)[:, None]
    return query.to(dtype), key.to(dtype), torch.randn(G, K, S, E, generator=generator).to(dtype)


def truth(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float | None = None) -> torch.Tensor:
    """softmax(q k' scaling) v by loops over contexts and heads, in double precision."""
    result = torch.empty(query.shape, dtype=torch.float64)
    for g in range(query.shape[0]):
        for head in range(query.shape[1]):
            of_head = head // (query.shape[1] // key.shape[1])
            score = query[g, head].double() @ key[g, of_head].double().T
            result[g, head] = (score * (scaling or E**-0.5)).softmax(-1) @ value[g, of_head].double()
    return result


def chunked(key: torch.Tensor, value: torch.Tensor, chunk: int) -> SlowKeysValues:
    """The same keys and values in chunks."""
    return SlowKeysValues(tuple(zip(key.split(chunk, 2), value.split(chunk, 2), strict=True)))


@pytest.mark.parametrize("scaling", [None, 0.11])
@pytest.mark.parametrize("readers", [1, 300])  # few queries, and more than are taken at a time
@pytest.mark.parametrize("chunk", CHUNKS)
def test_chunks_are_one_softmax(chunk: int, readers: int, scaling: float | None) -> None:
    query, key, value = inputs(readers=readers)
    crossed = chunked(key, value, chunk).attend(query, scaling)
    assert crossed.dtype == query.dtype
    torch.testing.assert_close(
        crossed.double(), truth(query, key, value, scaling), atol=1e-5, rtol=1e-5
    )  # scores reach 60


@pytest.mark.parametrize("chunk", CHUNKS)
def test_chunks_are_no_less_exact_in_half_precision(chunk: int) -> None:
    query, key, value = inputs(torch.bfloat16)
    expected = truth(query, key, value)
    crossed = chunked(key, value, chunk).attend(query, None)
    assert crossed.dtype == torch.bfloat16
    once = SlowKeysValues(((key, value),)).attend(query, None)
    error, error_at_once = ((result.double() - expected).abs().max() for result in (crossed, once))
    rounding = 2**-8 * expected.abs().max()  # of the result to bfloat16's 8 bits
    assert error <= rounding
    assert error_at_once <= 4 * rounding  # its kernel rounds the probabilities too


@pytest.mark.parametrize("chunk", [5, 37])
def test_gradients_are_those_of_one_softmax(chunk: int) -> None:
    tensors = [tensor.double().requires_grad_() for tensor in inputs(readers=20)]
    weight = torch.linspace(-1, 1, G * Q * 20 * E).view(G, Q, 20, E)
    expected = torch.autograd.grad((truth_differentiable(*tensors) * weight).sum(), tensors)
    leaves = [tensor.detach().float().requires_grad_() for tensor in tensors]
    crossed = chunked(leaves[1], leaves[2], chunk).attend(leaves[0], None)
    for gradient, true in zip(torch.autograd.grad((crossed * weight).sum(), leaves), expected, strict=True):
        torch.testing.assert_close(gradient.double(), true, atol=1e-5, rtol=1e-4)


def truth_differentiable(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """As `truth`, with keys repeated for the heads that share them."""
    key, value = (tensor.repeat_interleave(Q // K, dim=1) for tensor in (key, value))
    return (query @ key.transpose(2, 3) * E**-0.5).softmax(-1) @ value


def test_scores_that_would_overflow_an_exponential() -> None:
    query, key, value = inputs()
    crossed = chunked(100 * key, value, 7).attend(query, None)
    torch.testing.assert_close(crossed.double(), truth(query, 100 * key, value), atol=1e-4, rtol=1e-4)


def test_a_part_is_the_attention_to_its_keys_and_their_logsumexp() -> None:
    query, key, value = inputs()
    grouped = query.unflatten(1, (K, -1)).flatten(2, 3)
    part, weight = partial_attention(grouped, key, value, None)
    score = (grouped @ key.transpose(2, 3)) * E**-0.5
    torch.testing.assert_close(weight, score.logsumexp(-1, keepdim=True))
    torch.testing.assert_close(part, score.softmax(-1) @ value, atol=1e-6, rtol=1e-5)


def test_no_larger_score_matrix_than_stated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of all tensors that attention to chunks makes, none has more numbers than 256 queries x a chunk of keys."""
    sizes: list[int] = []

    class Sizes(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor) and "view" not in str(function):
                sizes.append(result.untyped_storage().nbytes() // result.element_size())
            return result

    readers, long, chunk = 700, 4096, 128
    query = torch.randn(1, 2, readers, 4)
    kv = chunked(torch.randn(1, 2, long, 4), torch.randn(1, 2, long, 4), chunk)
    held = max(2 * long * 4, 2 * readers * 4)  # keys, or queries: what there is anyway
    with Sizes():
        kv.attend(query, None)
    assert max(sizes) <= max(held, 2 * slow_memory.QUERIES_AT_ONCE * chunk) < 2 * readers * chunk


@pytest.mark.parametrize("device", [None, "cpu"])
def test_keys_are_made_a_chunk_at_a_time(device: str | None) -> None:
    asked = []
    _, key, value = inputs()

    def project(part: slice) -> tuple[torch.Tensor, torch.Tensor]:
        asked.append((part.start, min(part.stop, S)))
        return key[:, :, part], value[:, :, part]

    made = in_chunks(S, project, 10, device)
    assert asked == [(0, 10), (10, 20), (20, 30), (30, 37)]
    assert torch.equal(torch.cat([chunk for chunk, _ in made.chunks], dim=2), key)
    assert made.nbytes == key.nbytes + value.nbytes
    assert len(in_chunks(S, project, None, device).chunks) == 1
    with pytest.raises(ValueError, match="slow_chunk is 0, must be at least 1"):
        in_chunks(S, project, 0, device)


def test_selecting_and_repeating_rows_move_numbers_only() -> None:
    _, key, value = inputs()
    kept = SlowKeysValues(((key, value),))
    memory = SlowMemory(({0: kept, 4: kept},), (G,), torch.tensor([1, -1, 0]))
    assert memory.nbytes == key.nbytes + value.nbytes  # shared by two layers, held once
    beams = memory.repeat(2).select(torch.tensor([5, 4, 0, 0, 2, 1]))
    assert beams.context_B.tolist() == [0, 0, 1, 1, -1, 1]
    assert beams.shelves[0][4].chunks[0][0].data_ptr() == key.data_ptr()
