"""The table of tags: how many images have each, the tagger's mean score, and where the tag is suspicious."""

from __future__ import annotations

import html

import ipywidgets

from widgets.clicks import Clicks, sends
from widgets.i18n import say
from widgets.page import AMBER, BLUE, aside
from widgets.tags.state import EditorState, TagRow

# The page stays fast; the other tags are found by searching.
MAX_ROWS = 300
HEIGHT = 600  # px


class TagTable:
    """The widget; a click on a row sends `["tag", its tag]`."""

    def __init__(self, state: EditorState, clicks: Clicks):
        self._state, self._clicks = state, clicks
        wide = ipywidgets.Layout(width="98%")
        self.search = ipywidgets.Text(placeholder=say("Search tags"), layout=wide)
        orders = {
            say("Rarest first"): "rarest",
            say("Most frequent first"): "frequent",
            say("By name"): "name",
            say("Most suspicious first"): "suspicious",
        }
        self.sort = ipywidgets.Dropdown(options=list(orders.items()), value=state.sort, layout=wide)
        self.rows = ipywidgets.HTML()
        # The table scrolls inside itself, so that the images stay beside it.
        scrolled = ipywidgets.Layout(max_height=f"{HEIGHT}px", overflow="auto", width="100%", display="block")
        self.widget = ipywidgets.VBox(
            [self.search, self.sort, ipywidgets.Box([self.rows], layout=scrolled)],
            layout=ipywidgets.Layout(flex="1 1 280px", max_width="420px", min_width="0", padding="0 12px 0 0"),
        )
        self.search.observe(self._search, "value")
        self.sort.observe(self._sort, "value")

    def draw(self) -> None:
        """Show the current tags."""
        rows = self._state.rows()
        largest = max((row.count for row in rows), default=1)
        lines = "".join(self._row(row, largest) for row in rows[:MAX_ROWS])
        hidden = len(rows) - MAX_ROWS
        rest = aside(say("and {n} more: search to find them", n=hidden)) if hidden > 0 else ""
        head = f"<b>{html.escape(say('{n} tags', n=len(self._state.holders)))}</b>"
        content = f"{head}{lines or self._empty()}{rest}"
        self.rows.value = f'<div style="font-size:13px;line-height:1.5" {self._clicks.attributes()}>{content}</div>'

    def _row(self, row: TagRow, largest: int) -> str:
        style = "display:flex;gap:8px;padding:1px 6px 1px 8px;cursor:pointer;"
        # A shadow, not a border: it takes no room, so that the row does not move.
        chosen = f"box-shadow:inset 4px 0 {BLUE};background-color:rgba(37,99,235,0.14);" * (row.tag == self._state.tag)
        score = "" if row.score is None else f"{row.score:.2f}"
        suspects = f"⚠ {row.suspects}" if row.suspects else ""
        # the count as a bar, from the right
        share = 100 * row.count / largest
        return (
            f'<div {sends(["tag", row.tag])} style="{style}{chosen}">'
            f'<span style="flex:1;overflow-wrap:anywhere">{html.escape(row.tag)}</span>'
            f'<span style="color:{AMBER};white-space:nowrap" title="{html.escape(say("suspicious"))}">{suspects}</span>'
            f'<span style="opacity:0.65;width:2.4em;text-align:right" title="{html.escape(say("mean score"))}">{score}'
            f'</span><span style="width:3.2em;text-align:right;background:linear-gradient(to left,'
            f'rgba(37,99,235,0.3) {share:.0f}%,transparent {share:.0f}%)">{row.count}</span></div>'
        )

    def _empty(self) -> str:
        return aside(say("No tag matches.") if self._state.search else say("No image has tags yet."))

    def _search(self, change: dict) -> None:
        self._state.search = change["new"].strip()
        self.draw()

    def _sort(self, change: dict) -> None:
        self._state.sort = change["new"]
        self.draw()
