"""A LoRA variant that only tests train: all that it needs is this class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lorakit.config import Field, setting
from lorakit.lora.variants import AdapterConfig
from lorakit.lora.variants.lokr import Lokr

ROLES = ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b")


@dataclass(frozen=True, kw_only=True)
class LokrConfig(AdapterConfig):
    """LoKr's own options."""

    factor: int = setting(
        -1, help="size of the small matrix", range=(-1, 64), ui=Field(label="factor", when=("type", ("lokr",)))
    )


class TrainedLokr(Lokr):
    """LoKr as peft trains it; put in the place of `Lokr`."""

    help = "a Kronecker product, trained"
    Config = LokrConfig
    trained = tuple(roles for roles in Lokr.complete if "lokr_t2" not in roles)
    stored = {role: role for role in ROLES}
    zero_roles = frozenset({"lokr_w1", "lokr_w1_a"})
    scaled_roles = ("lokr_w1", "lokr_w1_a")
    written = {layout: {**{role: role for role in ROLES}, "alpha": "alpha"} for layout in ("kohya", "comfy")}

    @classmethod
    def peft_config(cls, config: LokrConfig, targets: list[str]) -> Any:
        from peft import LoKrConfig

        alpha, factor = config.scale * config.rank, config.factor
        return LoKrConfig(r=config.rank, alpha=alpha, decompose_factor=factor, target_modules=targets)

    @classmethod
    def parameters(cls, layer: Any) -> dict[str, Any]:
        from lorakit.layers.lora_linear import NAME

        return {role: getattr(layer, role)[NAME] for role in ROLES if NAME in getattr(layer, role)}

    @classmethod
    def fill(cls, own, tensors, ratio):
        for role, tensor in tensors.items():
            own[role].copy_(tensor.float() * (ratio if role == cls.scaled_role(tensors) else 1))
