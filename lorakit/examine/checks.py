"""The table of checks: a row each with what it says, how grave that is, and what can be done."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from lorakit.data.listing import NOTE_KINDS
from lorakit.examine import balance, captions, files, images
from lorakit.examine.facts import Facts
from lorakit.examine.finding import CheckResult, DatasetFinding


@dataclass(frozen=True)
class Check:
    """One row: what it is called, how grave a finding is, its two sentences (`{n}` is the number of images), the
    name of a row of `FIXES` or "", and the function that looks.
    """

    kind: str
    severity: str
    text: str
    reason: str
    fix: str
    look: Callable[[Facts], CheckResult | None]

    def run(self, facts: Facts) -> DatasetFinding | None:
        """The finding, None when there is nothing to say."""
        found = self.look(facts)
        if found is None or not (found.images or found.details):
            return None
        return DatasetFinding(
            kind=self.kind,
            severity=self.severity,
            text=self.text,
            reason=self.reason,
            fix=self.fix,
            images=found.images,
            details=found.details,
            targets=found.targets,
            fields={"n": len(found.images), **found.fields},
        )


FILES = (
    Check(
        "unusable",
        "wrong",
        "The dataset cannot be trained on",
        "Training cannot begin before this is mended.",
        "",
        files.unusable,
    ),
    Check(
        "unreadable",
        "wrong",
        "Files that cannot be read as images: {n}",
        "They are left out of training. Damaged downloads and other files under an image's name are found here: fetch "
        "them again, or set them aside.",
        "set_aside",
        files.unreadable,
    ),
    Check(
        "truncated",
        "wrong",
        "Images that are cut off: {n}",
        "Their files end too early, and a grey part would be learned; they are left out. Copy or download them again.",
        "set_aside",
        files.truncated,
    ),
    Check(
        "shared-caption",
        "wrong",
        "Images that share a caption file: {n}",
        "Files such as 1.png and 1.jpg have one 1.txt, which is right for one of them only: rename the other, or take "
        "it away.",
        "",
        files.shared_caption,
    ),
    Check(
        "caption-encoding",
        "wrong",
        "Caption files in an unknown encoding: {n}",
        "Read in a wrong encoding, their letters would be garbled; so their images are left out. Choose the encoding "
        "that they were written in, and they are saved as UTF-8.",
        "to_utf8",
        files.noted("caption encoding"),
    ),
    Check(
        "overlooked",
        "wrong",
        "Folders whose images are not used: {n}",
        "Beside <repeats>_<name>/ folders only images directly inside these are trained. Move the others into such a "
        "folder, or add them again with the name of a concept folder.",
        "",
        files.noted("overlooked folder", "link"),
    ),
)
CAPTIONS = (
    Check(
        "too-long",
        "wrong",
        "Captions that are longer than the model reads: {n}",
        "What stands after {limit} tokens is never learned. Raise model.max_token_length, or shorten them; below is "
        "what is cut.",
        "",
        captions.too_long,
    ),
    Check(
        "no-caption",
        "look",
        "Images without a caption: {n}",
        "All in them is learned as the trigger alone, and nothing can be changed by words later. A tagger writes "
        "captions (notebook 3_tags); this writes down what they are trained as.",
        "write_captions",
        captions.without,
    ),
    Check(
        "empty-caption",
        "look",
        "Caption files that are empty: {n}",
        "They count as no caption at all. A tagger fills them (notebook 3_tags); this writes down what they are "
        "trained as.",
        "write_captions",
        captions.empty,
    ),
    Check(
        "chinese-commas",
        "look",
        "Captions with Chinese commas: {n}",
        "Only ordinary commas part tags: to the model a caption with ， or 、 is one long tag, which shuffling and "
        "the tag editor cannot take apart.",
        "ordinary_commas",
        captions.chinese_commas,
    ),
    Check(
        "trigger-missing",
        "look",
        "Captions without the trigger {trigger}: {n}",
        "Training puts it first by itself, but other tools that read these files do not, and the trigger is what calls "
        "the subject.",
        "trigger_first",
        captions.trigger_missing,
    ),
    Check(
        "trigger-late",
        "look",
        "Captions in which the trigger {trigger} is not first: {n}",
        "Only the first tags stay in place when tags are shuffled or dropped (data.keep_tokens), so that the trigger "
        "is learned from every image.",
        "trigger_first",
        captions.trigger_late,
    ),
    Check(
        "two-colours",
        "look",
        "Captions that give one thing two colours: {n}",
        "One of the two is wrong, and a wrong tag spoils more than a bad image: the model learns that neither word "
        "means what it says.",
        "",
        captions.two_colours,
    ),
    Check(
        "other-colour",
        "look",
        "Captions with a colour that is not in the image: {n}",
        "Taggers see colours by mistake, above all in dim or tinted light. Correct the tag, so that the word keeps its "
        "meaning.",
        "",
        captions.other_colour,
    ),
    Check(
        "trigger-unset",
        "tip",
        "All captions begin with the same tag, but no trigger is set",
        "With data.trigger set to it, images without a caption have it too, and samples and grids call it by itself.",
        "",
        captions.trigger_unset,
    ),
    Check(
        "in-nearly-all",
        "tip",
        "Tags in more than 90 % of the captions: {tags}",
        "What is always there belongs to the subject. Without the tags the trigger stands for it; with them it must be "
        "asked for each time.",
        "absorb",
        captions.always,
    ),
    Check(
        "in-one-only",
        "tip",
        "Tags in a single image: {tags}",
        "A tag that is seen once teaches little, and many of them are spelling mistakes or a tagger's errors. The tag "
        "editor shows them first.",
        "",
        captions.once,
    ),
    Check(
        "unmeasured",
        "tip",
        "Captions were not measured",
        "Without the base model's tokenizer it is not known whether captions are longer than the model reads.",
        "",
        captions.unmeasured,
    ),
)
IMAGES = (
    Check(
        "duplicates",
        "look",
        "Images that are alike: {n}",
        "Copies count as many times as they are there and are soon learned by heart. The best of each group stays: one "
        "with a caption, the largest, the sharpest.",
        "set_aside",
        images.duplicates,
    ),
    Check(
        "small",
        "look",
        "Images that are too small: {n}",
        "They have less than a quarter of the pixels of {side} × {side}, and teach how coarse images look. Use "
        "larger versions, leave them out, or lower data.resolution where most are as small.",
        "set_aside",
        images.small,
    ),
    Check(
        "enlarged",
        "look",
        "Images that are enlarged: {n}",
        "They are blown up more than {factor} times, and the blur of that is learned. Set data.bucket_no_upscale, or "
        "use larger versions.",
        "",
        images.enlarged,
    ),
    Check(
        "blurred",
        "look",
        "Blurred images: {n}",
        "Blur is learned as if it were the style. Drawings with few lines look blurred to a measurement too: judge "
        "them by eye.",
        "set_aside",
        images.blurred,
    ),
    Check(
        "borders",
        "look",
        "Images with borders or bars: {n}",
        "Frames and black bars are learned and painted again, and take room from the subject. Boxes leave them out "
        "when the images are prepared; the files stay as they are.",
        "crop_borders",
        images.framed,
    ),
    Check(
        "alpha",
        "tip",
        "Transparent images: {n}",
        "They are laid on {colour} (data.background), which is learned as their background: tag it, or set "
        "data.alpha_mask, and only what is opaque is learned.",
        "",
        files.alpha,
    ),
    Check(
        "animated",
        "tip",
        "Animated images: {n}",
        "Their first frame is trained, the others are not.",
        "",
        files.noted("animated"),
    ),
    Check(
        "not-compared",
        "tip",
        "Likeness was not looked for",
        "Exact copies are found without it; copies of another size or format need the package ImageHash.",
        "",
        images.unhashed,
    ),
)
WHOLE = (
    Check(
        "unequal-concepts",
        "look",
        "Concepts are seen unequally often: {least} to {most} times an epoch",
        "What is seen less is learned less, and what is seen more is learned by heart first. Rename the folders with "
        "other repeats (<repeats>_<name>), for example as below.",
        "",
        balance.concepts,
    ),
    Check(
        "backgrounds",
        "look",
        "More images of places than of somebody: {places} to {persons} an epoch",
        "The trigger then calls the place rather than the character. Use fewer backgrounds, or fewer repeats of them.",
        "",
        balance.backgrounds,
    ),
    Check(
        "few",
        "tip",
        "Few images: {images}, at least {least} are advised",
        "With few images the same details come again and again, and are learned by heart. Look for "
        "others: close-ups, other angles, other clothes. ({source})",
        "",
        balance.few,
    ),
    Check(
        "shapes",
        "tip",
        "Many small buckets: {tiny} of {buckets}",
        "A batch holds one shape only, so images of rare shapes are trained in small batches. Crop them to fewer "
        "shapes, or narrow the buckets, such as 320 to 768 px at 512.",
        "",
        balance.shapes,
    ),
    Check(
        "foreign",
        "tip",
        "Files that are not images: {n}",
        "They do no harm and are not used. If there should be images among them, convert these to PNG or JPEG.",
        "set_aside",
        files.noted("foreign"),
    ),
)
# Kinds of the scan's notes that a row above tells of.
SAID = {"unreadable", "shared caption", "caption encoding", "overlooked folder", "link", "no caption", "empty caption"}
SAID |= {"chinese commas", "animated", "foreign"}
OTHERS = Check(
    "others",
    "tip",
    "More about the files: {n}",
    "What else was seen while the dataset was read; nothing is left out without a word.",
    "",
    files.noted(*(kind for kind in NOTE_KINDS if kind not in SAID)),
)
CHECKS = {check.kind: check for check in (*FILES, *CAPTIONS, *IMAGES, *WHOLE, OTHERS)}
