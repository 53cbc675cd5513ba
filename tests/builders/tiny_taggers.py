"""Tiny real taggers: an ONNX file written byte by byte, models of transformers, a chat server on 127.0.0.1."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np

# ---- a WD tagger -----------------------------------------------------------------------------------------------------

SIDE = 8  # px
TAGS = (("1girl", 0), ("long_hair", 0), ("^_^", 0), ("hatsune_miku", 4), ("general", 9))


def save_wd(
    folder: Path, batch: int | str = "n", tags=TAGS, shape=(SIDE, SIDE, 3), last: str = "Sigmoid", second: str = ""
) -> Path:
    """A tagger whose every score depends on every pixel; its input is (batch, *shape). Returns the folder.

    second   operator of a second output, "refined_predictions", on the same values
    """
    folder.mkdir(parents=True, exist_ok=True)
    size = int(np.prod(shape))
    weights = np.random.default_rng(0).normal(0, 1 / 255 / size**0.5, (size, len(tags))).astype(np.float32)
    tensor = _field(1, size) + _field(1, len(tags)) + _field(2, 1) + _field(8, "w") + _field(9, weights.tobytes())
    axis = _field(1, "axis") + _field(3, 1) + _field(20, 2)
    nodes = [
        _field(1, "x") + _field(2, "flat") + _field(4, "Flatten") + _field(5, axis),
        _field(1, "flat") + _field(1, "w") + _field(2, "y") + _field(4, "MatMul"),
        _field(1, "y") + _field(2, "out") + _field(4, last),
    ]
    outputs = ["out"]
    if second:
        outputs.append("refined_predictions")
        nodes.append(_field(1, "y") + _field(2, outputs[-1]) + _field(4, second))
    graph = b"".join(_field(1, node) for node in nodes) + _field(2, "tiny") + _field(5, tensor)
    graph += _field(11, _value("x", (batch, *shape)))
    graph += b"".join(_field(12, _value(name, (batch, len(tags)))) for name in outputs)
    model = _field(1, 8) + _field(7, graph) + _field(8, _field(1, "") + _field(2, 13))
    (folder / "model.onnx").write_bytes(model)
    lines = ["tag_id,name,category,count", *(f"{i},{name},{kind},9" for i, (name, kind) in enumerate(tags))]
    (folder / "selected_tags.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


NAMED = (("1girl", "General"), ("hatsune_miku", "Character"), ("safe", "Rating"), ("safe", "Quality"), ("x", "Model"))


def save_pixai(folder: Path) -> Path:
    """A tagger in the files of deepghs' PixAI: as WD, but for its input."""
    return save_wd(folder, shape=(3, SIDE, SIDE))


def save_cl(folder: Path) -> Path:
    """A tagger in the files of cl_tagger: logits, and a list by number in tag_mapping.json."""
    save_wd(folder, tags=NAMED, shape=(3, SIDE, SIDE), last="Identity")
    (folder / "selected_tags.csv").unlink()
    rows = {str(number): {"tag": tag, "category": kind} for number, (tag, kind) in enumerate(NAMED)}
    (folder / "tag_mapping.json").write_text(json.dumps(rows))
    return folder


def save_camie(folder: Path) -> Path:
    """A tagger in the files of CamieTagger v2: two outputs of logits, the second refined; ratings with a prefix."""
    tags = ("1girl", "hatsune_miku", "rating_general", "year_2023")
    kinds = dict(zip(tags, ("general", "character", "rating", "year"), strict=True))
    save_wd(folder, tags=[(tag, 0) for tag in tags], shape=(3, SIDE, SIDE), last="Identity", second="Neg")
    (folder / "model.onnx").rename(folder / "camie-tagger-v2.onnx")
    (folder / "selected_tags.csv").unlink()
    mapping = {"idx_to_tag": {str(i): tag for i, tag in enumerate(tags)}, "tag_to_category": kinds}
    content = {"dataset_info": {"total_tags": len(tags), "tag_mapping": mapping}}
    (folder / "camie-tagger-v2-metadata.json").write_text(json.dumps(content))
    return folder


def _value(name: str, shape: tuple) -> bytes:
    """ONNX's ValueInfoProto of a float tensor."""
    dims = b"".join(_field(1, _field(1 if isinstance(size, int) else 2, size)) for size in shape)
    return _field(1, name) + _field(2, _field(1, _field(1, 1) + _field(2, dims)))


def _field(number: int, value: int | str | bytes) -> bytes:
    """A field of a protobuf message."""
    if isinstance(value, int):
        return _number(number << 3) + _number(value)
    data = value.encode() if isinstance(value, str) else value
    return _number(number << 3 | 2) + _number(len(data)) + data


def _number(value: int) -> bytes:
    data = b""
    while value > 0x7F:
        data, value = data + bytes([value & 0x7F | 0x80]), value >> 7
    return data + bytes([value])


# ---- vision-language models ------------------------------------------------------------------------------------------

WORDS = "a girl with red hair blue eyes stands in the forest smile image of describe this user assistant".split()
SMALL = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
CHAT = (
    "{% for m in messages %}{{m['role']}} {% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<image> {% else %}{{c['text']}}{% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %} assistant {% endif %}"
)


def save_blip(folder: Path) -> Path:
    """A BLIP: it completes the text that it gets."""
    import torch
    from transformers import BertTokenizer, BlipConfig, BlipForConditionalGeneration, BlipImageProcessor, BlipProcessor

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    tokenizer = BertTokenizer(vocab={word: i for i, word in enumerate(words)})
    BlipProcessor(BlipImageProcessor(size={"height": 32, "width": 32}), tokenizer).save_pretrained(folder)
    ends = {"bos_token_id": 2, "eos_token_id": 3, "sep_token_id": 3, "pad_token_id": 0}
    text = {**SMALL, **ends, "vocab_size": len(words), "encoder_hidden_size": 16}
    torch.manual_seed(0)
    config = BlipConfig(vision_config={**SMALL, "image_size": 32, "patch_size": 16}, text_config=text)
    BlipForConditionalGeneration(config).save_pretrained(folder)
    return folder


ENDS = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}


def word_tokenizer(*signs: str, **named: str):
    """A tokenizer of whole words with these signs for images, some of them `named`, and its vocabulary."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<unk>", "<s>", "</s>", *signs, *WORDS]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens([*signs])
    ends = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, extra_special_tokens=named, **ends), words


def save_llava(folder: Path) -> Path:
    """A LLaVA: it answers in a chat, and sees every image at one size."""
    import torch
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )

    tokenizer, words = word_tokenizer("<image>")
    size = {"height": 32, "width": 32}
    LlavaProcessor(
        CLIPImageProcessor(size=size, crop_size=size),
        tokenizer,
        patch_size=16,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT,
        image_token="<image>",
    ).save_pretrained(folder)
    torch.manual_seed(0)
    vision = CLIPVisionConfig(**{**SMALL, "num_hidden_layers": 2}, image_size=32, patch_size=16)
    text = LlamaConfig(**SMALL, **ENDS, vocab_size=len(words))
    LlavaForConditionalGeneration(
        LlavaConfig(vision_config=vision, text_config=text, image_token_index=words.index("<image>"))
    ).save_pretrained(folder)
    return folder


def save_florence(folder: Path) -> Path:
    """A Florence-2: it has tasks, and an encoder that reads the question."""
    import torch
    from transformers import CLIPImageProcessor, Florence2Config, Florence2ForConditionalGeneration, Florence2Processor

    tokenizer, words = word_tokenizer("<image>", image_token="<image>")
    images = CLIPImageProcessor(size={"height": 64, "width": 64}, do_center_crop=False)
    images.image_seq_length = 5  # tokens of a 64 px image in this tiny encoder
    Florence2Processor(images, tokenizer, num_additional_image_tokens=1).save_pretrained(folder)
    vision = {"depths": (1,) * 4, "embed_dim": (8, 8, 16, 16), "num_heads": (2,) * 4, "num_groups": (2,) * 4}
    vision |= {"window_size": 2, "projection_dim": 16, "max_temporal_embeddings": 10, "max_position_embeddings": 10}
    text = {"model_type": "bart", "vocab_size": len(words), "d_model": 16, "max_position_embeddings": 64, **ENDS}
    text |= {f"{part}_{name}": n for part in ("encoder", "decoder") for name, n in (("layers", 1), ("ffn_dim", 32))}
    text |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "decoder_start_token_id": 3, "init_std": 1.0}
    config = Florence2Config(vision_config=vision, text_config=text, image_token_id=words.index("<image>"))
    torch.manual_seed(3)  # with this seed the sentence is not empty
    model = Florence2ForConditionalGeneration(config)
    torch.nn.init.normal_(model.get_input_embeddings().weight)
    model.save_pretrained(folder)
    return folder


def save_qwen(folder: Path) -> Path:
    """A Qwen2-VL: it answers in a chat, and sees images at their own sizes. Its processor needs torchvision."""
    import torch
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration, Qwen2VLImageProcessor

    ids = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    signs = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
    tokenizer, words = word_tokenizer(*signs)
    tokenizer.chat_template = CHAT.replace("<image>", "<|image_pad|>")
    tokenizer.save_pretrained(folder)
    Qwen2VLImageProcessor(patch_size=14, merge_size=2, min_pixels=28 * 28, max_pixels=112 * 112).save_pretrained(folder)
    torch.manual_seed(0)
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}
    text = {**SMALL, **ENDS, "num_key_value_heads": 2, "vocab_size": len(words), "rope_parameters": rope}
    vision = {"depth": 1, "embed_dim": 16, "hidden_size": 16, "num_heads": 2, "mlp_ratio": 2, "patch_size": 14}
    places = {name: words.index(sign) for name, sign in zip(ids, signs, strict=True)}
    config = Qwen2VLConfig(vision_config=vision, text_config=text, **places)
    Qwen2VLForConditionalGeneration(config).save_pretrained(folder)
    return folder


# ---- a server --------------------------------------------------------------------------------------------------------


class Chat(ThreadingHTTPServer):
    """Answers each request with `answer(number, body) -> (status, headers, bytes)`, and keeps the requests.

    Instead of the bytes there may be an iterator of pieces, with their Content-Length among the headers.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.requests: list[tuple[str, dict[str, str], dict]] = []  # path, headers, body
        self.answer: Callable[[int, dict], tuple[int, dict[str, str], bytes]] = lambda number, body: completion(
            "a girl"
        )

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, request, client_address):
        """Clients that hang up are part of the tests."""


class _Handler(BaseHTTPRequestHandler):
    server: Chat

    def log_message(self, *_):
        """Tests read `Chat.requests`."""

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append((self.path, dict(self.headers), body))
        status, headers, content = self.server.answer(len(self.server.requests), body)
        self.send_response(status)
        pieces = [content] if isinstance(content, bytes) else content
        length = {"Content-Length": str(len(content))} if isinstance(content, bytes) else {}
        for name, value in {**length, **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        for piece in pieces:
            self.wfile.write(piece)


def completion(text: str | None) -> tuple[int, dict[str, str], bytes]:
    """A chat completion."""
    return 200, {}, json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]}).encode()


@contextmanager
def chat_server() -> Iterator[Chat]:
    """A server that answers until the block ends."""
    server = Chat()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
