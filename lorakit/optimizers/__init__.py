"""Optimizers, a row each; heavy or optional packages are imported when their row is chosen."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, fields
from types import ModuleType
from typing import TYPE_CHECKING, Any

from lorakit.config import Config, ConfigError, Field, Slider, setting

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Optimizer:
    """One row of the registry; nothing outside it needs to know an optimizer by name.

    help            one line for people who choose
    build           parameter groups and arguments -> the optimizer
    defaults        its arguments when `optimizer.args` is empty
    learning_rate   a good first value, shown beside the row
    package         what must be installed beside torch, "" for nothing
    adapts_rate     whether it estimates the step size itself: each parameter group then holds its factor `d`
    eight_bit       the row that is this optimizer with an 8-bit state, "" when there is none
    state           bytes for each trained parameter, of each tensor that it keeps
    """

    help: str
    build: Callable[[list[dict], dict[str, Any]], torch.optim.Optimizer]
    defaults: dict[str, Any]
    learning_rate: float = 1e-4
    package: str = ""
    adapts_rate: bool = False
    eight_bit: str = ""
    # two running means in float32
    state: tuple[int, ...] = (4, 4)


def _optional(module: str, package: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    # A broken bitsandbytes (another CUDA, no driver) fails in any of these ways.
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        raise ConfigError(
            f"This optimizer needs the package {package}, which is not usable here ({error}): "
            f"pip install {package}, or choose optimizer.name {DEFAULT}."
        ) from None


def _adamw(groups: list[dict], args: dict[str, Any]) -> torch.optim.Optimizer:
    import torch

    # fused: one kernel for many tensors; a LoRA has hundreds of small ones, and a loop over them would be slow.
    return torch.optim.AdamW(groups, fused=True, **args)


def _adamw8bit(groups: list[dict], args: dict[str, Any]) -> torch.optim.Optimizer:
    return _optional("bitsandbytes", "bitsandbytes").optim.AdamW8bit(groups, **args)


def _prodigy(groups: list[dict], args: dict[str, Any]) -> torch.optim.Optimizer:
    _optional("prodigyopt", "prodigyopt")
    from lorakit.optimizers.prodigy import Prodigy

    return Prodigy(groups, **args)


# Needs no package and works everywhere.
DEFAULT = "adamw"
OPTIMIZERS = {
    "adamw": Optimizer(
        "the standard choice: fast, exact, little memory at LoRA sizes",
        _adamw,
        {"betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.01},
        eight_bit="adamw8bit",
    ),
    "adamw8bit": Optimizer(
        "AdamW with an 8-bit state (bitsandbytes): saves VRAM, though little for a LoRA",
        _adamw8bit,
        {"betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.01},
        package="bitsandbytes",
        state=(1, 1),
    ),
    "prodigy": Optimizer(
        "finds the learning rate itself; set the learning rate to 1",
        _prodigy,
        {
            "betas": (0.9, 0.999),
            "weight_decay": 0.01,
            "decouple": True,
            "d_coef": 2.0,
            "use_bias_correction": True,
            # The estimate of d is divided by the learning rates so far; a warmup would make it far too large.
            "safeguard_warmup": True,
        },
        learning_rate=1.0,
        package="prodigyopt",
        adapts_rate=True,
        # and a sum of gradients, and the weights that it began with
        state=(4, 4, 4, 4),
    ),
}


def _rate(default: float, *, help: str, label: str, basic: bool = False) -> Any:
    """A learning rate; its slider is logarithmic, from 1e-6 to 1e-2 with twenty steps per factor of ten."""
    # The range goes beyond the slider: Prodigy's learning rate is 1.
    return setting(default, help=help, range=(0, 10), ui=Slider(1e-6, 1e-2, 0.05, log=True, label=label, basic=basic))


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig(Config):
    """Optimizer, learning rates and gradient clipping."""

    name: str = setting(
        DEFAULT,
        help="the algorithm that updates the weights; it also decides what a good learning rate is",
        choices=lambda: OPTIMIZERS,
        ui=Field(label="optimizer"),
    )
    learning_rate: float = _rate(
        1e-4,
        help="higher learns faster, too high destroys details; 0 = do not train the UNet / DiT",
        label="learning rate (UNet / DiT)",
        basic=True,
    )
    text_encoder_lr: float = _rate(
        0.0,
        help="usually half of the learning rate or less; 0 = do not train the (first) text encoder",
        label="text encoder learning rate",
    )
    text_encoder_2_lr: float = _rate(
        0.0,
        help="learning rate of SDXL's second text encoder; 0 = do not train it",
        label="text encoder 2 learning rate",
    )
    text_conditioner_lr: float = _rate(
        0.0,
        help="Anima's LLM adapter forgets names easily: at most half of the learning rate; 0 = do not train it",
        label="LLM adapter learning rate",
    )
    text_encoder_stop_step: int = setting(
        0,
        help="stop training the text encoders (and Anima's LLM adapter) after this step; 0 = never",
        range=(0, None),
        ui=Field(label="stop text encoder training at step"),
    )
    max_grad_norm: float = setting(
        1.0,
        help="gradient clipping: larger gradients are scaled down to this norm; 0 = off",
        range=(0, 1000),
        ui=Field(label="max grad norm"),
    )
    args: dict = setting(
        {},
        help="extra arguments of the optimizer, e.g. {weight_decay: 0.1}",
        ui=Field(label="optimizer arguments"),
    )

    def conflicts(self) -> list[str]:
        problems = []
        row = OPTIMIZERS[self.name]
        rates = {name: getattr(self, name) for name in RATES}
        if not any(rates.values()):
            problems.append(f"{', '.join(rates)} are all 0, so nothing would be trained; set one of them.")
        if self.text_encoder_stop_step and not self.learning_rate:
            problems.append(
                "text_encoder_stop_step would stop everything that is trained; set learning_rate, or remove it."
            )
        # One factor d is estimated over all parameters, so different base rates would be scaled by the same d.
        if row.adapts_rate and len(set(rates.values()) - {0}) > 1:
            different = ", ".join(f"{name} {rate:g}" for name, rate in rates.items() if rate)
            problems.append(
                f"the learning rates differ ({different}); {self.name} finds one rate for all parts: "
                "set them to the same value, or to 0."
            )
        if self.learning_rate and not row.adapts_rate and self.text_conditioner_lr > self.learning_rate / 2:
            problems.append(
                f"text_conditioner_lr is {self.text_conditioner_lr:g}; it must be at most half of learning_rate "
                f"({self.learning_rate:g}), or the base model forgets names and concepts."
            )
        return problems


# Settings that hold a learning rate; a family's `rates` maps each part that it can train to one of them.
RATES = tuple(f.name for f in fields(OptimizerConfig) if f.name.endswith(("learning_rate", "_lr")))


def build(config: OptimizerConfig, groups: dict[str, tuple[list, float]]) -> torch.optim.Optimizer:
    """The optimizer over named groups {part: (parameters, base learning rate)}.

    Each parameter group remembers its `part` and `base_lr`, from which `set_rates` computes the rate of every step.
    Raises ConfigError for an argument that the optimizer does not know, or when its package is missing.
    """
    row = OPTIMIZERS[config.name]
    if "lr" in config.args:
        raise ConfigError(f"optimizer.args has lr; set {', '.join(f'optimizer.{name}' for name in RATES)} instead.")
    # YAML has lists only; optimizers expect tuples.
    args = {**row.defaults, **{name: tuple(v) if isinstance(v, list) else v for name, v in config.args.items()}}
    for name, default in row.defaults.items():
        if isinstance(default, tuple) and not (isinstance(args[name], tuple) and len(args[name]) == len(default)):
            raise ConfigError(f"optimizer.args.{name} is {args[name]!r}; expected a list like {list(default)}.")
    try:
        optimizer = row.build(
            [
                {"params": parameters, "lr": rate, "base_lr": rate, "part": part}
                for part, (parameters, rate) in groups.items()
            ],
            args,
        )
    # The package is missing, which _optional has explained.
    except ConfigError:
        raise
    except (TypeError, ValueError) as error:
        raise ConfigError(f"optimizer.args {config.args} do not fit {config.name}: {error}.") from None
    # An attribute, not a key of the groups: those are stored in training states, also in older ones.
    optimizer.adapts_rate = row.adapts_rate
    return optimizer


def why_unusable(name: str) -> str:
    """Reason this optimizer fails on this machine, with what to do; "" if it works.

    Runs one real step, on the GPU if there is one: a package may import and still be built for another CUDA.
    """
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    # 8-bit optimizers keep tensors below 4096 elements in fp32; this one is larger.
    weight = torch.nn.Parameter(torch.ones(128, 128, device=device))
    weight.grad = torch.ones_like(weight)
    row = OPTIMIZERS[name]
    try:
        row.build([{"params": [weight], "lr": row.learning_rate}], dict(row.defaults)).step()
        # With a gradient of 1 every weight must fall below 1; a kernel built for another GPU may do nothing.
        has_moved = bool(((weight < 1) & weight.isfinite()).all())
    except ConfigError as error:  # the package is missing or broken
        return str(error)
    except (RuntimeError, NotImplementedError, AttributeError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        return f"{name} fails on this machine ({reason}): choose optimizer.name {DEFAULT}."
    return "" if has_moved else f"a step of {name} does not change the weights: choose optimizer.name {DEFAULT}."


def set_rates(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set every group's learning rate to its base rate times `factor` (the schedule at this step)."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor


def effective_rate(optimizer: torch.optim.Optimizer) -> float:
    """The step size of the first group of an optimizer from `build`: lr, times d where it estimates that factor."""
    group = optimizer.param_groups[0]
    return group["lr"] * float(group["d"]) if optimizer.adapts_rate else group["lr"]
