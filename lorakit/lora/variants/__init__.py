"""LoRA variants: one file of this folder each, which trains, reads and writes it; the folder is the registry."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from lorakit.config import Config, Field, Slider, setting

if TYPE_CHECKING:
    import torch

    # one tensor of a module by its role, such as "down" and "up"
    Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class AdapterConfig(Config):
    """The settings that all variants have; one with options of its own has a subclass of it."""

    type: str = setting(
        "lora",
        help="which LoRA variant is trained",
        choices=lambda: {name: variant(name) for name in trainable()},
        ui=Field(label="adapter type (network module)"),
    )
    rank: int = setting(
        16,
        help="how much can be learned; the file grows with it",
        range=(1, 768),
        ui=Slider(4, 128, 4, label="rank (network dim)", basic=True),
    )
    alpha: float = setting(
        16.0,
        help="the change is scaled by alpha / rank; 0 means alpha = rank",
        range=(0, 1536),
        ui=Slider(0, 128, 1, label="alpha (network alpha)"),
    )
    dropout: float = setting(
        0.0,
        help="share of inputs hidden from the adapter at random; more works against overfitting",
        range=(0, 0.9),
        ui=Slider(0, 0.5, 0.01, label="dropout (network dropout)"),
    )
    network_weights: str = setting(
        "",
        help="a LoRA file that training starts from: a path, a Hugging Face file or a URL; rank must be at least the "
        "file's; empty: from scratch",
        ui=Field(label="start from LoRA (network weights)"),
    )

    @property
    def scale(self) -> float:
        """alpha / rank, with alpha 0 read as alpha = rank."""
        return (self.alpha or self.rank) / self.rank


class Variant:
    """One LoRA variant; file `lokr.py` holds class `Lokr`. It is used as a class and has no state.

    A module of a LoRA file has a few tensors, each in a role: plain LoRA has `down` [rank, in, ...] and `up`
    [out, rank, ...], LoKr up to five. Everything outside this folder knows tensors by their roles alone.

    For reading:

    name            its file's name and the value of `adapter.type`
    title           its name in sentences
    help            one line for the form
    complete        sets of roles with which a module is complete
    spellings       role -> regular expression of how files spell it behind the module's name
    rank_roles      the first of these that a module has is [rank, ...]
    network_module  kohya's name of the code that trains it (metadata `ss_network_module`)

    For training, empty where a variant is only read:

    Config          its settings; a field of its own is shown for it alone with `when=("type", ("lokr",))`
    trained         sets of roles that a trained module may have, among those of `complete`
    stored          role -> name of the tensor in a training state, in the optimizer's order
    zero_roles      roles whose tensors are zero in a new adapter, so that it starts as the identity
    scaled_roles    the first of these that a module has takes alpha / rank into it where a file has no alpha
    written         layout of LoRA files -> role -> how it is spelled there; "alpha" among them where it is written
    """

    name: ClassVar[str]
    title: ClassVar[str]
    help: ClassVar[str]
    complete: ClassVar[tuple[frozenset[str], ...]]
    spellings: ClassVar[Mapping[str, str]]
    rank_roles: ClassVar[tuple[str, ...]]
    network_module: ClassVar[str]

    Config: ClassVar[type[AdapterConfig]] = AdapterConfig
    trained: ClassVar[tuple[frozenset[str], ...]] = ()
    stored: ClassVar[Mapping[str, str]] = {}
    zero_roles: ClassVar[frozenset[str]] = frozenset()
    scaled_roles: ClassVar[tuple[str, ...]] = ()
    written: ClassVar[Mapping[str, Mapping[str, str]]] = {}

    # ---- reading -----------------------------------------------------------------------------------------------------

    @classmethod
    def rank(cls, shapes: Mapping[str, Sequence[int]]) -> int | None:
        """The rank, from the tensors' shapes by role; None where a module has full matrices only."""
        return next((shapes[role][0] for role in cls.rank_roles if role in shapes), None)

    @classmethod
    def product(cls, tensors: Tensors) -> torch.Tensor:
        """The change of a weight at alpha / rank = 1: [out, in, ...], or with the dimensions after `out` flattened.

        Raises RuntimeError or IndexError (torch's) when the tensors' shapes do not go together.
        """
        raise NotImplementedError

    # ---- training ----------------------------------------------------------------------------------------------------

    @classmethod
    def peft_config(cls, config: AdapterConfig, targets: list[str]) -> Any:
        """The peft config that puts this variant on the modules named `targets`."""
        raise NotImplementedError

    @classmethod
    def parameters(cls, layer: Any) -> dict[str, torch.nn.Parameter]:
        """The trained tensors of a peft layer by role, in the order of `stored`."""
        raise NotImplementedError

    @classmethod
    def pack(cls, layout: str, module: str, tensors: Tensors, scale: float, dtype: torch.dtype) -> Tensors:
        """A module's tensors under their names in a LoRA file; `module` is its name in that layout."""
        import torch

        spelled, scaled = cls.written[layout], cls.scaled_role(tensors)
        rank = cls.rank({role: tensor.shape for role, tensor in tensors.items()})
        # where there is no rank, readers take a scale of 1 whatever alpha is
        has_alpha = "alpha" in spelled and rank is not None
        packed = {
            f"{module}.{spelled[role]}": (tensor if has_alpha or role != scaled else scale * tensor).to(dtype)
            for role, tensor in tensors.items()
        }
        return packed | ({f"{module}.{spelled['alpha']}": torch.tensor(scale * rank)} if has_alpha else {})

    @classmethod
    def scaled_role(cls, roles: Container[str]) -> str:
        """The role among a module's that takes alpha / rank where a file has no alpha."""
        return next(role for role in cls.scaled_roles if role in roles)

    @classmethod
    def why_not_trained(cls, shapes: Mapping[str, Sequence[int]]) -> str:
        """Why a run cannot train a file's module of these shapes by role on, e.g. "has lokr_w1, lokr_w2"; "" if it can.

        Adapters train linear layers and 1x1 convolutions, so kernels of another size have no place.
        """
        if "dora" in shapes:
            return "is a DoRA, whose change depends on the base's weights"
        if shapes.keys() - {"alpha"} not in cls.trained:
            return f"has {', '.join(sorted(shapes))}"
        kernels = (tuple(shape)[2:] for shape in shapes.values())
        large = next((kernel for kernel in kernels if any(side != 1 for side in kernel)), None)
        return f"is a convolution of {'x'.join(map(str, large))}" if large else ""

    @classmethod
    def fill(cls, own: Tensors, tensors: Tensors, ratio: float) -> None:
        """Write a file's module into a new adapter's tensors, in place; `ratio` is the file's alpha / rank over the
        adapter's. The change is exactly the file's, also where the adapter's rank is larger.
        """
        raise NotImplementedError


# ---- the registry ----------------------------------------------------------------------------------------------------


def names() -> tuple[str, ...]:
    """All variants: the files of this folder without a leading underscore."""
    return tuple(sorted(file.name for file in pkgutil.iter_modules(__path__) if not file.name.startswith("_")))


def variant(name: str) -> type[Variant]:
    """A variant by its name, which must be one of `names()`."""
    # Imported when needed: listing the variants must not load all of them.
    return getattr(importlib.import_module(f"{__name__}.{name}"), name.capitalize())


def trainable() -> tuple[str, ...]:
    """Names of the variants that can be trained; the others are only read."""
    return tuple(name for name in names() if variant(name).trained)


def config_class(name: Any) -> type[AdapterConfig]:
    """The settings of a variant; of a name that cannot be trained those that all have, which refuse it."""
    return variant(name).Config if name in trainable() else AdapterConfig


def of_roles(roles: set[str]) -> type[Variant] | None:
    """The variant of a module with tensors in these roles; None when they are complete for none."""
    # Every variant may have alpha and a DoRA's magnitudes, so these do not tell them apart.
    return next((known for known in map(variant, names()) if roles - {"alpha", "dora"} in known.complete), None)


def titles() -> str:
    """All variants in a sentence: "LoHa, LoKr or LoRA"."""
    *others, last = (variant(name).title for name in names())
    return f"{', '.join(others)} or {last}"
