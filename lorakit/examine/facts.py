"""Everything that the checks of a dataset read, gathered once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from lorakit import models
from lorakit.config import Config
from lorakit.data import DataConfig, buckets
from lorakit.data.caption_parts import are_alternatives, is_sentence, tags_of
from lorakit.data.captions import spelled_out
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
    """A dataset as training reads it; images are identified by `Sample.name`.

    root         the data folder
    stats        training image -> measurements of its file
    boxed        images with a crop box, applied when images are prepared
    error        why the dataset cannot be read, "" if it can; everything else is empty then
    excess       caption -> its end that the model does not read; None if unknown, `unmeasured` is the reason
    """

    config: DataConfig
    model: Config | None
    loop: LoopConfig
    root: Path
    scan: Scan
    stats: dict[str, ImageStats]
    boxed: frozenset[str] = frozenset()
    error: str = ""
    excess: Callable[[str], str] | None = None
    unmeasured: str = ""

    @cached_property
    def samples(self) -> tuple[Sample, ...]:
        """The training images, without regularization images."""
        return tuple(sample for sample in self.scan.samples if not sample.is_reg)

    @cached_property
    def captions(self) -> dict[str, str]:
        """Training image -> its caption as written in its file; images without one are left out."""
        return {sample.name: sample.written for sample in self.samples if sample.written}

    @cached_property
    def tags(self) -> dict[str, list[str]]:
        """Training image -> tags of its caption; images without one are left out."""
        terms = {s.name: spelled_out(s.written, s.trigger, self.config) for s in self.samples if s.written}
        return {name: tags_of(caption) for name, caption in terms.items()}

    @cached_property
    def alternatives(self) -> frozenset[str]:
        """Images whose caption files have lines that look like a caption each, while they are read as one."""
        if self.config.caption_lines != "one":
            return frozenset()
        return frozenset(sample.name for sample in self.samples if are_alternatives(sample.lines))

    @cached_property
    def triggers(self) -> str:
        """The trigger words of all concept folders, as a list of tags."""
        return ", ".join(dict.fromkeys([self.config.trigger, *(sample.trigger for sample in self.samples)])).strip(", ")

    @cached_property
    def fits(self) -> dict[str, buckets.Fit]:
        """Image (regularization images too) -> how it is resized and cropped to its bucket."""
        sizes = {(sample.width, sample.height) for sample in self.scan.samples}
        fit_of_size = {size: buckets.fit(*size, self.config) for size in sizes}
        return {sample.name: fit_of_size[sample.width, sample.height] for sample in self.scan.samples}

    def notes(self, *kinds: str) -> list[Note]:
        """The scan's notes of these kinds."""
        return [note for note in self.scan.notes if note.kind in kinds]

    def numbers(self) -> dict[str, int]:
        """`Report.numbers` of this dataset."""
        if self.error:
            return {}
        # Built as in training (indexes of samples, one per repeat), so the number of steps is exact.
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
            "tags": len({tag for tags in self.tags.values() for tag in tags if not is_sentence(tag)}),
        }


def measure_images(project: Project, config: DataConfig) -> Iterator[Progress]:
    """Measure every image, so that `examine` finds all of them in the cache; yields progress.

    Stopped and started again, it continues where it was. A missing folder has no images.
    """
    root = folder_of(config, project.folder)
    concepts = Listing(root, config.repeats).concepts if root.is_dir() else ()
    images = [path for concept in concepts for path in concept.images]
    for done, _ in enumerate(StatsCache.of(project.folder).measure(images), 1):
        yield Progress(what="images", done=done, total=len(images))


def gather(project: Project, config: DataConfig, model: Config | None, loop: LoopConfig) -> Facts:
    """Read a dataset. One that cannot be read gives `Facts` with an `error`, and the notes on its files."""
    root = folder_of(config, project.folder)
    try:
        result = scan(config, project.folder)
    except DataError as error:
        return Facts(config, model, loop, root, Scan((), error.notes), {}, error=str(error))
    names = {sample.path: sample.name for sample in result.samples if not sample.is_reg}
    # From the cache: `scan` has measured the same files.
    stats = {names[path]: measured for path, measured in StatsCache.of(project.folder).measure(names)}
    excess, unmeasured = _excess(model)
    return Facts(config, model, loop, root, result, stats, _boxed(project), "", excess, unmeasured)


def _boxed(project: Project) -> frozenset[str]:
    try:
        return frozenset(Boxes(project).names())
    # A damaged list of boxes is reported where boxes are used.
    except BoxError:
        return frozenset()


def _excess(model: Config | None) -> tuple[Callable[[str], str] | None, str]:
    """The family's `excess`, or None and the reason why it is not available."""
    if model is None:
        return None, "no base model is chosen"
    try:
        return models.family(model.family).excess(model), ""
    # What transformers raises for missing and damaged tokenizer files.
    except (UserError, ImportError, OSError, ValueError) as error:
        return None, str(error)
