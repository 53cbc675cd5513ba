"""Caption files and edit history, kept in agreement: crash-safe changes, and changes made outside of lorakit."""

from __future__ import annotations

import time
from dataclasses import replace

from lorakit.data import DataConfig
from lorakit.project import Project
from lorakit.tags.authors import PERSON, EditHistory
from lorakit.tags.edits import Change, Edit, Entry
from lorakit.tags.files import CaptionFiles, caption_content
from lorakit.tags.history import FirstCaptions, HistoryFile


class CaptionStore:
    """The captions of one dataset. Every call needs the lock (`lorakit.tags.history.exclusive`).

    A call that raises or is interrupted may leave this object half updated; make a new one then. What is on disk is
    always right: the next `sync` finishes what was begun.
    """

    def __init__(self, project: Project, config: DataConfig):
        folder = project.folder / "tags"
        # a project may hold several datasets, such as dataset/ and prepared/, each with its own captions
        dataset = f"{config.folder}/*{config.caption_extension}"
        self._log = HistoryFile(folder / "history.jsonl", dataset)
        self._first = FirstCaptions(folder / "captions.v1.json", dataset)
        self.history = EditHistory()
        self.files = CaptionFiles(project.folder, config)

    def sync(self) -> Change | None:
        """Read what other processes changed, finish what a killed one began, and record edits made outside.

        Returns the outside edits as a change by "person". Raises DataError as a scan of the dataset does.
        """
        for name, (text, content) in self._first.new().items():
            self.history.add_image(name, text, content)
        for entry in self._log.new():
            self.history.replay(entry)
        if self._log.pending is None and not self.files.have_changed():
            return None
        self.files.scan()
        if self._log.pending is not None:
            # a file that was edited by hand since the kill is left alone and counts as skipped
            unwritten, _ = self._write_files(self._log.pending)
            self.history.replay(self._log.finish(unwritten))
            self.files.scan()
        return self._record_outside_edits()

    def commit(self, entry: Entry) -> tuple[Entry, set[str], OSError | None]:
        """Make a change: record it, write the caption files, record that it is done.

        Returns the entry as written (without the images whose files could not be written), these images, and the
        last error of the disk, if there was any. Raises CaptionEditError when the history cannot be written; then no
        caption file was touched.
        """
        entry = self._numbered(entry)
        self._log.begin(entry)
        unwritten, error = self._write_files(entry)
        entry = self._log.finish(unwritten)
        self.history.replay(entry)
        return entry, unwritten, error

    def _numbered(self, entry: Entry) -> Entry:
        return replace(entry, number=self._log.last + 1, at=time.strftime("%Y-%m-%d %H:%M:%S"))

    def _write_files(self, entry: Entry) -> tuple[set[str], OSError | None]:
        """Write the caption files of an entry; returns the images that were not written, and the disk's error."""
        contents = {}
        for name, edit in entry.edits.items():
            text = edit.apply(self.history.texts[name]) if name in self.files.samples else None
            if text is None:
                # The image is gone, or its caption is another one by now.
                continue
            old, new = entry.files.get(name) or (self.history.content(name), caption_content(text))
            # the file stays the same although the caption changes: the caption came from a captions.json, for
            # example, which is never written, so that an undo cannot change it
            if old == new and (entry.undoes or entry.redoes):
                continue
            contents[name] = old, new
        unwritten, error = self.files.write(contents)
        return unwritten | (entry.edits.keys() - contents.keys()), error

    def _record_outside_edits(self) -> Change | None:
        """Compare the caption files with the history; every difference becomes part of a change by "person"."""
        contents, samples = self.files.read(), self.files.samples
        new_images = {
            name: (samples[name].written, content)
            for name, content in contents.items()
            if name not in self.history.first
        }
        self._first.add(new_images)
        for name, (text, content) in new_images.items():
            self.history.add_image(name, text, content)
        edits, files = {}, {}
        for name, content in contents.items():
            old, new, old_content = self.history.texts[name], samples[name].written, self.history.content(name)
            if old != new or old_content != content:
                edits[name] = Edit.between(old, new)
                if (old_content, content) != (caption_content(old), caption_content(new)):
                    files[name] = old_content, content
        if not edits:
            return None
        # the files hold the new captions already: nothing is written between begin and finish
        self._log.begin(self._numbered(Entry(by=PERSON, what="changed elsewhere", edits=edits, files=files)))
        entry = self._log.finish()
        self.history.replay(entry)
        return Change.of(entry, undone=False)
