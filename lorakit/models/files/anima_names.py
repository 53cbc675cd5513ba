"""Anima from outside: its single files, folders and LoRA files, and the libraries' names for its tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from lorakit.models.files.marks import PREFIX, CaptionProfile, FileKind, Marks

# Before the names of the text conditioner, which other tools call LLM adapter.
ADAPTER = "llm_adapter."
HUB_FILES = {  # where the single files come from, as `hub.fetch` takes them
    "transformer": "circlestone-labs/Anima/split_files/diffusion_models/anima-base-v1.0.safetensors",
    "text_conditioner": "circlestone-labs/Anima/split_files/diffusion_models/anima-base-v1.0.safetensors",
    "text_encoder": "circlestone-labs/Anima/split_files/text_encoders/qwen_3_06b_base.safetensors",
    "vae": "circlestone-labs/Anima/split_files/vae/qwen_image_vae.safetensors",
}
DIT = FileKind(
    name="an Anima DiT",
    has=(("blocks.0.adaln_modulation_self_attn.1.weight", f"{ADAPTER}embed.weight"),),
    holds={"DiT": "", "LLM adapter": ""},
    is_base=True,
    detail=" with its LLM adapter inside",
)
BARE_DIT = FileKind(
    name="a Cosmos-Predict2 DiT, as of Anima, without LLM adapter",
    has=(("blocks.0.adaln_modulation_self_attn.1.weight",),),
    holds={"DiT": ""},
    is_base=True,
)
CONDITIONER = FileKind(
    name="Anima's LLM adapter",
    has=((f"{ADAPTER}embed.weight",), ("embed.weight", "blocks.0.norm_cross_attn.weight")),
    holds={"LLM adapter": ""},
    inner=ADAPTER,
)
QWEN = FileKind(
    name="a Qwen3 text encoder",
    has=(
        ("model.embed_tokens.weight", "model.layers.0.self_attn.q_norm.weight"),
        ("embed_tokens.weight", "layers.0.self_attn.q_norm.weight"),
    ),
    holds={"text encoder": ""},
    # Qwen3-0.6B; the larger ones have the same names.
    width=("embed_tokens.weight", 1024),
)
VAE = FileKind(
    name="a Qwen-Image VAE (of Anima)",
    has=(("decoder.middle.0.residual.0.gamma",), ("decoder.mid_block.resnets.0.norm1.gamma",)),
    holds={"VAE": ""},
)
OF_FOLDER = FileKind(
    name="the transformer of a diffusers folder of Anima", has=(("transformer_blocks.0.norm1.linear_1.weight",),)
)
MARKS = Marks(
    title="Anima",
    load_gb=6,
    parts={
        "DiT": HUB_FILES["transformer"],
        "LLM adapter": f"inside {HUB_FILES['text_conditioner']}",
        "text encoder": HUB_FILES["text_encoder"],
        "VAE": HUB_FILES["vae"],
    },
    # The first match counts, so DIT comes before BARE_DIT, whose tensors it has, too.
    kinds=(DIT, BARE_DIT, CONDITIONER, QWEN, VAE, OF_FOLDER),
    folder="AnimaModularPipeline",
    lora_keys=r"llm_adapter_|text_conditioner_|blocks_\d+_(self|cross)_attn_\w+_proj|blocks_\d+_mlp_layer\d"
    r"|transformer_blocks_\d+_attn\d_|lora_te1_layers_",
    key_layouts=("comfy", "kohya"),
    # the order of the model card, with spaces where tag sites have underscores
    captions=CaptionProfile(
        name="anima",
        order=("quality", "meta", "year", "safety", "count", "character", "series", "artist", "general"),
        lower_case=True,
        prefixes={"artist": "@"},
        own_ratings=True,
    ),
)
ACCEPTED = {  # part of the model -> kinds of single files that it can be read from
    "transformer": (DIT, BARE_DIT),
    "text_conditioner": (CONDITIONER, DIT),
    "text_encoder": (QWEN,),
    "vae": (VAE,),
}
Shapes = dict[str, tuple[int, ...]]


# ---- original names and shapes -> the libraries' names and settings -------------------------------------------------


def _transformer_names(names: Iterable[str]) -> dict[str, str]:
    from diffusers.loaders.single_file_utils import convert_cosmos_transformer_checkpoint_to_diffusers as convert

    own = {PREFIX.sub("", name): name for name in names}
    return convert({name: full for name, full in own.items() if not name.startswith(ADAPTER)})


def _conditioner_names(names: Iterable[str]) -> dict[str, str]:
    own = {PREFIX.sub("", name): name for name in names}
    inside = {name.removeprefix(ADAPTER): full for name, full in own.items() if name.startswith(ADAPTER)}
    # a file of its own may have no prefix
    return inside or own


def encoder_names(names: Iterable[str]) -> dict[str, str]:
    """Names in Qwen3Model -> names in the file; the head that predicts words is left out."""
    return {name.removeprefix("model."): name for name in names if not name.startswith("lm_head.")}


def _vae_names(names: Iterable[str]) -> dict[str, str]:
    from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers as convert

    return convert({name: name for name in names})


def _count(shapes: Shapes, blocks: str) -> int:
    """How many blocks there are, whose tensors' names begin with `blocks` and a number."""
    return len({name.removeprefix(blocks).partition(".")[0] for name in shapes if name.startswith(blocks)})


def _transformer_config(shapes: Shapes) -> dict:
    # a patch is 1 x 2 x 2 of all channels and of the padding mask
    hidden, patch = shapes["patch_embed.proj.weight"]
    # This norm has a weight for each channel of one attention head, so its length is the width of a head.
    head = shapes["transformer_blocks.0.attn1.norm_q.weight"][0]
    return {
        # less the channel of the padding mask
        "in_channels": patch // 4 - 1,
        "out_channels": shapes["proj_out.weight"][0] // 4,
        "num_attention_heads": hidden // head,
        "attention_head_dim": head,
        "num_layers": _count(shapes, "transformer_blocks."),
        "mlp_ratio": shapes["transformer_blocks.0.ff.net.0.proj.weight"][0] / hidden,
        "text_embed_dim": shapes["transformer_blocks.0.attn2.to_k.weight"][1],
        "adaln_lora_dim": shapes["transformer_blocks.0.norm1.linear_1.weight"][0],
    }


def _conditioner_config(shapes: Shapes) -> dict:
    vocabulary, target = shapes["embed.weight"]
    model = shapes["out_proj.weight"][1]
    return {
        "source_dim": shapes["blocks.0.cross_attn.k_proj.weight"][1],
        "target_dim": target,
        "model_dim": model,
        "num_layers": _count(shapes, "blocks."),
        "num_attention_heads": model // shapes["blocks.0.cross_attn.q_norm.weight"][0],
        "mlp_ratio": shapes["blocks.0.mlp.0.weight"][0] / model,
        "target_vocab_size": vocabulary,
        "use_self_attention": "blocks.0.self_attn.q_proj.weight" in shapes,
        "use_layer_norm": "blocks.0.norm_mlp.bias" in shapes,
    }


def _encoder_config(shapes: Shapes) -> dict:
    vocabulary, hidden = shapes["embed_tokens.weight"]
    head = shapes["layers.0.self_attn.q_norm.weight"][0]
    return {
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "intermediate_size": shapes["layers.0.mlp.gate_proj.weight"][0],
        "num_hidden_layers": _count(shapes, "layers."),
        "num_attention_heads": shapes["layers.0.self_attn.q_proj.weight"][0] // head,
        "num_key_value_heads": shapes["layers.0.self_attn.k_proj.weight"][0] // head,
        "head_dim": head,
    }


def _vae_config(shapes: Shapes) -> dict:
    return {"base_dim": shapes["encoder.conv_in.weight"][0]}


RENAMED: dict[str, Callable[[Iterable[str]], dict[str, str]]] = {
    "transformer": _transformer_names,
    "text_conditioner": _conditioner_names,
    "text_encoder": encoder_names,
    "vae": _vae_names,
}
MEASURED: dict[str, Callable[[Shapes], dict]] = {
    "transformer": _transformer_config,
    "text_conditioner": _conditioner_config,
    "text_encoder": _encoder_config,
    "vae": _vae_config,
}
