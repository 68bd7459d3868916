r"""The functions of the paper's lower bounds: the worst that smooth and strongly convex data can do.

A function here is a family of scalar components :math:`f(x; z)`, where the datum ``z`` is +1 or -1. Their mean over
all data is a convex function with its minimum at 0 and :math:`F^* = 0`, so that an error needs no reference.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor


class LowerBoundFunction(ABC):
    r"""Scalar components :math:`f(x; z)` with data :math:`z = \pm 1` on every machine.

    Attributes:
        smoothness: :math:`L`, the largest curvature of a component, > 0.
        mu: :math:`\mu`, the strong convexity of the mean, > 0.
        nu: :math:`\nu`, how far component gradients lie from their machine's mean (assumption A2), >= 0.
    """

    smoothness: float
    mu: float
    nu: float

    @abstractmethod
    def components(self, components: int, machines: int) -> Tensor:
        """The data of all machines.

        Args:
            components: ``N``, components on a machine, >= 2.
            machines: ``M``, >= 1.

        Returns:
            ``z``, float64, shape ``(M, N)``.

        Raises:
            ValueError: the data cannot be balanced with these numbers, so that the minimum would not be at 0.
        """

    @abstractmethod
    def value(self, x: Tensor, z: Tensor) -> Tensor:
        """:math:`f(x; z)`, elementwise, with broadcasting."""

    @abstractmethod
    def gradient(self, x: Tensor, z: Tensor) -> Tensor:
        r""":math:`\partial f(x; z) / \partial x`, elementwise, with broadcasting."""

    @abstractmethod
    def suboptimality(self, x: Tensor) -> Tensor:
        """:math:`F(x) - F^*`, where ``F`` is the mean over all machines and components; elementwise, >= 0."""


class SkewedQuadratic(LowerBoundFunction):
    r"""A quadratic whose curvature is :math:`L` on the left of its minimum and :math:`\mu` on the right.

    .. math:: f(x; z) = (L\,1_{x \le 0} + \mu\,1_{x > 0})\, x^2 / 2 + z \nu x

    Half of the components push to either side, the same on every machine. Noise from the order of the components is
    bent by the kink into a drift of the mean, which shuffling alone cannot average out: the error of random
    reshuffling falls as :math:`K^{-2}`, not faster, and that of local SGD grows with the sync interval (Yun et al.,
    ICLR 2022, lower bounds for homogeneous machines).

    Args:
        smoothness: :math:`L`, >= ``mu``.
        mu: :math:`\mu`, > 0.
        nu: :math:`\nu`, >= 0.

    Raises:
        ValueError: an argument is out of its range.

    >>> SkewedQuadratic().suboptimality(torch.tensor([-1.0, 1.0], dtype=torch.float64))
    tensor([2.0000, 0.5000], dtype=torch.float64)
    """

    def __init__(self, smoothness: float = 4.0, mu: float = 1.0, nu: float = 1.0) -> None:
        _check_positive("mu", mu)
        _check_not_negative("nu", nu)
        if smoothness < mu:
            raise ValueError(f"`smoothness` must be at least mu={mu}, got {smoothness}")
        self.smoothness = smoothness
        self.mu = mu
        self.nu = nu

    def components(self, components: int, machines: int) -> Tensor:
        """+1 for the first half of each machine's components, -1 for the rest; see `LowerBoundFunction`."""
        return _balanced_components(components, machines)

    def value(self, x: Tensor, z: Tensor) -> Tensor:
        """See `LowerBoundFunction`."""
        return self._slope(x) * x / 2 + z * self.nu * x

    def gradient(self, x: Tensor, z: Tensor) -> Tensor:
        """See `LowerBoundFunction`."""
        return self._slope(x) + z * self.nu

    def suboptimality(self, x: Tensor) -> Tensor:
        """See `LowerBoundFunction`."""
        return self._slope(x) * x / 2

    def _slope(self, x: Tensor) -> Tensor:
        # not x * where(x <= 0, L, mu): a `where` of two numbers is float32
        return torch.where(x <= 0, self.smoothness * x, self.mu * x)


class UnlikeSkewedQuadratic(SkewedQuadratic):
    r"""The same, but the components of every machine come in an order of their own.

    All machines hold the same data; yet the i-th components of two machines are unlike, with :math:`\lambda` of the
    order of :math:`\nu` (assumption A4), so that synchronized shuffling has nothing to synchronize (Yun et al., ICLR
    2022, the term :math:`\lambda^2 / (M K^2)` of its bounds).

    >>> UnlikeSkewedQuadratic().components(components=4, machines=2)
    tensor([[ 1.,  1., -1., -1.],
            [ 1., -1., -1.,  1.]], dtype=torch.float64)
    """

    def components(self, components: int, machines: int) -> Tensor:
        """The data of `SkewedQuadratic`, shuffled once on each machine; see `LowerBoundFunction`."""
        z = super().components(components, machines)
        generator = torch.Generator().manual_seed(0)
        return torch.stack([row[torch.randperm(components, generator=generator)] for row in z])


class Quadratic(LowerBoundFunction):
    r"""One curvature everywhere: the control on which the kink's effects must vanish.

    .. math:: f(x; z) = \mu x^2 / 2 + z \nu x

    Random reshuffling decays as :math:`K^{-3}` here and does not notice the sync interval;
    `lit_papers.local_sgd.theory.exact_suboptimality` has the expectations in closed form. With curvature
    :math:`L` in place of :math:`\mu` and the step size kept, it is the coordinate of the few-epochs lower bound.

    Args:
        mu: :math:`\mu`, > 0.
        nu: :math:`\nu`, >= 0.

    Raises:
        ValueError: an argument is out of its range.

    >>> Quadratic().components(components=4, machines=2)
    tensor([[ 1.,  1., -1., -1.],
            [ 1.,  1., -1., -1.]], dtype=torch.float64)
    """

    def __init__(self, mu: float = 1.0, nu: float = 1.0) -> None:
        _check_positive("mu", mu)
        _check_not_negative("nu", nu)
        self.smoothness = mu
        self.mu = mu
        self.nu = nu

    def components(self, components: int, machines: int) -> Tensor:
        """+1 for the first half of each machine's components, -1 for the rest; see `LowerBoundFunction`."""
        return _balanced_components(components, machines)

    def value(self, x: Tensor, z: Tensor) -> Tensor:
        """See `LowerBoundFunction`."""
        return self.mu * x**2 / 2 + z * self.nu * x

    def gradient(self, x: Tensor, z: Tensor) -> Tensor:
        """See `LowerBoundFunction`."""
        return self.mu * x + z * self.nu

    def suboptimality(self, x: Tensor) -> Tensor:
        """See `LowerBoundFunction`."""
        return self.mu * x**2 / 2


class HeterogeneousQuadratic(LowerBoundFunction):
    r"""Machines that disagree: one half sees a parabola, the other a straight line.

    .. math:: f(x; z) = \mu x^2 (1 + z) / 2 + z \tau x, \qquad F(x) = \mu x^2 / 2

    All components of a machine are equal (``nu`` = 0), so the order does not matter and what remains is the price
    of drifting apart, :math:`\Omega(\tau^2 B^2 / (\mu N^2 K^2))`; ``smoothness`` is :math:`2\mu`.

    Args:
        mu: :math:`\mu`, > 0.
        tau: :math:`\tau`, how far the machines' gradients lie from their mean (assumption A3), >= 0.

    Raises:
        ValueError: an argument is out of its range.

    >>> HeterogeneousQuadratic().components(components=2, machines=4)[:, 0]
    tensor([ 1.,  1., -1., -1.], dtype=torch.float64)
    """

    def __init__(self, mu: float = 1.0, tau: float = 1.0) -> None:
        _check_positive("mu", mu)
        _check_not_negative("tau", tau)
        self.smoothness = 2 * mu
        self.mu = mu
        self.nu = 0.0
        self.tau = tau

    def components(self, components: int, machines: int) -> Tensor:
        """+1 on the first half of the machines, -1 on the rest, which must be as many; see `LowerBoundFunction`."""
        return _signs("machines", machines)[:, None].expand(-1, components).clone()  # (M, N)

    def value(self, x: Tensor, z: Tensor) -> Tensor:
        """See `LowerBoundFunction`."""
        return self.mu * x**2 * (1 + z) / 2 + z * self.tau * x

    def gradient(self, x: Tensor, z: Tensor) -> Tensor:
        """See `LowerBoundFunction`."""
        return self.mu * x * (1 + z) + z * self.tau

    def suboptimality(self, x: Tensor) -> Tensor:
        """See `LowerBoundFunction`."""
        return self.mu * x**2 / 2


def _balanced_components(components: int, machines: int) -> Tensor:
    return _signs("components", components).expand(machines, -1).clone()  # (M, N)


def _signs(name: str, count: int) -> Tensor:
    """+1 for the first half of ``count``, -1 for the second."""
    if count < 2 or count % 2:
        raise ValueError(f"`{name}` must be a multiple of 2 for this function, to have its minimum at 0; got {count}")
    signs = torch.ones(count, dtype=torch.float64)
    signs[count // 2 :] = -1
    return signs


def _check_positive(name: str, value: float) -> None:
    if value <= 0:
        raise ValueError(f"`{name}` must be > 0, got {value}")


def _check_not_negative(name: str, value: float) -> None:
    if value < 0:
        raise ValueError(f"`{name}` must be >= 0, got {value}")
