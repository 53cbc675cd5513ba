"""What a run's files will be, told from the names and shapes of its base: no weight is read."""

from __future__ import annotations

import io
import json
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lorakit import hub, optimizers
from lorakit.data import buckets
from lorakit.data.feed import Feed
from lorakit.lora import export
from lorakit.lora.adapter import Adapter
from lorakit.models import family
from lorakit.project import DiskFull, Project, Run
from lorakit.run.stages import cut_captions
from lorakit.training.metadata import metadata

if TYPE_CHECKING:
    import torch

    from lorakit.run.config import RunConfig
    from lorakit.run.stages import Stage

ENTRY = 110  # bytes of a cache file's header for each of its tensors
TEXTS = 8  # captions that stand for all, when the size of an encoded one is asked for


@dataclass(frozen=True, kw_only=True)
class Cached:
    """Of `total` encoded images or captions so many are `there`; the others will have `each` bytes in the mean."""

    total: int
    there: int
    each: int


class Sized:
    """A run's files, in bytes, and its captions, in tokens.

    weights     how many numbers are trained
    state       one saved state
    lora        one exported LoRA file
    images, texts     what is encoded
    cut         a note on each caption that is too long

    Raises UserError when the base is not on this machine, or not what it should be. Nothing is downloaded.
    """

    def __init__(self, config: RunConfig, project: Project, found: Sequence[Stage], dtype: torch.dtype, name: str):
        import torch

        with hub.downloading_nothing():
            model = family(config.model.family).Model(config.model, torch.device("meta"), dtype, config.trained)
        adapter = Adapter(config.adapter, model, list(config.trained), config.loop.seed)
        self.weights = sum(weight.numel() for _, weight in adapter.named())
        # a stage may have another optimizer, which remembers more
        self.state = max(state_bytes(adapter, stage.config) for stage in found)
        self.lora = lora_bytes(adapter, model, config, metadata(found, model, found[-1].plan.last, name))
        self.cut = cut_captions(found, model)
        self.images, self.texts = _caches(config, project, found, model)


def check_room(run: Run, adapter: Adapter, model: Any, found: Sequence[Stage], now: Stage) -> None:
    """Raise DiskFull when a run's disk has no room for the next state, in stage `now`, and a LoRA file.

    The states before stay until a new one is whole, so that training would be for nothing.
    """
    state = state_bytes(adapter, now.config, next(weight.device for _, weight in adapter.named()))
    lora = lora_bytes(adapter, model, now.config, metadata(found, model, now.plan.last, run.name))
    free = shutil.disk_usage(run.folder).free
    if free < state + lora:
        raise DiskFull(
            f"There is no room for what run {run.name!r} saves: its next state has {state / 1e6:.1f} MB and a LoRA "
            f"file {lora / 1e6:.1f} MB, and {free / 1e6:.1f} MB are free on the disk that {run.folder} is on. Free "
            "some space there, such as caches and runs that are no longer needed, and train again; or take a lower "
            "adapter.rank in a new run."
        )


def _caches(config: RunConfig, project: Project, found: Sequence[Stage], model: Any) -> tuple[Cached, Cached]:
    """What is encoded already of images and of captions, and what the rest will take."""
    if not any(project.cache.rglob("*.safetensors")):
        model.fingerprint = lambda part: ""  # nothing is looked for, so gigabytes need not be hashed for its name
    images, texts = {}, {}
    prompts = (*config.sample.prompts, config.sample.negative_prompt) if config.sample.prompts else ()
    for settings, samples in ((stage.config, stage.scan.samples) for stage in found):
        weight, seed = settings.loss.prior_loss_weight, settings.loop.seed
        feed = Feed(samples, settings.data, model, project.cache, seed=seed, prior_loss_weight=weight)
        for path, (sample, _) in feed.cached_images().items():
            images[path] = buckets.fit(sample.width, sample.height, settings.data).size
        texts |= feed.cached_texts(prompts)
    missing = [size for path, size in images.items() if not path.exists()]
    size_of = {size: image_bytes(model, size) for size in dict.fromkeys(missing)}
    each = round(sum(size_of[size] for size in missing) / max(1, len(missing)))
    new = [text for path, text in texts.items() if not path.exists()]
    return (
        Cached(total=len(images), there=len(images) - len(missing), each=each),
        Cached(total=len(texts), there=len(texts) - len(new), each=text_bytes(model, new) if new else 0),
    )


def state_bytes(adapter: Adapter, config: RunConfig, device: torch.device | str = "cpu") -> int:
    """Size of one saved state: the weights in float32 and what the optimizer remembers of each.

    The optimizer makes one step on `device` with two weights of each kind that occurs. Raises ConfigError when it
    cannot be built.
    """
    import torch

    # some optimizers, such as prodigy, store the first weights, but not where they are all zero
    kinds = {
        adapter.name(key, role): (tuple(weight.shape), role in adapter.variant.zero_roles)
        for key, tensors in adapter.modules()
        for role, weight in tensors.items()
    }
    examples = [kind for kind in dict.fromkeys(kinds.values()) for _ in range(2)]
    weights = [
        torch.nn.Parameter(torch.full(shape, 0.0 if is_zero else 0.1, device=device)) for shape, is_zero in examples
    ]
    optimizer = optimizers.build(config.optimizer, {"all": (weights, max(config.rates.values()))})
    for weight in weights:
        weight.grad = torch.full_like(weight, 1e-3)
    optimizer.step()
    told = optimizer.state_dict()
    of_kind = {kind: told["state"].get(index, {}) for index, kind in enumerate(examples)}
    groups = [{**group, "params": list(range(len(kinds)))} for group in told["param_groups"]]
    state = {
        "adapter": dict(adapter.named()),
        "optimizer": {"state": {i: of_kind[kind] for i, kind in enumerate(kinds.values())}, "param_groups": groups},
    }
    seen = Counter(map(id, _leaves(told["state"])))
    return _saved_bytes(state, {one for one, count in seen.items() if count > 1})


def _leaves(data: Any) -> Iterator[Any]:
    """All that stands in nested dicts."""
    for item in data.values():
        yield from _leaves(item) if isinstance(item, dict) else (item,)


def _saved_bytes(state: dict, shared: set[int]) -> int:
    """Size of what torch.save writes: the same with tensors of one number, and all other numbers.

    `shared` are ids of tensors that belong to many and are written once, such as the tables of 8-bit optimizers.
    """
    import torch

    numbers, written = 0, {}

    def hollow(data: Any) -> Any:
        nonlocal numbers
        if isinstance(data, torch.Tensor):
            if id(data) in written:
                return written[id(data)]
            numbers += (data.numel() - 1) * data.element_size()
            one = torch.empty(1, dtype=data.dtype)
            if id(data) in shared:
                written[id(data)] = one
            return one
        if isinstance(data, dict):
            return {name: hollow(item) for name, item in data.items()}
        return [hollow(item) for item in data] if isinstance(data, list) else data

    contents = io.BytesIO()
    torch.save(hollow(state), contents)
    return contents.tell() + numbers


def lora_bytes(adapter: Adapter, model: Any, config: RunConfig, metadata: dict[str, str]) -> int:
    """Size of one exported LoRA file with this metadata."""
    tensors = export.packed(adapter, model, config.save.dtype, config.form, "meta")
    header: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": "F16", "shape": list(tensor.shape), "data_offsets": [begin, end]}
    return 8 + len(json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()) + end


def image_bytes(model: Any, size: tuple[int, int]) -> int:
    """Size of the cache file of one image of `size` (width, height); `model` is on the meta device."""
    import torch

    return _cached_bytes(model.encode_image(torch.empty(3, size[1], size[0], device="meta")).values())


def text_bytes(model: Any, texts: list[str]) -> int:
    """Mean size of the cache files of texts, of a few that stand for all; `model` is on the meta device."""
    few = texts[:: -(-len(texts) // TEXTS)]
    return round(sum(_cached_bytes(model.encode_text(text).values()) for text in few) / max(1, len(few)))


def _cached_bytes(tensors: Iterable[torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() + ENTRY for tensor in tensors)
