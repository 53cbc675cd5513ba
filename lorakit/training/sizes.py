"""The sizes of a run's files, computed from the names and shapes of its base model: no weight is read."""

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
from lorakit.diffusion.prompts import Prompt
from lorakit.files.disk import DiskFull
from lorakit.lora import export
from lorakit.lora.adapter import Adapter
from lorakit.models import family
from lorakit.project import Project, Run
from lorakit.run.sampling import prompts_of
from lorakit.run.stages import cut_captions
from lorakit.training.metadata import Origin, metadata

if TYPE_CHECKING:
    import torch

    from lorakit.run.config import RunConfig
    from lorakit.run.stages import Stage

# Bytes of a safetensors header per tensor of a cache file, an estimate.
ENTRY = 110
# Captions that are encoded to estimate the size of all.
TEXTS = 8


@dataclass(frozen=True, kw_only=True)
class Cached:
    """Of `total` encoded images or captions `there` are cached; the others will take `each` bytes on average."""

    total: int
    there: int
    each: int


class Sized:
    """A run's files, in bytes, and its captions, in tokens.

    weights     trainable parameters
    state       one saved state
    lora        one exported LoRA file
    images, texts     caches of encoded images and captions
    cut         a note on each caption that is too long

    Raises UserError when the base is not on this machine or cannot be read. Nothing is downloaded.
    """

    def __init__(self, config: RunConfig, project: Project, stages: Sequence[Stage], dtype: torch.dtype, name: str):
        import torch

        # on the meta device tensors have shapes, but no data
        with hub.downloading_nothing():
            model = family(config.model.family).Model(config.model, torch.device("meta"), dtype, config.trained)
        adapter = Adapter(config.adapter, model, list(config.trained), config.loop.seed)
        self.weights = sum(weight.numel() for _, weight in adapter.named())
        # a stage may have another optimizer, which remembers more
        self.state = max(state_bytes(adapter, stage.config) for stage in stages)
        self.lora = lora_bytes(
            adapter, model, config, metadata(stages, model, stages[-1].plan.last, Origin(title=name))
        )
        self.cut = cut_captions(stages, model)
        self.images, self.texts = _caches(config, project, stages, model)


def check_room(run: Run, adapter: Adapter, model: Any, stages: Sequence[Stage], now: Stage) -> None:
    """Raise DiskFull when a run's disk has no room for the next state, in stage `now`, and a LoRA file.

    Older states are deleted only after a new one is complete, so both need room at once.
    """
    state = state_bytes(adapter, now.config, next(weight.device for _, weight in adapter.named()))
    lora = lora_bytes(adapter, model, now.config, metadata(stages, model, now.plan.last, Origin(title=run.title)))
    free = shutil.disk_usage(run.folder).free
    if free < state + lora:
        raise DiskFull(
            f"There is no room for what run {run.name!r} saves: its next state takes {state / 1e6:.1f} MB and a LoRA "
            f"file {lora / 1e6:.1f} MB, and {free / 1e6:.1f} MB are free on the disk that {run.folder} is on. Free "
            "some space there, such as caches and runs that are no longer needed, and train again; or take a lower "
            "adapter.rank in a new run."
        )


def _caches(config: RunConfig, project: Project, stages: Sequence[Stage], model: Any) -> tuple[Cached, Cached]:
    """How many images and captions are cached already, and what the rest will take."""
    if not any(project.cache.rglob("*.safetensors")):
        # a cache file's name contains the hash of gigabytes of weights, which an empty cache does not need
        model.fingerprint = lambda part: ""
    # by path, as stages share cache files: image size (width, height) in px; caption
    images, texts = {}, {}
    prompts = prompts_of(config.sample.prompts, config.sample, config.model)
    for settings, samples in ((stage.config, stage.scan.samples) for stage in stages):
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
    """Size of one saved state: the weights in float32 and the optimizer's state of each.

    Measured: the optimizer makes one step on `device` with two weights of each shape that occurs. Raises ConfigError
    when it cannot be built.
    """
    import torch

    # (shape, starts at zero): some optimizers, such as prodigy, store the initial weights unless all are zero
    kinds = {
        adapter.name(key, role): (tuple(weight.shape), role in adapter.variant.zero_roles)
        for key, tensors in adapter.modules()
        for role, weight in tensors.items()
    }
    # two of each, so that a tensor that all weights of an optimizer share is seen twice
    examples = [kind for kind in dict.fromkeys(kinds.values()) for _ in range(2)]
    weights = [
        torch.nn.Parameter(torch.full(shape, 0.0 if is_zero else 0.1, device=device)) for shape, is_zero in examples
    ]
    optimizer = optimizers.build(config.optimizer, {"all": (weights, max(config.rates.values()))})
    for weight in weights:
        weight.grad = torch.full_like(weight, 1e-3)
    optimizer.step()
    result = optimizer.state_dict()
    of_kind = {kind: result["state"].get(index, {}) for index, kind in enumerate(examples)}
    groups = [{**group, "params": list(range(len(kinds)))} for group in result["param_groups"]]
    state = {
        "adapter": dict(adapter.named()),
        "optimizer": {"state": {i: of_kind[kind] for i, kind in enumerate(kinds.values())}, "param_groups": groups},
    }
    seen = Counter(map(id, _leaves(result["state"])))
    return _saved_bytes(state, {one for one, count in seen.items() if count > 1})


def _leaves(data: Any) -> Iterator[Any]:
    """All values in nested dicts."""
    for item in data.values():
        yield from _leaves(item) if isinstance(item, dict) else (item,)


def _saved_bytes(state: dict, shared: set[int]) -> int:
    """Bytes that torch.save writes: it is run on tensors shrunk to one element, and the other elements are added.

    `shared` are ids of tensors that several weights have in common, such as the tables of 8-bit optimizers: they are
    written once.
    """
    import torch

    left_out, written = 0, {}

    def hollow(data: Any) -> Any:
        nonlocal left_out
        if isinstance(data, torch.Tensor):
            if id(data) in written:
                return written[id(data)]
            # bytes; one element is written by torch.save below
            left_out += (data.numel() - 1) * data.element_size()
            one = torch.empty(1, dtype=data.dtype)
            if id(data) in shared:
                written[id(data)] = one
            return one
        if isinstance(data, dict):
            return {name: hollow(item) for name, item in data.items()}
        return [hollow(item) for item in data] if isinstance(data, list) else data

    contents = io.BytesIO()
    torch.save(hollow(state), contents)
    return contents.tell() + left_out


def lora_bytes(adapter: Adapter, model: Any, config: RunConfig, metadata: dict[str, str]) -> int:
    """Size of one exported LoRA file with this metadata."""
    tensors = export.packed(adapter, model, config.save.dtype, config.key_layout, "meta")
    header: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for name, tensor in tensors.items():
        # safetensors: offsets in bytes from the end of the header
        begin, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": "F16", "shape": list(tensor.shape), "data_offsets": [begin, end]}
    # 8 bytes of header length, the header as JSON, the data
    return 8 + len(json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()) + end


def image_bytes(model: Any, size: tuple[int, int]) -> int:
    """Size of the cache file of one image of `size` (width, height); `model` is on the meta device."""
    import torch

    # [C, H, W]: height first
    return _cached_bytes(model.encode_image(torch.empty(3, size[1], size[0], device="meta")).values())


def text_bytes(model: Any, texts: list[Prompt]) -> int:
    """Mean size of the cache files of texts, estimated from a few; `model` is on the meta device."""
    # Evenly spaced, so that short and long captions are among them.
    few = texts[:: -(-len(texts) // TEXTS)]
    return round(sum(_cached_bytes(model.encode_prompt(text).values()) for text in few) / max(1, len(few)))


def _cached_bytes(tensors: Iterable[torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() + ENTRY for tensor in tensors)
