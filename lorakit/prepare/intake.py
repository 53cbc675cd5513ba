"""Import of archives, folders, files and uploads into a project's dataset; nothing there is overwritten."""

from __future__ import annotations

import filecmp
import itertools
import os
import re
import shutil
import stat
from collections import Counter
from collections.abc import Generator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePath, PurePosixPath

from lorakit.data.caption_files import BOOK_EXTENSIONS
from lorakit.data.images import EXTENSIONS, UNREAD, how_to_convert
from lorakit.data.listing import CAPTION_EXTENSIONS, MAX_REPEATS, REG_FOLDERS, Note, repeats_of
from lorakit.data.masks import CERTAIN, is_mask_folder, is_mask_name
from lorakit.errors import UserError
from lorakit.events import Progress
from lorakit.files.archive import is_archive, unpack
from lorakit.files.copying import is_abandoned, temporary_path
from lorakit.files.disk import DiskFull, is_full, reason_of
from lorakit.project import Project

METADATA = BOOK_EXTENSIONS
USED = (*EXTENSIONS, *CAPTION_EXTENSIONS, *METADATA)
# Files read at once: an online disk takes a while for each, however small.
READERS = 8
# Images, each with its captions, that are read before they are moved into place.
AHEAD = 32


class IntakeError(UserError):
    """Nothing could be added; the message says why and what to do."""


@dataclass(frozen=True)
class _File:
    """A file to add; `name` is its path inside the source."""

    path: Path
    name: PurePosixPath


Source = str | Path | Mapping[str, bytes]
# Returns lists of files, each with whether they are ours to move (unpacked or uploaded) or must be copied.
Opened = Generator[Progress | Note, None, list[tuple[list[_File], bool]]]


def import_images(project: Project, source: Source, into: str = "", repeats: int = 0) -> Iterator[Progress | Note]:
    """Copy images, captions and metadata into `<project>/dataset/`. Yields progress, a note for everything that is
    left out, kept or renamed, and at the end one for each folder with how much was added.

    source      a zip or tar, a folder, one file (its caption comes along), or what was uploaded (name -> bytes)
    into        concept folder, e.g. "mofurin", "10_mofurin" or "reg/1_girl"; "": the source's own folders
    repeats     repeats of that folder; 0: as in `into`, else as the existing folder, else 1
    Same bytes under the same name are left as they are; another file of that name gets a new name together with its
    caption. Stopped anywhere, the same call resumes. The source is only read.
    Raises IntakeError, DiskFull, and ArchiveError for an archive that cannot or must not be unpacked.
    """
    concept = concept_folder(project, into, repeats)
    try:
        with _temporary_folder(project) as temporary:
            for files, is_ours in (yield from _opened(project, source, temporary, bool(concept))):
                yield from _adding(project, files, concept, None if is_ours else temporary)
    except OSError as error:
        advice = "What was added so far is complete: add the same again to resume."
        if is_full(error):
            raise DiskFull(f"The disk that {project.dataset} is on is full; free some space. {advice}") from error
        raise IntakeError(f"Adding images stopped: {reason_of(error, project.dataset)}. {advice}") from error
    yield from _beside(project.dataset)


def concept_folder(project: Project, into: str, repeats: int) -> str:
    """The folder inside the dataset that `into` and `repeats` mean: "10_mofurin". Raises IntakeError."""
    parent, _, last = into.strip().strip("/").rpartition("/")
    if not 0 <= repeats <= MAX_REPEATS:
        raise IntakeError(
            f"repeats is {repeats}; allowed is 1 to {MAX_REPEATS}, or 0 to take them from the folder's name."
        )
    if not last:
        if repeats:
            raise IntakeError(f"repeats is {repeats}, but no folder is named: give one, e.g. mofurin.")
        return ""
    if parent not in ("", "reg") or last.startswith(".") or not last.isprintable() or set(last) & set('\\:*?"<>|'):
        raise IntakeError(f"{into!r} cannot be a concept folder: name it like mofurin, 10_mofurin or reg/1_girl.")
    times = repeats_of(last)
    name = last.partition("_")[2] if times or re.match("0+_.", last) else last
    folders = (path.name for path in (project.dataset / parent).glob("*_*"))
    there = [folder for folder in folders if repeats_of(folder) and folder.partition("_")[2] == name]
    if not (repeats or times) and len(there) == 1:
        return f"{parent}/{there[0]}".lstrip("/")
    return f"{parent}/{repeats or times or 1}_{name}".lstrip("/")


# ---- what there is ---------------------------------------------------------------------------------------------------


def _opened(project: Project, source: Source, temporary: Path, is_placed: bool) -> Opened:
    """The files of a source, and whether they are in the temporary folder already.

    A list of such pairs, since an upload may have several archives.
    is_placed   the user named a folder, so the source folder's own name is not used
    """
    if isinstance(source, Mapping):
        return (yield from _uploaded(source, temporary))
    path = Path(source).expanduser().absolute()
    if path.is_dir():
        # Resolved: a link could hide that one folder is inside the other.
        dataset, folder = project.dataset.resolve(), path.resolve()
        if dataset in (folder, *folder.parents) or folder in dataset.parents:
            raise IntakeError(
                f"{path} and the dataset {project.dataset} contain each other; its images are in use already."
            )
        files = yield from _walked(path)
        own = path.name if _says_repeats(path.name) and not is_placed else ""
        return [([replace(file, name=PurePosixPath(own, file.name)) for file in files], False)]
    if not path.is_file():
        raise IntakeError(f"{path} does not exist: give a zip or tar, a folder or an image.")
    if is_archive(path):
        return [((yield from _unpacked(path, temporary / "files")), True)]
    if path.suffix.lower() not in USED:
        raise IntakeError(f"{path} is no zip or tar, and no image that can be used ({', '.join(EXTENSIONS)} are).")
    # Its captions come along with a single image.
    along = [path.with_suffix(end) for end in CAPTION_EXTENSIONS if path.suffix.lower() in EXTENSIONS]
    return [([_File(p, PurePosixPath(p.name)) for p in (path, *along) if p.is_file()], False)]


def _uploaded(source: Mapping[str, bytes], temporary: Path) -> Opened:
    files = []
    (temporary / "upload").mkdir()
    for number, (name, content) in enumerate(source.items()):
        # Only the last part of the name: a browser may send a path, also with backslashes.
        file = temporary / "upload" / (PurePosixPath(name.replace("\\", "/")).name.strip(".") or "unnamed")
        file.write_bytes(content)
        if is_archive(file):
            files.append(((yield from _unpacked(file, temporary / f"files-{number}")), True))
            file.unlink()
    return [*files, ((yield from _walked(temporary / "upload")), True)]


def _unpacked(file: Path, folder: Path) -> Generator[Progress | Note, None, list[_File]]:
    done, total = 0, file.stat().st_size
    for count in unpack(file, folder):
        done += count
        # Unpacked bytes against packed ones: images hardly shrink, so both are about equal.
        yield Progress(what="bytes of the archive", done=min(done, total), total=total)
    return (yield from _walked(folder))


def _walked(root: Path) -> Generator[Note, None, list[_File]]:
    """The files below a folder that can be used, and a note for each of the others.

    A folder that holds everything, such as images/, is left away from their names, unless it means something.
    """
    files: list[_File] = []
    unreadable: list[OSError] = []
    for parent, inside, names in os.walk(root, onerror=unreadable.append):
        # os.walk lists links to folders among the folders; they could form a loop.
        links = [name for name in inside if os.path.islink(os.path.join(parent, name))]
        hidden = [name for name in (*inside, *names) if name.startswith((".", "__MACOSX"))]
        inside[:] = sorted({*inside} - {*links, *hidden})
        for name in sorted({*links, *hidden, *names}):
            path = Path(parent, name)
            file = _File(path, PurePosixPath(path.relative_to(root).as_posix()))
            why = "a link to a folder: add that folder" if name in links else _useless(path, name in hidden)
            if why:
                yield Note("left out", _shown_name(file.name), f"left out, {why}.")
            else:
                files.append(file)
    for error in unreadable:
        yield Note("left out", str(error.filename), f"left out, this folder cannot be read ({error.strerror}).")
    # Several nested folders, such as dataset/images/, are left away one by one.
    while files and len(tops := {file.name.parts[0] if len(file.name.parts) > 1 else "" for file in files}) == 1:
        if (top := tops.pop()) == "" or _says_repeats(top):
            break
        files = [replace(file, name=file.name.relative_to(top)) for file in files]
    return files


def _useless(path: Path, is_hidden: bool) -> str:
    """Why a file is of no use for training, by its name and kind; "" when it is."""
    if is_hidden:
        return "it is hidden, as what systems keep for themselves"
    if is_archive(path):
        return "an archive inside: add it by itself"
    if kind := UNREAD.get(path.suffix.lower()):
        return f"a {kind} image, which is not read: {how_to_convert(kind)}"
    if path.suffix.lower() not in USED:
        return f"no image or caption of a kind that is used ({', '.join(USED)})"
    return ""


def _says_repeats(folder: str) -> bool:
    """Whether a folder's name says how its images are trained, as kohya's scripts have it."""
    return folder == "reg" or repeats_of(folder) > 0


# ---- where it goes ---------------------------------------------------------------------------------------------------


def _adding(project: Project, files: list[_File], concept: str, temporary: Path | None) -> Iterator[Progress | Note]:
    """Put files in their places. They are copied into the folder `temporary` first; None: they are moved themselves."""
    # An image and its captions move together; a metadata file is alone.
    files = [replace(file, name=_understood(file.name, bool(concept))) for file in files]
    groups: dict[PurePosixPath, list[_File]] = {}
    for file in files:
        key = file.name if file.name.suffix.lower() in METADATA else file.name.with_suffix("")
        groups.setdefault(key, []).append(file)
    if concept and any(_says_repeats(file.name.parts[0]) for file in files if len(file.name.parts) > 1):
        yield Note("own folders", concept, "what lies in <repeats>_<name>/ or reg/ folders of its own goes into these.")
    folders, done = _DatasetFolders(project.dataset), 0
    with ThreadPoolExecutor(READERS) as readers:
        waiting = iter(groups.values())
        # Batches keep the order, and limit what waits in the temporary folder.
        while batch := list(itertools.islice(waiting, AHEAD)):
            targets = [(file, folders.folder(file.name, concept)) for group in batch for file in group]
            here = readers.map(lambda pair: _copied(*pair, temporary), targets)
            arrived = {file.name: result for (file, _), result in zip(targets, here, strict=True)}
            for group in batch:
                for file in group:
                    if isinstance(why := arrived[file.name], str):
                        yield Note("left out", _shown_name(file.name), f"left out, {why}.")
                whole = {file.name: arrived[file.name] for file in group if isinstance(arrived[file.name], Path)}
                yield from folders.place(whole, folders.folder(group[0].name, concept))
                done += len(group)
                yield Progress(what="files", done=done, total=len(files))
    yield from folders.notes()


def _understood(name: PurePosixPath, is_placed: bool) -> PurePosixPath:
    """The name of a file of a whole project of kohya's (img/10_mofu/, reg_data/1_girl/) without the folder around it;
    that of a mask in a folder of masks, when all files come into one folder, as of a mask beside its image.
    """
    if len(name.parts) > 2 and repeats_of(name.parts[1]) and not repeats_of(name.parts[0]):
        is_reg = name.parts[0].lower() in REG_FOLDERS
        name = PurePosixPath(*(["reg"] * is_reg), *name.parts[1:])
    if is_placed and is_mask_folder(name.parent) and name.suffix.lower() in EXTENSIONS:
        stem = name.stem if is_mask_name(name) else f"{name.stem}{CERTAIN[0]}"
        return name.parent.parent / f"{stem}{name.suffix}"
    return name


def _copied(file: _File, folder: Path, temporary: Path | None) -> Path | str:
    """A copy in the folder `temporary`, or the file in the dataset if size and time are equal; or why it is unreadable.

    Raises OSError for a full disk.
    """
    try:
        status = os.stat(file.path)
        # Only plain files: opening a pipe would block.
        if not stat.S_ISREG(status.st_mode):
            return "it is no plain file"
        if temporary is None:
            return file.path
        there = folder / file.name.name
        # The same size and mtime: added before, so an online disk need not be read again.
        if there.is_file() and (there.stat().st_size, there.stat().st_mtime_ns) == (status.st_size, status.st_mtime_ns):
            return there
        copy = temporary / "copies" / file.name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file.path, copy)
        # Keep the times: a repeated call recognises the file by them.
        os.utime(copy, ns=(status.st_atime_ns, status.st_mtime_ns))
    except OSError as error:
        if is_full(error):
            raise
        return f"it cannot be copied ({error.strerror})"
    # An online disk may end a file early without an error.
    if (size := copy.stat().st_size) != status.st_size:
        return f"only {size} of its {status.st_size} bytes could be read: add it again"
    return copy


class _DatasetFolders:
    """The dataset's folders, and a count of what was added to each."""

    def __init__(self, root: Path):
        self.root = root
        # folder -> stem -> suffixes of the files there
        self._names: dict[Path, dict[str, set[str]]] = {}
        self._added: dict[Path, Counter[str]] = {}

    def folder(self, name: PurePosixPath, concept: str) -> Path:
        """Where a file of that name goes; below a concept folder there are no others, since these are not trained."""
        is_own = not concept or (len(name.parts) > 1 and _says_repeats(name.parts[0]))
        return self.root / (name.parent if is_own else concept)

    def place(self, files: dict[PurePosixPath, Path], folder: Path) -> Iterator[Note]:
        """Move an image and its captions (name in the source -> file) to their places, under a new name if need be."""
        if not files:
            return
        folder.mkdir(parents=True, exist_ok=True)
        if folder not in self._names:
            self._names[folder] = _by_stem(folder)
        names = self._names[folder]
        first = next(iter(files)).stem
        spellings = itertools.chain([first], (f"{first}-{number}" for number in itertools.count(2)))
        # a, a-2, a-3, ...: the first stem at which nothing would be overwritten.
        stem = next(stem for stem in spellings if not _clashes(files, folder, stem, names.get(stem, set())))
        added = self._added.setdefault(folder, Counter())
        for name, file in files.items():
            target = folder / f"{stem}{name.suffix}"
            if target.exists():
                # Compared byte by byte: a caption of the same name may have other text.
                is_same = file == target or filecmp.cmp(file, target, shallow=False)
                added["there"] += is_same
                if not is_same:
                    yield Note(
                        "caption kept", _shown_name(name), "left out, the caption that is there is another and stays."
                    )
                continue
            # It is in the folder under another name, and stays there: copy it.
            if file.parent == folder:
                file = Path(shutil.copy2(file, temporary_path(target)))
            os.replace(file, target)
            names.setdefault(stem, set()).add(name.suffix)
            added["images" if name.suffix.lower() in EXTENSIONS else "captions and metadata"] += 1
            if stem != first:
                yield Note("renamed", _shown_name(name), f"added as {target.name}, since another {name.name} is there.")

    def notes(self) -> Iterator[Note]:
        """A note for each folder with how many files were added, and how many were there."""
        for folder, counts in sorted(self._added.items()):
            there = counts.pop("there", 0)
            pieces = [f"{count} {kind} added" for kind, count in counts.items()]
            pieces += [f"{there} files were there already"] if there else []
            if pieces:
                yield Note("added", _shown_name(folder.relative_to(self.root.parent)), f"{', '.join(pieces)}.")


def _by_stem(folder: Path) -> dict[str, set[str]]:
    stems: dict[str, set[str]] = {}
    for name in os.listdir(folder):
        stems.setdefault(PurePosixPath(name).stem, set()).add(PurePosixPath(name).suffix)
    return stems


def _clashes(files: dict[PurePosixPath, Path], folder: Path, stem: str, there: set[str]) -> bool:
    """Whether an image with its captions cannot lie under this stem, as files that are there are of another image.

    A caption of the very same image is no clash: the one that is there was perhaps corrected since.
    """

    def differs(name: PurePosixPath, file: Path) -> bool:
        target = folder / f"{stem}{name.suffix}"
        return name.suffix in there and file != target and not filecmp.cmp(file, target, shallow=False)

    with_pixels = {name: file for name, file in files.items() if name.suffix.lower() not in CAPTION_EXTENSIONS}
    if any(differs(*item) for item in with_pixels.items()):
        return True
    own = {name.suffix for name in with_pixels}
    if any(end.lower() in EXTENSIONS for end in own):
        if any(end.lower() in EXTENSIONS for end in there - own):
            # a.png beside a.jpg would share the caption a.txt.
            return True
        if not own & there:
            return any(differs(*item) for item in files.items())
    return False


def _beside(dataset: Path) -> Iterator[Note]:
    """A note when there are both <repeats>_<name>/ folders and images outside of these, which are not trained."""
    there = {path.name: path.is_dir() for path in dataset.glob("[!.]*")}
    loose = [
        name
        for name, is_folder in sorted(there.items())
        if not _says_repeats(name) and (is_folder or name.lower().endswith(EXTENSIONS))
    ]
    if loose and any(_says_repeats(name) for name, is_folder in there.items() if is_folder and name != "reg"):
        names = ", ".join(loose[:5]) + (f" and {len(loose) - 5} more" if len(loose) > 5 else "")
        yield Note("beside", "dataset", f"{names}: not trained beside <repeats>_<name>/ folders; move them into one.")


def _shown_name(name: PurePath) -> str:
    """A name as valid text; bytes that are not UTF-8 are spelled out."""
    return os.fsencode(str(name)).decode("utf-8", "backslashreplace")


@contextmanager
def _temporary_folder(project: Project) -> Iterator[Path]:
    """A temporary folder on the dataset's disk. Folders that killed processes left behind are removed."""
    for left in project.dataset.glob(".intake.*.part"):
        if is_abandoned(left):
            shutil.rmtree(left, ignore_errors=True)
    temporary = temporary_path(project.dataset / "intake")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
