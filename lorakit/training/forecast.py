"""A forecast of a run before it starts, without a GPU: its data, its steps, the files it will write and where."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorakit.data import buckets
from lorakit.data.scan import Sample
from lorakit.errors import UserError
from lorakit.machine.device import choose_precision
from lorakit.project import Project, Run
from lorakit.run.checkpoint import STATE, saved_step
from lorakit.run.config import RunConfig
from lorakit.run.stages import Stage, lr_curve, stages
from lorakit.training.sizes import Cached, Sized

if TYPE_CHECKING:
    from lorakit.data.plan import Plan

# Share of the area from which on an image counts as cropped.
CROPPED = 0.05
# Share of a disk's free space that a run may fill without a warning.
TIGHT = 0.9
# Bytes per pixel of a sample image, an estimate.
PNG = 1.6


@dataclass(frozen=True, kw_only=True)
class Concept:
    """The images of one folder: `repeats` is how often each is seen in an epoch."""

    name: str  # "" for images outside any concept folder
    images: int
    repeats: int
    is_reg: bool


@dataclass(frozen=True, kw_only=True)
class Bucket:
    """The images trained at one size (width, height in px)."""

    size: tuple[int, int]
    images: int
    samples: int  # in an epoch, with repeats
    enlarged: int  # images that are smaller than the size
    cropped: int  # images that lose more than CROPPED of their area


@dataclass(frozen=True, kw_only=True)
class StageForecast:
    """One stage of the run, or all of it; steps and epochs count from the beginning of the run."""

    steps: int
    last: int  # its last step
    steps_per_epoch: int
    epochs: int  # the last one may be incomplete
    epochs_before: int
    batch: int  # most images in an optimizer step
    images: int  # seen in all its steps
    concepts: tuple[Concept, ...]
    buckets: tuple[Bucket, ...]

    @property
    def pixels(self) -> float:
        """Mean size of a training image in pixels (width x height), over the samples of an epoch."""
        seen = sum(bucket.samples for bucket in self.buckets)
        return sum(bucket.samples * bucket.size[0] * bucket.size[1] for bucket in self.buckets) / seen


@dataclass(frozen=True, kw_only=True)
class Written:
    """Files of one kind that a run writes: `count` of `each` bytes, of which `there` exist already."""

    what: str  # states, loras, samples, images, captions
    each: int
    count: int
    there: int = 0

    @property
    def needed(self) -> int:
        """Bytes that are still to be written."""
        return self.each * max(0, self.count - self.there)


@dataclass(frozen=True, kw_only=True)
class Disk:
    """A place that a run writes to; `free` is None when the disk does not report it."""

    folder: Path
    is_remote: bool
    needed: int  # bytes, like `free`
    free: int | None

    @property
    def is_tight(self) -> bool:
        """True when more than 0.9 of what is free would be filled."""
        return self.free is not None and self.needed > TIGHT * self.free


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """Everything about a run that is known before its first step."""

    done: int  # step of the newest saved state
    stages: tuple[StageForecast, ...]
    lr: tuple[float, ...]  # learning rate of the denoiser, one value per step
    precision: str
    requested_precision: str
    device: str  # the GPU's name, or "cpu"
    capability: tuple[int, int] | None  # of the GPU
    notes: tuple[str, ...]  # on the dataset: skipped images, truncated captions
    unknown: str  # why the base cannot be read, so that sizes and caches are unknown; "" when they are known
    weights: int | None  # trainable parameters
    images: Cached | None
    texts: Cached | None
    written: tuple[Written, ...]
    disks: tuple[Disk, ...]

    @property
    def steps(self) -> int:
        """Steps of the whole run."""
        return self.stages[-1].last

    @property
    def epochs(self) -> int:
        """Epochs of the whole run."""
        return self.stages[-1].epochs_before + self.stages[-1].epochs

    def whole_epochs(self, step: int) -> int:
        """How many epochs are complete after `step` steps."""
        stage = next(stage for stage in self.stages if step <= stage.last)
        # a stage that ends within an epoch still counts it, as the next one begins another
        if step == stage.last:
            return stage.epochs_before + stage.epochs
        return stage.epochs_before + (step - stage.last + stage.steps) // stage.steps_per_epoch

    def count(self, what: str) -> int:
        """How many files of a kind are written (see Written.what)."""
        return sum(row.count for row in self.written if row.what == what)


def forecast(config: RunConfig, project: Project, run: Run | None = None) -> Forecast:
    """Forecast a run of these settings from the dataset and the headers of the base model's files.

    With `run`, its finished steps and existing files are subtracted. Nothing is downloaded and no weight is read.
    Raises DataError when there is nothing to train on, ConfigError when this machine lacks the precision.
    """
    run_stages = stages(config, project.folder)
    precision = choose_precision(config.loop.precision)
    is_cuda = precision.device.type == "cuda"
    sized, unknown = None, ""
    try:
        sized = Sized(config, project, run_stages, precision.dtype, run.name if run else "run")
    # The base is missing or damaged: steps and epochs are known all the same.
    except UserError as error:
        unknown = str(error)
    written = tuple(_written(config, run_stages, run, sized))
    needed = sum(row.needed for row in written)
    places = [(project.folder, False), *([(project.remote, True)] if project.remote else [])]
    return Forecast(
        done=saved_step(run) if run else 0,
        stages=tuple(map(_stage, run_stages)),
        lr=tuple(lr_curve(config, [stage.plan.steps_per_epoch for stage in run_stages])),
        precision=precision.name,
        requested_precision=config.loop.precision,
        device=_gpu_name() if is_cuda else "cpu",
        capability=_capability() if is_cuda else None,
        notes=tuple(
            dict.fromkeys(
                [str(note) for stage in run_stages for note in stage.scan.notes] + (sized.cut if sized else [])
            )
        ),
        unknown=unknown,
        weights=sized.weights if sized else None,
        images=sized.images if sized else None,
        texts=sized.texts if sized else None,
        written=written,
        disks=tuple(
            Disk(folder=folder, is_remote=is_remote, needed=needed, free=_free(folder)) for folder, is_remote in places
        ),
    )


def _gpu_name() -> str:
    import torch

    return torch.cuda.get_device_name()


def _capability() -> tuple[int, int]:
    import torch

    return torch.cuda.get_device_capability()


def _free(folder: Path) -> int | None:
    """Bytes free on the disk of a folder, which need not exist yet."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:
        return shutil.disk_usage(folder).free
    # the disk was removed or unmounted
    except OSError:
        return None


# ---- steps and data --------------------------------------------------------------------------------------------------


def _stage(stage: Stage) -> StageForecast:
    plan, samples = stage.plan, stage.scan.samples
    first = plan.last - plan.steps + 1
    return StageForecast(
        steps=plan.steps,
        last=plan.last,
        steps_per_epoch=plan.steps_per_epoch,
        epochs=plan.epoch_of(plan.last) - plan.epoch_of(first) + 1,
        epochs_before=plan.epoch_of(first) - 1,
        batch=plan.batch_size * plan.accumulation,
        images=_images(plan),
        concepts=tuple(_concepts(samples)),
        buckets=tuple(_buckets(samples, stage.config.data)),
    )


def _images(plan: Plan) -> int:
    """Samples in all steps of a stage."""
    # Steps of whole epochs, and of an incomplete one at the end (max_steps).
    whole, rest = divmod(plan.steps, plan.steps_per_epoch)
    # a bucket's last batch may be smaller, so that the steps of an incomplete epoch are counted one by one
    last_steps = (plan.micro_batches(plan.last - i) for i in range(rest))
    return whole * sum(map(len, plan.buckets)) + sum(len(batch) for step in last_steps for batch in step)


def _concepts(samples: Iterable[Sample]) -> Iterator[Concept]:
    # (folder, repeats, is_reg) -> images
    counts: dict[tuple[str, int, bool], int] = {}
    for sample in samples:
        folder = Path(sample.name).parent.as_posix()
        key = ("" if folder == "." else folder, sample.repeats, sample.is_reg)
        counts[key] = counts.get(key, 0) + 1
    for (name, repeats, is_reg), count in counts.items():
        yield Concept(name=name, images=count, repeats=repeats, is_reg=is_reg)


def _buckets(samples: Iterable[Sample], config: Any) -> Iterator[Bucket]:
    # (width, height) in px -> its images
    by_size: dict[tuple[int, int], list[tuple[Sample, buckets.Fit]]] = {}
    for sample in samples:
        fit = buckets.fit(sample.width, sample.height, config)
        by_size.setdefault(fit.size, []).append((sample, fit))
    for size, inside in sorted(by_size.items()):
        yield Bucket(
            size=size,
            images=len(inside),
            samples=sum(sample.repeats for sample, _ in inside),
            enlarged=sum(fit.resized[0] > sample.width for sample, fit in inside),
            cropped=sum(size[0] * size[1] < (1 - CROPPED) * fit.resized[0] * fit.resized[1] for _, fit in inside),
        )


def due(run_stages: Sequence[Stage], when: Any) -> int:
    """Number of steps of a run after which `when` (SaveConfig or SampleConfig) is due, see `Stage.due`."""
    steps = ((stage, range(stage.plan.steps_before + 1, stage.plan.last + 1)) for stage in run_stages)
    return sum(stage.due(step, when) for stage, its in steps for step in its)


# ---- what is written -------------------------------------------------------------------------------------------------


def _written(config: RunConfig, run_stages: Sequence[Stage], run: Run | None, sized: Sized | None) -> Iterator[Written]:
    prompts = len(config.sample.prompts)
    image = round(PNG * config.sample.width * config.sample.height)
    if sized:
        # one more than are kept: an old state is deleted only after the new one is complete
        kept = config.save.keep_states + 1
        yield Written(what="states", each=sized.state, count=kept, there=_there(run, f"states/*/{STATE}"))
        exports = due(run_stages, config.save)
        yield Written(what="loras", each=sized.lora, count=exports, there=_there(run, "lora/*.safetensors"))
    if prompts:
        samples = prompts * due(run_stages, config.sample)
        yield Written(what="samples", each=image, count=samples, there=_there(run, "samples/*.png"))
    if sized:
        yield Written(what="images", each=sized.images.each, count=sized.images.total - sized.images.there)
        yield Written(what="captions", each=sized.texts.each, count=sized.texts.total - sized.texts.there)


def _there(run: Run | None, pattern: str) -> int:
    return len(list(run.folder.glob(pattern))) if run else 0
