"""Copies in a folder that people edit as well: only unchanged copies are ever replaced or removed."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from lorakit.data.image_stats import MAX_BYTES
from lorakit.data.listing import Note
from lorakit.files import write_atomic
from lorakit.files.copying import sha256_of
from lorakit.files.disk import read_file


class Copies:
    """The files that were written into `root`. `record` gets a line for each before the file is written, so that a
    copy of an interrupted call is not taken for a person's work.
    """

    def __init__(self, root: Path, record: Path):
        self.root, self.record = root, record
        # file -> hash of the inputs that decide its content
        self.keys: dict[str, str] = {}
        # file -> digests that it may have, the newest last
        self._written: dict[str, list[str]] = {}
        text = read_file(record).decode("utf-8", "replace") if record.exists() else ""
        for line in text.splitlines():
            try:
                name, key, content = map(str, json.loads(line))
            except (ValueError, TypeError, RecursionError):
                # A line torn by a kill: its file was not begun yet.
                continue
            self.keys[name] = key
            self._written.setdefault(name, []).append(content)
        # After a torn line the next one needs a newline in front.
        self._begins_anew = bool(text) and not text.endswith("\n")

    def state(self, name: str) -> str:
        """The state of a file: "missing", "made" (as written last), "older" (written before), "changed" by a person."""
        file, stored = self.root / name, self._written.get(name, [""])
        if not file.exists():
            return "missing"
        # no copy of ours, and nothing to read through
        if not file.is_file() or file.stat().st_size > MAX_BYTES:
            return "changed"
        # "older": the record was written, but the process ended before the file was replaced.
        content = sha256_of(file)
        return "made" if content == stored[-1] else "older" if content in stored else "changed"

    def write(self, name: str, data: bytes, key: str) -> None:
        content = hashlib.sha256(data).hexdigest()
        with open(self.record, "a", encoding="utf-8") as file:
            file.write("\n" * self._begins_anew + json.dumps([name, key, content], ensure_ascii=False) + "\n")
            file.flush()
            # The line is on disk before the file, also after a power cut.
            os.fsync(file.fileno())
        self._begins_anew = False
        self.keys[name] = key
        self._written.setdefault(name, []).append(content)
        (self.root / name).parent.mkdir(parents=True, exist_ok=True)
        write_atomic(self.root / name, data)

    def remove_all_but(self, names_to_keep: set[str]) -> Iterator[Note]:
        """Remove the other copies: an image and its caption together, unless one of them was changed."""
        # By stem: an image must not stay without its caption, nor the caption without its image.
        groups: dict[str, list[str]] = {}
        for name in sorted(self.keys.keys() - names_to_keep):
            groups.setdefault(str(PurePosixPath(name).with_suffix("")), []).append(name)
        for names in groups.values():
            yield from self.remove(tuple(names))

    def remove(self, names: tuple[str, ...]) -> Iterator[Note]:
        if any(self.state(name) == "changed" for name in names):
            yield Note(
                "kept", f"{self.root.name}/{names[0]}", "is no longer needed, but was changed there and is kept."
            )
            return
        for name in names:
            (self.root / name).unlink(missing_ok=True)
            self.keys.pop(name, None)
        folder = (self.root / names[0]).parent
        if folder != self.root and folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()

    def close(self) -> None:
        """Write the record anew without what is no longer needed."""
        # One line per file, with the last digest only: the record does not grow with every call.
        lines = [
            json.dumps([name, key, self._written[name][-1]], ensure_ascii=False) for name, key in self.keys.items()
        ]
        write_atomic(self.record, "".join(f"{line}\n" for line in lines))
