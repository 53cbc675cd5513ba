"""What a LoRA file says about itself to people who browse LoRAs: author, description, thumbnail (modelspec 1.0.1)."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lorakit.project import Run
    from lorakit.run.checkpoint import SaveConfig

# px of each side of a thumbnail, as modelspec recommends.
THUMBNAIL = 256
# Entries that a file's maker writes, in the order of `card`.
CARD = tuple(
    f"modelspec.{name}" for name in ("title", "author", "description", "license", "tags", "usage_hint", "thumbnail")
)


def card(save: SaveConfig, title: str, thumbnail: Path | None = None) -> dict[str, str]:
    """What a file says about itself to people who browse LoRAs (modelspec 1.0.1); entries that are empty are absent.

    Source: https://github.com/Stability-AI/ModelSpec.
    """
    texts = (title, save.author, save.description, save.license, save.tags, save.usage_hint)
    entries = dict(zip(CARD, (*texts, _data_url(thumbnail) if thumbnail else ""), strict=True))
    return {"modelspec.sai_model_spec": "1.0.1"} | {name: text for name, text in entries.items() if text}


def newest_sample(run: Run, step: int) -> Path | None:
    """The first sample image of a step, or of the last step before it that has one."""
    samples = (file for file in run.samples.glob("*-00.png") if file.name.partition("-")[0].isdigit())
    usable = [file for file in samples if int(file.name.partition("-")[0]) <= step]
    return max(usable, default=None)


def _data_url(image: Path) -> str:
    """A square JPEG of THUMBNAIL px from the middle of an image, as an address that holds it; "" for a damaged one."""
    from PIL import ImageOps

    from lorakit.data.images import ImageError, decoded, header

    data = io.BytesIO()
    try:
        opened = decoded(header(image)).image
    except ImageError:
        return ""
    ImageOps.fit(opened.convert("RGB"), (THUMBNAIL, THUMBNAIL)).save(data, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}"
