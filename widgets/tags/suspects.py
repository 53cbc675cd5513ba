"""What may be wrong in the captions, and what the trigger can take in or must not, as lists to click on."""

from __future__ import annotations

import html
from collections import Counter

import ipywidgets

from lorakit.tags.suspects import (
    ABSENT,
    SUGGESTIONS,
    SUSPICIOUS,
    Suggestion,
    SuspiciousTag,
    group,
    tags_for_trigger,
    tags_to_keep,
)
from widgets.clicks import Clicks, said
from widgets.data.thumbnails import Thumbnails
from widgets.i18n import say
from widgets.page import WIDTH, aside
from widgets.tags.choice import Choice
from widgets.tags.state import State

SHOWN = 30  # rows at a time
BESIDE = 4  # images in a row
ASK = "tag(project, only_ask=True)"  # of widgets/tagging.py; writes no captions
SIDE = 44  # px of a thumbnail
ROW = "display:flex;gap:10px;align-items:center;padding:3px 0"


def sentence(hint: SuspiciousTag | Suggestion) -> str:
    """Why, in the reader's language."""
    text = SUSPICIOUS[hint.kind][1] if isinstance(hint, SuspiciousTag) else SUGGESTIONS[hint.kind]
    return say(text, tag=hint.tag, **hint.fields)


def link(message: list[str], words: str) -> str:
    """Words to click on."""
    return (
        f'<span {said(message)} style="cursor:pointer;border:1px solid #8886;border-radius:4px;padding:1px 8px;'
        f'white-space:nowrap">{html.escape(words)}</span>'
    )


class Doubts:
    """Suspicious tags with their images, the gravest first; clicks tell "tag", "look", "take" and "give"."""

    def __init__(self, state: State, clicks: Clicks, thumbnails: Thumbnails):
        self._state, self._clicks, self._thumbnails = state, clicks, thumbnails
        field = ipywidgets.Dropdown(layout=ipywidgets.Layout(width="auto", max_width="98%", align_self="flex-start"))
        self.kind, self._kind = Choice(self._choose, field), ""
        self.list = ipywidgets.HTML()
        self.widget = ipywidgets.VBox([field, self.list], layout=ipywidgets.Layout(width="100%"))

    def draw(self) -> None:
        """Show them as they are now, of the kind that was chosen while there is one."""
        counts = Counter(hint.kind for hint in self._state.hints)
        words = {
            "colour": say("a colour against the pixels"),
            "unseen": say("the tagger does not see it"),
            "missing": say("the tagger is sure, the caption has it not"),
            "close": say("close to the threshold"),
            "nearly": say("just below the threshold"),
            "implied": say("said by another tag already"),
            "once": say("in one image only"),
        }
        there = [(f"{word} ({counts[kind]})", kind) for kind, word in words.items() if counts[kind]]
        self._kind = self._kind if self._kind in counts else ""
        self.kind.draw([(f"{say('all')} ({len(self._state.hints)})", ""), *there], self._kind)
        self._list()

    def _choose(self, kind: str) -> None:
        self._kind = kind
        self._list()

    def _list(self) -> None:
        groups: dict[tuple[str, str], list[SuspiciousTag]] = {}
        for hint in self._state.hints:
            if self._kind in ("", hint.kind):
                groups.setdefault((hint.kind, hint.tag), []).append(hint)
        rows = "".join(self._row(group) for group in list(groups.values())[:SHOWN])
        if not groups:
            rows = aside(say("Nothing looks wrong."))
        if self._state.opinion is None:
            rows = aside(say("Ask a tagger, and tags that it does not see are listed, too: {code}", code=ASK)) + rows
        if len(groups) > SHOWN:
            rows += aside(say("and {n} more", n=len(groups) - SHOWN))
        style = f"font-size:13px;line-height:1.5;max-width:{WIDTH}px"
        self.list.value = f'<div style="{style}" {self._clicks.attributes()}>{rows}</div>'

    def _row(self, hints: list[SuspiciousTag]) -> str:
        """The images in which a tag is doubted for the same reason, that of the first, and what can be done."""
        first, names = hints[0], [hint.image for hint in hints]
        samples = [self._state.book.samples[name] for name in names[:BESIDE]]
        images = "".join(map(self._image, names, self._thumbnails.sources(samples, SIDE)))
        more = f" · {html.escape(say('images: {n}', n=len(names)))}" if len(names) > 1 else ""
        if first.kind in ABSENT:
            act = link(["give", first.tag, *names], say("add"))
        else:
            act = link(["take", first.tag, *names], say("remove"))
        return (
            f'<div style="{ROW}"><div style="display:flex;flex-wrap:wrap;gap:4px">{images}</div>'
            f'<span {said(["tag", first.tag])} style="flex:1;min-width:120px;cursor:pointer;overflow-wrap:anywhere">'
            f"{html.escape(sentence(first))}{more}</span>{act}</div>"
        )

    def _image(self, name: str, source: str) -> str:
        number = self._state.numbers[name]
        return (
            f'<img {said(["look", name])} src="{source}" alt="{number}" title="{number} · {html.escape(name)}" '
            f'style="max-width:{SIDE}px;max-height:{SIDE}px;border-radius:3px;margin:0;cursor:pointer">'
        )


class Suggestions:
    """What is always there and can go to the trigger, and what must stay tagged; clicks tell "tag" and "absorb"."""

    def __init__(self, state: State, clicks: Clicks):
        self._state, self._clicks = state, clicks
        self.widget = ipywidgets.HTML()

    def draw(self) -> None:
        """Show them as they are now."""
        captions, trigger = self._state.book.captions, self._state.config.trigger
        taken = "".join(
            f'<div style="{ROW}"><span style="flex:1">{html.escape(sentence(hint))}</span>'
            f"{link(['absorb', hint.tag], say('take it out of all'))}</div>"
            for hint in tags_for_trigger(captions, trigger)
        )
        stay = tags_to_keep(captions, trigger)
        fixed = "".join(self._told(hint) for hint in stay if hint.kind == "fixed")
        self.widget.value = (
            f'<div style="font-size:13px;line-height:1.6;max-width:{WIDTH}px" {self._clicks.attributes()}>'
            f"{_head(say('For the trigger: what is always there'))}{taken or aside(say('Nothing: no such tag.'))}"
            f"{_head(say('To stay tagged: what you will want to change'))}{self._groups(stay)}"
            f"{_head(say('Hard to change: in nearly every image')) + fixed if fixed else ''}</div>"
        )

    def _told(self, hint: Suggestion) -> str:
        return f'<div style="{ROW}">{html.escape(sentence(hint))}</div>'

    def _groups(self, stay: list[SuspiciousTag]) -> str:
        """A line for each group: its tags with their counts."""
        words = {
            "clothes": say("clothes"),
            "pose": say("pose"),
            "expression": say("expression"),
            "background": say("background"),
            "view": say("view"),
        }
        tags = {name: [hint for hint in stay if hint.kind == "keep" and group(hint.tag) == name] for name in words}
        lines = "".join(
            f'<div style="padding:2px 0"><b>{html.escape(words[name])}</b> '
            + " · ".join(self._tag(hint) for hint in found)
            + "</div>"
            for name, found in tags.items()
            if found
        )
        return lines or aside(say("Nothing: no such tag."))

    def _tag(self, hint: Suggestion) -> str:
        spelled = html.escape(hint.tag)
        return (
            f'<span {said(["tag", hint.tag])} title="{html.escape(sentence(hint))}" style="cursor:pointer;'
            f'display:inline-block">{spelled} <span style="opacity:0.65">{hint.count}</span></span>'
        )


def _head(words: str) -> str:
    return f'<div style="font-weight:bold;margin-top:8px">{html.escape(words)}</div>'
