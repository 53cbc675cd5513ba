"""The vocabulary of tags: spelling, which tags imply others, and the kind of each (character, artist, count, ...).

Source: the tags and tag implications of Danbooru's wiki, on which the WD taggers were trained; the kinds and their
order: Anima's model card.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache

# Tags that are drawn with characters; an underscore in them is no space.
KAOMOJI = frozenset(
    "0_0 (o)_(o) +_+ +_- ._. <o>_<o> <|>_<|> =_= >_< 3_3 6_9 >_o @_@ ^_^ o_o u_u x_x |_| ||_|| *_* ;_; T_T t_t -_- "
    "n_n O_o o_O :_( ._.; >_> <_< ^_^; v_v q_q z_z $_$ ?_? !_! ^o^ \\_/ d_b".split()
)

COLOURS = frozenset(
    "aqua beige black blonde blue brown gold green grey gray lavender maroon orange pink purple red silver "
    "tan teal white yellow multicolored two-tone colored rainbow".split()
)
# Adjectives: with one of them in front, a thing is still that thing ("striped skirt" is a skirt).
MODIFIERS = COLOURS | frozenset(
    "light dark striped checkered plaid print printed polka-dot floral camouflage frilled lace lace-trimmed pleated "
    "denim leather fur fur-trimmed torn wet ripped see-through latex knit ribbed sleeveless strapless long short very "
    "big large huge small mini micro thick open closed loose tight single asymmetrical ornate school".split()
)
# A general word -> the things that imply it. With a colour in front ("red boots" -> "red footwear") both have the same.
THINGS = {
    "footwear": "boots shoes sandals sneakers slippers loafers geta high_heels mary_janes knee_boots ankle_boots "
    "thigh_boots uwabaki flip-flops pumps zouri",
    "boots": "knee_boots ankle_boots thigh_boots rubber_boots high_heel_boots cowboy_boots",
    "shoes": "sneakers loafers mary_janes uwabaki",
    "headwear": "hat cap beret helmet hood bonnet top_hat witch_hat sun_hat straw_hat santa_hat baseball_cap beanie "
    "peaked_cap sailor_hat crown tiara",
    "hat": "beret top_hat witch_hat sun_hat straw_hat santa_hat baseball_cap beanie peaked_cap sailor_hat cowboy_hat",
    "legwear": "thighhighs pantyhose socks kneehighs leggings stockings leg_warmers loose_socks",
    "socks": "kneehighs ankle_socks loose_socks",
    "eyewear": "glasses sunglasses goggles monocle rimless_eyewear round_eyewear semi-rimless_eyewear",
    "neckwear": "necktie bowtie ascot neckerchief scarf",
    "handwear": "gloves mittens elbow_gloves fingerless_gloves",
    "gloves": "elbow_gloves fingerless_gloves half_gloves",
    "swimsuit": "bikini one-piece_swimsuit school_swimsuit competition_swimsuit",
    "bikini": "string_bikini side-tie_bikini micro_bikini",
    "skirt": "miniskirt microskirt pencil_skirt long_skirt pleated_skirt high-waist_skirt",
    "shirt": "t-shirt dress_shirt collared_shirt",
    "jacket": "blazer hoodie track_jacket letterman_jacket",
    "pants": "jeans track_pants yoga_pants",
    "dress": "sundress wedding_dress china_dress pinafore_dress sailor_dress",
    "school_uniform": "serafuku",
    "japanese_clothes": "kimono yukata hakama haori furisode",
    "underwear": "bra panties",
    "jewelry": "earrings necklace ring bracelet pendant",
    "earrings": "hoop_earrings stud_earrings",
    "hair_ornament": "hair_flower hairclip hairpin x_hair_ornament star_hair_ornament heart_hair_ornament",
    "ribbon": "hair_ribbon neck_ribbon",
    "bow": "hair_bow",
    "animal_ears": "cat_ears fox_ears dog_ears rabbit_ears wolf_ears mouse_ears horse_ears bear_ears",
    "tail": "cat_tail fox_tail dog_tail rabbit_tail wolf_tail dragon_tail demon_tail horse_tail",
    "wings": "angel_wings demon_wings bat_wings dragon_wings feathered_wings butterfly_wings",
    "horns": "demon_horns dragon_horns curled_horns",
    "weapon": "sword gun katana rifle handgun polearm spear knife dagger axe staff bow_(weapon) scythe",
    "sword": "katana rapier greatsword",
    "gun": "rifle handgun shotgun submachine_gun",
    "long_hair": "very_long_hair absurdly_long_hair",
    "very_long_hair": "absurdly_long_hair",
    "short_hair": "very_short_hair",
    "braid": "twin_braids single_braid french_braid side_braid crown_braid",
    "ponytail": "high_ponytail side_ponytail low_ponytail short_ponytail folded_ponytail",
    "twintails": "low_twintails short_twintails",
    "bangs": "blunt_bangs parted_bangs swept_bangs asymmetrical_bangs",
    "smile": "grin light_smile evil_smile",
    "flower": "rose sunflower tulip lily_(flower) hibiscus hydrangea",
}
# A thing -> the general words that it implies.
_GENERAL = {
    thing.replace("_", " "): {word.replace("_", " ") for word, things in THINGS.items() if thing in things.split()}
    for things in THINGS.values()
    for thing in things.split()
}

# The kinds of tags, in Anima's order; "general" is everything that is of no other kind.
KINDS = ("quality", "meta", "year", "safety", "count", "character", "series", "artist", "general")
_QUALITY = re.compile(
    r"masterpiece|(best|good|high|normal|average|low|bad|worst) quality|score_\d(_up)?|very aesthetic"
)
_YEAR = re.compile(r"newest|recent|mid|early|old|year \d{4}")
_SAFETY = {"general": "safe", "sensitive": "sensitive", "questionable": "nsfw", "explicit": "explicit"}
_COUNT = re.compile(r"\d\+?(girl|boy|other)s?|multiple (girls|boys|others)|solo|no humans")
# Taggers and Anima use different words.
_KIND_OF_CATEGORY = {"copyright": "series", "rating": "safety"}


def spelled(tag: str) -> str:
    """A tagger's raw tag in the spelling of captions: spaces for underscores, except in kaomoji (^_^) and score_9."""
    return tag if tag in KAOMOJI or re.fullmatch(r"score_\d(_up)?", tag) else tag.replace("_", " ").strip()


def kind(tag: str, category: str = "") -> str:
    """The kind of a spelled tag, one of KINDS.

    category   the tagger's category of the tag, "" when the tagger does not know the tag or there is none
    """
    # Before the category: taggers give 1girl as "general".
    if _COUNT.fullmatch(tag):
        return "count"
    if category:
        return _KIND_OF_CATEGORY.get(category, category)
    if _QUALITY.fullmatch(tag):
        return "quality"
    if _YEAR.fullmatch(tag):
        return "year"
    if tag in _SAFETY.values():
        return "safety"
    return "artist" if tag.startswith("@") and tag not in KAOMOJI else "general"


def safety(rating: str) -> str:
    """Anima's safety tag for a WD tagger's rating: "safe" for "general", "nsfw" for "questionable"."""
    return _SAFETY.get(rating, rating)


def implied(tags: Iterable[str]) -> dict[str, str]:
    """Redundant tag -> the tag among `tags` that implies it: boots and red footwear are implied by red boots."""
    present = dict.fromkeys(tags)
    implied_by = {less: tag for tag in present for less in _implications(tag) if less in present and less != tag}
    # follow the chain to its most specific tag: footwear <- boots <- knee boots
    for tag in implied_by:
        while implied_by[tag] in implied_by:
            implied_by[tag] = implied_by[implied_by[tag]]
    return {tag: implied_by[tag] for tag in present if tag in implied_by}


@cache
def _implications(tag: str) -> frozenset[str]:
    """All tags that a tag implies, itself included: red knee boots implies red boots, boots and red footwear."""
    words, tags = tag.split(" "), {tag}
    # take words off the front as long as they are adjectives: what remains is a more general tag
    for i in range(len(words)):
        adjectives, thing = words[:i], " ".join(words[i:])
        tags.add(thing)
        tags |= {" ".join([*adjectives, word]) for word in _GENERAL.get(thing, ())} | _GENERAL.get(thing, set())
        if words[i] not in MODIFIERS:
            break
    # Every implied tag is shorter or more general than this one, so this comes to an end.
    return frozenset(tags | {less for other in tags - {tag} for less in _implications(other)})
