"""What an invented face can look like, and who gets which look.

Only values that can be told apart at 48 pixels are listed. A look is what makes a person recognisable;
everything else in a picture (expression, clothes, background, pose) is in `portraits` and varies freely.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from efface.errors import DataError

# Styles whose every strand takes the hair colour, and which leave glasses and beards visible.
HAIR = (
    "big_hair",
    "bob",
    "bun",
    "curly",
    "dreads",
    "einstein_hair",
    "evil_spike",
    "fro",
    "half_shaved",
    "mowgli",
    "pompadour",
    "shaggy_mullet",
    "short_dreads_2",
    "short_flat",
    "straight_1",
    "wild",
)
HAIR_COLOURS = {
    "black": "#1E1B1A",
    "brown": "#7A4526",
    "blonde": "#E8C05A",
    "red": "#D03A12",
    "silver": "#E9E6EA",
    "pink": "#F06FA6",
    "blue": "#3F5FD0",
}
SKINS = {"pale": "#FFE4CC", "light": "#F0B88C", "tan": "#CC8850", "brown": "#96562B", "dark": "#55362A"}
FACIAL_HAIR = {
    "none": "",
    "beard": "beard_magestic",
    "stubble": "beard_light",
    "moustache": "einstien_mustache",
}
GLASSES = {"none": "", "clear": "prescription_02", "dark": "wayfarers", "white": "kurt"}
EYEBROWS = ("default", "angry", "raised_excited", "sad_concerned", "unibrow_natural")

_FACIAL_HAIR_SHARES = (0.49, 0.17, 0.17, 0.17)
_GLASSES_SHARES = (0.52, 0.16, 0.16, 0.16)

CAPACITY = len(HAIR) * len(HAIR_COLOURS) * len(SKINS) - 60
"""People who can look different from each other and still leave combinations for strangers."""


@dataclass(frozen=True)
class Look:
    """What stays the same about a face in every picture of a person."""

    hair: str
    hair_colour: str
    skin: str
    facial_hair: str
    glasses: str
    eyebrows: str

    @property
    def signature(self) -> tuple[str, str, str]:
        """Hair style, hair colour and skin tone: no two people share all three."""
        return self.hair, self.hair_colour, self.skin


def distinct_looks(count: int, rng: np.random.Generator) -> list[Look]:
    """Looks for ``count`` people, no two with the same signature.

    As long as there are enough combinations of hair style and hair colour (112), no two people share these
    two either: at 48 pixels they tell more than the skin tone does.

    Raises:
        DataError: if there are more people than looks.
    """
    if count > CAPACITY:
        raise DataError(
            f"{count} fictitious, real and holdout people in all: at most {CAPACITY} can look different from "
            "each other; lower people, real or holdout"
        )
    pairs = [(hair, colour) for hair in HAIR for colour in HAIR_COLOURS]
    order = rng.permutation(len(pairs))
    first = rng.integers(len(SKINS), size=len(pairs))
    tones = list(SKINS)
    looks = []
    for index in range(count):
        rounds, position = divmod(index, len(pairs))
        hair, colour = pairs[order[position]]
        skin = tones[(first[position] + rounds) % len(tones)]
        looks.append(_complete(hair, colour, skin, rng))
    return looks


def stranger_look(rng: np.random.Generator, signatures: Collection[tuple[str, str, str]]) -> Look:
    """A random look whose signature is not one of these."""
    while True:
        look = _complete(_pick(rng, HAIR), _pick(rng, HAIR_COLOURS), _pick(rng, SKINS), rng)
        if look.signature not in signatures:
            return look


def _complete(hair: str, colour: str, skin: str, rng: np.random.Generator) -> Look:
    return Look(
        hair=hair,
        hair_colour=colour,
        skin=skin,
        facial_hair=str(rng.choice(list(FACIAL_HAIR), p=_FACIAL_HAIR_SHARES)),
        glasses=str(rng.choice(list(GLASSES), p=_GLASSES_SHARES)),
        eyebrows=_pick(rng, EYEBROWS),
    )


def _pick(rng: np.random.Generator, values: Collection[str]) -> str:
    return list(values)[int(rng.integers(len(values)))]
