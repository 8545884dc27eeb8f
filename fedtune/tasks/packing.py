"""Several examples in one row, each reading only itself: the same losses from fewer tokens.

Packing changes what is computed, never the result: positions restart with every example, the
attention mask is block-diagonal and causal, and each example keeps its own loss. Rows belong to no
privacy unit, so differential privacy, which clips by example, refuses it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fedtune.errors import InputError
from fedtune.tasks.evaluation import evaluating, to_device
from fedtune.tasks.padding import pad
from fedtune.tasks.task import IGNORED, Encoded

_NOBODY = -1
# rounding moves logits by far less, a leak by far more
_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.1}


def fill_rows(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Indices of `lengths`, in rows of at most `capacity`: longest first, into the first that fits.

    A length above `capacity` has a row of its own.
    """
    rows: list[list[int]] = []
    room: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        row = next((r for r, left in enumerate(room) if lengths[index] <= left), len(rows))
        if row == len(rows):
            rows.append([])
            room.append(capacity)
        rows[row].append(index)
        room[row] -= lengths[index]
    return rows


def packed_batch(examples: Sequence[Encoded], capacity: int, filler: int) -> dict[str, Tensor]:
    """`input_ids`, `labels`, `position_ids` and `owner`, all int64 [rows, longest].

    `owner` is the number of the example that a token is of, -1 for padding. The first token of an
    example is no target: nothing before it predicts it.
    """
    rows = fill_rows([len(example.input_ids) for example in examples], capacity)

    def joined(part: Any, value: int) -> Tensor:
        return pad([[t for i in row for t in part(i, examples[i])] for row in rows], value)

    return {
        "input_ids": joined(lambda _, e: e.input_ids, filler),
        "labels": joined(lambda _, e: [IGNORED, *e.labels[1:]], IGNORED),
        "position_ids": joined(lambda _, e: range(len(e.input_ids)), 0),
        "owner": joined(lambda i, e: [i] * len(e.input_ids), _NOBODY),
    }


def block_mask(owner: Tensor, attention: str) -> Tensor:
    """[rows, 1, length, length]: a token reads its own example up to itself.

    Bool for `sdpa`, whatever the precision; for others float32 to be added to the scores.
    """
    length = owner.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=owner.device).tril()
    allowed = ((owner[:, :, None] == owner[:, None, :]) & causal)[:, None]
    if attention == "sdpa":
        return allowed
    lowest = torch.finfo(torch.float32).min
    return torch.zeros_like(allowed, dtype=torch.float32).masked_fill(~allowed, lowest)


def by_owner(values: Tensor, owner: Tensor) -> Tensor:
    """Sum of `values` [rows, length - 1], one a token after a row's first: [examples], in order.

    An example of one token may have none: its sum is 0.
    """
    numbers = torch.arange(int(owner.max()) + 1, device=owner.device)
    return torch.where(owner[:, 1:] == numbers[:, None, None], values, 0).sum((1, 2))


def forward_packed(model: Any, batch: Mapping[str, Tensor]) -> Tensor:
    """Logits [rows, length, vocabulary] of a packed batch."""
    attention = getattr(model.config, "_attn_implementation", "")
    out = model(
        input_ids=batch["input_ids"],
        attention_mask=block_mask(batch["owner"], attention),
        position_ids=batch["position_ids"],
        use_cache=False,
    )
    logits: Tensor = out.logits
    return logits


def check_packing(model: Any, max_length: int) -> None:
    """Raises InputError unless the model reads packed examples as it would read them apart.

    Tried on two short texts.
    """
    check_window(model.config, max_length)
    texts = [[i % model.config.vocab_size for i in ids] for ids in (range(3, 12), range(20, 27))]
    try:
        with torch.no_grad(), evaluating(model):
            apart = torch.cat([_logits(model, [text]) for text in texts])
            packed = _logits(model, texts)
        same = torch.allclose(packed, apart, rtol=0.0, atol=_TOLERANCE[packed.dtype])
        problem = "the model lets packed examples read each other"
    except (TypeError, ValueError, RuntimeError) as error:
        same, problem = False, f"the model can't read packed examples ({error})"
    if not same:
        raise _refusal(problem)


def check_window(config: Any, max_length: int) -> None:
    """Raises InputError if the model attends to a window of its own: our mask would lose it."""
    for name in ("sliding_window", "attention_chunk_size"):
        window = getattr(config, name, None)
        if window and window < max_length:
            raise _refusal(f"the model attends to a window of {window} tokens")


def _refusal(problem: str) -> InputError:
    return InputError(problem, where="task.packing", mend="set `task.packing: false`")


def _logits(model: Any, texts: list[list[int]]) -> Tensor:
    batch = packed_batch([Encoded(ids, ids) for ids in texts], sum(map(len, texts)), 0)
    return forward_packed(model, to_device(batch, model))[0]
