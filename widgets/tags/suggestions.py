"""Suggestions for tags: what the trigger word can stand for, what should stay tagged, what will be hard to change."""

from __future__ import annotations

import html

import ipywidgets

from lorakit.tags.suspects import SUGGESTIONS, Suggestion, group, tags_for_trigger, tags_to_keep
from widgets.clicks import Clicks, sends
from widgets.i18n import say
from widgets.page import WIDTH, aside
from widgets.tags.state import EditorState
from widgets.tags.suspects import ROW, link


class SuggestionsPanel:
    """The widget; clicks send "tag" and "remove from all"."""

    def __init__(self, state: EditorState, clicks: Clicks):
        self._state, self._clicks = state, clicks
        self.widget = ipywidgets.HTML()

    def draw(self) -> None:
        """Show the current suggestions."""
        captions, trigger = self._state.editor.captions, self._state.config.trigger
        for_trigger = "".join(
            f'<div style="{ROW}"><span style="flex:1">{html.escape(_sentence(suggestion))}</span>'
            f"{link(['remove from all', suggestion.tag], say('Remove from all'))}</div>"
            for suggestion in tags_for_trigger(captions, trigger)
        )
        keep = tags_to_keep(captions, trigger)
        fixed = "".join(
            f'<div style="{ROW}">{html.escape(_sentence(suggestion))}</div>'
            for suggestion in keep
            if suggestion.kind == "fixed"
        )
        none = aside(say("No such tags."))
        self.widget.value = (
            f'<div style="font-size:13px;line-height:1.6;max-width:{WIDTH}px" {self._clicks.attributes()}>'
            f"{_heading(say('Leave to the trigger word (in nearly every image)'))}{for_trigger or none}"
            f"{_heading(say('Keep tagged (you will want to change it)'))}{self._groups(keep) or none}"
            f"{_heading(say('Hard to change (in nearly every image)')) + fixed if fixed else ''}</div>"
        )

    def _groups(self, suggestions: list[Suggestion]) -> str:
        """A line for each group of tags to keep, with the number of images of each tag."""
        labels = {
            "clothes": say("Clothes"),
            "pose": say("Pose"),
            "expression": say("Expression"),
            "background": say("Background"),
            "view": say("Viewpoint"),
        }
        lines = []
        # Groups without tags are not shown.
        for name, label in labels.items():
            tags = [self._tag(s) for s in suggestions if s.kind == "keep" and group(s.tag) == name]
            if tags:
                lines.append(f'<div style="padding:2px 0"><b>{html.escape(label)}</b> {" · ".join(tags)}</div>')
        return "".join(lines)

    def _tag(self, suggestion: Suggestion) -> str:
        return (
            f'<span {sends(["tag", suggestion.tag])} title="{html.escape(_sentence(suggestion))}" '
            f'style="cursor:pointer;'
            f'display:inline-block">{html.escape(suggestion.tag)} <span style="opacity:0.65">{suggestion.count}</span>'
            "</span>"
        )


def _sentence(suggestion: Suggestion) -> str:
    """The advice in the reader's language."""
    return say(SUGGESTIONS[suggestion.kind], tag=suggestion.tag, **suggestion.fields)


def _heading(text: str) -> str:
    return f'<div style="font-weight:bold;margin-top:8px">{html.escape(text)}</div>'
