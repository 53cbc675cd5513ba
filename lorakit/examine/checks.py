"""The table of checks: one row each with its texts, severity and fix."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from lorakit.data.listing import NOTE_KINDS
from lorakit.examine import balance, captions, files, images, spelling
from lorakit.examine.facts import Facts
from lorakit.examine.finding import CheckResult, DatasetFinding


@dataclass(frozen=True)
class Check:
    """One row of the table of checks.

    kind       name of the check and of its finding
    severity   one of `SEVERITIES`
    text       title of the finding and `reason` why it matters; `{n}` is the number of images
    fix        name of a row of `FIXES`, "" for none
    find       looks for the problem; None: reports the scan's notes of the kinds `notes`
    notes      kinds of the scan's notes that this check covers, so that no other row repeats them
    """

    kind: str
    severity: str
    text: str
    reason: str
    fix: str = ""
    find: Callable[[Facts], CheckResult | None] | None = None
    notes: tuple[str, ...] = ()

    def run(self, facts: Facts) -> DatasetFinding | None:
        """The finding, or None if there is no problem."""
        # A check without images and details found nothing.
        result = self.find(facts) if self.find else files.from_notes(facts.notes(*self.notes))
        if result is None or not (result.images or result.details):
            return None
        return DatasetFinding(
            kind=self.kind,
            severity=self.severity,
            text=self.text,
            reason=self.reason,
            fix=self.fix,
            images=result.images,
            details=result.details,
            targets=result.targets,
            fields={"n": len(result.images), **result.fields},
        )


FILES = (
    Check(
        "unusable",
        "error",
        "This dataset cannot be trained on",
        "Training cannot start until this is fixed.",
        find=files.unusable,
    ),
    Check(
        "unreadable",
        "error",
        "Unreadable images: {n}",
        "They are skipped in training. Most are damaged downloads, or other files with an image's extension: "
        "download them again, or exclude them.",
        fix="exclude",
        find=files.unreadable,
        notes=("unreadable",),
    ),
    Check(
        "truncated",
        "error",
        "Incomplete image files: {n}",
        "The files end too early and the missing part would be learned as grey, so they are skipped. Copy or "
        "download them again.",
        fix="exclude",
        find=files.truncated,
        notes=("unreadable",),
    ),
    Check(
        "shared-caption",
        "error",
        "Images that share a caption file: {n}",
        "For example, 1.png and 1.jpg both read 1.txt, which fits only one of them. Rename or remove the other image.",
        find=files.shared_caption,
        notes=("shared caption",),
    ),
    Check(
        "caption-encoding",
        "error",
        "Caption files in an unknown encoding: {n}",
        "Read in the wrong encoding they would become garbled text, so their images are skipped. Choose the "
        "encoding they were written in to save them as UTF-8; all together they are most likely {encoding}.",
        fix="to_utf8",
        find=files.caption_encoding,
        notes=("caption encoding",),
    ),
    Check(
        "unread-captions",
        "error",
        "Caption files that are not understood: {n}",
        "Their images are trained without these captions. Understood are JSON with caption, text or tags beside an "
        "image, and metadata.jsonl, metadata.csv or captions.json with an entry for each image.",
        notes=("unread captions",),
    ),
    Check(
        "unread-format",
        "error",
        "Images in a format that is not read: {n}",
        "They are skipped in training. Convert them to PNG or JPEG and add them again.",
        fix="exclude",
        notes=("unread format",),
    ),
    Check(
        "deep-folders",
        "error",
        "Concept folders that are not understood: {n}",
        "Repeats and names are read from <repeats>_<name>/ folders in the data folder, or one level down as in "
        "kohya's projects (img/, train_data/, reg/). These lie elsewhere, so their images count once, without a name.",
        notes=("deep folder",),
    ),
    Check(
        "repeats",
        "error",
        "Folders with more than {most} repeats: {folders}",
        "The number before a folder's name says how often its images are trained in an epoch. A year is no number "
        "of repeats: rename the folder, e.g. to 1_2024 summer.",
        find=balance.repeats,
    ),
    Check(
        "overlooked",
        "error",
        "Folders that are not used: {n}",
        "Next to <repeats>_<name>/ folders, only images directly inside those are trained. Move the others into"
        " such a folder, or add them again with a folder name.",
        notes=("overlooked folder", "link"),
    ),
)
CAPTIONS = (
    Check(
        "too-long",
        "error",
        "Captions longer than the model reads: {n}",
        "Everything after {limit} tokens is ignored (shown below). Raise “Max token length”, or shorten these "
        "captions.",
        find=captions.too_long,
    ),
    Check(
        "no-caption",
        "warning",
        "Images without a caption: {n}",
        "Everything in them is tied to the trigger word and cannot be changed by prompts later. A tagger can "
        "write captions (notebook 3_tags); the button saves the text they are trained with now.",
        fix="write_captions",
        find=captions.without,
        notes=("no caption",),
    ),
    Check(
        "empty-caption",
        "warning",
        "Empty caption files: {n}",
        "They are trained as if there were no caption. A tagger can fill them (notebook 3_tags); the button "
        "saves the text they are trained with now.",
        fix="write_captions",
        find=captions.empty,
        notes=("empty caption",),
    ),
    Check(
        "chinese-commas",
        "warning",
        "Captions with Chinese commas: {n}",
        "Only ASCII commas separate tags: a caption with ， or 、 is one long tag that shuffling and the tag "
        "editor cannot split.",
        fix="ascii_commas",
        find=captions.chinese_commas,
        notes=("chinese commas",),
    ),
    Check(
        "trigger-missing",
        "warning",
        "Captions without the trigger word {trigger}: {n}",
        "Training adds it to the front by itself, but other tools that read these files do not.",
        fix="trigger_first",
        find=captions.trigger_missing,
    ),
    Check(
        "trigger-late",
        "warning",
        "Captions where the trigger word {trigger} is not first: {n}",
        "Only the first tags (“Keep tokens”) are safe from shuffling and tag dropout, so the trigger word "
        "belongs in front.",
        fix="trigger_first",
        find=captions.trigger_late,
    ),
    Check(
        "trigger-shared",
        "warning",
        "Concept folders with another trigger word: {folders}",
        "Training puts {trigger} in front of their captions too, though these have a name or a first tag of their own "
        "(shown below). Give these folders their own trigger words (“Trigger words by folder”).",
        find=captions.trigger_shared,
    ),
    Check(
        "placeholders",
        "error",
        "Captions with [trigger] or [name], but no trigger word: {n}",
        "Other trainers write the trigger word there, and so does this one once it is set. Until then the "
        "placeholder itself would be learned.",
        find=spelling.placeholders,
    ),
    Check(
        "separators",
        "warning",
        "Captions with separators that are not set: {n}",
        "They would be learned as text. Set them (“Keep tokens separator”, “Secondary separator”), or write "
        "commas instead.",
        find=captions.separators,
    ),
    Check(
        "several-lines",
        "warning",
        "Caption files whose lines look like alternatives: {n}",
        "All lines of a file are read as one caption. If each line is a caption of its own, set “Caption lines” to "
        "alternatives: each step then trains one of them.",
        find=captions.several_lines,
    ),
    Check(
        "prompt-syntax",
        "warning",
        "Captions with prompt syntax: {n}",
        "Weights, escapes such as \\(, BREAK, LoRA names, wildcards and pasted settings are learned as letters. A "
        "caption is plain text, as shown behind the arrow.",
        fix="plain_text",
        find=spelling.prompt_syntax,
    ),
    Check(
        "doubled-tags",
        "warning",
        "Captions in which a tag stands twice: {n}",
        "Upper case and underscores make no other tag. A doubled tag takes tokens, and teaches nothing more.",
        fix="single_tags",
        find=spelling.doubled_tags,
    ),
    Check(
        "mixed-spelling",
        "warning",
        "Tags that are spelled in several ways: {tags}",
        "Each spelling is learned as a word of its own, so that each is learned less. Most captions have the "
        "spelling behind the arrow.",
        fix="one_spelling",
        find=spelling.mixed_spelling,
    ),
    Check(
        "quality-tags",
        "tip",
        "Captions with quality tags: {n}",
        "They bind the look of these images to words that belong to the base model. Remove them, unless your guide "
        "asks for them.",
        fix="remove_listed",
        find=spelling.quality_tags,
    ),
    Check(
        "watermarks",
        "tip",
        "Images with a watermark or signature: {n}",
        "It is learned along with the image. Keep these tags, so that it can be left out of prompts; better, crop it "
        "away or retouch the image.",
        find=spelling.watermarks,
    ),
    Check(
        "two-colours",
        "warning",
        "Captions with two colours for one thing: {n}",
        "One of the two is wrong, and a wrong tag does more harm than a bad image: both words lose their meaning.",
        find=captions.two_colours,
    ),
    Check(
        "other-colour",
        "warning",
        "Captions with a colour that the image does not have: {n}",
        "Taggers often get colours wrong, above all in dim or tinted light. Correct the tag.",
        find=captions.other_colour,
    ),
    Check(
        "trigger-unset",
        "tip",
        "No trigger word is set; most likely it is {tag}",
        "Set it as the trigger word: images without a caption then get it too, and so do sample and grid prompts.",
        find=captions.trigger_unset,
    ),
    Check(
        "in-nearly-all",
        "tip",
        "Tags in more than 90 % of the captions: {tags}",
        "What is always there belongs to the subject. Remove these tags and the trigger word alone stands for "
        "it; keep them and every prompt has to name it.",
        fix="remove_tags",
        find=captions.always,
    ),
    Check(
        "in-one-only",
        "tip",
        "Tags used only once: {tags}",
        "A tag seen once teaches little, and many of these are typos or tagger errors. The tag editor lists "
        "them first.",
        find=captions.once,
    ),
    Check(
        "unmeasured",
        "tip",
        "Caption length was not checked",
        "Without the base model's tokenizer the token count is unknown.",
        find=captions.unmeasured,
    ),
)
IMAGES = (
    Check(
        "duplicates",
        "warning",
        "Duplicates: {n}",
        "Every copy counts again, which leads to overfitting. The best of each group is kept: captioned, then "
        "largest, then sharpest.",
        fix="exclude",
        find=images.duplicates,
    ),
    Check(
        "small",
        "warning",
        "Images that are too small: {n}",
        "They have less than a quarter of the pixels of {side} × {side} and teach a coarse look. Use larger "
        "versions, exclude them, or lower “Resolution” if most images are this small.",
        fix="exclude",
        find=images.small,
    ),
    Check(
        "cropped",
        "warning",
        "Images that lose 10 % or more to cropping: {n}",
        "No bucket has their shape. Crop them yourself, prepare them with crop boxes, or widen the bucket range "
        "(“Min bucket side”, “Max bucket side”).",
        find=images.cropped,
    ),
    Check(
        "enlarged",
        "warning",
        "Upscaled images: {n}",
        "They are enlarged more than {factor} times, and the model learns the blur. Turn on “No upscaling”, or "
        "use larger versions.",
        find=images.enlarged,
    ),
    Check(
        "blurred",
        "warning",
        "Blurred images: {n}",
        "Blur is learned as part of the style. Line art with few lines also measures as blurred: judge by eye.",
        fix="exclude",
        find=images.blurred,
    ),
    Check(
        "borders",
        "warning",
        "Images with borders or bars: {n}",
        "The model learns to reproduce frames and black bars. Crop boxes leave them out when images are "
        "prepared; the files do not change.",
        fix="crop_borders",
        find=images.framed,
    ),
    Check(
        "alpha",
        "tip",
        "Transparent images: {n}",
        "They are placed on {colour} (“Background colour”), which is learned as their background: tag it, or "
        "turn on “Alpha mask” to learn the opaque parts only.",
        find=files.alpha,
    ),
    Check(
        "masks",
        "tip",
        "Masks that are not used: {n}",
        "They are never trained as images. Turn on “Alpha mask” to learn only what they show in white.",
        notes=("mask",),
    ),
    Check(
        "colour-profile",
        "warning",
        "Images with a broken colour profile: {n}",
        "Their colours are trained as they are stored, which may look pale. Open them in an image editor and save "
        "them as sRGB.",
        notes=("colour profile",),
    ),
    Check(
        "sideways",
        "tip",
        "Images that are stored sideways: {n}",
        "They are trained upright, as their EXIF says. Programs that ignore EXIF show and train them sideways; "
        "prepared copies are upright everywhere.",
        find=images.sideways,
    ),
    Check(
        "animated",
        "tip",
        "Animated images: {n}",
        "Only the first frame is trained.",
        notes=("animated",),
    ),
    Check(
        "not-compared",
        "tip",
        "Near-duplicates were not checked",
        "Exact copies are still found; copies in another size or format need the package ImageHash.",
        find=images.unhashed,
    ),
)
WHOLE = (
    Check(
        "unequal-concepts",
        "warning",
        "Unbalanced concepts: {least} to {most} images per epoch",
        "Rare concepts are learned too little, frequent ones overfit first. Change the repeats in the folder "
        "names (<repeats>_<name>), for example as below.",
        find=balance.concepts,
    ),
    Check(
        "backgrounds",
        "warning",
        "More scenery than characters: {places} to {persons} images per epoch",
        "The trigger word then stands for the place rather than the character. Use fewer scenery images, or "
        "fewer repeats of them.",
        find=balance.backgrounds,
    ),
    Check(
        "few",
        "tip",
        "Few images: {images}, at least {least} recommended",
        "The same details repeat often and the model overfits. Add others: close-ups, other angles, other "
        "clothes. ({source})",
        find=balance.few,
    ),
    Check(
        "shapes",
        "tip",
        "Many small buckets: {tiny} of {buckets}",
        "A batch holds one shape, so images of rare shapes train in small batches. Crop them to fewer shapes, "
        "or narrow the bucket range, e.g. 320 to 768 px at 512.",
        find=balance.shapes,
    ),
    Check(
        "foreign",
        "tip",
        "Files that are not images: {n}",
        "They are ignored and do no harm. If some should be images, convert them to PNG or JPEG.",
        fix="exclude",
        notes=("foreign",),
    ),
)
ROWS = (*FILES, *CAPTIONS, *IMAGES, *WHOLE)
# Notes that no other check covers, so that none is lost.
COVERED = {kind for check in ROWS for kind in check.notes}
OTHERS = Check(
    "others",
    "tip",
    "Other notes on files: {n}",
    "Everything else noticed while reading the dataset.",
    notes=tuple(kind for kind in NOTE_KINDS if kind not in COVERED),
)
CHECKS = {check.kind: check for check in (*ROWS, OTHERS)}
