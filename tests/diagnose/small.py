"""A trained network of three layers in plain PyTorch, and its data."""

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

CLASSES, FEATURES = 3, 6


def samples(count: int = 90, seed: int = 0) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(count) % CLASSES
    return TensorDataset(torch.randn(count, FEATURES, generator=generator) + 3 * torch.eye(CLASSES, FEATURES)[y], y)


def loaders(batch_size: int = 15) -> tuple[DataLoader[tuple[Tensor, Tensor]], DataLoader[tuple[Tensor, Tensor]]]:
    return DataLoader(samples(), batch_size, shuffle=True), DataLoader(samples(60, seed=1), batch_size)


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(FEATURES, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, CLASSES)
    )


def trained(epochs: int = 3) -> nn.Sequential:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(epochs):
        for x, y in loaders()[0]:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
    return model
