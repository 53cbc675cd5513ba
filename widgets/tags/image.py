"""One image at large: its tags with who set them and the tagger's confidence, its caption as text, its lock."""

from __future__ import annotations

import html
from collections.abc import Callable

import ipywidgets

from lorakit.data.captions import tags_of
from lorakit.tags.authors import PERSON
from lorakit.tags.edits import Change
from lorakit.tags.suspects import ABSENT
from widgets.clicks import Clicks, said
from widgets.data.thumbnails import LARGE, Thumbnails
from widgets.i18n import say
from widgets.page import AMBER, BLUE, aside
from widgets.tags.state import State
from widgets.tags.suspects import sentence

SEEN = 12  # tags that the tagger sees and the caption has not, at most


class Image:
    """The widget; clicks tell `["tag", tag]`, `["take", tag, image]` and `["give", tag, image]`."""

    def __init__(
        self,
        state: State,
        clicks: Clicks,
        thumbnails: Thumbnails,
        do: Callable[[Callable[[], Change | None]], None],
    ):
        self._state, self._clicks, self._thumbnails = state, clicks, thumbnails
        self.image = ipywidgets.HTML(layout=ipywidgets.Layout(flex="1 1 240px", max_width="400px", min_width="0"))
        self._drawn: tuple[str, str] | None = None  # image and caption that the field shows, or was typed over
        self.tags = ipywidgets.HTML()
        self.text = ipywidgets.Textarea(rows=4, layout=ipywidgets.Layout(width="98%"))
        write = ipywidgets.Button(description=say("write this caption"), layout=ipywidgets.Layout(width="auto"))
        write.on_click(lambda _: do(self.write))
        self.lock = ipywidgets.Button(layout=ipywidgets.Layout(width="auto"))
        self.lock.on_click(lambda _: do(self.switch))
        column = ipywidgets.Layout(flex="2 1 320px", min_width="0")
        buttons = ipywidgets.Box([write, self.lock], layout=ipywidgets.Layout(flex_flow="row wrap"))
        self.widget = ipywidgets.Box(
            [self.image, ipywidgets.VBox([self.tags, self.text, buttons], layout=column)],
            layout=ipywidgets.Layout(flex_flow="row wrap", width="100%"),
        )

    def draw(self) -> None:
        """Show the image that is looked at."""
        state, name = self._state, self._state.focus
        sample = state.book.samples[name]
        is_locked = state.book.is_locked(name)
        [source] = self._thumbnails.sources([sample], LARGE)
        told = f"{state.numbers[name]} · {name} · {sample.width} × {sample.height} px"
        style = "max-width:100%;max-height:420px;border-radius:6px;margin:0"
        self.image.value = f'<img src="{source}" alt="" style="{style}">{aside(told)}'
        self.tags.value = self._tags(name)
        if self._drawn != (name, state.book.captions[name]):  # else what is typed just now stays
            self.text.value = state.book.captions[name]
            self._drawn = name, self.text.value
        self.lock.description = say("unlock") if is_locked else say("lock")
        self.lock.tooltip = say("A locked caption is never written by a tagger.")

    def write(self) -> Change | None:
        """Write the caption as it stands in the field."""
        name = self._state.focus
        return self._state.write(say("wrote a caption"), {name: " ".join(self.text.value.split())})

    def switch(self) -> Change | None:
        """Lock this caption, or unlock it."""
        book, name = self._state.book, self._state.focus
        return book.unlock([name]) if book.is_locked(name) else book.lock([name])

    def _tags(self, name: str) -> str:
        state, origin = self._state, self._state.book.authors(name)
        own = tags_of(state.book.captions[name])
        rows = "".join(self._row(name, tag, origin.get(tag, PERSON)) for tag in own)
        others = ((tag, score) for tag, score in self._seen(name) if tag not in own)
        pills = "".join(self._pill(name, tag, score) for tag, score in list(others)[:SEEN])
        seen = f"{aside(say('The tagger sees these, too; a click adds one:'))}<div>{pills}</div>" if pills else ""
        doubts = [hint for hint in state.doubted.get(name, ()) if hint.kind not in ABSENT]
        told = "".join(f'<div style="color:{AMBER}">⚠ {html.escape(sentence(hint))}</div>' for hint in doubts)
        lock = aside(say("Locked: taggers leave this caption as it is.")) if state.book.is_locked(name) else ""
        return f'<div style="font-size:13px;line-height:1.6" {self._clicks.attributes()}>{lock}{rows}{told}{seen}</div>'

    def _row(self, name: str, tag: str, by: str) -> str:
        """A tag, who set it, its score as a bar and a number, and a cross that takes it out."""
        score, opinion = self._state.score(name, tag), self._state.opinion
        bar = "" if score is None else f"background:linear-gradient(to right,{BLUE} {score:.0%},#8884 {score:.0%})"
        shown = "" if score is None else f"{score:.2f}"
        asked = (
            f'<span style="width:60px;height:6px;border-radius:3px;{bar}"></span>'
            f'<span style="width:2.4em;text-align:right">{shown}</span>'
        )
        setter = say("person") if by == PERSON else by
        return (
            '<div style="display:flex;gap:8px;align-items:center">'
            f'<span {said(["take", tag, name])} title="{html.escape(say("remove"))}" style="cursor:pointer;'
            f'padding:0 5px;opacity:0.7">✕</span><span {said(["tag", tag])} style="flex:1;cursor:pointer;'
            f'overflow-wrap:anywhere">{html.escape(tag)}</span><span style="opacity:0.65;font-size:11px;'
            'white-space:nowrap;overflow:hidden;text-overflow:ellipsis;max-width:12em" '
            f'title="{html.escape(setter)}">{html.escape(setter)}</span>'
            f"{asked if opinion and name in opinion.scores else ''}</div>"
        )

    def _seen(self, name: str) -> list[tuple[str, float]]:
        """General tags and characters that the tagger would write, the surest first."""
        if (opinion := self._state.opinion) is None:
            return []
        scores = opinion.scores.get(name, {})
        would = [
            (tag, score)
            for tag, score in scores.items()
            if score >= opinion.threshold(tag) and opinion.categories.get(tag) in ("general", "character")
        ]
        return sorted(would, key=lambda item: -item[1])

    def _pill(self, name: str, tag: str, score: float) -> str:
        return (
            f'<span {said(["give", tag, name])} style="display:inline-block;cursor:pointer;border:1px solid #8886;'
            f'border-radius:10px;padding:0 8px;margin:2px">+ {html.escape(tag)} <span style="opacity:0.65">{score:.2f}'
            "</span></span>"
        )
