"""The parts of a Stable Diffusion model as frozen modules."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from lorakit.hub.files import ModelFileError
from lorakit.models.files.marks import Layout
from lorakit.models.files.sd_sources import Bundled, Folder, SingleFile, Source, VaeFolder
from lorakit.models.files.weights import frozen


def open_sd(path: Path, layout: Layout, vae: Path | None = None) -> SDFiles:
    """The parts of the model at `path`, each read when it is used.

    path      a diffusers folder, or a single .safetensors or .ckpt in the original layout
    layout    the family's parts
    vae       a VAE that replaces the model's: its folder, one with a folder `vae`, a file in diffusers' or the original
              layout, or a whole checkpoint

    Raises ModelFileError for a damaged file, another kind of file, a model of another family, and one that no run can
    start from (see `fitness`).
    """
    path = Path(path)
    if path.is_dir():
        base = Folder(path).check(layout, has_vae=vae is not None)
    elif path.is_file():
        base = SingleFile(path, layout).check(layout.kind, replaced=("VAE",) if vae else ())
    else:
        raise ModelFileError(f"There is no {path}; give a diffusers folder, a .safetensors or a .ckpt file.")
    return SDFiles(base, open_vae(Path(vae), layout) if vae else base)


def bundled_sd(layout: Layout) -> SDFiles:
    """The parts of the family's usual model without weights; they load on the meta device only."""
    return SDFiles(Bundled(layout), Bundled(layout))


def open_vae(path: Path, layout: Layout) -> Source:
    """A VAE in place of a model's own. Raises ModelFileError when it is no VAE, or one of another family."""
    if path.is_dir():
        source = Folder(path) if (path / "vae").is_dir() else VaeFolder(path)
    else:
        source = SingleFile(path, layout).check("a VAE alone", layout.kind)
    if (name := source.config("vae").get("_class_name", "AutoencoderKL")) != "AutoencoderKL":
        owner = " (of Anima)" if name == "AutoencoderKLQwenImage" else ""
        raise ModelFileError(f"{path} holds {name}{owner}; as the VAE of {layout.model} expected was AutoencoderKL.")
    # SD 1.5 and SDXL have VAEs of the same shapes: only the scaling factor shows whose latents they are.
    expected, actual = read_vae_config(SingleFile(path, layout)), read_vae_config(source)
    for name in ("latent_channels", "scaling_factor"):
        if actual[name] != expected[name]:
            raise ModelFileError(
                f"{path} is a VAE of another family: its {name} is {actual[name]}, that of "
                f"{layout.model} is {expected[name]}."
            )
    return source


def read_vae_config(source: Source) -> dict:
    """A VAE's configuration, with diffusers' defaults for the values that its latents depend on."""
    return {"scaling_factor": 0.18215, "latent_channels": 4, **source.config("vae")}


class SDFiles:
    """The parts of a model, each read when it is used; the VAE may come from another source."""

    def __init__(self, base: Source, vae: Source):
        self._base, self._vae = base, vae
        # A folder of configurations in the layout of diffusers.
        self.settings = base.settings

    def _source(self, part: str) -> Source:
        return self._vae if part == "vae" else self._base

    def files(self, part: str) -> list[Path]:
        """The files that the weights of a part are read from."""
        return self._source(part).files(part)

    def config_file(self, part: str) -> Path:
        """The file with the configuration of a part."""
        return self._source(part).folder(part) / "config.json"

    def unet(self, dtype: torch.dtype, device: torch.device) -> torch.nn.Module:
        """UNet2DConditionModel in `dtype` on `device`."""
        from diffusers import UNet2DConditionModel

        return self._module("unet", UNet2DConditionModel.from_config, dtype, device)

    def vae(self, dtype: torch.dtype, device: torch.device) -> torch.nn.Module:
        """AutoencoderKL in `dtype` on `device`."""
        from diffusers import AutoencoderKL

        return self._module("vae", AutoencoderKL.from_config, dtype, device)

    def text_encoder(self, dtype: torch.dtype, device: torch.device) -> torch.nn.Module:
        """CLIPTextModel in `dtype` on `device`."""
        from transformers import CLIPTextConfig, CLIPTextModel

        return self._module(
            "text_encoder", lambda config: CLIPTextModel(CLIPTextConfig.from_dict(config)), dtype, device
        )

    def text_encoder_2(self, dtype: torch.dtype, device: torch.device) -> torch.nn.Module:
        """SDXL's CLIPTextModelWithProjection in `dtype` on `device`."""
        from transformers import CLIPTextConfig, CLIPTextModelWithProjection

        return self._module(
            "text_encoder_2",
            lambda config: CLIPTextModelWithProjection(CLIPTextConfig.from_dict(config)),
            dtype,
            device,
        )

    def tokenizer(self):
        """The CLIPTokenizer, from local files alone."""
        return self._base.tokenizer()

    def unet_config(self) -> dict:
        """The UNet's configuration."""
        return self._base.config("unet")

    def vae_config(self) -> dict:
        """The VAE's configuration; `scaling_factor` is always in it."""
        return read_vae_config(self._vae)

    def text_config(self) -> dict:
        """The text encoder's configuration; `num_hidden_layers` is always in it."""
        return {"num_hidden_layers": 12, **self._base.config("text_encoder")}

    def scheduler_config(self) -> dict:
        """The noise schedule the model was trained with; `prediction_type` is always in it."""
        schedule = {"prediction_type": "epsilon", **self._base.scheduler_config()}
        kind, prediction = schedule.get("_class_name", ""), schedule["prediction_type"]
        if kind.startswith(("EDM", "FlowMatch")) or prediction not in ("epsilon", "v_prediction"):
            raise ModelFileError(
                f"{self.settings} has the noise schedule of {kind} with prediction type {prediction}; epsilon and "
                "v_prediction on a DDPM schedule can be trained here."
            )
        return schedule

    def _module(
        self, part: str, build: Callable[[dict], torch.nn.Module], dtype: torch.dtype, device: torch.device
    ) -> torch.nn.Module:
        source = self._source(part)
        where = f"The {part} in {', '.join(map(str, source.files(part)))}"
        return frozen(build, source.config(part), lambda model: source.tensors(part, model), where, dtype, device)
