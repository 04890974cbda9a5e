"""The kernels alone, on arrays of one process: python examples/kernels.py

One step of DP-SGD for a linear model by hand: clip, noise and the optimizer's update.
"""

from __future__ import annotations

import numpy as np
import torch

import dpcomm

RECORDS, FEATURES, RATE, SIGMA, CLIP_NORM = 20_000, 30, 0.1, 1.0, 1.0
random = np.random.default_rng(0)
x = random.normal(size=(RECORDS, FEATURES)).astype("float32")
t = (x[:, :10].sum(1) > 0).astype("float32")
weight, momentum = np.zeros(FEATURES, np.float32), np.zeros(FEATURES, np.float32)

key, steps = dpcomm.new_key(), 60  # a key of its own for each run, which no file ever holds
for step in range(steps):
    drawn = dpcomm.poisson_sample(key, step, RATE, 0, RECORDS)
    error = 1 / (1 + np.exp(-x[drawn] @ weight)) - t[drawn]
    clipped = dpcomm.clip_sum(error[:, None] * x[drawn], CLIP_NORM)  # per-sample gradients
    # Noise, division and the step in one pass.
    dpcomm.sgd_update_(
        weight, clipped.total, momentum, lr=1.0, momentum=0.9,
        std=SIGMA * clipped.sensitivity, key=key, step=step, scale=1 / (RATE * RECORDS),
    )  # fmt: skip

# Of a linear layer the per-sample gradients need not be formed.
without = dpcomm.clip_linear(torch.from_numpy(x[drawn]), torch.from_numpy(error[:, None]),
                             CLIP_NORM, bias=False)  # fmt: skip
assert np.allclose(without.sums[0][0].numpy(), clipped.total, atol=1e-2)

epsilon = dpcomm.accounting.epsilon(RATE, SIGMA, steps, delta=1e-6)
accuracy = ((x @ weight > 0) == (t > 0)).mean()
print(f"accuracy {accuracy:.3f} at epsilon {dpcomm.accounting.show(epsilon)}")
