"""Pictures of what networks see."""

from __future__ import annotations

import numpy as np
from PIL import Image

from aihwkit_nabn.evaluation.examples import View, class_colors, draw


def test_boxes_are_drawn_in_the_colour_of_their_class_and_scaled_with_the_picture() -> None:
    colors = class_colors(3)
    drawn = draw(Image.new("RGB", (960, 200)), View(boxes=[([100, 40, 500, 160], 1)]), colors)
    assert drawn is not None and drawn.size == (480, 100)
    pixels = np.asarray(drawn)
    rows, columns = np.nonzero((pixels == colors[1]).all(axis=2))
    assert (columns.min(), rows.min(), columns.max(), rows.max()) == (50, 20, 250, 80)
    assert not pixels[30:70, 60:240].any(), "only the outline"


def test_classes_are_laid_over_and_others_left() -> None:
    colors = class_colors(12)
    assert len(set(colors)) == 12
    segments = np.array([[0, 11], [255, -1]])
    drawn = draw(Image.new("RGB", (2, 2), (100, 100, 100)), View(segments=segments), colors)
    assert drawn is not None
    expected = [np.rint(0.4 * 100 + 0.6 * np.array(colors[i])) for i in (0, 11)]
    pixels = np.asarray(drawn)
    assert (pixels[0] == expected).all() and (pixels[1] == 100).all()


def test_nothing_known_is_not_drawn() -> None:
    picture = Image.new("RGB", (4, 4))
    assert draw(picture, View(), class_colors(1)) is None
    assert draw(picture, View(segments=np.zeros((3, 4), dtype=np.int64)), class_colors(1)) is None
