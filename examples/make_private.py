"""An ordinary training loop made private: mpirun -np 2 python examples/make_private.py

The clip norm follows the gradients' median; what that costs is part of epsilon.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import dpcomm

comm = dpcomm.init()
torch.manual_seed(0)
x = torch.randn(8192, 10)
t = (x[:, :5].sum(1) > 0).float()
model = nn.Sequential(nn.Linear(10, 16), nn.Tanh(), nn.Linear(16, 1))
model, optimizer, loader = dpcomm.make_private(
    module=model,
    optimizer=torch.optim.Adam(model.parameters(), lr=0.02),
    data_loader=DataLoader(TensorDataset(x, t), batch_size=512),
    target_epsilon=2.0,
    target_delta=1e-5,
    epochs=4,
    max_grad_norm=1.0,
    clipping="adaptive",
)
schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer.original, 4 * len(loader))
loss = nn.BCEWithLogitsLoss()
for _ in range(4):
    for inputs, targets in loader:
        optimizer.zero_grad()
        loss(model(inputs).squeeze(1), targets).backward()
        optimizer.step()
        schedule.step()

if comm.rank == 0:
    accuracy = ((model(x).squeeze(1) > 0) == (t > 0)).float().mean()
    print(optimizer.plan.explain())
    print(f"accuracy {accuracy:.3f} at epsilon {optimizer.get_epsilon(1e-5):.3f}")
