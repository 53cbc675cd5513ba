"""The live view of a run, drawn from its log alone, so that any cell of any kernel can show it at any time."""

from __future__ import annotations

import base64
import html
import io
import time
from collections.abc import Iterable

from lorakit import events
from lorakit.events import Event, Finished, Progress, Sampled, Saved, Started, Stepped, Stopped, Warned
from lorakit.project import Run
from lorakit.status import smoothed

REDRAW = 1.0  # s between two drawings at least
POINTS = 300  # of a curve at most, so that the output stays small
WIDTH, HEIGHT = 720, 220  # of the loss plot, px
THUMBNAIL = 160  # px
GREY = "#888888"  # readable on light and on dark pages


def watch(run: Run, happenings: Iterable[Event]) -> None:
    """Follow a run in the foreground of a cell: `watch(run, train(run))`. The interrupt button saves and stops."""
    from IPython.display import HTML, display

    view, drawn = display(HTML(""), display_id=True), 0.0
    for event in happenings:
        if isinstance(event, (Finished, Stopped)) or time.monotonic() - drawn >= REDRAW:
            view.update(HTML(render(run)))
            drawn = time.monotonic()
    view.update(HTML(render(run)))


def render(run: Run) -> str:
    """The view of a run as HTML: how far it is, loss, newest samples, warnings. Needs nothing but its folder."""
    log = [event for _, event in events.read(run.log)]
    steps = [event for _, event in sorted(events.steps(run.log).items())]
    started = next((event for event in reversed(log) if isinstance(event, Started)), None)
    pieces = [_headline(run, log, steps, started)]
    if steps:
        pieces.append(_loss_plot([(event.step, event.loss) for event in steps if event.loss is not None]))
    pieces.append(_samples(run, [event for event in log if isinstance(event, Sampled)]))
    warnings = list(dict.fromkeys(event.text for event in log if isinstance(event, Warned)))
    pieces += [f'<div style="color:#b45309;white-space:pre-line">⚠ {html.escape(text)}</div>' for text in warnings[-5:]]
    return f'<div style="font-family:sans-serif;max-width:{WIDTH}px">{"".join(pieces)}</div>'


def _headline(run: Run, log: list[Event], steps: list[Stepped], started: Started | None) -> str:
    """Name, progress bar and one line of figures."""
    last = next((event for event in reversed(log) if isinstance(event, (Progress, Stepped, Stopped, Finished))), None)
    if started is None or isinstance(last, Progress):
        share = last.done / last.total if isinstance(last, Progress) else 0.0
        told = [f"encoding {last.what} {last.done}/{last.total}" if isinstance(last, Progress) else "loading"]
    else:
        done = steps[-1].step if steps else started.step
        share = done / started.steps
        told = [f"step {done} / {started.steps}"]
        if steps:
            recent = steps[-20:]
            told += [
                f"epoch {steps[-1].epoch}",
                f"lr {steps[-1].lr:.2e}",
                f"{_mean_rate(recent):.1f} images/s",
                f"{steps[-1].memory_gb:.1f} GB",
            ]
        saved = next((event.step for event in reversed(log) if isinstance(event, Saved)), None)
        if saved:
            told.append(f"saved at {saved}")
    if isinstance(last, Finished):
        told.append(f"<b>finished 完成</b> · {html.escape(last.lora)}")
    if isinstance(last, Stopped):
        told.append(f"<b>stopped 已停止</b> · {html.escape(last.reason)}")
    bar = (
        f'<div style="height:6px;border-radius:3px;background:#8883;margin:6px 0">'
        f'<div style="height:6px;border-radius:3px;background:#3b82f6;width:{100 * share:.1f}%"></div></div>'
    )
    return f"<div><b>{html.escape(run.name)}</b> · {' · '.join(told)}</div>{bar}"


def _mean_rate(steps: list[Stepped]) -> float:
    return len(steps) / sum(1 / event.images_per_second for event in steps)


def _loss_plot(points: list[tuple[int, float]]) -> str:
    """The raw loss thin, the smoothed loss bold, readable on light and dark pages."""
    if len(points) < 2:
        return ""
    every = -(-len(points) // POINTS)
    xs = [step for step, _ in points][::every]
    raw = [loss for _, loss in points]
    curves = {"raw": raw[::every], "smoothed": smoothed(raw)[::every]}
    high = sorted(raw)[int(0.98 * (len(raw) - 1))] * 1.05  # a few spikes may leave the picture
    low = min(raw) * 0.95
    left, bottom = 46, HEIGHT - 22

    def place(x: float, y: float) -> str:
        across = left + (x - xs[0]) / max(1, xs[-1] - xs[0]) * (WIDTH - left - 8)
        return f"{across:.1f},{8 + (high - min(y, high)) / max(1e-9, high - low) * (bottom - 8):.1f}"

    lines = {name: " ".join(place(x, y) for x, y in zip(xs, ys, strict=True)) for name, ys in curves.items()}
    ticks = "".join(
        f'<text x="{left - 6}" y="{float(place(xs[0], y).split(",")[1]) + 4:.1f}" text-anchor="end">{y:.3f}</text>'
        for y in (low, (low + high) / 2, high)
    )
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        f'font-family="sans-serif" font-size="11" fill="{GREY}">'
        f'<line x1="{left}" y1="{bottom}" x2="{WIDTH - 8}" y2="{bottom}" stroke="{GREY}" stroke-opacity=".5"/>'
        f"{ticks}"
        f'<text x="{left}" y="{HEIGHT - 6}">step {xs[0]}</text>'
        f'<text x="{WIDTH - 8}" y="{HEIGHT - 6}" text-anchor="end">step {xs[-1]}</text>'
        f'<text x="{WIDTH - 8}" y="16" text-anchor="end">loss 损失: smoothed {smoothed(raw)[-1]:.4f}</text>'
        f'<polyline points="{lines["raw"]}" fill="none" stroke="{GREY}" stroke-opacity=".4"/>'
        f'<polyline points="{lines["smoothed"]}" fill="none" stroke="#3b82f6" stroke-width="2"/></svg>'
    )
    # as a picture: JupyterLab strips SVG elements from a notebook that it opens again
    return f'<img style="width:100%" src="data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}">'


def _samples(run: Run, painted: list[Sampled]) -> str:
    """The samples of the newest saves, a row for each prompt, oldest left."""
    rows = []
    for prompt in dict.fromkeys(event.prompt for event in painted):
        newest = {event.step: event for event in painted if event.prompt == prompt}
        pictures = "".join(
            f'<figure style="margin:2px;display:inline-block;text-align:center;font-size:11px">'
            f'<img style="border-radius:4px" src="{_thumbnail(run, event)}">'
            f"<figcaption>step {event.step}</figcaption></figure>"
            for _, event in sorted(newest.items())[-4:]
        )
        rows.append(f'<div style="font-size:12px;margin-top:6px">{html.escape(prompt)}</div>{pictures}')
    return "".join(rows[:4])


def _thumbnail(run: Run, event: Sampled) -> str:
    from PIL import Image

    packed = io.BytesIO()
    with Image.open(run.folder / event.image) as image:
        image.thumbnail((THUMBNAIL, THUMBNAIL))
        image.save(packed, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(packed.getvalue()).decode()
