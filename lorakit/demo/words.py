"""The demo base's own CLIP vocabulary: every word of the world is one token, any other text falls back to pieces and
letters."""

import json
from collections import Counter
from pathlib import Path

from transformers import CLIPTokenizer

from lorakit.demo import world

QUALITY = ("masterpiece", "best quality", "solo", "looking at viewer")
"""Tags of common prompts that mean nothing here; the base has seen them and shrugs."""


def _bytes_as_letters():
    """The 256 printable stand-ins for bytes of GPT-2's and CLIP's byte-level BPE."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return [chr(b) for b in plain] + [chr(256 + i) for i in range(256 - len(plain))]


def _merges(words):
    """Byte-pair merges, most frequent pair first, until every word is one piece (Sennrich et al. 2016)."""
    pieces = [[*word[:-1], word[-1] + "</w>"] for word in sorted(words)]
    merges = []
    while any(len(p) > 1 for p in pieces):
        pairs = Counter(pair for p in pieces for pair in zip(p, p[1:], strict=False))
        pair = max(pairs, key=lambda q: (pairs[q], q))
        merges.append(pair)
        pieces = [_join(p, pair) for p in pieces]
    return merges


def _join(pieces, pair):
    joined = []
    for piece in pieces:
        if joined and (joined[-1], piece) == pair:
            joined[-1] += piece
        else:
            joined.append(piece)
    return joined


def tokenizer(folder):
    """Writes vocab.json and merges.txt to `folder` and returns the CLIPTokenizer (77 tokens, CLIP's special tokens)."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    words = {word for tag in (*world.vocabulary(), *QUALITY) for word in tag.split()} - {"1girl"} | {"girl"}
    merges = _merges(words)
    letters = _bytes_as_letters()
    tokens = [
        *letters,
        *(letter + "</w>" for letter in letters),
        *("".join(m) for m in merges),
        "<|startoftext|>",
        "<|endoftext|>",
    ]
    vocab = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text(
        "#version: 0.2\n" + "\n".join(" ".join(m) for m in merges) + "\n", encoding="utf-8"
    )
    tokenizer = CLIPTokenizer.from_pretrained(folder, model_max_length=77)
    tokenizer.save_pretrained(folder)
    return tokenizer
