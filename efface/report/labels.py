"""Where to write the names of points so that none covers another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import cos, pi, sin

Box = tuple[float, float, float, float]
"""Left, bottom, right, top."""


def place_labels(
    points: Sequence[tuple[float, float]],
    sizes: Sequence[tuple[float, float]],
    bounds: Box,
    *,
    gap: float = 7.0,
    lines: Sequence[Box] = (),
) -> list[tuple[float, float]]:
    """Centres for the labels of points, each near its point and clear of points, labels and bounds.

    Candidates lie on widening rings around each point; the first free one wins. Thin obstacles such as
    interval bars are avoided while a near place allows it, and crossed rather than sending a name far away.

    Args:
        points: positions, any unit that is the same in x and y (pixels).
        sizes: width and height of each label, same unit.
        bounds: the area labels may use.
        gap: room around each point, same unit.
        lines: thin obstacles.

    Returns:
        One centre per point, in the order given. The same input always gives the same places.
    """
    marks = [(x - gap / 2, y - gap / 2, x + gap / 2, y + gap / 2) for x, y in points]
    placed: dict[int, Box] = {}
    leaders: list[tuple[float, float]] = []
    for index in _crowded_first(points):
        taken = [*marks, *placed.values()]

        start = points[index]

        def cost(
            option: tuple[float, Box],
            start: tuple[float, float] = start,
            taken: list[Box] = taken,
            leaders: list[tuple[float, float]] = leaders,
        ) -> float:
            distance, box = option
            clash = sum(_shared(box, other) for other in taken) + _outside(box, bounds)
            crossed = sum(_shared(box, line) > 0 for line in lines)
            through = sum(_inside(spot, box) for spot in leaders)
            through += sum(_inside(spot, other) for spot in _along(start, box) for other in placed.values())
            return 1000 * clash + gap * (0.5 * crossed + 4 * through) + distance

        placed[index] = min(_candidates(start, sizes[index], gap), key=cost)[1]
        leaders += _along(start, placed[index])
    return [
        ((placed[i][0] + placed[i][2]) / 2, (placed[i][1] + placed[i][3]) / 2) for i in range(len(points))
    ]


def _crowded_first(points: Sequence[tuple[float, float]]) -> list[int]:
    def nearness(index: int) -> float:
        x, y = points[index]
        return sum(1 / (1 + (x - a) ** 2 + (y - b) ** 2) for a, b in points)

    return sorted(range(len(points)), key=lambda index: (-nearness(index), index))


def _candidates(
    point: tuple[float, float], size: tuple[float, float], gap: float
) -> Iterator[tuple[float, Box]]:
    x, y = point
    width, height = size
    for ring in range(24):
        reach = gap + ring * height * 0.6
        for step in range(16):
            angle = 2 * pi * step / 16
            across, up = cos(angle), sin(angle)
            cx = (
                x
                + across * reach
                + (width / 2) * (0 if abs(across) < 1e-9 else across / max(abs(across), abs(up)))
            )
            cy = y + up * reach + (height / 2) * (0 if abs(up) < 1e-9 else up / max(abs(across), abs(up)))
            yield reach, (cx - width / 2, cy - height / 2, cx + width / 2, cy + height / 2)


def _along(start: tuple[float, float], box: Box) -> list[tuple[float, float]]:
    """Spots on the way from a point to the middle of its label, where a thin line may be drawn."""
    middle = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
    return [
        (start[0] + (middle[0] - start[0]) * part / 8, start[1] + (middle[1] - start[1]) * part / 8)
        for part in range(1, 8)
    ]


def _inside(spot: tuple[float, float], box: Box) -> bool:
    return box[0] < spot[0] < box[2] and box[1] < spot[1] < box[3]


def _shared(a: Box, b: Box) -> float:
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


def _outside(box: Box, bounds: Box) -> float:
    beyond = (bounds[0] - box[0], bounds[1] - box[1], box[2] - bounds[2], box[3] - bounds[3])
    return sum(max(0.0, amount) for amount in beyond)
