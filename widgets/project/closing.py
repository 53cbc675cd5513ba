"""The last cell before a machine is shut down: waits until everything is in the remote copy."""

from __future__ import annotations

import html
import os
import sys

from lorakit.project import Project, platforms
from lorakit.project.platforms import COLAB_DRIVE
from lorakit.sync.service import Standing, settle
from widgets.i18n import message, say
from widgets.page import AMBER, GREEN, box, size


def close_project(project: Project, minutes: float = 30) -> None:
    """Wait up to `minutes` until all files of a project are confirmed in its remote copy; in Colab, until Google Drive
    has finished uploading them. After an interrupt, uploading continues in the background.
    """
    from IPython.display import HTML, display

    if project.remote is None:
        place, text = (
            platforms.find(os.environ),
            say("Everything is in {folder}; this project has no remote copy.", folder=project.folder),
        )
        # On a hosted machine its own disk is deleted after the session.
        is_lost = place.is_lost and place.fast in project.folder.parents
        display(HTML(box(f"{text}\n{say(place.keeps)}", AMBER) if is_lost else box(text, GREEN)))
        return
    view, standing = display(HTML(""), display_id=True), None
    try:
        for standing in settle(project, timeout=60 * minutes):
            view.update(HTML(_progress(standing)))
    except KeyboardInterrupt:
        view.update(HTML(box(say("Waiting stopped; uploading continues while this machine runs."), AMBER)))
        return
    # The time is over: the last line already shows what is left or what is wrong.
    if standing is None or standing.files_left or standing.trouble:
        return
    if "google.colab" in sys.modules and COLAB_DRIVE in project.remote.parents:
        from google.colab import drive

        view.update(HTML(box(say("Google Drive is finishing the upload …"), AMBER)))
        # A confirmed file is in Drive's cache on this machine; Colab uploads it later, and loses it if it is closed
        # before.
        drive.flush_and_unmount()
    view.update(
        HTML(box(say("Everything is saved in {remote}. You can close this machine.", remote=project.remote), GREEN))
    )


def _progress(standing: Standing) -> str:
    text = say("{n} files ({size}) left to upload", n=standing.files_left, size=size(standing.bytes_left))
    return box(message(standing.trouble), AMBER) if standing.trouble else f"<div>{html.escape(text)}</div>"
