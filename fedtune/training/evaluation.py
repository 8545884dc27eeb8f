"""Evaluation by all processes: each takes its share of the batches, and none waits for long."""

from collections.abc import Sequence
from typing import Any

from fedtune.tasks.evaluation import predict, score
from fedtune.tasks.task import Encoded, Task
from fedtune.training import processes


def evaluate_together(
    task: Task, model: Any, data: Sequence[Encoded], batch_size: int
) -> dict[str, float]:
    """What `fedtune.tasks.evaluation.evaluate` gives, to the bit, in every process.

    The batches are those of one process, and put back in their order before they are scored.
    Raises ValueError when there are no examples.
    """
    starts = range(0, len(data), batch_size)
    shares = processes.gather(predict(task, model, data, processes.own_share(starts), batch_size))
    ordered = [shares[n % len(shares)][n // len(shares)] for n in range(len(starts))]
    return score(task, ordered)
