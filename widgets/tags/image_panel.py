"""One image at full size: its tags with author and score, its caption as text, its lock."""

from __future__ import annotations

import html
from collections.abc import Callable

import ipywidgets

from lorakit.data.caption_parts import tags_of
from lorakit.tags.authors import PERSON
from lorakit.tags.edits import Change
from lorakit.tags.suspects import ABSENT
from widgets.clicks import Clicks, sends
from widgets.data.thumbnails import LARGE, Thumbnails
from widgets.i18n import say
from widgets.page import AMBER, BLUE, aside
from widgets.tags.state import EditorState
from widgets.tags.suspects import sentence

MAX_SEEN = 12  # tags that the tagger sees and the caption does not have


class ImagePanel:
    """The widget; clicks send `["tag", tag]`, `["remove", tag, image]` and `["add", tag, image]`."""

    def __init__(
        self,
        state: EditorState,
        clicks: Clicks,
        thumbnails: Thumbnails,
        do: Callable[[Callable[[], Change | None]], None],
    ):
        self._state, self._clicks, self._thumbnails = state, clicks, thumbnails
        self.image = ipywidgets.HTML(layout=ipywidgets.Layout(flex="1 1 240px", max_width="400px", min_width="0"))
        # the image and caption that were last put into the text field, where the user may have typed since
        self._drawn: tuple[str, str] | None = None
        self.tags = ipywidgets.HTML()
        self.text = ipywidgets.Textarea(rows=4, layout=ipywidgets.Layout(width="98%"))
        save = ipywidgets.Button(description=say("Save caption"), layout=ipywidgets.Layout(width="auto"))
        save.on_click(lambda _: do(self.save))
        self.lock = ipywidgets.Button(layout=ipywidgets.Layout(width="auto"))
        self.lock.on_click(lambda _: do(self.toggle_lock))
        column = ipywidgets.Layout(flex="2 1 320px", min_width="0")
        buttons = ipywidgets.Box([save, self.lock], layout=ipywidgets.Layout(flex_flow="row wrap"))
        self.widget = ipywidgets.Box(
            [self.image, ipywidgets.VBox([self.tags, self.text, buttons], layout=column)],
            layout=ipywidgets.Layout(flex_flow="row wrap", width="100%"),
        )

    def draw(self) -> None:
        """Show the image in focus."""
        state, name = self._state, self._state.focus
        sample = state.editor.samples[name]
        [source] = self._thumbnails.sources([sample], LARGE)
        legend = f"{state.numbers[name]} · {name} · {sample.width} × {sample.height} px"
        style = "max-width:100%;max-height:420px;border-radius:6px;margin:0"
        self.image.value = f'<img src="{source}" alt="" style="{style}">{aside(legend)}'
        self.tags.value = self._tags_html(name)
        # what the user is typing stays as long as image and caption are the same
        if self._drawn != (name, state.editor.captions[name]):
            self.text.value = state.editor.captions[name]
            self._drawn = name, self.text.value
        self.lock.description = say("Unlock") if state.editor.is_locked(name) else say("Lock")
        self.lock.tooltip = say("Taggers never write a locked caption.")

    def save(self) -> Change | None:
        """Write the caption in the text field."""
        name = self._state.focus
        # A caption is one line: line breaks and doubled spaces become one space.
        return self._state.write(say("edited a caption"), {name: " ".join(self.text.value.split())})

    def toggle_lock(self) -> Change | None:
        """Lock this caption, or unlock it."""
        editor, name = self._state.editor, self._state.focus
        return editor.unlock([name]) if editor.is_locked(name) else editor.lock([name])

    def _tags_html(self, name: str) -> str:
        state, authors = self._state, self._state.editor.authors(name)
        in_caption = tags_of(state.editor.captions[name])
        rows = "".join(self._row(name, tag, authors.get(tag, PERSON)) for tag in in_caption)
        others = [(tag, score) for tag, score in self._seen(name) if tag not in in_caption]
        pills = "".join(self._pill(name, tag, score) for tag, score in others[:MAX_SEEN])
        seen = f"{aside(say('The tagger also sees these; click to add:'))}<div>{pills}</div>" if pills else ""
        # Tags that are missing already stand among those that the tagger sees.
        suspects = [suspect for suspect in state.suspects_of.get(name, ()) if suspect.kind not in ABSENT]
        warnings = "".join(
            f'<div style="color:{AMBER}">⚠ {html.escape(sentence(suspect))}</div>' for suspect in suspects
        )
        lock = aside(say("Locked: taggers do not change this caption.")) if state.editor.is_locked(name) else ""
        style = "font-size:13px;line-height:1.6"
        return f'<div style="{style}" {self._clicks.attributes()}>{lock}{rows}{warnings}{seen}</div>'

    def _row(self, name: str, tag: str, by: str) -> str:
        """A tag with a cross that removes it, its author, and its score as a bar and a number."""
        author = html.escape(say("person") if by == PERSON else by)
        return (
            '<div style="display:flex;gap:8px;align-items:center">'
            f'<span {sends(["remove", tag, name])} title="{html.escape(say("Remove"))}" style="cursor:pointer;'
            f'padding:0 5px;opacity:0.7">✕</span><span {sends(["tag", tag])} style="flex:1;cursor:pointer;'
            f'overflow-wrap:anywhere">{html.escape(tag)}</span><span style="opacity:0.65;font-size:11px;'
            'white-space:nowrap;overflow:hidden;text-overflow:ellipsis;max-width:12em" '
            f'title="{author}">{author}</span>{self._score_html(name, tag)}</div>'
        )

    def _score_html(self, name: str, tag: str) -> str:
        """The score of a tag; empty space for a tag that the tagger does not know, nothing for an image without."""
        if self._state.scores is None or name not in self._state.scores.scores:
            return ""
        score = self._state.score(name, tag)
        bar = "" if score is None else f"background:linear-gradient(to right,{BLUE} {score:.0%},#8884 {score:.0%})"
        return (
            f'<span style="width:60px;height:6px;border-radius:3px;{bar}"></span>'
            f'<span style="width:2.4em;text-align:right">{"" if score is None else f"{score:.2f}"}</span>'
        )

    def _seen(self, name: str) -> list[tuple[str, float]]:
        """General tags and characters above the tagger's threshold, the highest score first."""
        if (scores := self._state.scores) is None:
            return []
        above = [
            (tag, score)
            for tag, score in scores.scores.get(name, {}).items()
            # Ratings and quality tags are no content of the image.
            if score >= scores.threshold(tag) and scores.categories.get(tag) in ("general", "character")
        ]
        return sorted(above, key=lambda item: -item[1])

    def _pill(self, name: str, tag: str, score: float) -> str:
        return (
            f'<span {sends(["add", tag, name])} style="display:inline-block;cursor:pointer;border:1px solid #8886;'
            f'border-radius:10px;padding:0 8px;margin:2px">+ {html.escape(tag)} <span style="opacity:0.65">{score:.2f}'
            "</span></span>"
        )
