"""A pytest plugin under which Opacus' own tests get dpcomm's engine and optimizer.

Loaded (-p opacus_patch) before Opacus' tests import either.
"""

from __future__ import annotations

import opacus
import opacus.optimizers
import opacus.optimizers.optimizer
import torch

import dpcomm.opacus
from dpcomm.opacus import DPOptimizer, OpacusEngine, OpacusOptimizer, PrivacyEngine

# Opacus' tests take transforms and generated images from torchvision, which cannot be imported
# beside a torch of another build, for want of these operators; none of the tests calls them.
if not hasattr(torch.ops.torchvision, "nms"):
    NMS = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        NMS.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


class Engine(PrivacyEngine):
    """Theirs where ours refuses: what is asked of ghost and per-layer clipping is not about us."""

    def _prepare_optimizer(self, *, clipping="flat", grad_sample_mode="hooks", **settings):
        ours = clipping == "flat" and "ghost" not in grad_sample_mode
        kind = PrivacyEngine if ours else OpacusEngine
        return kind._prepare_optimizer(
            self, clipping=clipping, grad_sample_mode=grad_sample_mode, **settings
        )


class Optimizer(DPOptimizer):
    """Counts its private steps, so that a run shows that ours was under test."""

    steps = 0

    def add_noise(self):
        Optimizer.steps += 1
        super().add_noise()


dpcomm.opacus.DPOptimizer = Optimizer
opacus.PrivacyEngine = Engine
for module in (opacus.optimizers, opacus.optimizers.optimizer):
    assert module.DPOptimizer is OpacusOptimizer
    module.DPOptimizer = Optimizer


def pytest_terminal_summary(terminalreporter):
    terminalreporter.write_line(f"private steps of dpcomm: {Optimizer.steps}")
