"""The slow memory: slow keys and values of every hybrid layer, projected once per video, and who reads them.

Contexts of one length lie on one *shelf* and are attended to together; nothing is ever padded. Rows of a
batch refer to contexts by number, so that beam search and batch selection move numbers, never keys.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from architectures.tokens import ShelfReaders

KeyValue = tuple[torch.Tensor, torch.Tensor]


QUERIES_AT_ONCE = 256  # of a chunk's scores at a time: 256 x chunk float32 numbers per context and key head
FEW_QUERIES = 16  # a CPU streams keys through plain products faster than through its fused kernel (bench decode)


@dataclass(frozen=True)
class SlowKeysValues:
    """Keys and values of one shelf in one layer, in chunks `(key_GKSE, value_GKSE)` along S.

    One chunk on the queries' device is the usual case. More bound the memory: each is brought to the queries'
    device alone, and the partial results are combined by their logsumexp, exactly as one softmax. Gradients
    are exact as well, but with them autograd keeps every chunk's scores: chunks save memory in inference only.
    """

    chunks: tuple[KeyValue, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of all keys and values."""
        return sum(tensor.nbytes for chunk in self.chunks for tensor in chunk)

    def attend(self, query_GQNE: torch.Tensor, scaling: float | None) -> torch.Tensor:
        """softmax(q k' scaling) v over all slow tokens, `crossed_GQNE`, without a causal mask.

        Without a mask it is all the same which query a key meets: the query heads of a key head go as further
        queries of it. So keys are read once, however many heads share them, and never repeated.
        """
        groups = query_GQNE.shape[1] // self.chunks[0][0].shape[1]
        query_GKnE = query_GQNE.unflatten(1, (-1, groups)).flatten(2, 3)
        return self._attend_grouped(query_GKnE, scaling).unflatten(2, (groups, -1)).flatten(1, 2)

    def _attend_grouped(self, query_GKnE: torch.Tensor, scaling: float | None) -> torch.Tensor:
        here = (tuple(tensor.to(query_GKnE.device) for tensor in chunk) for chunk in self.chunks)
        if len(self.chunks) == 1 and not few(query_GKnE):
            return F.scaled_dot_product_attention(query_GKnE, *next(here), scale=scaling)
        crossed, total = None, None
        for key_GKSE, value_GKSE in here:
            part, weight = partial_attention(query_GKnE, key_GKSE, value_GKSE, scaling)
            if crossed is None:
                crossed, total = part, weight
                continue
            both = torch.logaddexp(total, weight)
            crossed = torch.lerp(crossed, part, (weight - both).exp())
            total = both
        return crossed.to(query_GKnE.dtype)


def partial_attention(
    query_GKnE: torch.Tensor, key_GKSE: torch.Tensor, value_GKSE: torch.Tensor, scaling: float | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention to some of the keys: its result, float32, and the logsumexp of its scores, `(GKnE, GKn1)`."""
    scaling = query_GKnE.shape[-1] ** -0.5 if scaling is None else scaling
    key_GKSE, value_GKSE = key_GKSE.float(), value_GKSE.float()
    parts = []
    for some_GKnE in (query_GKnE.float() * scaling).split(QUERIES_AT_ONCE, dim=2):
        if few(some_GKnE):
            score_GKnS = (key_GKSE @ some_GKnE.transpose(2, 3)).transpose(2, 3).contiguous()
        else:
            score_GKnS = some_GKnE @ key_GKSE.transpose(2, 3)
        largest_GKn1 = score_GKnS.detach().amax(-1, keepdim=True)
        score_GKnS = score_GKnS.sub_(largest_GKn1).exp_()  # in place: the only matrix of this size
        sum_GKn1 = score_GKnS.sum(-1, keepdim=True)
        parts.append((score_GKnS @ value_GKSE / sum_GKn1, largest_GKn1 + sum_GKn1.log()))
    part_GKnE, weight_GKn1 = (torch.cat(results, dim=2) for results in zip(*parts, strict=True))
    return part_GKnE, weight_GKn1


def few(query_GKnE: torch.Tensor) -> bool:
    """Whether so few queries, as of a decoded token, that keys are streamed; float32 only, which loses nothing."""
    return query_GKnE.shape[2] <= FEW_QUERIES and query_GKnE.device.type == "cpu" and query_GKnE.dtype == torch.float32


@dataclass(frozen=True)
class SlowMemory:
    """`shelves[i][layer]` are the keys and values of shelf i in a hybrid layer; `context_B` who reads what.

    Contexts are numbered shelf by shelf; -1 is a row without slow tokens. `sizes` are contexts per shelf.
    `context_B` stays on the CPU.
    """

    shelves: tuple[dict[int, SlowKeysValues], ...]
    sizes: tuple[int, ...]
    context_B: torch.Tensor

    @property
    def nbytes(self) -> int:
        """Bytes of all slow keys and values; those that layers share count once."""
        different = {id(kv): kv for shelf in self.shelves for kv in shelf.values()}
        return sum(kv.nbytes for kv in different.values())

    def select(self, index_B: torch.Tensor) -> "SlowMemory":
        """The memory of the batch rows `index_B` (beam search reorders, batches shrink). Copies no key."""
        return SlowMemory(self.shelves, self.sizes, self.context_B[index_B.to(self.context_B.device)])

    def repeat(self, times: int) -> "SlowMemory":
        """The memory with every batch row repeated `times` times in place. Copies no key."""
        return SlowMemory(self.shelves, self.sizes, self.context_B.repeat_interleave(times))

    def reading(self, layer: int, readers: "Readers") -> Iterator[tuple[SlowKeysValues, ShelfReaders]]:
        """Every shelf that has readers, with its keys and values in `layer`."""
        for shelf, shelf_readers in zip(self.shelves, readers.shelves, strict=True):
            if shelf_readers is not None:
                yield shelf[layer], shelf_readers


@dataclass(frozen=True)
class Readers:
    """Which tokens of a batch read which slow tokens: one entry per shelf, None where nobody reads it."""

    shelves: tuple[ShelfReaders | None, ...]

    @classmethod
    def of(cls, reads_BL: torch.Tensor, memory: SlowMemory) -> "Readers":
        """The readers of a boolean mask `reads_BL`; rows without slow tokens have none."""
        shelves, start = [], 0
        for size in memory.sizes:
            readers = ShelfReaders.of(reads_BL, memory.context_B.to(reads_BL.device) - start, size)
            shelves.append(readers if readers.row_GN.shape[1] else None)
            start += size
        return cls(tuple(shelves))

    def to(self, device: torch.device | str) -> "Readers":
        """The same readers on another device."""
        return Readers(tuple(shelf and shelf.to(device) for shelf in self.shelves))


def on_shelves(lengths_G: list[int | None]) -> tuple[list[list[int]], torch.Tensor]:
    """Sorts rows' contexts by length (None: no slow tokens): the rows of each shelf, and `context_B`."""
    by_length: dict[int, list[int]] = {}
    for row, length in enumerate(lengths_G):
        if length is not None:
            by_length.setdefault(length, []).append(row)
    shelves = list(by_length.values())
    context_B = torch.full((len(lengths_G),), -1)
    context_B[[row for rows in shelves for row in rows]] = torch.arange(sum(map(len, shelves)))
    return shelves, context_B


def in_chunks(
    S: int, project: Callable[[slice], KeyValue], chunk: int | None, device: torch.device | str | None
) -> SlowKeysValues:
    """Keys and values of S slow tokens, made `chunk` tokens at a time (None: all) and kept on `device`.

    `device` None is where `project` makes them. Raises ValueError for a chunk of less than one token.
    """
    if chunk is not None and chunk < 1:
        raise ValueError(f"slow_chunk is {chunk}, must be at least 1 (None: all slow tokens at once).")
    step = S if chunk is None else chunk
    parts = [slice(start, min(start + step, S)) for start in range(0, S, step)]
    whole: KeyValue | None = None
    for part in parts:
        made = project(part)
        if whole is None:  # each head's numbers side by side: every decoded token will read them in this order
            whole = tuple(tensor.new_empty(*tensor.shape[:2], S, tensor.shape[3], device=device) for tensor in made)
        for tensor, made_tensor in zip(whole, made, strict=True):
            tensor[:, :, part] = made_tensor
    return SlowKeysValues(tuple((whole[0][:, :, part], whole[1][:, :, part]) for part in parts))
