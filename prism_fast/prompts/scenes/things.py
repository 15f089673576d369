"""Scenes of made things, by what people do with them."""

from __future__ import annotations

from prism_fast.prompts.scenes import Scenes, Table

VIEWS: Table = {
    "": "",
    "seen from the front": "",
    "seen from the side": "",
    "seen from behind": "",
    "seen from above": "",
    "seen from below": "",
    "seen at an angle": "",
    "close-up of a detail": "near",
    "all of it in view": "",
    "small in the picture": "far",
    "cut off at the edge of the picture": "",
}

CONDITION: Table = {
    "": "",
    "brand new": "",
    "worn": "",
    "dusty": "",
    "scratched": "",
    "freshly cleaned": "",
    "in poor repair": "",
    "old-fashioned": "",
    "brightly coloured": "",
    "dark in colour": "",
}

THING = Scenes(
    words=(),
    settings={
        "": "",
        "on a plain background": "studio",
        "on a cluttered background": "",
        "in its usual surroundings": "",
        "indoors": "in",
        "outdoors": "out",
        "partly hidden": "",
    },
    actions={"": ""},
    company={"": "", "next to other things": "", "next to a person": "", "one of several": ""},
    views={
        "": "",
        "seen from the front": "",
        "seen from the side": "",
        "seen from behind": "",
        "seen from above": "",
        "seen from below": "",
        "seen at an angle": "",
        "close up": "near",
        "far away": "far",
    },
)

HOUSEHOLD = Scenes(
    words=("device", "instrumentality", "article", "commodity", "artifact", "covering", "sheet", "material",
           "protective covering", "canopy", "lamp", "source of illumination", "supporting structure", "coil"),
    settings={
        "": "",
        "on a wooden table": "in",
        "on a white background": "studio",
        "in a shop": "in",
        "at a flea market": "out",
        "in a living room": "in",
        "in a hallway": "in",
        "in a back yard": "out",
        "in a workshop": "in",
        "in a museum": "in",
        "in front of a brick wall": "out",
    },
    actions=CONDITION,
    company={
        "": "",
        "in use": "in out",
        "with a person next to it": "in out",
        "beside a similar one": "",
        "with other things around it": "in out",
        "held by someone": "in out",
    },
    views=VIEWS,
)  # fmt: skip

TOOL = Scenes(
    words=("tool", "implement", "hand tool", "fastener", "utensil", "writing implement", "stick", "rod", "measuring device",
           "instrument", "weapon", "firearm", "lock"),
    settings={
        "": "",
        "on a workbench": "in",
        "in a toolbox": "in",
        "on a wooden table": "in",
        "in a workshop": "in",
        "in a garden shed": "in",
        "on a concrete floor": "in",
        "on a market stall": "out",
        "on a shop shelf": "in",
        "on a white background": "studio",
        "on the grass": "out",
    },
    actions=CONDITION,
    company={
        "": "",
        "held in one hand": "in out",
        "in use": "in out",
        "beside other tools": "",
        "beside a work glove": "in out",
        "one of a pair": "",
        "beside its box": "",
    },
    views=VIEWS,
)  # fmt: skip

MACHINE = Scenes(
    words=("machine", "lifting device", "mechanical device", "mechanism", "engine", "turbine"),
    settings={
        "": "",
        "at a building site": "out",
        "in a factory": "in",
        "in a harbour": "out",
        "on a farm": "out",
        "in a yard": "out",
        "in a workshop": "in",
        "at a fair": "out",
        "in a museum": "in",
        "under an open sky": "out",
    },
    actions=CONDITION,
    company={
        "": "",
        "at work": "in out",
        "standing idle": "",
        "with a worker beside it": "in out",
        "next to a similar one": "",
        "with its parts in view": "",
    },
    views=VIEWS,
)

ELECTRONIC = Scenes(
    words=("electronic device", "electronic equipment", "computer", "telephone", "audio system", "display", "peripheral",
           "home appliance", "appliance", "white goods", "kitchen appliance", "camera", "clock", "data input device"),
    settings={
        "": "",
        "on a desk": "in",
        "in an office": "in",
        "in a living room": "in",
        "in a kitchen": "in",
        "on a shelf": "in",
        "in a shop window": "in out",
        "on the floor": "in",
        "in a repair shop": "in",
        "on a white background": "studio",
        "at a flea market": "out",
    },
    actions=CONDITION,
    company={
        "": "",
        "switched on": "in out",
        "switched off": "",
        "with cables behind it": "in",
        "in use": "in out",
        "beside a coffee mug": "in",
        "next to its packaging": "",
    },
    views=VIEWS,
)  # fmt: skip

CONTAINER = Scenes(
    words=("container", "vessel", "bottle", "glass", "cup", "pot", "pan", "cooking utensil", "kitchen utensil", "bag",
           "box", "basket", "bowl", "tableware", "crockery", "jar"),
    settings={
        "": "",
        "on a kitchen counter": "in",
        "on a table": "in",
        "on a shelf": "in",
        "on the floor": "in",
        "on a windowsill": "in",
        "at a market": "out",
        "on a garden table": "out",
        "in a cellar": "in",
        "on a white background": "studio",
        "on stone steps": "out",
    },
    actions=CONDITION,
    company={
        "": "",
        "empty": "",
        "full": "",
        "one of several": "",
        "beside a smaller one": "",
        "with a hand reaching for it": "in out",
        "next to a folded cloth": "",
    },
    views=VIEWS,
)  # fmt: skip

FURNITURE = Scenes(
    words=("furniture", "piece of furniture", "bedroom furniture", "seat", "cabinet", "furnishing", "bed"),
    settings={
        "": "",
        "in a living room": "in",
        "in a bedroom": "in",
        "in a bare room": "in",
        "in a furniture shop": "in",
        "in an attic": "in",
        "in a museum": "in",
        "in a bright hall": "in",
        "on a porch": "out",
        "against a white wall": "in",
        "at a flea market": "out",
    },
    actions=CONDITION,
    company={
        "": "",
        "with a rug in front of it": "in",
        "beside a lamp": "in",
        "with books on it": "",
        "in use": "in out",
        "next to a house plant": "",
        "one of a matching pair": "",
    },
    views=VIEWS,
)

GARMENT = Scenes(
    words=("clothing", "garment", "footwear", "shoe", "headdress", "hat", "accessory", "attire", "fabric", "jewelry",
           "neckwear", "cap", "helmet", "armor"),
    settings={
        "": "",
        "on a wooden floor": "in",
        "on a bed": "in",
        "in a shop": "in",
        "on a shop dummy": "in studio",
        "on a plain white background": "studio",
        "in the street": "out",
        "in a park": "out",
        "in front of a mirror": "in",
        "at a market stall": "out",
        "on a chair": "in",
    },
    actions={
        "": "",
        "brand new": "",
        "worn out": "",
        "brightly coloured": "",
        "dark in colour": "",
        "patterned": "",
        "plain": "",
        "old-fashioned": "",
        "crumpled": "",
    },
    company={
        "": "",
        "worn by a woman": "in out",
        "worn by a man": "in out",
        "worn by a child": "in out",
        "beside other clothes": "in out",
        "held up by someone": "in out",
        "with its label in view": "near",
    },
    views=VIEWS,
)  # fmt: skip

MUSIC = Scenes(
    words=("musical instrument",),
    settings={
        "": "",
        "on a stage": "in",
        "in a concert hall": "in",
        "in a music shop": "in",
        "in a living room": "in",
        "on a street corner": "out",
        "in a rehearsal room": "in",
        "on a white background": "studio",
        "at an open-air concert": "out",
        "in a museum": "in",
        "on a wooden floor": "in",
    },
    actions=CONDITION,
    company={
        "": "",
        "played by a musician": "in out",
        "played by a child": "in out",
        "beside its case": "in out",
        "next to a music stand": "in out",
        "among other instruments": "in out",
        "held in two hands": "in out",
    },
    views=VIEWS,
)

SPORT = Scenes(
    words=("game equipment", "sports equipment", "plaything", "gymnastic apparatus", "sports implement"),
    settings={
        "": "",
        "on the grass": "out",
        "in a sports hall": "in",
        "on a playground": "out",
        "on a bench": "in out",
        "in a shop": "in",
        "on a beach": "out",
        "on a white background": "studio",
        "on a wooden floor": "in",
        "in a child's room": "in",
    },
    actions=CONDITION,
    company={
        "": "",
        "in use during a game": "in out",
        "held by a player": "in out",
        "with a child": "in out",
        "one of several": "",
        "lying unused": "in out",
    },
    views=VIEWS,
)

VEHICLE = Scenes(
    words=("vehicle", "wheeled vehicle", "motor vehicle", "car", "truck", "train", "bicycle", "sled", "self-propelled vehicle"),
    settings={
        "": "out",
        "on a city street": "out",
        "on a country road": "out",
        "in a car park": "out",
        "in front of a house": "out",
        "in a garage": "in",
        "on gravel": "out",
        "in a show room": "in",
        "at a petrol station": "out",
        "in a yard": "out",
        "on a snowy road": "out sun grey cold",
    },
    actions={
        "": "",
        "parked": "",
        "driving past": "out",
        "with an open door": "",
        "muddy": "",
        "freshly washed": "",
        "old and rusty": "",
        "with its lights on": "out",
        "brightly painted": "",
        "turning a corner": "out",
    },
    company={
        "": "",
        "with people beside it": "",
        "with its driver": "",
        "among other vehicles": "far",
        "alone": "",
        "behind a low fence": "out",
    },
    views=VIEWS,
)

RAIL_OR_TRACK = Scenes(
    words=("locomotive", "railcar", "railway car", "rolling stock", "train", "public transport"),
    settings={
        "": "out",
        "at a station": "out",
        "on a bridge": "out",
        "in open country": "out",
        "in a city": "out",
        "in a siding": "out",
        "at a level crossing": "out",
        "in a museum shed": "in",
    },
    actions={"": "", "standing still": "", "moving fast": "out", "freshly painted": "", "rusty": "", "with its doors open": ""},
    company={"": "", "with passengers beside it": "", "with nobody around": "", "with trees behind it": "out"},
    views=VIEWS,
)

BOAT = Scenes(
    words=("boat", "ship", "watercraft", "sailing vessel", "warship"),
    settings={
        "": "water",
        "on a lake": "water",
        "on the open sea": "water",
        "in a harbour": "water",
        "on a river": "water",
        "at a jetty": "water",
        "on a beach": "out",
        "in a dry dock": "out",
        "off a rocky coast": "water",
    },
    actions={
        "": "",
        "at anchor": "water",
        "moving through the waves": "water",
        "freshly painted": "",
        "weathered": "",
        "with flags": "",
        "casting a reflection": "water",
    },
    company={
        "": "",
        "with its crew": "",
        "next to a smaller boat": "",
        "with gulls around it": "",
        "alone": "",
        "with a town behind it": "far",
    },
    views=VIEWS,
)

AIRCRAFT = Scenes(
    words=("aircraft", "airplane", "spacecraft", "craft", "balloon"),
    settings={
        "": "out",
        "at an airfield": "out",
        "against a blue sky": "out sun",
        "above the clouds": "out sun dusk",
        "over green fields": "out sun grey",
        "in a hangar": "in",
        "in front of mountains": "out",
        "against grey clouds": "out grey",
    },
    actions={"": "", "in the air": "out", "on the ground": "", "taking off": "out", "landing": "out", "brightly painted": ""},
    company={"": "", "with people watching": "", "next to a second one": "", "alone": ""},
    views=VIEWS,
)

MADE = (
    MUSIC, RAIL_OR_TRACK, BOAT, AIRCRAFT, VEHICLE, FURNITURE, GARMENT, SPORT, ELECTRONIC, MACHINE, TOOL, CONTAINER, HOUSEHOLD,
)  # fmt: skip
