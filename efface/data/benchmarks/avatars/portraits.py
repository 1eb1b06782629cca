"""A picture of a face: SVG parts from python-avatars, rasterised by resvg.

A shot is one way of taking the picture. Two shots of one person are two photos, not two copies.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from efface.data.benchmarks.avatars.appearance import FACIAL_HAIR, GLASSES, HAIR_COLOURS, SKINS, Look

EYES = ("default", "happy", "side", "squint", "surprised", "wink")
MOUTHS = ("default", "smile", "serious", "twinkle", "sad", "big_smile", "disbelief")
CLOTHES = ("hoodie", "collar_sweater", "shirt_crew_neck", "shirt_scoop_neck", "shirt_v_neck", "overall")
CLOTHES_COLOURS = {
    "red": "#D7263D",
    "blue": "#2F6FDE",
    "green": "#2E9E4F",
    "yellow": "#F6D32D",
    "purple": "#8E3FB8",
    "white": "#FAFAFA",
    "black": "#23262B",
}
BACKGROUNDS = ("#A9D6DE", "#B9E0B3", "#F1DDB0", "#C9BEE6", "#EFC4BC", "#9FB4C6", "#D3D3CB", "#8FB09C")

MAX_ROTATION = 8.0
"""Degrees."""
MAX_SHIFT = 9.0
"""Units of the drawing, which is 264 wide."""

# The visible part of the 264 x 280 drawing: no rotation or shift brings the edge of the bust into it.
_FRAME = "6 4 252 252"
_CENTRE = "132 150"


@dataclass(frozen=True)
class Shot:
    """What changes from one picture of a person to the next."""

    eyes: str
    mouth: str
    clothes: str
    clothes_colour: str
    background: str
    rotation: float
    shift_x: float
    shift_y: float


def draw_shot(rng: np.random.Generator) -> Shot:
    """A random shot."""

    def pick(values: tuple[str, ...]) -> str:
        return values[int(rng.integers(len(values)))]

    return Shot(
        eyes=pick(EYES),
        mouth=pick(MOUTHS),
        clothes=pick(CLOTHES),
        clothes_colour=pick(tuple(CLOTHES_COLOURS)),
        background=pick(BACKGROUNDS),
        rotation=round(float(rng.uniform(-MAX_ROTATION, MAX_ROTATION)), 2),
        shift_x=round(float(rng.uniform(-MAX_SHIFT, MAX_SHIFT)), 2),
        shift_y=round(float(rng.uniform(-MAX_SHIFT, MAX_SHIFT)), 2),
    )


def svg(look: Look, shot: Shot) -> str:
    """The picture as a square SVG document."""
    import python_avatars as avatars

    drawing = avatars.Avatar(
        style=avatars.AvatarStyle.TRANSPARENT,
        top=avatars.HairType(look.hair),
        hair_color=HAIR_COLOURS[look.hair_colour],
        skin_color=SKINS[look.skin],
        facial_hair=avatars.FacialHairType(FACIAL_HAIR[look.facial_hair]),
        facial_hair_color=HAIR_COLOURS[look.hair_colour],
        accessory=avatars.AccessoryType(GLASSES[look.glasses]),
        eyebrows=avatars.EyebrowType(look.eyebrows),
        eyes=avatars.EyeType(shot.eyes),
        mouth=avatars.MouthType(shot.mouth),
        clothing=avatars.ClothingType(shot.clothes),
        clothing_color=CLOTHES_COLOURS[shot.clothes_colour],
    ).render()
    head, _, body = drawing.partition(">")
    body = body.rpartition("</svg>")[0]
    spaces = " ".join(word for word in head.split() if word.startswith("xmlns"))
    pose = f"translate({shot.shift_x} {shot.shift_y}) rotate({shot.rotation} {_CENTRE})"
    return (
        f'<svg {spaces} viewBox="{_FRAME}" width="252" height="252">'
        f'<rect x="-264" y="-280" width="792" height="840" fill="{shot.background}"/>'
        f'<g transform="{pose}">{body}</g></svg>'
    )


def portrait(look: Look, shot: Shot, *, size: int) -> bytes:
    """The picture as PNG, ``size`` pixels on each side."""
    import resvg_py

    return bytes(
        resvg_py.svg_to_bytes(svg_string=svg(look, shot), width=size, height=size, skip_system_fonts=True)
    )
