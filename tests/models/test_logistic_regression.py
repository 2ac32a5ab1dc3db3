"""The solver of logistic regressions: its gradient, its solution, and problems that do not influence each other."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from linnaeus.models import logistic_regression
from linnaeus.models.logistic_regression import Problems, objective, solve


def problems(n: int = 80, features: int = 6, classes: int = 3, count: int = 2) -> Problems:
    """Overlapping classes with random sample weights."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(n) % classes
    x = torch.randn(classes, features, generator=generator)[y] + torch.randn(n, features, generator=generator)
    weights = torch.rand(n, count, generator=generator)
    return Problems(x, y, weights / weights.sum(0), classes)


def autograd(problem: Problems, penalty: float, solution: Tensor) -> tuple[Tensor, Tensor]:
    solution = solution.clone().requires_grad_(True)
    z = torch.einsum("nd,pcd->npc", problem.x, solution[..., :-1]) + solution[..., -1]
    target = problem.y[:, None].expand(-1, len(problem))
    losses = (F.cross_entropy(z.permute(0, 2, 1), target, reduction="none") * problem.weights).sum(0)
    losses = losses + penalty / 2 * solution[..., :-1].square().sum((1, 2))
    losses.sum().backward()
    assert solution.grad is not None
    return losses.detach(), solution.grad


@pytest.mark.parametrize("chunk", [1, 16 << 20])
def test_the_gradient_is_that_of_autograd(chunk: int, monkeypatch: pytest.MonkeyPatch):
    """Whole, and in chunks of the smallest size."""
    monkeypatch.setattr(logistic_regression, "CPU_CHUNK", chunk)
    problem = problems(n=200)
    solution = torch.randn(problem.zeros().shape, generator=torch.Generator().manual_seed(1))
    for ours, theirs in zip(objective(problem, 0.1, solution), autograd(problem, 0.1, solution), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_it_reaches_the_minimum_of_scipy():
    from scipy.optimize import minimize

    problem = problems(count=1)

    def value_and_gradient(flat: np.ndarray) -> tuple[float, np.ndarray]:
        solution = torch.from_numpy(flat).float().view_as(problem.zeros())
        losses, gradient = objective(problem, 0.01, solution)
        return float(losses), gradient.double().numpy().ravel()

    theirs = minimize(value_and_gradient, problem.zeros().double().numpy().ravel(), jac=True, method="L-BFGS-B")
    ours = solve(problem, 0.01, problem.zeros(), steps=300, tolerance=1e-7).values
    assert float(objective(problem, 0.01, ours)[0]) == pytest.approx(theirs.fun, abs=1e-5)


def test_problems_solved_together_have_the_solutions_of_each_alone():
    problem = problems()
    both = solve(problem, 0.1, problem.zeros(), steps=30, tolerance=0).values
    for k in range(2):
        alone = Problems(problem.x, problem.y, problem.weights[:, k : k + 1], problem.classes)
        solution = solve(alone, 0.1, alone.zeros(), steps=30, tolerance=0).values
        torch.testing.assert_close(both[k : k + 1], solution, atol=1e-3, rtol=1e-3)


def test_it_ends_at_the_tolerance_and_at_a_solution():
    """A looser tolerance takes fewer evaluations, and from the solution itself there is nothing left to do."""
    problem = problems(n=300, features=40)
    counts = []
    for tolerance in (1e-1, 1e-6):
        with pytest.MonkeyPatch.context() as patch:
            calls: list[float] = []
            patch.setattr(logistic_regression, "objective", lambda *a, seen=calls: seen.append(0.0) or objective(*a))
            solution = solve(problem, 1e-3, problem.zeros(), steps=300, tolerance=tolerance).values
        counts.append(len(calls))
    assert counts[0] < counts[1] / 2
    again = solve(problem, 1e-3, solution, steps=300, tolerance=1e-6).values
    assert float((objective(problem, 1e-3, solution)[0] - objective(problem, 1e-3, again)[0]).abs().max()) < 1e-4


def test_the_curvature_of_another_penalty_speeds_up_the_descent():
    problem = problems(n=300, features=40)
    before = solve(problem, 1e-2, problem.zeros(), steps=100, tolerance=3e-3)
    best = solve(problem, 5e-3, before.values, steps=100, tolerance=1e-6).values
    excess = [
        objective(problem, 5e-3, solve(problem, 5e-3, before.values, steps=3, tolerance=0, before=curvature).values)[0]
        - objective(problem, 5e-3, best)[0]
        for curvature in (None, before)
    ]
    assert (excess[1] < 0.5 * excess[0]).all()


def test_pairs_are_those_of_the_new_penalty():
    """The change of the gradient along a step is the Hessian's product, which contains penalty * step."""
    problem = problems()
    before = solve(problem, 1.0, problem.zeros(), steps=4, tolerance=0)
    pair = before.history[-1]
    step, change = pair.step.clone(), pair.change.clone()
    after = solve(problem, 0.25, before.values, steps=0, tolerance=0, before=before).history[-1]
    torch.testing.assert_close(after.change[..., :-1], change[..., :-1] - 0.75 * step[..., :-1])
    torch.testing.assert_close(after.change[..., -1], change[..., -1])  # the bias is not penalized
