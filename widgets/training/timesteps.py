"""A plot of the times that a flow model (Anima) would be trained at, before the first step."""

from __future__ import annotations

import html

from lorakit.diffusion import timesteps
from lorakit.diffusion.weightings import LossConfig
from widgets.i18n import say
from widgets.page import GREY
from widgets.plot import bars

DRAWS, BARS = 20_000, 40


def show_timesteps(loss: LossConfig) -> None:
    """Draw how often each time would be trained with these settings: `show_timesteps(config.loss)`."""
    from IPython.display import HTML, display

    display(HTML(render(loss)))


def densities(loss: LossConfig) -> list[float]:
    """How often times fall into each of BARS equal intervals of 0..1, compared with even drawing (1.0)."""
    import torch

    t = timesteps.sample(loss, DRAWS, torch.Generator().manual_seed(0))
    return (torch.histc(t, BARS, 0, 1) * BARS / DRAWS).tolist()


def render(loss: LossConfig) -> str:
    """The plot as HTML: bars against a line at even drawing, and what its ends mean."""
    found = densities(loss)
    mean = sum((i + 0.5) * density for i, density in enumerate(found)) / BARS**2
    kind = loss.timestep_sampling
    title = say("Times trained: {kind}, mean t {mean}", kind=kind, mean=f"{mean:.2f}")
    told = [
        timesteps.TIMESTEPS[kind].help,
        say("dashed: every time alike; t = 0: nearly the image, details; t = 1: nearly noise, composition"),
    ]
    lines = "".join(f"<div>{html.escape(line)}</div>" for line in told)
    return f'{bars(found, 0, 1, title=title, x_label="t =", level=1)}<div style="color:{GREY}">{lines}</div>'
