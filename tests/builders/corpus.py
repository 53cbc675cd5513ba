"""More than three hundred odd and broken files of a data folder, the same each time, and what must be said of each."""

from __future__ import annotations

import io
import json
import os
import socket
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageCms

from lorakit.randomness import rng

USED, UNREADABLE, EITHER = "used", "unreadable", "used or unreadable"
CALM = ("no caption",)  # told of every image here that has none; not what the corpus is about


@dataclass(frozen=True)
class Odd:
    """One name of the corpus: whether it becomes a sample, the kinds of its notes, and its caption if it has one."""

    name: str
    fate: str  # USED, UNREADABLE (and no other note), EITHER, or "" for what is no image
    kinds: tuple[str, ...] = ()
    caption: str = ""


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


NOISE = Image.frombytes("RGB", (48, 40), rng("corpus").randbytes(48 * 40 * 3))
SMALL = encoded(Image.new("RGB", (12, 8), "orange"))
Image.init()
WHOLE = {
    kind: encoded(NOISE, kind)
    for kind in ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", *(["AVIF"] if "AVIF" in Image.SAVE else []))
}
ENDINGS = {"PNG": "png", "JPEG": "jpg", "WEBP": "webp", "BMP": "bmp", "AVIF": "avif"}


class Corpus:
    """Writes the files, and keeps what is expected of them."""

    def __init__(self, root: Path):
        self.root = root
        self.odds: list[Odd] = []

    def path(self, name: str) -> Path:
        """Where a name lies, its folder made."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def put(self, name: str, data: bytes, fate: str = "", *kinds: str, caption: str = "") -> None:
        """Write a file and remember what is expected."""
        self.path(name).write_bytes(data)
        self.expect(name, fate, *kinds, caption=caption)

    def expect(self, name: str, fate: str = "", *kinds: str, caption: str = "") -> None:
        """Remember what is expected of a name that was made otherwise."""
        kinds = (UNREADABLE,) if fate == UNREADABLE else kinds
        self.odds.append(Odd(name, fate, tuple(sorted(kinds)), caption))


def make(root: Path) -> list[Odd]:
    """Write the corpus into a folder; what is expected of each of its names."""
    corpus = Corpus(root)
    for part in (
        whole,
        truncated,
        damaged,
        wrong,
        giant,
        marked,
        chunks,
        modes,
        moving,
        named,
        linked,
        captioned,
        json_,
    ):
        part(corpus)
    return corpus.odds


# ---- images ----------------------------------------------------------------------------------------------------


def whole(corpus: Corpus) -> None:
    for kind, ending in [*ENDINGS.items(), ("JPEG", "jpeg")]:
        if kind in WHOLE:
            for name in (f"lower.{ending}", f"UPPER.{ending.upper()}", f"Mixed.{ending.title()}"):
                corpus.put(f"whole {ending}/{name}", WHOLE[kind], USED)


def truncated(corpus: Corpus) -> None:
    """Every format cut off at several places, down to nothing."""
    for kind, ending in ENDINGS.items():
        data = WHOLE.get(kind, b"")
        places = {1, 4, 8, 12, 20, 33, *(len(data) * share // 100 for share in (5, 10, 25, 40, 50, 60, 75, 90))}
        for place in sorted(places) if data else []:
            corpus.put(f"truncated {ending}/{place}.{ending}", data[:place], UNREADABLE)
        corpus.put(f"truncated {ending}/nothing.{ending}", b"", UNREADABLE)


def damaged(corpus: Corpus) -> None:
    """Bytes changed at random: read or refused, as the decoder thinks."""
    for kind, ending in ENDINGS.items():
        random = rng("damaged", kind)
        for number in range(16 if kind in WHOLE else 0):
            data = bytearray(WHOLE[kind])
            for _ in range(random.choice((1, 3, 20))):
                data[random.randrange(random.choice((60, len(data))))] = random.randrange(256)
            corpus.put(f"damaged {ending}/{number}.{ending}", bytes(data), EITHER)


def wrong(corpus: Corpus) -> None:
    """Names that say something else than the bytes, and files that are no images."""
    for kind, data in WHOLE.items():
        for other, ending in ENDINGS.items():
            if other != kind:
                corpus.put(f"wrong {ending}/{kind}.{ending}", data, USED, "wrong ending")
    others = {
        "zeros": bytes(999),
        "noise": rng("noise").randbytes(2000),
        "page": b"<!DOCTYPE html><html>403 Forbidden</html>",
        "zip": b"PK\3\4" + bytes(50),
        "text": "一只猫".encode(),
        "lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
        "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) run\n",
        "ppm": encoded(NOISE, "PPM"),  # Pillow would read it; it has so little of a mark that text may be taken for it
        "mark": b"\x89PNG\r\n\x1a\n" * 9,
    }
    for name, data in others.items():
        for ending in ENDINGS.values():
            corpus.put(f"no images {ending}/{name}.{ending}", data, UNREADABLE)
    for ending in ("heic", "HEIF", "jxl"):
        corpus.put(f"unread/a.{ending}", WHOLE["GIF"], "", "unread format")
    for ending in ("png", "jpg", "heic"):
        data = b"\0\0\0\x18ftypheic" if ending != "jpg" else b"\xff\x0a"
        corpus.put(f"unread/inside {ending}.png", data + bytes(90), UNREADABLE)
    for ending, kind in {"gif": "GIF", "tif": "TIFF", "TIFF": "TIFF", "jfif": "JPEG", "jpe": "JPEG"}.items():
        corpus.put(f"more formats/{ending}.{ending}", WHOLE[kind], USED)
    endings = "psd svg ico mp4 webm pdf zip py npz safetensors db".split()
    for name in [*(f"a.{ending}" for ending in endings), "README", "Thumbs.DB", "a.png.bak", "a.jpg~", "a.png.part"]:
        corpus.put(f"foreign/{name}", WHOLE["GIF"], "", "foreign")


def png(
    width: int, height: int, *chunks: tuple[bytes, bytes], depth: int = 8, colour: int = 2, data: bytes = b""
) -> bytes:
    """A PNG by hand: its header, any chunks, its pixels (a few zeros, unless they are given)."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(data or bytes(99))), (b"IEND", b"")]
    packed = (struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in parts)
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def giant(corpus: Corpus) -> None:
    """Few bytes that say that they are enormous, or nothing at all: refused before anything is decoded."""
    for width, height in (
        (30_000, 30_000),
        (2**31 - 1, 2**31 - 1),
        (1, 2**30),
        (0, 0),
        (0, 9),
        (2**32 - 1, 1),
    ):
        corpus.put(f"giant/{width}x{height}.png", png(width, height), UNREADABLE)
    whole = png(10_000, 9_000, depth=1, colour=0, data=bytes(1251 * 9000))  # which could be decoded
    corpus.put("giant/whole.png", whole, UNREADABLE)
    for width, height in ((60_000, 60_000), (2**31 - 1, 1), (40_000, -40_000)):
        bmp = struct.pack("<2sIHHIIiiHHIIiiII", b"BM", 60, 0, 0, 54, 40, width, height, 1, 24, 0, 6, 0, 0, 0, 0)
        corpus.put(f"giant/{width}x{height}.bmp", bmp + bytes(6), UNREADABLE)
    at = WHOLE["JPEG"].index(b"\xff\xc0") + 5
    for height, width in ((65_500, 65_500), (0, 40), (40, 0), (65_500, 9_999)):
        data = WHOLE["JPEG"][:at] + struct.pack(">HH", height, width) + WHOLE["JPEG"][at + 4 :]
        corpus.put(f"giant/{width}x{height}.jpg", data, UNREADABLE)
    gif = WHOLE["GIF"][:6] + struct.pack("<HH", 65_535, 65_535) + WHOLE["GIF"][10:]
    corpus.put("giant/gif.png", gif, UNREADABLE)
    webp = b"VP8X" + struct.pack("<I", 10) + b"\x10\0\0\0" + b"\xfe\x3f\0\xfe\x3f\0"
    corpus.put("giant/a.webp", b"RIFF" + struct.pack("<I", 4 + len(webp)) + b"WEBP" + webp, UNREADABLE)


def marked(corpus: Corpus) -> None:
    """EXIF and colour profiles that are damaged, of another kind, or say something strange: no reason to refuse."""
    exif = Image.Exif()
    exif[0x0112] = 6
    good = exif.tobytes()
    strange = {
        f"orientation {value}": good.replace(
            b"\x12\x01\x03\0\x01\0\0\0\x06", b"\x12\x01\x03\0\x01\0\0\0" + bytes([value])
        )
        for value in (0, 9, 255)
    }
    marks = {
        "garbage": b"Exif\0\0" + rng("exif").randbytes(60),
        "short": good[:14],
        "cut": good[:-4],
        "loop": b"Exif\0\0II*\0\x08\0\0\0\0\0\x08\0\0\0",
        "far": b"Exif\0\0II*\0\xff\xff\xff\x7f",
        "many": b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + bytes(24),
        "text": b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\x04\0\0\0six\0\0\0\0\0",
        **strange,
    }
    for name, mark in marks.items():
        for kind in ("JPEG", "PNG", "WEBP"):
            corpus.put(f"exif {kind}/{name}.{ENDINGS[kind]}", encoded(NOISE, kind, exif=mark), USED)
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    srgb = srgb[:24] + bytes(12) + srgb[36:]  # without the time of day
    for name, profile in {"bad": b"no profile", "cut": srgb[:200], "zeros": bytes(500), "srgb": srgb}.items():
        for kind in ("JPEG", "PNG", "WEBP", "TIFF"):
            ending = ENDINGS.get(kind, "png")
            notes = ["colour profile"] * (name != "srgb") + ["wrong ending"] * (kind not in ENDINGS)
            corpus.put(f"icc {kind}/{name}.{ending}", encoded(NOISE, kind, icc_profile=profile), USED, *notes)
        corpus.put(
            f"icc CMYK/{name}.jpg", encoded(NOISE.convert("CMYK"), "JPEG", icc_profile=profile), USED, *notes[:-1]
        )
    corpus.put("icc CMYK/whole.jpg", encoded(NOISE.convert("CMYK"), "JPEG", icc_profile=all_green()), USED)


def all_green() -> bytes:
    """A CMYK profile by which every ink is green (Lab 60, -60, 60), as ICC.1:2001 lays one out."""
    table = bytes(range(256))
    lab = bytes([60 * 255 // 100, 128 - 60, 128 + 60])
    matrix = struct.pack(">9i", 65536, 0, 0, 0, 65536, 0, 0, 0, 65536)
    lut = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + matrix + table * 4 + lab * 16 + table * 3
    white = b"XYZ " + bytes(4) + struct.pack(">3i", 63190, 65536, 54061)
    text = b"text" + bytes(4) + b"none\0\0\0\0"
    name = b"desc" + bytes(4) + struct.pack(">I", 2) + b"g\0" + bytes(4 + 4 + 2 + 1 + 67) + b"\0"
    tags, at, found, body = (
        [(b"A2B0", lut), (b"wtpt", white), (b"cprt", text), (b"desc", name)],
        128 + 4 + 4 * 12,
        b"",
        b"",
    )
    for sign, data in tags:
        found += sign + struct.pack(">II", at + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    illuminant = struct.pack(">3i", 63190, 65536, 54061)
    head = (
        b"prtr"
        + b"CMYK"
        + b"Lab "
        + bytes(12)
        + b"acsp"
        + bytes(4)
        + bytes(4)
        + bytes(4)
        + bytes(4)
        + bytes(8)
        + bytes(4)
    )
    start = struct.pack(">I4sI", at + len(body), bytes(4), 0x02400000)
    return (start + head + illuminant).ljust(128, b"\0") + struct.pack(">I", len(tags)) + found + body


def chunks(corpus: Corpus) -> None:
    """PNG chunks that are many, large, nested in each other's way, or lie."""
    row = bytes(1 + 4 * 3) * 4  # 4 x 4 black pixels
    bomb = zlib.compress(bytes(30_000_000), 9)
    cases = {
        "many": ([(b"tEXt", b"k%d\0v" % i) for i in range(3000)], USED),
        "one large": ([(b"tEXt", b"prompt\0" + b"x" * 900_000)], USED),
        "many profiles": ([(b"iCCP", b"x\0\0" + zlib.compress(b"x"))] * 30, USED),
        "unknown": ([(b"xyZz", bytes(5000))] * 20, USED),
        "empty": ([(b"tEXt", b"")], USED),
        "packed bomb": ([(b"zTXt", b"prompt\0\0" + bomb)], EITHER),
        "packed utf8 bomb": ([(b"iTXt", b"prompt\0\1\0\0\0" + bomb)], EITHER),
        "profile bomb": ([(b"iCCP", b"x\0\0" + bomb)], EITHER),
        "exif": ([(b"eXIf", bytes(3))], EITHER),
        "short gamma": ([(b"gAMA", b"\0")], EITHER),
        "short palette": ([(b"PLTE", b"\1\2")], EITHER),
        "no palette index": ([(b"tRNS", b"\0")], EITHER),
        "two headers": ([(b"IHDR", struct.pack(">IIBBBBB", 9, 9, 8, 2, 0, 0, 0))], EITHER),
        "frames": ([(b"acTL", struct.pack(">II", 2**31 - 1, 0))], EITHER),
    }
    for name, (found, fate) in cases.items():
        notes = ["colour profile"] * (name == "many profiles")
        corpus.put(f"chunks/{name}.png", png(4, 4, *found, data=row), fate, *notes)
    whole = png(4, 4, data=row)
    for name, data in {
        "after the end": whole + bytes(5000),
        "no end": whole[:-12],
        "sum": whole[:-5] + b"\0" + whole[-4:],
    }.items():
        corpus.put(f"chunks/{name}.png", data, EITHER)
    for length in (0x7FFFFFFF, 0xFFFFFFFF):
        corpus.put(f"chunks/length {length}.png", whole[:33] + struct.pack(">I", length) + b"tEXt" + whole[33:], EITHER)


def modes(corpus: Corpus) -> None:
    """Every way to store a pixel."""
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"):
        image = NOISE.convert("L").convert("I;16") if mode == "I;16" else NOISE.convert(mode)
        corpus.put(f"modes/{mode.replace(';', ' ')}.png", encoded(image), USED)
    corpus.put("modes/16 bit rgb.png", png(4, 4, depth=16, data=bytes(1 + 4 * 6) * 4), USED)
    corpus.put("modes/2 bit.png", png(4, 4, depth=2, colour=0, data=bytes(2) * 4), USED)
    corpus.put("modes/bad depth.png", png(4, 4, depth=7, data=bytes(99)), UNREADABLE)
    for mode in ("L", "RGB", "CMYK", "YCbCr"):
        corpus.put(f"modes jpg/{mode}.jpg", encoded(NOISE.convert(mode), "JPEG"), USED)
    corpus.put("modes jpg/progressive.jpg", encoded(NOISE, "JPEG", progressive=True), USED)
    for mode in ("1", "L", "P", "RGB", "RGBA"):
        corpus.put(f"modes bmp/{mode}.bmp", encoded(NOISE.convert(mode), "BMP"), USED)
    for mode in ("RGB", "RGBA"):
        corpus.put(f"modes webp/{mode}.webp", encoded(NOISE.convert(mode), "WEBP", lossless=True), USED)
    corpus.put(
        "modes/LAB.png", encoded(NOISE.convert("YCbCr").convert("RGB").convert("F"), "TIFF"), USED, "wrong ending"
    )
    corpus.put("modes/transparent.png", encoded(Image.new("P", (9, 9)), transparency=0), USED)
    corpus.put("modes/one colour.png", encoded(NOISE, transparency=(1, 2, 3)), USED)
    for width, height in ((1, 1), (1, 3000), (3000, 1), (2, 2)):
        corpus.put(f"modes/{width}x{height}.png", encoded(Image.new("RGB", (width, height))), USED)


def moving(corpus: Corpus) -> None:
    """Animations: the first frame is used and that is said; a phone's JPEG with a preview does not move."""
    frames = {"save_all": True, "append_images": [Image.new("RGB", NOISE.size, colour) for colour in ("red", "blue")]}
    corpus.put("moving/a.png", encoded(NOISE, **frames), USED, "animated")
    corpus.put("moving/b.webp", encoded(NOISE, "WEBP", **frames), USED, "animated")
    corpus.put("moving/c.png", encoded(NOISE, "GIF", **frames), USED, "animated", "wrong ending")
    corpus.put("moving/d.jpg", encoded(NOISE, "TIFF", **frames), USED, "animated", "wrong ending")
    corpus.put("moving/e.jpg", encoded(NOISE, "MPO", **frames), USED)
    if "AVIF" in WHOLE:
        corpus.put("moving/f.avif", encoded(NOISE, "AVIF", **frames), USED, "animated")
    corpus.put("moving/g.webp", encoded(NOISE, "WEBP", **frames)[:-200], UNREADABLE)


# ---- names and links ---------------------------------------------------------------------------------------------


def named(corpus: Corpus) -> None:
    """Names that are long, in other scripts, or full of signs; folders that look like files; hidden ones."""
    names = [
        "帽子",
        "ぼうし",
        "모자",
        "шляпа",
        "قبعة",
        "🎩👒",
        "e\u0301",
        "\u00e9",
        "a b  c",
        "-rf",
        "two\nlines",
        "tab\t",
    ]
    names += [
        "'quotes\"",
        "100%s {x} $HOME",
        "back\\slash",
        "a.",
        "a ",
        "a.png",
        "#;&|",
        "<b>x",
        "\u202egnp",
        "con",
        "a,b",
    ]
    for name in [*names, "x" * 251, "帽" * 83 + "x"]:
        corpus.put(f"names/{name}.png", SMALL, USED)
    corpus.put("names/" + "/".join(["deep" * 10] * 20) + "/a.png", SMALL, USED)
    corpus.put("names/folder.png/inside.png", SMALL, USED)
    corpus.path("names/empty.png/x")
    for name in (".a.png", ".hidden/a.png", ".hidden/.more/b.png", "seen/.c/d/e.png"):
        corpus.path(f"names/{name}").write_bytes(SMALL)
    raw = os.fsencode(corpus.root) + b"/names/\xb0\xa1\xff.png"
    try:
        Path(os.fsdecode(raw)).write_bytes(SMALL)
        corpus.expect(r"names/\xb0\xa1\xff.png", USED)
    except OSError:
        pass  # this file system takes UTF-8 names only


def linked(corpus: Corpus) -> None:
    """Links, pipes and sockets: a pipe that is opened waits for ever."""
    outside = corpus.root.parent / "outside"
    (outside / "more").mkdir(parents=True)
    (outside / "a.png").write_bytes(SMALL)
    corpus.put("links/real.png", SMALL, USED)
    targets = {
        "inside.png": ("real.png", USED, ()),
        "outside.png": (str(outside / "a.png"), USED, ()),
        "nowhere.png": ("gone.png", "", ("link",)),
        "itself.png": ("itself.png", "", ("link",)),
        "ring1.png": ("ring2.png", "", ("link",)),
        "ring2.png": ("ring1.png", "", ("link",)),
        "up": ("..", "", ("link",)),
        "folder.png": (str(outside / "more"), "", ("link",)),
        "null.png": ("/dev/null", "", ("not a file",)),
        "piped.png": ("pipe.png", "", ("not a file",)),
        "below a file.png": ("real.png/x", "", ("link",)),
        "text.txt": ("nowhere", "", ("link",)),
    }
    for name, (target, fate, kinds) in targets.items():
        corpus.path(f"links/{name}").symlink_to(target)
        corpus.expect(f"links/{name}", fate, *kinds)
    for name in ("pipe.png", "pipe.txt", "pipe.json"):
        os.mkfifo(corpus.path(f"links/{name}"))
        corpus.expect(f"links/{name}", "", "not a file")
    here = os.getcwd()
    os.chdir(corpus.path("links/x").parent)  # a socket's path has at most 108 bytes
    with socket.socket(socket.AF_UNIX) as opened:
        opened.bind("socket.png")
    os.chdir(here)
    corpus.expect("links/socket.png", "", "not a file")
    if os.geteuid():
        corpus.put("links/forbidden.png", SMALL, UNREADABLE)
        corpus.path("links/forbidden.png").chmod(0)


# ---- captions ----------------------------------------------------------------------------------------------------

ENGLISH, FRENCH, RUSSIAN = "1girl, red hat, smile", "café, crème brûlée, forêt", "девушка, шляпа"
CHINESE, TRADITIONAL = "一个女孩, 红色帽子, 微笑, 白色背景", "女孩, 紅色帽子, 微笑, 藍色眼睛"
JAPANESE, KOREAN, THAI = "女の子, 赤い帽子, 笑顔", "소녀, 빨간 모자, 미소", "เด็กผู้หญิง, หมวกสีแดง"
READ = [
    *(
        (text, f"utf-{code}")
        for text in (ENGLISH, FRENCH, CHINESE, JAPANESE, RUSSIAN)
        for code in ("8", "8-sig", 16, 32)
    ),
    *((text, f"utf-16-{end}") for text in (ENGLISH, CHINESE, KOREAN) for end in ("le", "be")),
    (CHINESE, "gbk"),
    (CHINESE, "gb18030"),
]
REPORTED = [
    *((FRENCH, code) for code in ("latin-1", "cp1252", "mac_roman")),
    *((RUSSIAN, code) for code in ("cp1251", "koi8-r", "cp866")),
    *((TRADITIONAL, code) for code in ("big5", "cp950")),
    *((JAPANESE, code) for code in ("cp932", "euc-jp")),
    *((KOREAN, code) for code in ("euc-kr", "cp949")),
    (THAI, "cp874"),
]


def captioned(corpus: Corpus) -> None:
    """Caption files in every encoding and none: read right, or reported with the image left out."""
    for number, (text, code) in enumerate(READ):
        marked = b"\xfe\xff" + text.encode("utf-16-be") if code == "utf-16" and number % 2 else text.encode(code)
        _captioned(corpus, f"captions/{number} {code}", marked, caption=text)
    for number, (text, code) in enumerate(REPORTED):
        _captioned(corpus, f"captions of {number}/{code}", text.encode(code), "caption encoding")
    binary = {
        "zeros": bytes(40),
        "image": SMALL,
        "noise": rng("caption").randbytes(100),
        "odd utf-16": ENGLISH.encode("utf-16")[:-1],
        "half a character": "帽子".encode()[:-1],
        "large": b"tag, " * 300_000,
        "utf-8 then gbk": "帽子, ".encode() + "帽子".encode("gbk"),
    }
    for name, data in binary.items():
        _captioned(corpus, f"no captions/{name}", data, "caption encoding")
    for name, data in {
        "nothing": b"",
        "spaces": b" \n\t\r\n",
        "mark": b"\xef\xbb\xbf",
        "mark 16": b"\xff\xfe",
        "commas": b",\n,",
    }.items():
        _captioned(corpus, f"empty/{name}", data, "empty caption")
    for name, ends in {"windows": b"\r\n", "mac": b"\r", "unix": b"\n", "commas": b",\n"}.items():
        _captioned(corpus, f"lines/{name}", b"1girl" + ends + b"red hat, smile" + ends, caption=ENGLISH)
    corpus.put("lines/alone.txt", b"a cat", "", "caption without image")
    corpus.put("lines/upper.png", SMALL, USED, caption=ENGLISH)
    corpus.path("lines/upper.TXT").write_text(ENGLISH)
    corpus.put("lines/other.png", SMALL, USED, caption=ENGLISH)
    corpus.put("lines/other.caption", ENGLISH.encode(), "", "caption choice")
    corpus.put("lines/both.png", SMALL, USED, caption=ENGLISH)
    corpus.path("lines/both.txt").write_text(ENGLISH)
    corpus.put("lines/both.caption", b"another", "", "caption choice")
    corpus.put("lines/stem.png", SMALL, USED, "shared caption")
    corpus.put("lines/stem.bmp", WHOLE["BMP"], USED)
    corpus.put("lines/folder.png", SMALL, USED)
    corpus.path("lines/folder.txt/x")


def _captioned(corpus: Corpus, stem: str, data: bytes, kind: str = "", *, caption: str = "") -> None:
    """An image and its caption file."""
    fate = "" if kind == "caption encoding" else USED
    corpus.put(f"{stem}.png", SMALL, fate, *([kind] if kind else []), caption=caption)
    corpus.path(f"{stem}.txt").write_bytes(data)


def json_(corpus: Corpus) -> None:
    """JSON with captions of many images, and JSON that is something else."""
    corpus.put("json/kohya/a.png", SMALL, USED, caption="a girl, 1girl, hat")
    corpus.put("json/kohya/b.png", SMALL, USED, caption="a file")
    corpus.path("json/kohya/b.txt").write_text("a file")
    kohya = {
        "/content/x/json/kohya/a.png": {"caption": "a girl", "tags": "1girl, hat"},
        "b": {"tags": "lost"},
        "gone": {"tags": "x"},
    }
    corpus.put("json/kohya/meta_lat.json", json.dumps(kohya).encode(), "", "caption choice", "caption json")
    corpus.put("json/ours/a.png", SMALL, USED, caption="1girl, hat")
    corpus.put("json/ours/b.png", SMALL, USED, caption="帽子")
    corpus.path("json/ours/captions.json").write_bytes(
        json.dumps({"a.png": ["1girl", "hat"], "b": "帽子"}).encode("utf-16")
    )
    broken = {
        "cut": b'{"a": "b"',
        "nothing": b"",
        "deep": b"[" * 100_000,
        "deep objects": b'{"a":' * 100_000,
        "latin-1": '{"a": "é"}'.encode("latin-1"),
        "zeros": bytes(30),
        "number": b"1" * 10_000,
        "twice": b"{}{}",
    }
    for name, data in broken.items():
        corpus.put(f"json/broken/{name}.json", data, "", "caption json")
    others = {
        "list": [1, 2],
        "text": "x",
        "none": None,
        "settings": {"lr": 1e-4, "x": {"y": 1}},
        "half": {"a": "\ud800"},
    }
    for name, data in others.items():
        corpus.put(f"json/others/{name}.json", json.dumps(data).encode(), "", "foreign")
    corpus.put("json/strangers/captions.json", b'{"nobody": "x", "nowhere.png": "y"}', "", "caption json")
