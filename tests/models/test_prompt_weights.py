"""What the weights of a prompt do to its features, in every family; a plain prompt is encoded as a caption."""

from __future__ import annotations

import pytest
import torch

from lorakit import models
from lorakit.diffusion.prompts import literal, parse
from lorakit.models import Size, _clip
from lorakit.models._unet import _of_one_length
from lorakit.run.config import configure
from lorakit.run.sampling import SamplingConfig, generate_image

SIZES = [Size.whole(64, 64)]


def opened(family, base, trained: bool):
    config = configure({"model": {"family": family, "source": str(base)}})
    # of the parts that can be trained the denoiser comes first
    parts = tuple(config.model.rates)[: None if trained else 1]
    return models.family(family).Model(config.model, torch.device("cpu"), torch.float32, parts)


@pytest.fixture(params=[False, True], ids=["frozen text", "trained text"])
def model(request, family, base):
    return opened(family, base, request.param)


def features(model, text):
    """The conditioning of one prompt; [tokens, width] of each text feature."""
    with torch.no_grad():
        return model.condition([model.encode_prompt(parse(text))], SIZES)


@pytest.mark.parametrize("text", ["girl, red hair", "", "(girl:1)", "girl \\(hat\\)"])
def test_a_plain_prompt_is_bit_for_bit_the_caption(model, text):
    plain = parse(text).text
    for name, tensor in features(model, text).items():
        assert tensor.equal(model.condition([model.encode_text(plain)], SIZES)[name])
    assert model.encode_prompt(literal("a (b)")).keys() == model.encode_text("a (b)").keys()


def test_weights_multiply_the_features_of_their_tokens(model):
    if model.denoiser == "unet":
        # the features of a real CLIP have a mean; those of random weights have none behind the final norm
        _clip.final_layer_norm(model.load("text_encoder")).bias.data.fill_(0.2)
    strong, weak = (features(model, f"girl, (red hat:{weight}), boy")["hidden"][0].detach() for weight in (1.5, 0.5))
    plain = features(model, "girl, (red hat:1.0001), boy")["hidden"][0].detach()
    if model.denoiser == "transformer":
        # as ComfyUI: only the tokens of the words themselves change
        ratio = (strong / weak)[(plain != 0).any(dim=-1)]
        assert set(ratio.mean(dim=-1).round(decimals=3).tolist()) == {1.0, 3.0}
    else:
        # as A1111, for each text encoder by itself: multiplied, then scaled so that the mean of the window stays
        tokens = parse("girl, (red hat:1.5), boy")
        _, weights = _clip.prompt_ids(model.tokenizer, tokens, model.config.max_token_length)
        start = 0
        for part in model.text_parts:
            width = model.load(part).config.hidden_size
            own, before = strong[:77, start : start + width], plain[:77, start : start + width]
            expected = before * weights[:77, None]
            torch.testing.assert_close(own, expected * before.mean() / expected.mean(), rtol=2e-3, atol=2e-3)
            start += width


def test_the_pooled_features_have_no_weights(model):
    weighted, plain = (features(model, text) for text in ("girl, (hat:1.5)", "girl, hat"))
    assert weighted.keys() == plain.keys()
    for name in weighted.keys() - {"hidden"}:
        assert weighted[name].equal(plain[name])


def test_break_begins_a_window_and_images_are_generated_all_the_same(family, base):
    model = opened(family, base, trained=False)
    sampling = SamplingConfig(width=64, height=64, steps=1, sampler=type(model.config).samplers[0])
    with torch.no_grad(), model.eval_mode():
        texts = [model.encode_prompt(parse(text)) for text in ("girl BREAK (hat:1.2) BREAK b BREAK c", "girl", "boy")]
        images = [generate_image(model, text, texts[2], sampling, 1) for text in texts[:2]]
    assert images[0].tobytes() != images[1].tobytes()
    if model.denoiser == "unet":
        # the negative prompt has fewer windows
        ids, weights = _clip.prompt_ids(model.tokenizer, parse("girl BREAK hat BREAK b BREAK c"), 75)
        assert ids.shape == (4, 77) and weights.shape == (4 * 77,)
        one, _ = _clip.prompt_ids(model.tokenizer, literal("girl " * 100), 150)
        assert one.equal(_clip.token_ids(model.tokenizer, ["girl " * 100], 150)[0])


def test_repeated_features_give_the_same_attention():
    draws = torch.Generator().manual_seed(1)
    pair = {"prompt_embeds": torch.randn(1, 231, 8, generator=draws), "negative_prompt_embeds": torch.randn(1, 154, 8)}
    longer = _of_one_length(pair)
    query = torch.randn(1, 5, 8, generator=draws)
    for name, keys in pair.items():
        assert longer[name].shape[1] == 462
        same = (torch.nn.functional.scaled_dot_product_attention(query, k, k) for k in (keys, longer[name]))
        torch.testing.assert_close(*same, rtol=1e-4, atol=1e-5)
    equal = {name: pair["prompt_embeds"] for name in pair}
    assert all(_of_one_length(equal)[name].equal(equal[name]) for name in equal)
