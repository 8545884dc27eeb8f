"""Multi-Krum (Blanchard et al. 2017, "Machine Learning with Adversaries")."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fedtune.aggregation.together import stacked
from fedtune.tensors import TensorSet


def multi_krum(deltas: Sequence[TensorSet], hostile: int) -> TensorSet:
    """The mean of the n - f - 2 deltas that lie closest to others; unweighted.

    A delta's score is the sum of its n - f - 2 least squared distances to others (n deltas, f of
    them `hostile`); as many with the least scores are averaged, the most for which resilience is
    proven (Damaskinos et al. 2019, "AggregaThor"). Equal scores are told apart by digest: the order
    of `deltas` plays no part. Raises ValueError unless n >= 2f + 3.
    """
    near = len(deltas) - hostile - 2
    if hostile < 0 or len(deltas) < 2 * hostile + 3:
        raise ValueError(
            f"Krum with {hostile} hostile deltas needs {2 * hostile + 3} or more in all, got "
            f"{len(deltas)}"
        )
    # the first of a sorted row is a delta's distance to itself
    scores = squared_distances(deltas).sort(dim=1).values[:, 1 : near + 1].sum(dim=1).tolist()
    ordered = sorted(range(len(deltas)), key=lambda i: (scores[i], deltas[i].digest()))
    chosen = [deltas[i] for i in ordered[:near]]
    whole = torch.empty(chosen[0].count)
    for piece, scalars in stacked(chosen):
        whole[piece] = scalars.double().mean(dim=0).float()
    return TensorSet.of_flat(whole, chosen[0].spec)


def squared_distances(deltas: Sequence[TensorSet]) -> Tensor:
    """Between each two, float64 [deltas, deltas].

    From differences, not from inner products, which would lose what is small between large deltas
    that lie close together.
    """
    total = torch.zeros(len(deltas), len(deltas), dtype=torch.float64)
    for _, scalars in stacked(deltas):
        exact = scalars.double()
        apart = torch.cdist(exact, exact, compute_mode="donot_use_mm_for_euclid_dist")
        total += apart.square()
    return total
