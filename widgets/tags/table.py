"""The table of tags: how many images have each, what the tagger thinks of it, and where it is doubted."""

from __future__ import annotations

import html

import ipywidgets

from widgets.clicks import Clicks, said
from widgets.i18n import say
from widgets.page import AMBER, BLUE, aside
from widgets.tags.state import Row, State

ROWS = 300  # at most; the rest is found by typing
HEIGHT = 600  # px


class TagTable:
    """The widget; a click on a row tells `["tag", its name]`."""

    def __init__(self, state: State, clicks: Clicks):
        self._state, self._clicks = state, clicks
        wide = ipywidgets.Layout(width="98%")
        self.wanted = ipywidgets.Text(placeholder=say("find a tag"), layout=wide)
        sorts = {
            say("rarest first"): "rarest",
            say("most frequent first"): "frequent",
            say("by name"): "name",
            say("suspicious first"): "suspicious",
        }
        self.sort = ipywidgets.Dropdown(options=list(sorts.items()), value=state.sort, layout=wide)
        self.rows = ipywidgets.HTML()
        scrolled = ipywidgets.Layout(max_height=f"{HEIGHT}px", overflow="auto", width="100%", display="block")
        self.widget = ipywidgets.VBox(
            [self.wanted, self.sort, ipywidgets.Box([self.rows], layout=scrolled)],
            layout=ipywidgets.Layout(flex="1 1 280px", max_width="420px", min_width="0", padding="0 12px 0 0"),
        )
        self.wanted.observe(self._search, "value")
        self.sort.observe(self._order, "value")

    def draw(self) -> None:
        """Show the tags as they are now."""
        rows = self._state.rows()
        most = max((row.count for row in rows), default=1)
        lines = "".join(self._row(row, most) for row in rows[:ROWS])
        rest = aside(say("and {n} more: type to find them", n=len(rows) - ROWS)) if len(rows) > ROWS else ""
        head = f"<b>{html.escape(say('{n} tags', n=len(self._state.holders)))}</b>"
        text = f"{head}{lines or self._none()}{rest}"
        self.rows.value = f'<div style="font-size:13px;line-height:1.5" {self._clicks.attributes()}>{text}</div>'

    def _row(self, row: Row, most: int) -> str:
        style = "display:flex;gap:8px;padding:1px 6px 1px 8px;cursor:pointer;"
        chosen = f"box-shadow:inset 4px 0 {BLUE};background-color:rgba(37,99,235,0.14);" * (row.tag == self._state.tag)
        score = "" if row.score is None else f"{row.score:.2f}"
        doubts = f"⚠ {row.doubts}" if row.doubts else ""
        share = 100 * row.count / most
        return (
            f'<div {said(["tag", row.tag])} style="{style}{chosen}">'
            f'<span style="flex:1;overflow-wrap:anywhere">{html.escape(row.tag)}</span>'
            f'<span style="color:{AMBER};white-space:nowrap" title="{html.escape(say("suspicious"))}">{doubts}</span>'
            f'<span style="opacity:0.65;width:2.4em;text-align:right" title="{html.escape(say("mean score"))}">{score}'
            f'</span><span style="width:3.2em;text-align:right;background:linear-gradient(to left,'
            f'rgba(37,99,235,0.3) {share:.0f}%,transparent {share:.0f}%)">{row.count}</span></div>'
        )

    def _none(self) -> str:
        found = say("No tag holds that.") if self._state.wanted else say("No image has a tag yet.")
        return aside(found)

    def _search(self, change: dict) -> None:
        self._state.wanted = change["new"].strip()
        self.draw()

    def _order(self, change: dict) -> None:
        self._state.sort = change["new"]
        self.draw()
