"""Importing images in a cell: from a path or an upload, into the dataset or one of its folders."""

from __future__ import annotations

import html
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ipywidgets

from lorakit.errors import UserError
from lorakit.events import Progress
from lorakit.prepare.crop import FOLDER
from lorakit.prepare.intake import MAX_REPEATS, USED, import_images
from lorakit.project import Project
from lorakit.sync import service
from widgets.data.prepare import notes_html
from widgets.i18n import say
from widgets.page import BLUE, GREY, RED, WIDTH, aside, bar, box
from widgets.plain import show
from widgets.project.draft import Draft
from widgets.project.labels import labelled

REDRAW = 0.5  # s
ACCEPTED = ",".join((*USED, ".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz"))


def add_images(project: Project, source: str | Path = "", into: str = "", repeats: int = 0) -> None:
    """Show a form that imports images, or import `source` at once: a zip or tar, a folder (also on
    Drive), or an image; `into` and `repeats` as for `lorakit.prepare.intake.import_images`.
    """

    form = IntakeForm(project)
    if source:
        show(form.status)
        form.add(source, into, repeats)
    else:
        show(form.widget)


class IntakeForm:
    """The widget: `widget` is to be displayed."""

    def __init__(self, project: Project):
        self.project = project
        wide = {"width": "98%"}
        style = {"description_width": "112px"}
        self.source = ipywidgets.Text(
            description=say("Source"),
            placeholder=say("path of a zip, tar, folder or image, e.g. on Drive"),
            style=style,
            layout=ipywidgets.Layout(**wide),
        )
        self.into = ipywidgets.Text(
            description=say("Folder name"),
            placeholder=say("leave empty to keep the zip's folders"),
            style=style,
            layout=ipywidgets.Layout(**wide),
        )
        self.repeats = ipywidgets.BoundedIntText(
            0, min=0, max=MAX_REPEATS, description=say("Repeats"), style=style, layout=ipywidgets.Layout(width="200px")
        )
        self.button = ipywidgets.Button(
            description=say("Add"), button_style="primary", layout=ipywidgets.Layout(width="auto")
        )
        self.button.on_click(lambda _: self._clicked())
        # Uploads pass through the kernel's memory and the notebook's socket: good for megabytes, not for gigabytes.
        self.upload = ipywidgets.FileUpload(
            description=say("Upload"), accept=ACCEPTED, multiple=True, layout=ipywidgets.Layout(width="auto")
        )
        self.upload.observe(self._uploaded, "value")
        self.status = ipywidgets.HTML()
        tip = say(
            "Uploads suit a few megabytes. Put a large zip on Google Drive and enter its path. A folder name creates "
            "<repeats>_<name>/. Repeats 0 means auto: those of the zip's folders, or 1."
        )
        buttons = ipywidgets.HBox([self.button, self.upload], layout=ipywidgets.Layout(flex_flow="row wrap"))
        children = [self.source, self.into, self.repeats, buttons, ipywidgets.HTML(aside(tip)), self.status]
        self.widget = ipywidgets.VBox(children, layout=ipywidgets.Layout(width="100%", max_width=f"{WIDTH}px"))

    def add(self, source: str | Path | Mapping[str, bytes], into: str = "", repeats: int = 0) -> None:
        """Import images and show what was added and what was not."""
        notes, drawn = [], 0.0
        try:
            for event in import_images(self.project, source, into, repeats):
                if not isinstance(event, Progress):
                    notes.append(event)
                elif time.monotonic() - drawn > REDRAW:
                    drawn = time.monotonic()
                    text = say("{done} of {total} files", done=event.done, total=event.total)
                    text = say("unpacking …") if event.what != "files" else text
                    self.status.value = html.escape(text) + bar(event.done / max(1, event.total))
        except UserError as error:
            self.status.value = box(labelled(str(error)), RED)
            return
        except KeyboardInterrupt:
            self.status.value = aside(say("Stopped. Add the same again to continue."))
            return
        # What was added goes to the remote copy in the background.
        service.start(self.project)
        done = [str(note) for note in notes if note.kind == "added"]
        others = [str(note) for note in notes if note.kind != "added"]
        if done and Draft(self.project).data.folder == FOLDER:
            others.append(say("Training uses the prepared images. Prepare them again to include the new ones."))
        self.status.value = box("\n".join(done) or say("Nothing was added."), BLUE if done else GREY) + notes_html(
            others
        )

    def _clicked(self) -> None:
        # File managers copy a path with quotes around it.
        if source := self.source.value.strip().strip("\"'"):
            self.add(source, self.into.value, self.repeats.value)
        else:
            self.status.value = box(say("Enter a path first, or upload images."), GREY)

    def _uploaded(self, change: dict) -> None:
        if files := uploaded(change["new"]):
            self.add(files, self.into.value, self.repeats.value)
            self._forget_upload()

    def _forget_upload(self) -> None:
        """Free the memory of uploaded files, which are on disk now."""
        # In ipywidgets 7 the value is computed from these three.
        if hasattr(self.upload, "_counter"):
            self.upload.metadata, self.upload.data, self.upload._counter = [], [], 0
        else:
            self.upload.value = ()


def uploaded(value: Any) -> dict[str, bytes]:
    """Name -> bytes of what a FileUpload holds: a dict by name in ipywidgets 7, a tuple of records in 8."""
    if isinstance(value, dict):
        return {name: bytes(file["content"]) for name, file in value.items()}
    return {file["name"]: bytes(file["content"]) for file in value}
