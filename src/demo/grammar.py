"""The grammar: what a scene may hold, the prompt that names it, and near-duplicates of a scene."""

from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np

PACKAGE = Path(__file__).parent

# for each setting, style and light: the phrases that name it
SETTINGS = {
    "snowy": ("on a snowy mountain", "in a snowy alpine landscape"),
    "desert": ("in the desert", "among desert dunes"),
    "beach": ("on a tropical beach", "on a sandy beach"),
    "city": ("in a city street at night", "in front of a night city skyline"),
    "forest": ("in a dense forest", "deep in the woods"),
    "underwater": ("underwater", "at the bottom of the ocean"),
    "space": ("in outer space", "floating among the stars"),
    "kitchen": ("on a kitchen table", "on a wooden table in a kitchen"),
    "meadow": ("in a flower meadow", "in a field of wildflowers"),
    "jungle": ("in the jungle", "among tropical jungle leaves"),
    "lake": ("beside a calm lake", "by a mountain lake"),
    "cave": ("inside a crystal cave", "in a cave of glowing crystals"),
    "library": ("in an old library", "in front of tall bookshelves"),
    "volcano": ("near an erupting volcano", "on a field of lava"),
    "clouds": ("above the clouds", "floating in the sky"),
    "farm": ("on a farm with a red barn", "on a farm"),
    "mars": ("on the surface of mars", "on a red alien planet"),
    "ruins": ("among ancient ruins", "between crumbling temple columns"),
    "road": ("on a country road", "on an empty highway"),
    "checker": ("in a retro diner", "on a checkered floor"),
    "autumn": ("in an autumn park", "among falling autumn leaves"),
    "ice": ("on an iceberg", "in the arctic ice"),
    "stage": ("on a theater stage", "on a stage with red curtains"),
    "rooftop": ("on a rooftop", "on a rooftop above the city"),
}
INDOORS = {"kitchen", "library", "cave", "stage", "checker", "underwater", "space"}
OUTDOOR_LIGHTS = {"rain", "snowfall", "sunset", "moonlight"}
STYLES = {
    "watercolor": ("a watercolor painting", "watercolor"),
    "oil": ("an oil painting", "oil on canvas"),
    "sketch": ("a pencil sketch", "pencil drawing"),
    "pixel": ("pixel art", "16-bit pixel art"),
    "neon": ("a neon artwork", "glowing neon lines"),
    "lowpoly": ("a low poly render", "low poly"),
    "glass": ("a stained glass window", "stained glass"),
    "ukiyoe": ("a ukiyo-e print", "ukiyo-e woodblock print"),
    "photo": ("a photo", "photograph"),
    "charcoal": ("a charcoal drawing", "charcoal on paper"),
    "comic": ("a comic book panel", "comic book style"),
    "mosaic": ("a tile mosaic", "mosaic of small tiles"),
    "vintage": ("a vintage sepia photograph", "old sepia photo"),
    "blueprint": ("a blueprint", "technical blueprint"),
    "popart": ("a pop art poster", "pop art"),
}
LIGHTS = {
    "": ("",),
    "sunset": ("at sunset", "warm sunset light"),
    "moonlight": ("in the moonlight", "moonlit night"),
    "fog": ("in thick fog", "misty atmosphere"),
    "golden": ("in golden sunlight", "golden hour"),
    "rain": ("in the rain", "heavy rain"),
    "snowfall": ("in falling snow", "snowstorm"),
    "soft": ("in soft light", "soft dreamy light"),
    "spot": ("under a spotlight", "dramatic spotlight"),
    "sparks": ("surrounded by fireflies", "glowing fireflies"),
}
COLORS = {
    "red": (226, 48, 48),
    "blue": (58, 112, 236),
    "green": (58, 180, 74),
    "golden": (250, 196, 40),
    "purple": (150, 70, 210),
    "pink": (255, 130, 190),
    "white": (255, 255, 255),
    "black": (70, 70, 76),
    "orange": (255, 140, 20),
}
SIZES = {"": 1.0, "tiny": 0.45, "giant": 1.6}
COUNTS = ("", "two", "three", "four", "five")
TEMPLATES = 5


@dataclass(frozen=True)
class Subject:
    """One named thing: OpenMoji code, noun, how many (1..5), size and color ("" where unsaid)."""

    code: str
    noun: str
    count: int = 1
    size: str = ""
    color: str = ""


@dataclass(frozen=True)
class Scene:
    """What a prompt names, how it is phrased, and the seed of its image."""

    subjects: tuple[Subject, ...]
    setting: str
    style: str
    light: str
    wording: tuple[int, int, int, int]  # template, and which phrase for setting, style and light
    modifiers: tuple[str, ...]
    seed: int


def _lines(name: str) -> list[str]:
    return (PACKAGE / name).read_text(encoding="utf-8").splitlines()


@lru_cache(maxsize=1)
def drawings() -> tuple[tuple[str, str], ...]:
    """(OpenMoji code, noun) of every drawing that the grammar may name."""
    pairs = (line.partition(" ") for line in _lines("drawings.txt"))
    return tuple((code, noun) for code, _, noun in pairs)


@lru_cache(maxsize=1)
def irregular_plurals() -> dict[str, str]:
    """Singular -> plural, where no rule of `plural` applies."""
    pairs = (line.partition(": ") for line in _lines("irregular_plurals.txt"))
    return {singular: several for singular, _, several in pairs}


@lru_cache(maxsize=1)
def modifiers() -> tuple[str, ...]:
    """The phrases that people append to a prompt, whatever it depicts."""
    return tuple(_lines("modifiers.txt"))


def plural(noun: str) -> str:
    """The plural as a person writes it: `cups of tea`, `wolves`, `cherries`."""
    for joint in (" of ", " with "):
        head, _, tail = noun.partition(joint)
        if tail:
            return f"{plural(head)}{joint}{tail}"

    first, _, last = noun.rpartition(" ")
    return f"{first} {_plural_word(last)}".strip()


def _plural_word(word: str) -> str:
    if word in irregular_plurals():
        return irregular_plurals()[word]
    if word.endswith("fish"):
        return word
    if word.endswith(("s", "x", "ch", "sh")):
        return word + "es"
    if word.endswith("y") and word[-2] not in "aeiou":
        return word[:-1] + "ies"
    return word + "s"


def article(phrase: str) -> str:
    """`a` or `an` in front of `phrase`."""
    vowel = phrase[0].lower() in "aeiou" and not phrase.startswith(("unic", "ukiyo", "ewe", "one "))
    silent_h = phrase.startswith("hourglass")
    return f"{'an' if vowel or silent_h else 'a'} {phrase}"


def named(subject: Subject) -> str:
    """`three tiny red foxes`, `an owl`."""
    noun = subject.noun if subject.count == 1 else plural(subject.noun)
    phrase = " ".join(word for word in (subject.size, subject.color, noun) if word)
    if subject.count == 1:
        return article(phrase)
    return f"{COUNTS[subject.count - 1]} {phrase}"


def prompt(scene: Scene) -> str:
    """The prompt of a scene, as one would type it."""
    template, setting, style, light = scene.wording
    things = " and ".join(named(subject) for subject in scene.subjects)
    where = SETTINGS[scene.setting][setting]
    long_style, short_style = STYLES[scene.style]
    manner = long_style if style == 0 else short_style
    light_phrases = LIGHTS[scene.light]
    lit = light_phrases[light % len(light_phrases)]

    templates = (
        (f"{long_style} of {things} {where}", lit),
        (f"{things} {where}", lit, manner),
        (f"{things}, {where}", manner, lit),
        (f"{long_style} of {things}", where, lit),
        (manner, f"{things} {where}", lit),
    )
    parts = [part for part in templates[template] if part]
    return ", ".join([*parts, *scene.modifiers])


def nouns(scene: Scene) -> frozenset[str]:
    """The nouns of the scene's subjects, in the singular."""
    return frozenset(subject.noun for subject in scene.subjects)


def compose(rng: np.random.Generator) -> Scene:
    """One random scene of the grammar."""
    names = drawings()
    count = 2 if rng.random() < 0.62 else 1
    chosen = rng.choice(len(names), count, replace=False)
    subjects = tuple(_subject(rng, *names[i]) for i in chosen)
    setting = str(rng.choice(list(SETTINGS)))

    # no weather and no sun indoors
    unfit = OUTDOOR_LIGHTS if setting in INDOORS else set()
    lights = [light for light in LIGHTS if light not in unfit]
    light = str(rng.choice(lights)) if rng.random() < 0.6 else ""

    template = int(rng.integers(TEMPLATES))
    setting_phrase = int(rng.integers(2))
    style_phrase = int(rng.integers(2))
    light_phrase = int(rng.integers(2))
    return Scene(
        subjects=subjects,
        setting=setting,
        light=light,
        wording=(template, setting_phrase, style_phrase, light_phrase),
        style=str(rng.choice(list(STYLES))),
        modifiers=_modifiers(rng),
        seed=_image_seed(rng),
    )


def _subject(rng: np.random.Generator, code: str, noun: str) -> Subject:
    count = int(rng.choice([1, 2, 3, 4, 5], p=[0.6, 0.16, 0.12, 0.06, 0.06]))
    size = str(rng.choice(list(SIZES), p=[0.76, 0.12, 0.12]))
    colored = rng.random() < 0.22 and "green" not in noun
    color = _color(rng) if colored else ""
    return Subject(code, noun, count, size, color)


def _color(rng: np.random.Generator) -> str:
    return str(rng.choice(list(COLORS)))


def _modifiers(rng: np.random.Generator) -> tuple[str, ...]:
    how_many = int(rng.choice([0, 1, 2, 3], p=[0.35, 0.3, 0.22, 0.13]))
    return tuple(str(m) for m in rng.choice(modifiers(), how_many, replace=False))


def _image_seed(rng: np.random.Generator) -> int:
    return int(rng.integers(2**31))


def vary(scene: Scene, rng: np.random.Generator) -> Scene:
    """A near-duplicate: the same prompt drawn anew, with other modifiers or one changed word."""
    scene = replace(scene, seed=_image_seed(rng))
    first, *others = scene.subjects
    kinds = ("seed", "modifiers", "light", "count", "color")
    kind = rng.choice(kinds, p=[0.15, 0.5, 0.15, 0.1, 0.1])

    if kind == "modifiers":
        return replace(scene, modifiers=_modifiers(rng))
    if kind == "light":
        return replace(scene, light=str(rng.choice(["", "golden", "soft", "fog"])))
    if kind == "count":
        first = replace(first, count=int(rng.integers(1, 6)))
    if kind == "color":
        first = replace(first, color=_color(rng))
    return replace(scene, subjects=(first, *others))


def keys(scene: Scene) -> set[tuple[str, str]]:
    """What makes two scenes alike: the first subject with the setting, and the pair of subjects."""
    nouns = sorted(subject.noun for subject in scene.subjects)
    first_and_setting = (scene.subjects[0].noun, f"@{scene.setting}")
    if len(nouns) < 2:
        return {first_and_setting}
    return {first_and_setting, (nouns[0], nouns[1])}
