"""A histogram of the timesteps that a flow model (Anima) is trained at with given settings."""

from __future__ import annotations

import html

from lorakit.diffusion import timesteps
from lorakit.diffusion.weightings import LossConfig
from widgets.choices import choice_label
from widgets.i18n import say
from widgets.page import GREY
from widgets.plot import bars

DRAWS, BARS = 20_000, 40  # enough draws that the bars do not jump


def show_timesteps(loss: LossConfig) -> None:
    """Show how often each timestep is trained with these settings: `show_timesteps(config.loss)`."""
    from IPython.display import HTML, display

    display(HTML(render(loss)))


def densities(loss: LossConfig) -> list[float]:
    """How often timesteps fall into each of BARS equal intervals of 0..1, relative to uniform sampling (1.0)."""
    import torch

    # A fixed seed: the same settings always show the same bars. `t` has DRAWS values in 0..1.
    t = timesteps.sample(loss, DRAWS, torch.Generator().manual_seed(0))
    # Counts to densities: 1.0 is what uniform sampling would give each bar.
    return (torch.histc(t, BARS, 0, 1) * BARS / DRAWS).tolist()


def render(loss: LossConfig) -> str:
    """The plot as HTML: bars, a dashed line at uniform sampling, and what the two ends mean."""
    heights = densities(loss)
    # From the middles of the bars.
    mean = sum((i + 0.5) * density for i, density in enumerate(heights)) / BARS**2
    kind = loss.timestep_sampling
    title = say("Timestep distribution: {kind}, mean t {mean}", kind=choice_label(kind), mean=f"{mean:.2f}")
    texts = [
        say(timesteps.TIMESTEPS[kind].help),
        say("Dashed: uniform. Near t = 0 (little noise) details are learned, near t = 1 (mostly noise) composition."),
    ]
    lines = "".join(f"<div>{html.escape(line)}</div>" for line in texts)
    return f'{bars(heights, 0, 1, title=title, x_label="t =", level=1)}<div style="color:{GREY}">{lines}</div>'
