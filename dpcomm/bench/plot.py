"""Bus bandwidth and latency against size, a line an algorithm."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from dpcomm.bench.record import Record


def save(records: Sequence[Record], path: str, limit_gbs: float | None = None) -> None:
    """Draws the records of one run into an image file; its ending decides the format.

    limit_gbs: the bus bandwidth that memory allows.
    """
    first = records[0]
    figure, (bandwidth, latency) = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    for name in dict.fromkeys(r.name for r in records):
        rows = [r for r in records if r.name == name]
        sizes = [r.bytes for r in rows]
        style = {"marker": "o", "markersize": 3, "linestyle": "--" if rows[0].peer else "-"}
        bandwidth.plot(sizes, [r.busbw_gbs for r in rows], label=name, **style)
        (drawn,) = latency.plot(sizes, [r.time_us for r in rows], label=name, **style)
        modelled = [(r.bytes, r.model_us) for r in rows if r.model_us is not None]
        if modelled:
            latency.plot(*zip(*modelled, strict=True), ":", color=drawn.get_color(), linewidth=1)
    if limit_gbs is not None:
        bandwidth.axhline(limit_gbs, color="black", linewidth=0.8, label="memory limit")
    for axes, unit in ((bandwidth, "bus bandwidth (GB/s)"), (latency, "time (µs)")):
        axes.set(xscale="log", xlabel="size (bytes)", ylabel=unit)
        axes.xaxis.set_major_locator(matplotlib.ticker.LogLocator(base=2, numticks=10))
        axes.grid(alpha=0.3)
    latency.set(yscale="log")
    bandwidth.legend(frameon=False)
    figure.suptitle(f"{first.op}, {first.dtype}, {first.ranks} ranks, {first.transport}")
    figure.savefig(path, dpi=150)
    plt.close(figure)
