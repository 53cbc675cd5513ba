"""A plot of the times that a flow model (Anima) would be trained at, before the first step."""

from __future__ import annotations

import base64

from lorakit import timesteps
from lorakit.weightings import LossConfig

DRAWS, BARS = 20_000, 40
WIDTH, HEIGHT = 720, 200  # px
GREY = "#888888"  # readable on light and on dark pages


def show(loss: LossConfig) -> None:
    """Draw how often each time would be trained with these settings: `show(config.loss)`."""
    from IPython.display import HTML, display

    display(HTML(render(loss)))


def densities(loss: LossConfig) -> list[float]:
    """How often times fall into each of BARS equal intervals of 0..1, compared with even drawing (1.0)."""
    import torch

    t = timesteps.draw(loss, DRAWS, torch.Generator().manual_seed(0))
    return (torch.histc(t, BARS, 0, 1) * BARS / DRAWS).tolist()


def render(loss: LossConfig) -> str:
    """The plot as HTML: bars against a line at even drawing, and what its ends mean."""
    bars = densities(loss)
    mean = sum((i + 0.5) * bar for i, bar in enumerate(bars)) / BARS**2
    left, right, top, bottom = 48, WIDTH - 8, 26, HEIGHT - 22
    high = max(2.0, *bars)
    step = (right - left) / BARS

    def height(density: float) -> float:
        return density / high * (bottom - top)

    columns = "".join(
        f'<rect x="{left + i * step:.1f}" y="{bottom - height(bar):.1f}" width="{step - 1:.1f}" '
        f'height="{height(bar):.1f}" fill="#3b82f6"/>'
        for i, bar in enumerate(bars)
    )
    even = bottom - height(1)
    told = f"timestep_sampling {loss.timestep_sampling}: {timesteps.TIMESTEPS[loss.timestep_sampling].help}"
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        f'font-family="sans-serif" font-size="11" fill="{GREY}">{columns}'
        f'<line x1="{left}" y1="{even:.1f}" x2="{right}" y2="{even:.1f}" stroke="{GREY}" stroke-dasharray="4 3"/>'
        f'<line x1="{left}" y1="{bottom}" x2="{right}" y2="{bottom}" stroke="{GREY}" stroke-opacity=".5"/>'
        f'<text x="{left}" y="14">{told}; mean t {mean:.2f}</text>'
        f'<text x="{left - 6}" y="{even + 4:.1f}" text-anchor="end">even 1</text>'
        f'<text x="{left}" y="{HEIGHT - 6}">t = 0: nearly the picture, details 接近原图</text>'
        f'<text x="{right}" y="{HEIGHT - 6}" text-anchor="end">t = 1: nearly noise, composition 接近噪声</text></svg>'
    )
    # as a picture: JupyterLab strips SVG elements from a notebook that it opens again
    data = base64.b64encode(svg.encode()).decode()
    return f'<img style="width:100%;max-width:{WIDTH}px" src="data:image/svg+xml;base64,{data}">'
