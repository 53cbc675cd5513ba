"""Trainable LoRA weights on a frozen model, over peft."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from lorakit.lora.variants import AdapterConfig, variant
from lorakit.randomness import seed_of

if TYPE_CHECKING:
    import torch


class Adapter:
    """The adapter on the given parts of a model; its weights are float32 whatever the model computes in.

    It starts as the identity: a model with a new adapter computes what it computed before.
    """

    def __init__(self, config: AdapterConfig, model: Any, parts: list[str], seed: int):
        import torch
        from peft import inject_adapter_in_model

        from lorakit.layers.lora_linear import NAME

        self.config = config
        self.variant = variant(config.type)
        self._name = NAME
        # (part, module name) -> peft layer. Its order is that of the optimizer's parameters, which training states
        # store by number, so it must not change.
        self.layers: dict[tuple[str, str], Any] = {}
        for part in parts:
            root, targets = model.load(part), model.targets(part)
            # peft draws the first weights from torch's own generator, which is put back afterwards
            # devices=[]: the draws happen on the CPU, so the same seed gives the same weights on every machine.
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed_of(seed, "adapter", part))
                inject_adapter_in_model(self.variant.peft_config(config, targets), root, NAME)
            self.layers |= {(part, name): root.get_submodule(name) for name in targets}
        for _, parameter in self.named():
            # next to an offloaded weight peft creates them in host memory
            parameter.data = parameter.data.to(model.device, torch.float32)

    def modules(self) -> Iterator[tuple[tuple[str, str], dict[str, torch.nn.Parameter]]]:
        """((part, module), its trained tensors by role) of every module; see `Variant` for roles and shapes."""
        for key, layer in self.layers.items():
            yield key, self.variant.parameters(layer)

    def name(self, key: tuple[str, str], role: str) -> str:
        """The name of a tensor in a training state: `<part>.<module>.<the name that its role is stored under>`."""
        part, module = key
        return f"{part}.{module}.{self.variant.stored[role]}"

    def named(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        """(name, weight) of every trained tensor, always in the same order."""
        for key, tensors in self.modules():
            for role, weight in tensors.items():
                yield self.name(key, role), weight

    def parameters(self, part: str) -> list[torch.nn.Parameter]:
        """The trained tensors of one part, always in the same order."""
        return [weight for name, weight in self.named() if name.startswith(part + ".")]

    def weights(self) -> dict[str, torch.Tensor]:
        """A copy of all trained tensors by name, float32 on the CPU."""
        return {name: weight.detach().cpu().clone() for name, weight in self.named()}

    def load(self, weights: dict[str, torch.Tensor]) -> None:
        """Copy tensors into the adapter, in place: an optimizer already holds its parameters.

        Raises ValueError, and changes nothing, when names or shapes do not match one to one.
        """
        own = dict(self.named())
        if own.keys() != weights.keys():
            odd = sorted(own.keys() ^ weights.keys())
            raise ValueError(f"The weights do not fit this adapter: {len(odd)} names differ, the first is {odd[0]}.")
        # First all names and shapes are checked, then the first tensor is written.
        for name, weight in weights.items():
            if own[name].shape != weight.shape:
                raise ValueError(
                    f"{name} is {tuple(weight.shape)}, this adapter has {tuple(own[name].shape)} (another rank?)."
                )
        for name, weight in weights.items():
            own[name].data.copy_(weight)

    def set_strength(self, strength: float) -> None:
        """Multiply the adapter's effect: 0 is the base model, 1 is as trained."""
        for layer in self.layers.values():
            layer.scaling[self._name] = self.config.scale * strength

    def delta(self, part: str, module: str) -> torch.Tensor:
        """The change of one module's weight at strength 1, float32 on the CPU, shaped like the weight."""
        layer = self.layers[part, module]
        tensors = {role: weight.detach().cpu() for role, weight in self.variant.parameters(layer).items()}
        change = self.config.scale * self.variant.product(tensors)
        return change.reshape(layer.base_layer.weight.shape)
