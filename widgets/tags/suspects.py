"""The list of suspicious tags with their images, to click on."""

from __future__ import annotations

import html
from collections import Counter

import ipywidgets

from lorakit.tags.suspects import ABSENT, SUSPICIOUS, SuspiciousTag
from widgets.clicks import Clicks, sends
from widgets.data.thumbnails import Thumbnails
from widgets.i18n import say
from widgets.page import WIDTH, aside
from widgets.tags.choice import Choice
from widgets.tags.state import EditorState

MAX_ROWS = 30
MAX_IMAGES = 4  # in a row
SIDE = 44  # px of a thumbnail
ROW = "display:flex;gap:10px;align-items:center;padding:3px 0"


def sentence(suspect: SuspiciousTag) -> str:
    """Why a tag is suspicious, in the reader's language."""
    return say(SUSPICIOUS[suspect.kind][1], tag=suspect.tag, **suspect.fields)


def link(message: list[str], label: str) -> str:
    """A small button in HTML that sends a message."""
    return (
        f'<span {sends(message)} style="cursor:pointer;border:1px solid #8886;border-radius:4px;padding:1px 8px;'
        f'white-space:nowrap">{html.escape(label)}</span>'
    )


class SuspectsPanel:
    """The widget, the most severe first; clicks send "tag", "focus", "remove" and "add"."""

    def __init__(self, state: EditorState, clicks: Clicks, thumbnails: Thumbnails):
        self._state, self._clicks, self._thumbnails = state, clicks, thumbnails
        field = ipywidgets.Dropdown(layout=ipywidgets.Layout(width="auto", max_width="98%", align_self="flex-start"))
        self.kind_choice, self._kind = Choice(self._choose, field), ""
        self.list = ipywidgets.HTML()
        self.widget = ipywidgets.VBox([field, self.list], layout=ipywidgets.Layout(width="100%"))

    def draw(self) -> None:
        """Show the current suspicious tags, of the chosen kind as long as there are any."""
        counts = Counter(suspect.kind for suspect in self._state.suspects)
        labels = {
            "colour": say("Colour not found in the image"),
            "unseen": say("Not seen by the tagger"),
            "missing": say("Missing, but the tagger is sure"),
            "close": say("Close to the threshold"),
            "nearly": say("Missing, just below the threshold"),
            "implied": say("Implied by another tag"),
            "once": say("Used only once"),
        }
        options = [(f"{label} ({counts[kind]})", kind) for kind, label in labels.items() if counts[kind]]
        # After the last one of a kind was fixed, all are shown.
        self._kind = self._kind if self._kind in counts else ""
        self.kind_choice.draw([(f"{say('All')} ({len(self._state.suspects)})", ""), *options], self._kind)
        self._draw_list()

    def _choose(self, kind: str) -> None:
        self._kind = kind
        self._draw_list()

    def _draw_list(self) -> None:
        # a row for each tag and reason, with all its images
        groups: dict[tuple[str, str], list[SuspiciousTag]] = {}
        for suspect in self._state.suspects:
            if self._kind in ("", suspect.kind):
                groups.setdefault((suspect.kind, suspect.tag), []).append(suspect)
        rows = "".join(self._row(group) for group in list(groups.values())[:MAX_ROWS])
        if not groups:
            rows = aside(say("Nothing looks wrong."))
        if self._state.scores is None:
            rows = aside(say("Run a tagger or its preview to also list tags that it does not see.")) + rows
        if len(groups) > MAX_ROWS:
            rows += aside(say("and {n} more", n=len(groups) - MAX_ROWS))
        style = f"font-size:13px;line-height:1.5;max-width:{WIDTH}px"
        self.list.value = f'<div style="{style}" {self._clicks.attributes()}>{rows}</div>'

    def _row(self, suspects: list[SuspiciousTag]) -> str:
        """The images, the reason (that of the first image), and a button that fixes it."""
        first, names = suspects[0], [suspect.image for suspect in suspects]
        samples = [self._state.editor.samples[name] for name in names[:MAX_IMAGES]]
        # `names` may be longer than the thumbnails; map ends with the shorter one.
        images = "".join(map(self._image, names, self._thumbnails.sources(samples, SIDE)))
        more = f" · {html.escape(say('{n} images', n=len(names)))}" if len(names) > 1 else ""
        # Kinds of tags that the caption does not have: they are added, all others removed.
        if first.kind in ABSENT:
            fix = link(["add", first.tag, *names], say("Add"))
        else:
            fix = link(["remove", first.tag, *names], say("Remove"))
        return (
            f'<div style="{ROW}"><div style="display:flex;flex-wrap:wrap;gap:4px">{images}</div>'
            f'<span {sends(["tag", first.tag])} style="flex:1;min-width:120px;cursor:pointer;overflow-wrap:anywhere">'
            f"{html.escape(sentence(first))}{more}</span>{fix}</div>"
        )

    def _image(self, name: str, source: str) -> str:
        number = self._state.numbers[name]
        return (
            f'<img {sends(["focus", name])} src="{source}" alt="{number}" title="{number} · {html.escape(name)}" '
            f'style="max-width:{SIDE}px;max-height:{SIDE}px;border-radius:3px;margin:0;cursor:pointer">'
        )
