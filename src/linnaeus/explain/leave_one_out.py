"""Answers of a solved head without each training image in turn, by one Newton step that leaves the image out.

The first-order approximation divides the gradient of an image by the curvature of all images. Where images are few, a
large part of that curvature is that of the image itself, and its influence is underestimated. With the Hessian H of the
objective, the gradient g of an image and its own part of the Hessian, U B U^T (U: its features, B: the curvature of its
losses), the step is

    (H - U B U^T)^-1 g = H^-1 g + H^-1 U (I - B U^T H^-1 U)^-1 B U^T H^-1 g

(Woodbury's identity; for least squares this is the exact leave-one-out solution). See Beirami et al. 2017,
arXiv:1711.05323, section 3. The dense Hessian limits it to small problems.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from linnaeus.explain.influence import Curvature, SolvedHead

WORK = 2e10  # multiplications from which on it is not tried, which take some seconds on a core
RIDGE = 1e-9  # on the bias, which has no penalty: the softmax does not change if all biases grow by the same number


def leave_one_out(head: SolvedHead, features: Tensor) -> np.ndarray | None:
    """(images, classes): logits of an answer, whose features are (1, d), without each image; None if too expensive."""
    x = torch.cat([head.problem.x, torch.ones_like(head.problem.x[:, :1])], 1)
    several, classes = head.problem.y.ndim == 2, head.problem.classes
    joint = 1 if several else classes  # classes whose weights depend on each other
    if (classes // joint) * (joint * x.shape[1]) ** 2 * joint * len(x) > WORK:
        return None
    curvature = Curvature(x, head.problem, head.solution, head.penalty)
    if several:
        losses = [curvature.slope[:, c, None, None] for c in range(classes)]
    else:
        losses = [torch.diag_embed(curvature.shares) - curvature.shares[:, :, None] * curvature.shares[:, None]]
    shrunk = head.solution.clone()
    shrunk[:, -1] = 0
    rows = [torch.from_numpy(np.flatnonzero(head.image == j)) for j in range(int(head.image.max()) + 1)]
    parts = []
    for k, loss in enumerate(losses):
        members = slice(k * joint, (k + 1) * joint)  # the classes of this part
        errors, shrinkage = curvature.errors[:, members], head.penalty * shrunk[members]
        part = _Part(x, head.problem.weights[:, 0], loss, errors, shrinkage)
        parts.append(part.changes(head.penalty, head.rows(features)[0], rows))
    return (head.logits(features) + torch.cat(parts, 1)).cpu().numpy()


@dataclass(frozen=True, eq=False)
class _Part:
    """Classes that are solved together, c of them."""

    x: Tensor  # (m, d), with a 1 in the last column
    weights: Tensor  # (m,)
    curvature: Tensor  # (m, c, c): second derivatives of the loss of each row by its logits
    errors: Tensor  # (m, c): first derivatives
    shrinkage: Tensor  # (c, d): the gradient of the penalty

    def changes(self, penalty: float, row: Tensor, images: list[Tensor]) -> Tensor:
        """(images, c): changes of the logits of an answer with features `row` (d,); `images`: the rows of each."""
        (c, d), factor = self.shrinkage.shape, self._factor(penalty)
        changes = []
        for rows in images:
            x, w = self.x[rows], self.weights[rows]
            gradient = (w[:, None] * self.errors[rows]).T @ x + w.sum() * self.shrinkage
            # (c * d, rows * c): the features of each row, for each class.
            columns = torch.einsum("ri,ab->airb", x, torch.eye(c, dtype=x.dtype, device=x.device)).reshape(c * d, -1)
            solved = torch.cholesky_solve(torch.cat([gradient.reshape(-1, 1), columns], 1), factor)
            first, moved = solved[:, :1], solved[:, 1:]
            loss = torch.block_diag(*(w[:, None, None] * self.curvature[rows]))
            identity = torch.eye(len(loss), dtype=x.dtype, device=x.device)
            rest = torch.linalg.solve(identity - loss @ columns.T @ moved, loss @ columns.T @ first)
            changes.append((first + moved @ rest).view(c, d) @ row)
        return torch.stack(changes)

    def _factor(self, penalty: float) -> Tensor:
        """The Cholesky factor of the Hessian, (c * d, c * d)."""
        c, d = self.shrinkage.shape
        hessian = torch.empty(c, d, c, d, dtype=self.x.dtype, device=self.x.device)
        for a in range(c):
            for b in range(c):
                hessian[a, :, b] = (self.x * (self.weights * self.curvature[:, a, b])[:, None]).T @ self.x
        hessian = hessian.view(c * d, c * d)
        diagonal = torch.full((c, d), penalty, dtype=self.x.dtype, device=self.x.device)
        diagonal[:, -1] = RIDGE
        hessian.diagonal().add_(diagonal.flatten())
        return torch.linalg.cholesky(hessian)
