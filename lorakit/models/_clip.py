"""CLIP text encoding of the Stable Diffusion families: long captions in chunks, clip skip."""

from __future__ import annotations

from collections.abc import Callable

import torch

from lorakit.diffusion.prompts import Prompt
from lorakit.errors import UserError
from lorakit.hub import downloading_nothing, fetch
from lorakit.hub.files import ModelFileError
from lorakit.models.files.sd_sources import CLIP_VOCABULARY
from lorakit.models.files.tokenizers import open_tokenizer

# Caption tokens in each of CLIP's windows of 77, besides the begin and end tokens.
CHUNK = 75


def token_ids(tokenizer, captions: list[str], max_token_length: int, padding: int | None = None) -> torch.Tensor:
    """Token ids, int64 [B, chunks, 77] with chunks = max_token_length / 75; longer captions are cut.

    Each chunk is a whole window (begin, 75 tokens, end, padding), as A1111 and ComfyUI split long prompts. `padding` is
    the id that fills a chunk, by default the tokenizer's own.
    """
    padding = tokenizer.pad_token_id if padding is None else padding
    chunks = max_token_length // CHUNK
    # + 2: the limit of the tokenizer counts the begin and end tokens, too.
    ids = tokenizer(captions, truncation=True, max_length=max_token_length + 2, add_special_tokens=True)["input_ids"]
    rows = []
    for row in ids:
        # without the begin and end tokens, which every chunk gets
        tokens = row[1:-1]
        windows = (tokens[i * CHUNK : (i + 1) * CHUNK] for i in range(chunks))
        rows.append(
            [
                [tokenizer.bos_token_id, *window, tokenizer.eos_token_id] + [padding] * (CHUNK - len(window))
                for window in windows
            ]
        )
    return torch.tensor(rows)


def prompt_ids(
    tokenizer, prompt: Prompt, max_token_length: int, padding: int | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids of a prompt, int64 [chunks, 77] as `token_ids` gives them, and their weights, float32 [chunks x 77].

    Each part of another weight is tokenised by itself, and BREAK fills up a chunk, as in A1111; so there may be more
    chunks than `max_token_length` / 75. Begin, end and padding have weight 1.
    """
    padding = tokenizer.pad_token_id if padding is None else padding
    chunks: list[list[tuple[int, float]]] = []
    for window in prompt.windows:
        parts = [(tokenizer(text, add_special_tokens=False)["input_ids"], weight) for text, weight in window]
        tokens = [(token, weight) for ids, weight in parts for token in ids][:max_token_length]
        chunks += [tokens[start : start + CHUNK] for start in range(0, max(1, len(tokens)), CHUNK)]
    chunks += [[]] * (max_token_length // CHUNK - len(chunks))
    rows = [
        [(tokenizer.bos_token_id, 1.0), *chunk, (tokenizer.eos_token_id, 1.0)] + [(padding, 1.0)] * (CHUNK - len(chunk))
        for chunk in chunks
    ]
    ids = torch.tensor([[token for token, _ in row] for row in rows])
    return ids, torch.tensor([weight for row in rows for _, weight in row])


def weighted(hidden: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Text features [B, chunks x 77, width] with their tokens' weights [B, chunks x 77], as A1111 applies them.

    Each token's features are multiplied by its weight, then all of a chunk so that their mean is as before (A1111's
    emphasis "Original", its default). ComfyUI moves them away from those of an empty prompt instead, which gives a
    slightly different image.
    """
    window = CHUNK + 2  # with the begin and end tokens
    plain = hidden.float().unflatten(1, (-1, window))  # [B, chunks, 77, width]
    scaled = plain * weights.to(plain).unflatten(1, (-1, window)).unsqueeze(-1)
    before, after = (features.mean(dim=(2, 3), keepdim=True) for features in (plain, scaled))
    # The mean of CLIP's features is about a tenth of their size; of next to nothing a ratio would be arbitrary.
    has_mean = after.abs() > 1e-4 * scaled.abs().mean(dim=(2, 3), keepdim=True)
    return (scaled * torch.where(has_mean, before / after, 1.0)).flatten(1, 2).to(hidden.dtype)


def excess(source: str, max_token_length: int) -> Callable[[str], str]:
    """A family's `excess`, by the tokenizer in the base model's folder, else by CLIP's, which these families share."""
    try:
        with downloading_nothing():
            own = fetch(source) / "tokenizer"
    except ModelFileError:
        # a damaged file in the folder, which may be the tokenizer's
        raise
    except UserError:
        # not downloaded yet, or unusable, which loading the model reports
        own = CLIP_VOCABULARY
    tokenizer = open_tokenizer("CLIPTokenizer", own if own.is_dir() else CLIP_VOCABULARY)

    def cut(caption: str) -> str:
        spans = tokenizer(caption, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        # The span (begin, end) in characters of the first token that does not fit.
        return caption[spans[max_token_length][0] :] if len(spans) > max_token_length else ""

    return cut


def hidden_states(text_encoder: torch.nn.Module, ids: torch.Tensor, clip_skip: int) -> torch.Tensor:
    """Text features [B, chunks x 77, width]: the `clip_skip`-th layer from the end, then the final norm, as kohya."""
    output = text_encoder(ids.flatten(0, 1), output_hidden_states=True)  # [B x chunks, 77]
    # hidden_states[-1] is the output of the last layer, so a clip_skip of 1 skips nothing.
    hidden = final_layer_norm(text_encoder)(output.hidden_states[-clip_skip])
    return hidden.reshape(ids.shape[0], -1, hidden.shape[-1])


def penultimate(text_encoder: torch.nn.Module, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """`hidden` [B, chunks x 77, width] of the second to last layer without norm, as SDXL's UNet was trained with.

    An encoder with a projection also gives `pooled` [B, projection width]: of the first chunk, as in A1111 and ComfyUI,
    since it holds the most important tags, and short captions have no other.
    """
    output = text_encoder(ids.flatten(0, 1), output_hidden_states=True)
    hidden = output.hidden_states[-2]
    features = {"hidden": hidden.reshape(len(ids), -1, hidden.shape[-1])}
    # [B x chunks, projection width] -> [B, projection width]
    if "text_embeds" in output:
        features["pooled"] = output.text_embeds.unflatten(0, ids.shape[:2])[:, 0]
    return features


def final_layer_norm(text_encoder: torch.nn.Module) -> torch.nn.Module:
    """The final layer norm, which transformers 5 has on the model itself, older versions below `text_model`."""
    return getattr(text_encoder, "text_model", text_encoder).final_layer_norm


def with_text_model(module: str) -> str:
    """The module's name with `text_model.`, as in LoRA files; transformers 5.6 removed it from its own names."""
    return module if module.startswith("text_model.") else f"text_model.{module}"
