"""What training guides advise, as their tables in a cell."""

from __future__ import annotations

import html

from lorakit.guide_tables import tables
from lorakit.project import Project
from widgets.fields import help_html
from widgets.i18n import say
from widgets.project.draft import Draft


def guides(project: Project, topic: str) -> None:
    """Show what the guides say of "images", "tags" or "settings" for the project's model family."""
    from IPython.display import HTML, display

    display(HTML(advice_tables(Draft(project).choice.family, topic)))


def advice_tables(family: str, topic: str) -> str:
    """The guides' tables about a topic (of `lorakit.guide_tables.TOPICS`) that speak of a family, as HTML."""
    blocks = []
    for table in tables(family, topic):
        head = "".join(f"<th style='text-align:left;padding:2px 8px'>{html.escape(say(c))}</th>" for c in table.columns)
        rows = "".join(
            "<tr>"
            + "".join(f"<td style='text-align:left;padding:2px 8px'>{html.escape(say(c))}</td>" for c in row)
            + "</tr>"
            for row in table.rows
        )
        blocks.append(
            f"<div style='margin:0 0 14px 0;overflow-x:auto;line-height:1.35'><b>{html.escape(say(table.title))}</b> "
            f"<i>{html.escape(table.source)}</i><table style='font-size:12px;line-height:1.35'>"
            f"<tr>{head}</tr>{rows}</table>{help_html(html.escape(say(table.note)))}</div>"
        )
    # no wider than the page: what is too wide scrolls in itself
    return f"<div style='width:0;min-width:100%'>{''.join(blocks)}</div>"
