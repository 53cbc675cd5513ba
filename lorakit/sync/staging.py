"""Download of datasets and caches: read as one archive, changes of both sides merged."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lorakit.files.archive import SUFFIXES, ArchiveError, is_archive, unpack
from lorakit.files.copying import CorruptCopy, copy_verified, sha256_of
from lorakit.files.disk import is_full
from lorakit.project import Project
from lorakit.sync import packs

# Files read at once: an online disk takes a while for each, however small.
READERS = 8
# seconds; see Staging._changed
SLOW, SWEEP = 3.0, 600.0
# Suffix of the remote's version of a file that was changed on both sides.
OTHER = ".from-home"


@dataclass(frozen=True)
class Copied:
    """Progress of one download (bytes done, bytes in all), or a `note`, e.g. what is skipped and why."""

    what: str
    done: int
    total: int
    note: str = ""


def folders(remote: Path) -> list[str]:
    """Datasets on the remote: folders, the user's archives, or ours."""
    own = [p.name if p.is_dir() else _stem(p) for p in remote.iterdir() if p.is_dir() or is_archive(p)]
    listed = [p.stem for p in (remote / packs.ARCHIVES).glob("*.json")]
    return sorted({name for name in [*own, *listed] if packs.is_packed(name)} - {"cache"})


def staging(project: Project, folder: str) -> Iterator[Copied]:
    """Download a dataset, or its changes, including files that the user changed by hand on the remote.

    Local changes win over older remote files; files changed on both sides are kept twice. Raises OSError.
    """
    with packs.alone(project) as is_alone:
        if is_alone:
            with _temporary_folder(project, folder) as temporary:
                yield from Staging(project, folder, temporary).copied()
        else:
            yield Copied(folder, 0, 0, f"{folder} is being uploaded; changes in the remote copy are taken next time.")


class Staging:
    """One dataset on its way here."""

    def __init__(self, project: Project, folder: str, temporary: Path):
        self.project, self.folder, self.remote, self.temporary = project, folder, project.remote, temporary
        self.here = project.folder / folder
        self.record = packs.record(project, folder)
        # Without a list there: nothing was uploaded yet, or it is damaged.
        self.listed = packs.listed(self.remote, folder) or self.record
        # content (SHA-256) -> a file on this machine that has it
        self.sources: dict[str, Path] = {}
        self.good = dict(self.listed["packs"])
        # the user's own files on the remote: name -> [bytes, mtime in ns]
        self.now: dict[str, list[int]] = {}
        # Unix time of the last reading of their stamps, and how many seconds it took.
        self.swept = (0.0, 0.0)

    def copied(self) -> Iterator[Copied]:
        stamps = packs.stamps(self.here)
        ours = packs.ids(self.project, self.folder, stamps, self.record)
        self.sources |= {content: self.here / name for name, content in ours.items()}
        before = {name: content for name, (*_, content) in self.listed["home"].items()}
        # All as name -> content: the user's remote folder when last read (before) and now, our archives,
        # and the folder on this machine. First both remote sides are merged, then the result with ours.
        now = yield from self._own_files(before)
        archives = yield from self._own_archives()
        for recorded, into in ((self.listed["archives"], before), (archives, now)):
            into |= {n: i for one in recorded.values() for n, i in one["files"].items() if n not in into}
        remote, remote_conflicts = merge(before, self.listed["files"], now)
        merged, conflicts = merge(self.record["files"], ours, remote)
        yield from self._packs(set(merged.values()) | set(remote.values()))
        yield from self._again({name: content for name, content in merged.items() if content not in self.sources})
        lost = [name for name, content in merged.items() if content not in self.sources]
        for name in lost:
            yield self._note(
                f"{self.folder}/{name} is lost: neither an archive nor the folder of the remote copy has it complete"
            )
            del merged[name]
        for name in {*remote_conflicts, *conflicts}:
            yield self._note(
                f"{self.folder}/{name} was changed here and in the remote copy: yours is kept, the other is beside it "
                f"as {name}{OTHER}; delete the one that you do not want"
            )
        self._place(merged, ours)
        taken = {name: [*stamp, now[name]] for name, stamp in self.now.items() if name in now}
        self._remember(remote, taken, archives)

    def _note(self, text: str) -> Copied:
        return Copied(self.folder, 0, 0, f"{text}.")

    # ---- what the user put there -----------------------------------------------------------------------------

    def _own_files(self, before: dict[str, str]) -> Iterator[Copied]:
        """Read new and changed files of the user's remote folder; returns all of its files by content."""
        folder = self.remote / self.folder
        names = [str(path.relative_to(folder)) for path in _walk(folder)]
        # More likely a disk that is not ready than a user who deleted every image.
        if before and not names:
            yield self._note(f"The folder {folder} is empty or gone; what its archive holds is kept")
            return dict(before)
        with ThreadPoolExecutor(READERS) as readers:
            changed = yield from self._changed(folder, names, readers)
            entries = {name: before[name] for name in names if name not in changed}
            jobs = readers.map(lambda name: self._fetched(folder / name, self.temporary / "own" / name), changed)
            done, total = 0, sum(self.now[name][0] for name in changed)
            for name, problem in zip(changed, jobs, strict=True):
                done += self.now[name][0]
                yield Copied(self.folder, done, total)
                if problem:
                    yield self._note(f"{self.folder}/{name} is left out for now: {problem}")
                    # Without a stamp it is read again the next time.
                    del self.now[name]
                    entries |= {name: before[name]} if name in before else {}
                else:
                    entries[name] = self._source(self.temporary / "own" / name)
        return entries

    def _changed(
        self, folder: Path, names: list[str], readers: ThreadPoolExecutor
    ) -> Generator[Copied, None, dict[str, None]]:
        """The user's files that are new or changed, by their stamps.

        Where these take long to read, as on an online disk, they are not read again within SWEEP seconds.
        """
        recorded = {name: stamp for name, (*stamp, _) in self.listed["home"].items()}
        when, took = self.record.get("swept", (0.0, 0.0))
        if took > SLOW and time.time() - when < SWEEP and names == list(self.record["home"]):
            self.now, self.swept = recorded, (when, took)
            return {}
        begun = time.time()
        for name, stamp in zip(names, readers.map(lambda name: _stamp(folder / name), names), strict=True):
            self.now[name] = stamp
            # A sign of life: thousands of files can take minutes.
            if len(self.now) % 100 == 0:
                yield Copied(self.folder, 0, 0)
        self.swept = (begun, time.time() - begun)
        return {name: None for name in names if self.now[name] != recorded.get(name)}

    def _source(self, path: Path) -> str:
        digest = sha256_of(path)
        self.sources.setdefault(digest, path)
        return digest

    def _fetched(self, source: Path, target: Path) -> str:
        """Copy a small remote file; returns why it could not be read, or ""."""
        target.parent.mkdir(parents=True, exist_ok=True)
        size = self.now[str(target.relative_to(self.temporary / "own"))][0]
        try:
            shutil.copyfile(source, target)
        except OSError as error:
            # Of this machine's disk, or of a remote that is gone: no file could be taken.
            if is_full(error) or error.filename == str(target) or not self.remote.exists():
                raise
            return f"it cannot be copied ({error.strerror})"
        # An online disk may end a file early without an error.
        there = target.stat().st_size
        return "" if there == size else f"{there} of its {size} bytes could be read"

    def _own_archives(self) -> Iterator[Copied]:
        """Unpack the user's new and changed archives; returns for each its stamp and its files by content."""
        result = {}
        for file in sorted(path for path in self.remote.iterdir() if is_archive(path) and _stem(path) == self.folder):
            stamp, recorded = _stamp(file), self.listed["archives"].get(file.name)
            if recorded and recorded["stamp"] == stamp:
                result[file.name] = recorded
                continue
            try:
                folder = _without_lone_folder((yield from _unpacked(file, self.temporary / file.name)))
            except ArchiveError as error:
                yield self._note(str(error).replace(str(self.temporary / file.name), str(file)).rstrip("."))
                continue
            files = {name: self._source(folder / name) for name in packs.stamps(folder)}
            result[file.name] = {"stamp": stamp, "files": files}
        return result

    # ---- our own archives ------------------------------------------------------------------------------------

    def _packs(self, contents: set[str]) -> Iterator[Copied]:
        """Download our archives that hold contents missing on this machine."""
        for name, pack in self.listed["packs"].items():
            files = {n: i for n, i in self.listed["files"].items() if packs.group(self.folder, n) == name}
            # Skip an archive of which everything needed is here already.
            if not (contents & set(files.values())) - set(self.sources):
                continue
            file = self.remote / packs.ARCHIVES / pack["file"]
            try:
                folder = yield from _unpacked(file, self.temporary / pack["file"], pack["sha256"])
            except (CorruptCopy, FileNotFoundError, ArchiveError) as error:
                del self.good[name]
                yield self._note(f"The archive {file} is damaged or missing ({error}); it is created again")
                continue
            for inside, content in files.items():
                if (folder / inside).is_file():
                    self.sources.setdefault(content, folder / inside)

    def _again(self, missing: dict[str, str]) -> Iterator[Copied]:
        """Read from the user's remote folder what an archive should have held."""
        for name, content in missing.items():
            path = self.temporary / "own" / name
            if name in self.now and not self._fetched(self.remote / self.folder / name, path):
                if self._source(path) != content:
                    self.sources[content] = path
                    yield self._note(
                        f"{self.folder}/{name} is taken from the folder of the remote copy, perhaps in an older version"
                    )

    # ---- here ------------------------------------------------------------------------------------------------

    def _place(self, merged: dict[str, str], ours: dict[str, str]) -> None:
        """Make the folder here what it should be; files that are right stay untouched."""
        self.here.mkdir(parents=True, exist_ok=True)
        new = [(name, content) for name, content in merged.items() if ours.get(name) != content]
        # Copied aside first: a source may be a file here that is about to be replaced.
        for number, (_, content) in enumerate(new):
            copy = self.temporary / f"{number}.new"
            shutil.copyfile(self.sources[content], copy)
        for number, (name, _) in enumerate(new):
            (self.here / name).parent.mkdir(parents=True, exist_ok=True)
            os.replace(self.temporary / f"{number}.new", self.here / name)
        for name in ours.keys() - merged.keys():
            (self.here / name).unlink()

    def _remember(self, remote: dict[str, str], taken: dict, archives: dict) -> None:
        def inside(files: dict[str, str], name: str) -> dict[str, str]:
            return {n: i for n, i in files.items() if packs.group(self.folder, n) == name}

        # An archive counts as up to date only if it holds exactly the files that were merged.
        exact = {n: pack for n, pack in self.good.items() if inside(remote, n) == inside(self.listed["files"], n)}
        record = {"files": remote, "packs": exact, "seen": self.listed["packs"], "home": taken, "archives": archives}
        record["swept"] = self.swept
        now = packs.stamps(self.here)
        content = packs.ids(self.project, self.folder, now, self.record)
        packs.remember(self.project, self.folder, {**record, "stamps": {n: [*now[n], content[n]] for n in now}})


def merge(base: dict[str, str], ours: dict[str, str], theirs: dict[str, str]) -> tuple[dict[str, str], list[str]]:
    """Join two folders (name -> content) that were once `base`; returns the result and what was changed in both.

    The latter are kept twice: ours under its name, theirs with OTHER behind it. A change wins over a deletion.
    """
    result: dict[str, str] = {}
    both = []
    for name in {**base, **ours, **theirs}:
        before, our, their = base.get(name), ours.get(name), theirs.get(name)
        if our == their or their == before:
            chosen = our
        elif our == before:
            chosen = their
        else:
            chosen = our or their
            if our and their:
                both.append(name)
                result[name + OTHER] = their
        if chosen is not None:
            result[name] = chosen
    return result, both


def restoring_cache(project: Project) -> Iterator[Copied]:
    """Download the cache's archive, unless all its files are here. Raises OSError."""
    with packs.alone(project) as is_alone:
        listed = packs.listed(project.remote, "cache") if is_alone else None
        if listed is None or not listed["packs"]:
            return
        entry, here = {**listed, "seen": listed["packs"], "stamps": {}}, packs.stamps(project.cache)
        if listed["files"].keys() - here.keys():
            problem = yield from _cache_files(project, listed["packs"]["all"], here)
            if problem:
                entry["packs"] = {}
                # So that the sync service has a folder to upload again in place of the damaged archive.
                project.cache.mkdir(exist_ok=True)
                yield Copied("cache", 0, 0, problem)
        now = packs.stamps(project.cache)
        content = packs.ids(project, "cache", now, entry)
        packs.remember(project, "cache", {**entry, "stamps": {n: [*now[n], content[n]] for n in now}})


def _cache_files(project: Project, pack: dict, here: packs.Stamps) -> Generator[Copied, None, str]:
    """Unpack what the cache lacks; returns why that cannot be done, or ""."""
    file = project.remote / packs.ARCHIVES / pack["file"]
    with _temporary_folder(project, "cache") as temporary:
        try:
            folder = yield from _unpacked(file, temporary / file.name, pack["sha256"])
        except (CorruptCopy, FileNotFoundError, ArchiveError) as error:
            return f"The archive {file} is damaged or missing ({error}); it is created again."
        for name in packs.stamps(folder).keys() - here.keys():
            (project.cache / name).parent.mkdir(parents=True, exist_ok=True)
            os.replace(folder / name, project.cache / name)
    return ""


def _unpacked(file: Path, temporary: Path, expected_sha256: str = "") -> Generator[Copied, None, Path]:
    """Download an archive to `temporary`, check its SHA-256, unpack it beside; returns the folder."""
    total, done = file.stat().st_size, 0
    for count in copy_verified(file, temporary, expected_sha256):
        done += count
        yield Copied(file.name, done, total)
    folder = temporary.with_name(f"{temporary.name}.files")
    for _ in unpack(temporary, folder):
        pass
    temporary.unlink()
    return folder


def _without_lone_folder(folder: Path) -> Path:
    """The inside of "images/" when an archive holds nothing else; `10_mofu/` has a meaning and stays."""
    inside = [path for path in folder.iterdir() if not path.name.startswith((".", "__MACOSX"))]
    # kohya's folders begin with the number of repeats.
    is_lone = len(inside) == 1 and inside[0].is_dir() and not inside[0].name[0].isdigit()
    return inside[0] if is_lone else folder


def _walk(folder: Path) -> Iterator[Path]:
    """Every file below a folder but hidden ones, with one listing for each folder."""
    for parent, inside, files in os.walk(folder):
        inside[:] = sorted(name for name in inside if not name.startswith("."))
        yield from (Path(parent, name) for name in sorted(files) if not name.startswith("."))


def _stamp(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


def _stem(path: Path) -> str:
    """The name of an archive without `.tar.gz` and the like."""
    return next(path.name[: -len(end)] for end in SUFFIXES if path.name.lower().endswith(end))


@contextmanager
def _temporary_folder(project: Project, folder: str) -> Iterator[Path]:
    """A temporary folder on this machine's disk, empty at first and removed afterwards."""
    temporary = project.sync / "incoming" / folder
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
