"""The self-supervised objectives, on lightly: SimSiam (Chen & He 2021) and Barlow Twins (Zbontar et al. 2021)."""

import importlib
from typing import Any, cast

from torch import Tensor, nn


def simsiam_loss(p1: Tensor, p2: Tensor, z1: Tensor, z2: Tensor) -> Tensor:
    r"""Negative cosine between each view's prediction and the other's projection, which gets no gradient.

    .. math:: L = D(p^1, z^2) / 2 + D(p^2, z^1) / 2      (Chen & He, eq. 2)

    Args:
        p1: predictions of the first view, ``(N, D)``.
        p2: of the second.
        z1: projections of the first view, ``(N, D)``.
        z2: of the second.

    Returns:
        Scalar tensor, in [-1, 1].

    Raises:
        ImportError: lightly is missing.

    >>> import torch
    >>> z = torch.eye(3)
    >>> simsiam_loss(z, z, z, z)
    tensor(-1.)
    """
    distance = _lightly("loss").NegativeCosineSimilarity()
    return cast(Tensor, 0.5 * (distance(p1, z2.detach()) + distance(p2, z1.detach())))


def barlow_twins_loss(z1: Tensor, z2: Tensor, lambda_param: float = 5e-3) -> Tensor:
    r"""Distance of the views' cross-correlation from the identity.

    .. math:: L = \sum_i (1 - C_{ii})^2 + \lambda \sum_{i \ne j} C_{ij}^2       (Zbontar et al., eq. 1)

    C is averaged over the processes of DDP. Columns are divided by their biased standard deviation (eps 1e-5), so
    a constant one costs 1 instead of being NaN.

    Args:
        z1: projections of the first view, ``(N, D)``, N >= 2.
        z2: of the second.
        lambda_param: weight of the redundancy, >= 0.

    Returns:
        Scalar tensor, >= 0.

    Raises:
        ImportError: lightly is missing.

    >>> import torch
    >>> z = torch.tensor([[1.0], [-1.0]])
    >>> round(barlow_twins_loss(z, -z).item(), 3)
    4.0
    """
    loss = _lightly("loss").BarlowTwinsLoss(lambda_param=lambda_param, gather_distributed=True)
    return cast(Tensor, loss(z1, z2))


class SimSiam(nn.Module):
    """SimSiam on features, with the heads of the authors: two layers each, batch norm behind the projection.

    Args:
        feature_dim: D of the features.
        projection_dim: of projections and predictions.
        prediction_dim: hidden, of the predictor.

    Raises:
        ImportError: lightly is missing.
    """

    def __init__(self, feature_dim: int, projection_dim: int = 2048, prediction_dim: int = 512) -> None:
        super().__init__()
        self.projection_dim = projection_dim
        self.projector = _projector(feature_dim, projection_dim)
        self.predictor = _lightly("models.modules.heads").ProjectionHead(
            [
                (projection_dim, prediction_dim, nn.BatchNorm1d(prediction_dim), nn.ReLU(), True),
                (prediction_dim, projection_dim, None, None),
            ]
        )

    def forward(self, features1: Tensor, features2: Tensor) -> Tensor:
        """Scalar loss, in [-1, 1], of the features ``(N, D)`` of two views; each has its own batch statistics."""
        return self.compare(self.projector(features1), self.projector(features2))

    def compare(self, z1: Tensor, z2: Tensor) -> Tensor:
        """The loss of two views' projections ``(N, P)``."""
        return simsiam_loss(self.predictor(z1), self.predictor(z2), z1, z2)

    @staticmethod
    def distance(prediction: Tensor, target: Tensor) -> Tensor:
        """How far predictions are from targets ``(N, P)``: 2 less twice the cosine, in [0, 4]; no gradient to these."""
        return 2 - 2 * nn.functional.cosine_similarity(prediction, target.detach(), dim=1).mean()


class BarlowTwins(nn.Module):
    """Barlow Twins on features, with the authors' projector of two layers.

    Args:
        feature_dim: D of the features.
        projection_dim: of the projections.
        lambda_param: weight of the redundancy.

    Raises:
        ImportError: lightly is missing.
    """

    def __init__(self, feature_dim: int, projection_dim: int = 2048, lambda_param: float = 5e-3) -> None:
        super().__init__()
        self.projection_dim = projection_dim
        self.projector = _projector(feature_dim, projection_dim)
        self.lambda_param = lambda_param

    def forward(self, features1: Tensor, features2: Tensor) -> Tensor:
        """Scalar loss, >= 0, of the features ``(N, D)`` of two views."""
        return self.compare(self.projector(features1), self.projector(features2))

    def compare(self, z1: Tensor, z2: Tensor) -> Tensor:
        """The loss of two views' projections ``(N, P)``."""
        return barlow_twins_loss(z1, z2, self.lambda_param)

    def distance(self, prediction: Tensor, target: Tensor) -> Tensor:
        """How far predictions are from targets ``(N, P)``: the same loss; no gradient to these."""
        return barlow_twins_loss(prediction, target.detach(), self.lambda_param)


def _projector(feature_dim: int, dim: int) -> nn.Module:
    # lightly's SimSiam head has three layers, and no scale behind the last
    head = _lightly("models.modules.heads").ProjectionHead(
        [
            (feature_dim, dim, nn.BatchNorm1d(dim), nn.ReLU(), True),
            (dim, dim, nn.BatchNorm1d(dim), None, True),
        ]
    )
    return cast(nn.Module, head)


def _lightly(module: str) -> Any:
    try:
        return importlib.import_module(f"lightly.{module}")
    except ImportError as error:
        raise ImportError(f"{error}: install `lit-papers[continual]`") from error
