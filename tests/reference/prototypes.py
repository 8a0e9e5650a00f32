"""Assignments to prototypes and their prediction along the overlap, in plain loops.

Source: arXiv:2006.09882, equation 3 and its algorithm in the appendix (Sinkhorn-Knopp: prototypes and vectors are
scaled in turn); S as in tests/reference/overlap.py.
"""

from __future__ import annotations

import math


def sinkhorn(scores: list[list[float]], temperature: float, iterations: int) -> list[list[float]]:
    """m x k scores to m distributions over k prototypes."""
    plan = [[math.exp(score / temperature) for score in row] for row in scores]
    for _ in range(iterations):
        columns = [sum(row[j] for row in plan) for j in range(len(plan[0]))]
        plan = [[value / columns[j] for j, value in enumerate(row)] for row in plan]
        plan = [[value / sum(row) for value in row] for row in plan]
    return plan


def softmax(row: list[float], temperature: float) -> list[float]:
    """One distribution."""
    powers = [math.exp(value / temperature) for value in row]
    return [power / sum(powers) for power in powers]


def swapped(
    shared: list[list[float]],
    back: list[list[float]],
    student: list[list[float]],
    assigned: list[list[float]],
    temperature: float,
) -> float:
    """The loss of one pair of views: n x m shares of each student cell, m x n of each teacher cell, and their rows."""
    predicted = [softmax(row, temperature) for row in student]
    prototypes = range(len(student[0]))
    forward = [
        -sum(share * assigned[j][k] * math.log(predicted[i][k]) for j, share in enumerate(shares) for k in prototypes)
        for i, shares in enumerate(shared)
    ]
    backward = []
    for j, shares in enumerate(back):
        weight = sum(shares)
        mixed = [sum(share * predicted[i][k] for i, share in enumerate(shares)) for k in prototypes]
        backward.append(
            -sum(weight * assigned[j][k] * math.log(mixed[k] / weight) for k in prototypes) if weight else 0
        )
    return (sum(forward) / len(shared) + sum(backward) / len(back)) / 2
