"""Draw the small cubist compositions of `dataset/sample/`.

They stand in for real paintings, so that a fresh clone can train without a download. Every
picture has its own random generator, seeded by [seed, number]: the same seed draws it again.

    python dataset/draw_samples.py                                            the committed 64
    python dataset/draw_samples.py --count 2000 --output dataset/drawn        a full-size set
"""

import signal
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image, ImageDraw
from rich.console import Console
from rich.progress import track

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # where image_resizer.py is
from image_resizer import Parser, reason, replace_file, say

SUPERSAMPLE = 2  # paint larger and shrink at the end: smooth edges, finer brushwork
JPEG_QUALITY = 78
SIZES = [(290, 370), (280, 390), (370, 290), (320, 320), (250, 400), (400, 280), (330, 370)]
PALETTES = [  # six tones from dark to light, then two accents
    "#1f1a15 #43372a #6f5b40 #9a8159 #c2a878 #efe2bf #8a4029 #55656b",
    "#181b1d #37403f #5d6863 #8a8e82 #bab397 #efe7cd #a9793f #2f4a5c",
    "#1d1411 #472d20 #77502f #a3794a #c9a878 #f1e5c6 #3b5546 #92402b",
    "#1a1b17 #3f4236 #6c6a50 #9d8d62 #ccb27e #f0e3c2 #ad643a #54706b",
    "#14181e #2f3a45 #5a6872 #8c9393 #c0b8a2 #f0ead8 #9c5833 #c4984f",
]
# Half of each object's outline, as (height, half width); the other half mirrors it.
# fmt: off
PROFILES = {
    "guitar": [(-.25, .05), (-.2, .22), (-.05, .33), (.1, .34), (.28, .24), (.45, .33),
               (.68, .46), (.88, .42), (1, .12)],
    "violin": [(-.2, .05), (-.15, .24), (0, .31), (.16, .33), (.22, .2), (.42, .19),
               (.5, .35), (.7, .39), (.9, .35), (1, .08)],
    "neck": [(-1, .05), (.3, .07)],
    "bottle": [(-1, .12), (-.85, .12), (-.45, .13), (-.25, .28), (-.1, .32), (1, .32)],
    "glass": [(-1, .46), (-.2, .36), (.1, .08), (.75, .06), (.86, .32), (1, .36)],
    "dish": [(-.4, .95), (-.1, .8), (.1, .35), (.2, .1), (.75, .1), (.9, .42), (1, .48)],
    "fruit": [(-1, .3), (-.7, .8), (0, 1), (.7, .75), (1, .25)],
    "head": [(-1, .3), (-.8, .56), (-.3, .64), (.2, .56), (.7, .36), (1, .16)],
    "hair": [(-1.3, .1), (-1.1, .6), (-.5, .78), (.1, .7)],
    "torso": [(-1, .18), (-.85, .25), (-.66, .8), (-.1, .92), (1, 1.1)],
}
FACE = [  # nose and brow, eyes, mouth
    [(-.4, -.42), (-.05, -.46), (0, -.35), (.26, .22), (0, .26)],
    [(-.42, -.2), (-.25, -.32), (-.1, -.2), (-.25, -.13), (-.42, -.2)],
    [(.12, -.26), (.3, -.36), (.46, -.24), (.2, -.22)], [(.1, -.45), (.5, -.48)],
    [(-.16, .47), (.02, .42), (.2, .48), (0, .53), (-.16, .47)],
]
HOUSE = [  # side, front, roof, door: outline and brightness
    ([(.6, -.5), (1.4, -.7), (1.4, .7), (.6, 1)], .55),
    ([(-.6, -.5), (0, -1.1), (.6, -.5), (.6, 1), (-.6, 1)], 1.15),
    ([(0, -1.1), (.8, -1.3), (1.4, -.7), (.6, -.5)], .75),
    ([(-.2, 0), (.1, 0), (.1, .5), (-.2, .5)], .2),
]
LETTERS = {
    "J": [(.7, 0), (.7, .8), (.4, 1), (.1, .8)],
    "O": [(.5, 0), (.9, .3), (.9, .7), (.5, 1), (.1, .7), (.1, .3), (.5, 0)],
    "U": [(.1, 0), (.1, .8), (.5, 1), (.9, .8), (.9, 0)],
    "L": [(.1, 0), (.1, 1), (.8, 1)],
    "B": [(.1, .5), (.7, .5), (.8, .8), (.1, 1), (.1, 0), (.7, .2), (.5, .5)],
}
# fmt: on
WORDS = ["JOU", "BOL", "LOU", "JOUJOU", "BLO"]


@dataclass
class Canvas:
    """A picture in progress."""

    rng: np.random.Generator
    pixels: np.ndarray  # height x width x 3, from 0 to 1
    colours: np.ndarray  # the tones, dark to light, then the accents
    bristles: list[np.ndarray]  # brush textures, one for each direction of the hand
    found: np.ndarray  # where outlines show (1) and where they are lost (0)
    axes: np.ndarray  # the few directions that all edges keep to
    unit: float  # about the shorter side, the measure of all lengths
    contours: list[np.ndarray] = field(default_factory=list)

    @property
    def middle(self) -> np.ndarray:
        """Where the subject stands."""
        return np.array(self.found.shape[::-1]) * (0.5, 0.48)

    def tone(self, level: float) -> np.ndarray:
        """Return the colour at `level`, from 0 (darkest) to 1 (lightest)."""
        steps = np.linspace(0, 1, 6)
        return np.array([np.interp(level, steps, self.colours[:6, i]) for i in range(3)])

    def accented(self, level: float, accent: int, amount: float = 0.5) -> np.ndarray:
        """Return a tone with some of an accent in it."""
        return (1 - amount) * self.tone(level) + amount * self.colours[6 + accent]

    def lit(self, point: np.ndarray) -> np.ndarray:
        """Return a tone for `point`: light about the middle, dark in the corners."""
        away = (point - self.middle) / self.found.shape[::-1]
        return self.tone(0.68 - 1.5 * (away @ away) + self.rng.normal(0, 0.2))


def clouds(rng: np.random.Generator, width: int, height: int, cells: int) -> np.ndarray:
    """Return soft noise from 0 to 1, about `cells` clouds across."""
    small = Image.fromarray((rng.random((cells, cells)) * 255).astype(np.uint8))
    return np.asarray(small.resize((width, height), Image.Resampling.BICUBIC)) / 255


def brush_texture(rng: np.random.Generator, width: int, height: int, angle: float) -> np.ndarray:
    """Return overlapping dabs that all run at about `angle`, centred on 0."""
    image = Image.new("L", (width, height), 128)
    draw = ImageDraw.Draw(image)
    for _ in range(width * height // 70):
        start, turn = rng.uniform(0, (width, height)), angle + rng.normal(0, 0.12)
        end = start + np.array([np.cos(turn), np.sin(turn)]) * rng.uniform(8, 22)
        draw.line([*start, *end], fill=int(rng.normal(128, 40)), width=int(rng.integers(3, 7)))
    return np.asarray(image) / 255 - 0.5


def cut_out(canvas: Canvas, points: np.ndarray, width: int = 0) -> tuple[tuple, np.ndarray]:
    """Return the box around a polygon (around a line, given its `width`) and its mask."""
    limit = canvas.found.shape[::-1]
    left, top = np.clip(points.min(0) - width, 0, limit).astype(int)
    right, bottom = np.clip(points.max(0) + width + 2, (left + 1, top + 1), None).astype(int)
    right, bottom = min(right, limit[0]), min(bottom, limit[1])
    mask = Image.new("L", (max(0, right - left), max(0, bottom - top)))
    corners = [tuple(map(float, point)) for point in points - (left, top)]
    if width:
        ImageDraw.Draw(mask).line(corners, fill=255, width=width, joint="curve")
    else:
        ImageDraw.Draw(mask).polygon(corners, fill=255)
    return (slice(top, bottom), slice(left, right)), np.asarray(mask) / 255


def stroke(canvas: Canvas, points: ArrayLike, level: float = 0.0, width: float = 0.006) -> None:
    """Draw a line that is lost and found again."""
    box, mask = cut_out(canvas, np.asarray(points, float), max(2, round(width * canvas.unit)))
    alpha = (mask * canvas.found[box] * canvas.rng.uniform(0.6, 1))[..., None]
    canvas.pixels[box] += alpha * (canvas.tone(level) - canvas.pixels[box])


def passage(canvas: Canvas, mask: np.ndarray) -> np.ndarray:
    """Return a ramp from 1 to 0 over the mask, along one of the axes."""
    angle = canvas.rng.choice(canvas.axes) + canvas.rng.choice([0, np.pi])
    y, x = np.ogrid[: mask.shape[0], : mask.shape[1]]
    along = x * np.cos(angle) + y * np.sin(angle)
    inside = along[mask > 0.5] if mask.any() else np.zeros(1)
    return np.clip((inside.max() - along) / max(np.ptp(inside), 1), 0, 1)


def plane(canvas: Canvas, points: np.ndarray, colour: np.ndarray, solid: float = 0.0) -> None:
    """Paint a plane that is firm at one edge and melts into its neighbours at the other.

    `solid` is the opacity left at the soft edge.
    """
    rng, (box, mask) = canvas.rng, cut_out(canvas, points)
    ramp = passage(canvas, mask)
    alpha = mask * (solid + (0.95 - solid) * ramp**0.8)
    shade = 1 + rng.choice([-0.5, 0.3]) * (ramp - 0.5)
    bristle = canvas.bristles[rng.integers(len(canvas.bristles))][box]
    paint = colour * shade[..., None] + 0.3 * bristle[..., None]
    canvas.pixels[box] += alpha[..., None] * (paint - canvas.pixels[box])
    part = np.roll(points, rng.integers(len(points)), axis=0)[: max(2, len(points) * 2 // 3)]
    stroke(canvas, part, rng.uniform(0, 0.2), rng.uniform(0.003, 0.008))


def fracture(canvas: Canvas, points: np.ndarray) -> None:
    """Show a facet of the picture as seen from a little to the side, lighter or darker."""
    rng, (box, mask) = canvas.rng, cut_out(canvas, points)
    ramp = passage(canvas, mask)[..., None]
    shift = rng.normal(0, 0.06 * canvas.unit, 2).astype(int)
    moved = np.roll(canvas.pixels, shift, axis=(0, 1))[box] * (1 + rng.choice([-0.4, 0.25]) * ramp)
    canvas.pixels[box] += mask[..., None] * (0.2 + 0.8 * ramp) * (moved - canvas.pixels[box])


def facet(canvas: Canvas, centre: np.ndarray, size: float) -> np.ndarray:
    """Return a facet of three or four sides that run along two of the canvas's axes."""
    rng = canvas.rng
    angles = rng.choice(canvas.axes, 2, replace=False)
    a, b = np.column_stack([np.cos(angles), np.sin(angles)]) * size
    a, b = a * rng.uniform(0.5, 1.3), b * rng.uniform(0.3, 0.8)
    corners = np.array([-a - b, a - b * rng.uniform(0.3, 1), a + b, b - a])
    return centre + corners[: rng.choice([3, 4, 4])]


def place(points: ArrayLike, at: np.ndarray, size: float, angle: float = 0.0) -> np.ndarray:
    """Turn, scale and move points from an object's own space onto the canvas."""
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    return np.asarray(points, float) @ turn * size + at


def thing(
    canvas: Canvas, name: str, at: np.ndarray, size: float, colour: np.ndarray, angle: float = 0.0
) -> None:
    """Paint an object in two halves, one lit and one shaded, that do not quite meet."""
    profile, bright = np.array(PROFILES[name]), canvas.rng.choice([-0.3, 0.3])
    heights = np.linspace(profile[0, 0], profile[-1, 0], 48)
    widths = np.interp(heights, *profile.T)
    widths[2:-2] = np.convolve(widths, np.full(5, 0.2), "valid")
    for side in (-1, 1):
        outline = np.column_stack([side * widths, heights + canvas.rng.uniform(-0.06, 0.06)])
        middle = [(0, outline[-1, 1]), (0, outline[0, 1])]
        half = place(np.vstack([outline, middle]), at, size, angle)
        plane(canvas, half, colour * (1 + side * bright), solid=0.65)
        canvas.contours.append(half[:48])


def newspaper(canvas: Canvas, at: np.ndarray, size: float, angle: float) -> None:
    """Paint a folded sheet with a headline and columns of print."""
    corners = [(-1, -0.7), (1, -0.7), (0.9, 0.7), (-1, 0.75)]
    plane(canvas, place(corners, at, size, angle), canvas.tone(0.97), solid=0.7)
    for i, letter in enumerate(canvas.rng.choice(WORDS)):
        points = np.array(LETTERS[letter]) * (0.26, 0.36) + (-0.9 + 0.33 * i, -0.58)
        stroke(canvas, place(points, at, size, angle), 0.0, 0.013)
    for row in np.arange(-0.1, 0.65, 0.09):
        for left in (-0.9, 0.0):
            line = [(left, row), (left + canvas.rng.uniform(0.5, 0.8), row)]
            stroke(canvas, place(line, at, size, angle), 0.25, 0.003)


def instrument(canvas: Canvas, at: np.ndarray, size: float, angle: float) -> None:
    """Paint a guitar or a violin with its neck, strings and sound holes."""
    name, turn = canvas.rng.choice(["guitar", "violin"]), np.linspace(0, 2 * np.pi, 40)
    thing(canvas, name, at, size, 1.15 * canvas.accented(0.7, canvas.rng.integers(2)), angle)
    if name == "guitar":
        hole = np.column_stack([0.14 * np.cos(turn), 0.32 + 0.14 * np.sin(turn)])
        plane(canvas, place(hole, at, size, angle), canvas.tone(0.02), solid=0.7)
    else:
        for side in (-1, 1):
            hole = np.column_stack([side * (0.22 + 0.05 * np.sin(turn)), 0.25 + 0.06 * turn])
            canvas.contours.append(place(hole, at, size, angle))
    thing(canvas, "neck", at, size, canvas.tone(0.12), angle)
    for x in np.linspace(-0.035, 0.035, 4):
        stroke(canvas, place([(x, -0.9), (x * 1.6, 0.72)], at, size, angle), 0.9, 0.003)
    for y, reach in ((-0.92, 0.13), (-0.84, 0.13), (0.72, 0.17)):  # pegs and bridge
        stroke(canvas, place([(-reach, y), (reach, y)], at, size, angle), 0.0, 0.013)


def still_life(canvas: Canvas) -> None:
    """Paint a table with a newspaper, a glass and an instrument, a bottle or a fruit dish."""
    rng, unit, at = canvas.rng, canvas.unit, canvas.middle
    side, turn = rng.choice([-1, 1]), np.linspace(0, 2 * np.pi, 50)
    top = at + np.column_stack([0.6 * np.cos(turn), 0.33 + 0.27 * np.sin(turn)]) * unit
    plane(canvas, top, canvas.accented(0.42, 0, 0.4), solid=0.5)
    newspaper(canvas, at + np.array([side * 0.15, 0.17]) * unit, unit * 0.27, rng.normal(0, 0.35))
    kind = rng.choice(["instrument", "instrument", "bottle", "dish"])
    if kind == "instrument":
        instrument(canvas, at, unit * 0.48, -side * rng.uniform(0.1, 0.9))
    elif kind == "bottle":
        spot = at - (side * 0.12 * unit, 0)
        thing(canvas, "bottle", spot, unit * 0.42, canvas.accented(0.3, 1), rng.normal(0, 0.06))
        label = place([(-0.34, 0.2), (0.3, 0.16), (0.34, 0.62), (-0.3, 0.66)], spot, unit * 0.42)
        plane(canvas, label, canvas.tone(0.95), solid=0.7)
    else:
        for i, x in enumerate((-0.2, -0.07, 0.06, 0.19)):
            spot = at + np.array([x, rng.uniform(-0.2, -0.12)]) * unit
            thing(canvas, "fruit", spot, unit * 0.085, canvas.accented(0.8, i % 2, 0.7))
        thing(canvas, "dish", at + np.array([0, 0.1]) * unit, unit * 0.33, canvas.tone(0.9))
    spot = at + np.array([side * 0.33, 0.08]) * unit
    thing(canvas, "glass", spot, unit * 0.18, canvas.tone(0.85))


def portrait(canvas: Canvas) -> None:
    """Paint the head and shoulders of a sitter, sometimes with a guitar or a violin."""
    rng, unit, at = canvas.rng, canvas.unit, canvas.middle - (0, 0.2 * canvas.unit)
    chest = at + np.array([0, 0.6]) * unit
    side, tilt, size = rng.choice([-1, 1]), rng.normal(0, 0.12), 0.23 * unit
    coat = canvas.accented(rng.uniform(0.2, 0.5), 1, 0.35)
    thing(canvas, "torso", chest, unit * 0.42, coat, tilt / 2)
    collar = place([(-0.14, 0.2), (0.14, 0.2), (0.02, 0.6)], at, unit)
    plane(canvas, collar, canvas.tone(0.97), solid=0.6)
    thing(canvas, "hair", at, size, canvas.tone(0.08), tilt)
    thing(canvas, "head", at, size, canvas.accented(0.85, 0, 0.25), tilt)
    face = [place(np.array(line) * (side, 1), at, size, tilt) for line in FACE]
    plane(canvas, face[0][2:], canvas.tone(1), solid=0.4)
    canvas.contours += face
    if rng.random() < 0.5:
        instrument(canvas, chest, unit * 0.34, side * 1.1)


def village(canvas: Canvas) -> None:
    """Paint houses and trees that climb a hill, the far ones first."""
    rng, extent = canvas.rng, np.array(canvas.found.shape[::-1])
    for row in np.linspace(0.14, 0.92, 6):
        for column in rng.permutation(np.linspace(0.05, 0.95, 5)):
            at = extent * (column, row) + rng.normal(0, 0.04, 2) * canvas.unit
            size, lean = canvas.unit * rng.uniform(0.1, 0.17), rng.normal(0, 0.08)
            if rng.random() < 0.18:
                leaves = canvas.tone(0.2) * 0.6 + (0.08, 0.13, 0.07)
                thing(canvas, "fruit", at, size * 0.8, leaves, lean * 4)
                continue
            wall = 0.75 * canvas.lit(at) + 0.25 * canvas.colours[6]
            flip = (rng.choice([-1, 1]), 1)
            for outline, bright in HOUSE:
                plane(canvas, place(np.array(outline) * flip, at, size, lean), wall * bright, 0.7)


def stretch_canvas(rng: np.random.Generator, width: int, height: int) -> Canvas:
    """Choose the palette and the directions of a picture, and lay its ground."""
    colours = np.array([list(bytes.fromhex(h[1:])) for h in rng.choice(PALETTES).split()]) / 255
    axes = rng.normal(0, 0.15) + np.array([1.57, 0.15, 0.95, -0.8]) + rng.normal(0, 0.1, 4)
    bristles = [brush_texture(rng, width, height, angle) for angle in axes[:3]]
    found = np.clip(clouds(rng, width, height, 7) * 2.4 - 0.5, 0, 1)
    light = 0.2 + 0.3 * clouds(rng, width, height, 4)[..., None]
    ground = colours[1] + light * (colours[4] - colours[1]) + 0.25 * bristles[1][..., None]
    unit = min(width, height) * rng.uniform(0.88, 1.12)
    return Canvas(rng, ground, colours, bristles, found, axes, unit)


def compose(number: int, seed: int) -> tuple[str, Image.Image]:
    """Paint picture `number`: ground, large planes, subject, fractures, facets, lines, glaze.

    Returns its subject ("still-life", "portrait" or "village") and the picture.
    """
    rng = np.random.default_rng([seed, number])
    subject = [still_life, portrait, still_life, village, still_life, portrait][number % 6]
    size = np.array(SIZES[rng.integers(len(SIZES))])
    width, height = (int(side) for side in size * SUPERSAMPLE)
    canvas = stretch_canvas(rng, width, height)
    unit, spread = canvas.unit, np.array([width, height]) * 0.23
    for _ in range(36):
        spot = rng.uniform(0, (width, height))
        plane(canvas, facet(canvas, spot, unit * 0.3), canvas.lit(spot))
    subject(canvas)
    for _ in range(10):
        spot = rng.uniform(0, (width, height))
        plane(canvas, facet(canvas, spot, unit * 0.2), canvas.lit(spot))
    for _ in range(26):
        fracture(canvas, facet(canvas, rng.normal(canvas.middle, spread), unit * 0.13))
    for _ in range(34):
        spot = rng.normal(canvas.middle, spread * 1.1)
        colour = canvas.lit(spot)
        if rng.random() < 0.12:
            colour = 0.5 * colour + 0.5 * canvas.colours[rng.integers(6, 8)]
        plane(canvas, facet(canvas, spot, unit * rng.uniform(0.04, 0.12)), colour)
    for contour in canvas.contours:  # the subject's outlines surface again over the facets
        stroke(canvas, contour, 0.02, 0.009)
    for _ in range(6):  # long lines tie the facets together
        angle, spot = rng.choice(canvas.axes), rng.normal(canvas.middle, spread)
        reach = np.array([np.cos(angle), np.sin(angle)]) * unit * rng.uniform(0.15, 0.4)
        stroke(canvas, [spot - reach, spot + reach], rng.choice([0.02, 0.02, 0.9]), 0.004)
    y, x = np.ogrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    glaze = 1.08 - 0.3 * np.clip(x**2 + y**2 - 0.3, 0, None)
    weave = 0.012 * (np.sin(1.6 * np.arange(width)) + np.sin(1.6 * np.arange(height))[:, None])
    grain = weave + rng.normal(0, 0.018, (height, width))
    pixels = (canvas.pixels - 0.4) * 1.15 + 0.43  # the layers of thin paint have dulled it
    pixels = np.clip(pixels * glaze[..., None] + grain[..., None], 0, 1) * 255
    image = Image.fromarray(pixels.astype(np.uint8))
    image = image.resize(tuple(map(int, size)), Image.Resampling.LANCZOS)
    return subject.__name__.replace("_", "-"), image


def draw(number: int, seed: int, digits: int, output: Path) -> None:
    """Save picture `number` as NUMBER-SUBJECT.jpg, or leave no file if that fails."""
    subject, picture = compose(number, seed)
    with replace_file(output / f"{number:0{digits}}-{subject}.jpg") as part:
        picture.save(part, "JPEG", quality=JPEG_QUALITY)


def main() -> None:
    """Draw all the pictures, on all cores."""
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=64, help="how many pictures")
    parser.add_argument("--seed", type=int, default=1907, help="another seed, other pictures")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "sample")
    args = parser.parse_args()
    if args.count < 1 or args.seed < 0:
        parser.error("--count has to be at least 1, and --seed at least 0")
    args.output.mkdir(parents=True, exist_ok=True)
    digits = 2 if args.count < 100 else max(4, len(str(args.count)))  # names sort by number
    work = partial(draw, seed=args.seed, digits=digits, output=args.output)
    # Only this process reacts to Ctrl-C; it lets the others finish the pictures they are drawing.
    ignore = {"initializer": signal.signal, "initargs": (signal.SIGINT, signal.SIG_IGN)}
    with ProcessPoolExecutor(**ignore) as pool:
        drawn = pool.map(work, range(1, args.count + 1))
        try:
            for _ in track(drawn, "Drawing", total=args.count, console=Console(stderr=True)):
                pass
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    say(f"{args.count} pictures in {args.output}")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
    except OSError as error:
        problem = f"{error.filename or 'the pictures'}: {reason(error)}"
        say(f"draw_samples.py: error: {problem}; fix that, or use another --output", "stderr")
        sys.exit(1)
