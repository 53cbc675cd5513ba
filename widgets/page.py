"""Pieces of HTML for views, with inline styles only: a notebook that is opened again keeps no other styles."""

from __future__ import annotations

import html
import time

from widgets.i18n import say

# All of them are readable on light and on dark pages.
GREY, BLUE = "#888888", "#3b82f6"
# All is well, a warning, an error.
GREEN, AMBER, RED = "#16a34a", "#b45309", "#dc2626"
WIDTH = 720  # px of a view at most


def box(text: str, colour: str, title: str = "") -> str:
    """A paragraph (plain text) beside a coloured bar, with its title in that colour."""
    head = f'<div style="color:{colour};font-weight:bold">{html.escape(title)}</div>' if title else ""
    return (
        f'<div style="border-left:4px solid {colour};padding:4px 10px;margin:8px 0;max-width:{WIDTH}px">{head}'
        f'<div style="white-space:pre-wrap;overflow-wrap:anywhere">{html.escape(text)}</div></div>'
    )


def bar(share: float, colour: str = BLUE, height: int = 6) -> str:
    """A progress bar; `share` is what is done, 0 to 1."""
    full = f"width:{100 * min(1.0, max(0.0, share)):.1f}%;background-color:{colour}"
    return (
        f'<div style="height:{height}px;border-radius:{height // 2}px;background-color:rgba(128,128,128,0.25)">'
        f'<div style="height:{height}px;border-radius:{height // 2}px;{full}"></div></div>'
    )


def facts(texts: list[str]) -> str:
    """Short plain texts in a line, with dots between them; a narrow page breaks it at the dots."""
    dotted = [f"{text} ·" for text in texts[:-1]] + texts[-1:]
    pieces = (f'<span style="display:inline-block">{html.escape(text)}</span>' for text in dotted)
    return f'<div style="line-height:1.6">{" ".join(pieces)}</div>'


def aside(text: str) -> str:
    """A plain text, small and grey."""
    return f'<div style="color:{GREY};font-size:12px;line-height:1.5;max-width:{WIDTH}px">{html.escape(text)}</div>'


def span(seconds: float) -> str:
    """A time in words, with fewer digits the longer it is."""
    minutes, hours = round(seconds / 60), seconds // 3600
    if seconds < 90:
        return say("{n} s", n=max(0, round(seconds)))
    if minutes < 90:
        return say("{n} min", n=minutes)
    if hours < 48:
        return say("{h} h {m} min", h=minutes // 60, m=minutes % 60)
    return say("{d} days {h} h", d=int(hours // 24), h=int(hours % 24))


def clock(at: float) -> str:
    """A time (seconds since 1970) on this machine's clock, with the day if it is not today."""
    moment = time.localtime(at)
    today = time.strftime("%Y-%m-%d", moment) == time.strftime("%Y-%m-%d")
    return time.strftime("%H:%M %Z" if today else "%m-%d %H:%M %Z", moment)


def size(count: float) -> str:
    """Bytes in words, decimal: 1 MB is 1,000,000 bytes."""
    for unit, digits in (("B", 0), ("KB", 0), ("MB", 0)):
        if count < 999.5:
            return f"{count:.{digits}f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"
