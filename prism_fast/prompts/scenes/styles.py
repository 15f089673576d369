"""Styles: what made the picture, and how: medium, lens, light, weather, age and quality.

Conditions as in :mod:`prism_fast.prompts.scenes`. An empty text said several times makes an axis silent more often:
a prompt that says everything says nothing.
"""

from __future__ import annotations

from prism_fast.prompts.scenes import Table

PHOTOS: dict[str, str] = {
    "photo": "a photo",
    "amateur photo": "an amateur photo",
    "professional photo": "a professional photo",
    "snapshot": "a snapshot",
    "blurry photo": "a slightly blurry photo",
    "phone photo": "a phone photo",
    "press photo": "a press photo",
}
"""Names of photographic media, and how a prompt opens with them."""

OTHER_MEDIA: dict[str, str] = {
    "black and white photo": "a black and white photo",
    "oil painting": "an oil painting",
    "watercolour": "a watercolour",
    "pencil sketch": "a pencil sketch",
    "line drawing": "a line drawing",
    "illustration": "an illustration",
    "cartoon": "a cartoon",
    "rendering": "a 3d rendering",
    "silhouette": "a silhouette",
    "woodcut": "a woodcut",
    "embroidery": "an embroidery",
    "pixel art": "a pixel art picture",
    "clay model": "a clay model",
    "mural": "a mural",
    "collage": "a paper collage",
}
"""The same of media that only the preset ``wide`` has."""

MEDIA: Table = {
    **dict.fromkeys(PHOTOS, "camera"),
    "phone photo": "camera recent",
    **dict.fromkeys(OTHER_MEDIA, "hand"),
    "black and white photo": "camera",
}

LENSES: Table = {
    "": "",
    "taken with a wide-angle lens": "camera far",
    "taken with a telephoto lens": "camera",
    "taken with a macro lens": "camera near",
    "taken with a 50 mm lens": "camera",
    "with a blurred background": "camera",
    "with everything in focus": "camera",
}

LIGHTS: Table = {
    "": "",
    "in bright sunlight": "out water sun",
    "under an overcast sky": "out water grey",
    "in warm evening light": "out water dusk warm",
    "at dusk": "out water dusk",
    "at night": "out water night",
    "in the shade": "out sun",
    "in window light": "in sun grey",
    "by lamplight": "in night",
    "under fluorescent light": "in night grey",
    "in studio light": "studio",
    "in soft light": "in studio",
    "in harsh light": "in studio",
    "in dim light": "in",
    "lit from behind": "",
}

WEATHER: Table = {
    "": "",
    "under a cloudless sky": "out water sun",
    "in light rain": "out water grey",
    "in fog": "out water grey",
    "after rain": "out",
    "on a windy day": "out water",
    "on a hot day": "out water sun warm",
    "on a cold day": "out water cold",
}

AGES: Table = {
    "": "",
    "from the 1950s": "old",
    "from the 1970s": "old",
    "from the 1990s": "old",
    "on colour film": "camera old",
    "taken today": "camera recent",
}

QUALITIES: Table = {
    "": "",
    "with strong JPEG compression": "camera recent",
    "at low resolution": "camera",
    "slightly overexposed": "camera",
    "slightly underexposed": "camera",
    "with visible grain": "camera",
    "sharp and detailed": "",
    "with faded colours": "",
    "with strong colours": "",
}

SILENCE = {"lens": 4, "weather": 6, "age": 8, "quality": 8}
"""How often the empty text stands in an axis."""

AXES: tuple[tuple[str, ...], ...] = tuple(
    (*("",) * (SILENCE.get(name, 1) - 1), *table)
    for name, table in (
        ("lens", LENSES),
        ("light", LIGHTS),
        ("weather", WEATHER),
        ("age", AGES),
        ("quality", QUALITIES),
    )
)
"""What may follow the content, in the order in which a prompt says it."""

CONDITIONS: Table = {**MEDIA, **LENSES, **LIGHTS, **WEATHER, **AGES, **QUALITIES}
