"""Opacus' own training loop with dpcomm underneath: python examples/opacus_engine.py"""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from dpcomm.opacus import PrivacyEngine  # was: from opacus import PrivacyEngine

torch.manual_seed(0)
x = torch.randn(2048, 10)
t = (x[:, :5].sum(1) > 0).float()
model = nn.Sequential(nn.Linear(10, 16), nn.Tanh(), nn.Linear(16, 1))
engine = PrivacyEngine(accountant="rdp")
model, optimizer, loader = engine.make_private(
    module=model,
    optimizer=torch.optim.SGD(model.parameters(), lr=1.0),
    data_loader=DataLoader(TensorDataset(x, t), batch_size=128),
    noise_multiplier=1.0,
    max_grad_norm=1.0,
)
loss = nn.BCEWithLogitsLoss()
for _ in range(4):
    for inputs, targets in loader:
        optimizer.zero_grad()
        loss(model(inputs).squeeze(1), targets).backward()
        optimizer.step()

accuracy = ((model(x).squeeze(1) > 0) == (t > 0)).float().mean()
print(f"accuracy {accuracy:.3f} at epsilon {engine.get_epsilon(1e-5):.3f}")
