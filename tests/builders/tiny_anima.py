"""An Anima model of the real classes made tiny, with tokenizers that know a few words, for tests."""

from __future__ import annotations

from pathlib import Path

import torch
from built_once import built_once
from tiny import WORDS

SPECIAL = ("<pad>", "</s>", "<unk>")  # T5's first three


@built_once
def save_anima(folder: Path, *, seed: int = 0) -> Path:
    """A diffusers folder with random weights: 2 DiT blocks, 1 conditioner block, Qwen3 of 2 layers; a few MB."""
    pipeline = anima_pipeline(seed=seed)
    pipeline.save_pretrained(str(folder), overwrite_modular_index=True)
    return folder


def anima_pipeline(*, seed: int = 0):
    """The tiny model as diffusers' own pipeline."""
    from diffusers import AutoencoderKLQwenImage, FlowMatchEulerDiscreteScheduler
    from diffusers.models.condition_embedders.condition_embedder_anima import AnimaTextConditioner
    from diffusers.models.transformers.transformer_cosmos import CosmosTransformer3DModel
    from diffusers.modular_pipelines.anima.modular_blocks_anima import AnimaAutoBlocks
    from transformers import Qwen3Config, Qwen3Model

    tokenizer, t5_tokenizer = byte_tokenizer(), word_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        transformer = CosmosTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=12,
            num_layers=2,
            mlp_ratio=2.0,
            text_embed_dim=16,
            adaln_lora_dim=8,
            max_size=(128, 240, 240),
            rope_scale=(1.0, 4.0, 4.0),
            extra_pos_embed_type=None,
        )
        text_conditioner = AnimaTextConditioner(
            source_dim=8,
            target_dim=16,
            model_dim=16,
            num_layers=1,
            num_attention_heads=2,
            target_vocab_size=len(t5_tokenizer),
        )
        text_encoder = Qwen3Model(
            Qwen3Config(
                vocab_size=len(tokenizer),
                hidden_size=8,
                intermediate_size=16,
                num_hidden_layers=2,
                num_attention_heads=2,
                num_key_value_heads=1,
                head_dim=4,
            )
        )
        vae = AutoencoderKLQwenImage(base_dim=4, num_res_blocks=1)
        for weight in transformer.parameters():  # so that words change images, and images have contrast
            weight.data += 0.2 * torch.randn_like(weight)
        vae.decoder.conv_out.weight.data *= 4
    for model in (transformer, text_conditioner, text_encoder, vae):
        model.eval()
    pipeline = AnimaAutoBlocks().init_pipeline()
    pipeline.update_components(
        transformer=transformer,
        text_conditioner=text_conditioner,
        text_encoder=text_encoder,
        vae=vae,
        tokenizer=tokenizer,
        t5_tokenizer=t5_tokenizer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    )
    return pipeline


def byte_tokenizer():
    """Byte-level, as Qwen's, with no merges: a token for each byte."""
    from transformers import Qwen2Tokenizer

    letters = [chr(code) for code in (*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100))]
    letters += [chr(256 + i) for i in range(256 - len(letters))]
    vocabulary = {letter: i for i, letter in enumerate([*letters, "<|endoftext|>"])}
    return Qwen2Tokenizer(vocab=vocabulary, merges=[])


def word_tokenizer():
    """Unigram, as T5's: WORDS whole, everything else letter by letter; ends with </s>."""
    from transformers import T5Tokenizer

    letters = [chr(code) for code in range(33, 127)]
    pieces = [(piece, 0.0) for piece in SPECIAL] + [("▁", -2.0)]
    pieces += [(f"▁{word}", -1.0) for word in WORDS] + [(letter, -5.0) for letter in letters]
    return T5Tokenizer(vocab=pieces, extra_ids=0)
