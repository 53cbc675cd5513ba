"""Everything that the checks of a dataset look at, read once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

from lorakit import models
from lorakit.config import Config
from lorakit.data import DataConfig, buckets
from lorakit.data.captions import tags_of
from lorakit.data.image_stats import ImageStats, StatsCache
from lorakit.data.listing import Listing, Note, folder_of
from lorakit.data.plan import Plan
from lorakit.data.scan import DataError, Sample, Scan, scan
from lorakit.errors import UserError
from lorakit.events import Progress
from lorakit.prepare.boxes import BoxError, Boxes
from lorakit.project import Project
from lorakit.run.config import LoopConfig


@dataclass(frozen=True)
class Facts:
    """A dataset as it is trained; names are `Sample.name`.

    error        why it cannot be read, "" when it can; all else is empty then
    looks        training image -> what its file is
    boxed        images with a box, by which they are cropped when they are prepared
    excess       caption -> its end that the model does not read; None when that is not known, `unmeasured` says why
    """

    config: DataConfig
    model: Config | None
    loop: LoopConfig
    scan: Scan
    looks: dict[str, ImageStats]
    boxed: frozenset[str] = frozenset()
    error: str = ""
    excess: Callable[[str], str] | None = None
    unmeasured: str = ""

    @cached_property
    def samples(self) -> tuple[Sample, ...]:
        """The training images, without regularization."""
        return tuple(sample for sample in self.scan.samples if not sample.is_reg)

    @cached_property
    def captions(self) -> dict[str, str]:
        """Training image -> its caption as it was written, of those that have one."""
        return {sample.name: sample.written for sample in self.samples if sample.written}

    @cached_property
    def tags(self) -> dict[str, list[str]]:
        """Training image -> the tags of its caption, of those that have one."""
        return {name: tags_of(caption) for name, caption in self.captions.items()}

    @cached_property
    def fits(self) -> dict[str, buckets.Fit]:
        """Image, regularization too -> its bucket and how it gets there."""
        sizes = {(sample.width, sample.height) for sample in self.scan.samples}
        known = {size: buckets.fit(*size, self.config) for size in sizes}
        return {sample.name: known[sample.width, sample.height] for sample in self.scan.samples}

    def notes(self, *kinds: str) -> list[Note]:
        """What the scan notes of these kinds."""
        return [note for note in self.scan.notes if note.kind in kinds]

    def numbers(self) -> dict[str, int]:
        """What `Report.numbers` holds."""
        if self.error:
            return {}
        by_size: dict[tuple[int, int], list[int]] = {}
        for index, sample in enumerate(self.scan.samples):
            by_size.setdefault(self.fits[sample.name].size, []).extend([index] * sample.repeats)
        loop, all_buckets = self.loop, tuple(map(tuple, by_size.values()))
        plan = Plan(all_buckets, loop.batch_size, loop.gradient_accumulation_steps, loop.epochs, loop.steps, loop.seed)
        return {
            "images": len(self.samples),
            "regularization": len(self.scan.samples) - len(self.samples),
            "images_per_epoch": sum(map(len, all_buckets)),
            "steps_per_epoch": plan.steps_per_epoch,
            "buckets": len(by_size),
            "tags": len({tag for tags in self.tags.values() for tag in tags}),
        }


def measure_images(project: Project, config: DataConfig) -> Iterator[Progress]:
    """Look at every image, so that all of them are remembered when the set is examined; yields how many are done.

    Stopped anywhere, it goes on where it was. A folder that is missing holds none.
    """
    root = folder_of(config, project.folder)
    concepts = Listing(root, config.repeats).concepts if root.is_dir() else ()
    images = [path for concept in concepts for path in concept.images]
    for done, _ in enumerate(StatsCache.of(project.folder).measure(images), 1):
        yield Progress(what="images", done=done, total=len(images))


def gather(project: Project, config: DataConfig, model: Config | None, loop: LoopConfig) -> Facts:
    """Read a dataset; what is wrong with all of it is a fact too."""
    try:
        found = scan(config, project.folder)
    except DataError as error:
        return Facts(config, model, loop, Scan((), ()), {}, error=str(error))
    names = {sample.path: sample.name for sample in found.samples if not sample.is_reg}
    looks = {names[path]: look for path, look in StatsCache.of(project.folder).measure(names)}
    excess, unmeasured = _excess(model)
    return Facts(config, model, loop, found, looks, _boxed(project), "", excess, unmeasured)


def _boxed(project: Project) -> frozenset[str]:
    try:
        return frozenset(Boxes(project).names())
    except BoxError:  # a damaged list, which is told where boxes are used
        return frozenset()


def _excess(model: Config | None) -> tuple[Callable[[str], str] | None, str]:
    """The family's `excess`, or why it cannot be had."""
    if model is None:
        return None, "no base model is chosen"
    try:
        return models.family(model.family).excess(model), ""
    except (UserError, ImportError, OSError, ValueError) as error:  # what transformers raises for broken files
        return None, str(error)
