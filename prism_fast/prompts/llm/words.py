"""Words by which an answer is refused, and words that say where and when a scene is."""

from __future__ import annotations

import re

UNSAFE = re.compile(
    r"\b(nud(e|es|ity)|naked|topless|nsfw|porn\w*|sex|sexy|sexual\w*|erotic\w*|genital\w*|penis\w*|vagina\w*|rap(e|ed|ist)"
    r"|molest\w*|pa?edophil\w*|incest\w*|blood(y|ied|stained)?|gor(e|y)|corpse\w*|cadaver\w*|mutilat\w*|dismember\w*"
    r"|behead\w*|decapitat\w*|disembowel\w*|tortur\w*|lynch\w*|suicid\w*|murder\w*|massacre\w*|terroris[mt]\w*|bomb(ing|er)s?"
    r"|nazi\w*|swastika\w*|hitler|genocid\w*|cocaine|heroin|meth|dead|dying|kill(s|ed|ing|er)?)\b",
    re.IGNORECASE,
)
"""A training picture shows none of this."""

INSTRUCTION = re.compile(
    r"\b(ignor(e|es|ed|ing)|disregard\w*|forget) (all|any|every|the|these|your|previous|prior|above|earlier)\b"
    r"|\binstructions?\b|\bsystem prompt\b|\bprompts?\b|\blanguage model\b|\bas an? (ai|assistant)\b|\bassistant\b"
    r"|\b(i|we) (can(no|')t|am|will|would|must|apologi[sz]e)\b|\bi'm\b|\bsorry\b|\bplease\b"
    r"|\byou (are|must|should|can)\b|\b(here|this) (is|are)\b|\b(texts?|captions?|descriptions?|sentences?)\b"
    r"|\bclass words\b|\bjson\b|\bscenes?\b(?= (for|of the class))"
    r"|\bdeveloper mode\b|\bjailbreak\w*",
    re.IGNORECASE,
)
"""Talk with or about the model instead of a scene."""

MARKUP = re.compile(
    r"(?<!\w)'\w|https?\b|www\.|\b[\w-]+\.(com|org|net|io|html?|php|js|exe|jpe?g|png)\b|[<>{}\[\]|\\/`@#*_=~^$%&+\"“”«»:()!?.…]"
)
"""Addresses, code, quotations and everything else that is no plain phrase."""

MEDIUM = re.compile(
    r"\b(photo(s|graph\w*)?|snapshots?"
    r"|(?<!in the )(?<!of the )pictures?|images?|paintings?|watercolou?rs?|sketch(es)?|drawings?|illustrations?"
    r"|cartoons?|comics?|anime|renderings?|3d|cgi|silhouettes?|woodcuts?|embroider\w*|pixel|murals?|collages?|posters?"
    r"|logos?|emojis?|icons?|monochrome|black and white|sepia|lens(es)?|megapixels?|bokeh|4k|8k|hdr)\b",
    re.IGNORECASE,
)
"""What kind of picture it is: that is the style's to say."""

ALTERED = re.compile(
    r"\b(not|no|never|without|nonexistent|absent|missing|fake|false|toy|plastic|stuffed|robot(ic)?|mechanical|imaginary"
    r"|fictional|invisible|origami|inflatable|painted|carved|printed|tattooed|knitted|human)\b",
    re.IGNORECASE,
)
"""Before the words of a class: then it is something else, or is not there."""

MADE_OF = re.compile(
    r"\b(made (out )?of|in the (shape|form) of|shaped like|carved (from|out of|in)|printed on|painted on|drawn on"
    r"|dressed as|turned into|transformed into|statues?|sculptures?|figurines?|costumes?|origami"
    r"|(is|are) (not|absent|missing)|nowhere|unlike|instead of|rather than)\b",
    re.IGNORECASE,
)
"""Behind them: the same."""

_WHERE_AND_WHEN = {
    "in": "indoors inside kitchen bedroom bathroom office classroom laboratory workshop hallway attic cellar basement "
    "museum gallery lobby sofa couch carpet",
    "out": "outdoors meadow field forest woods jungle desert savanna prairie beach shore street road pavement sidewalk "
    "park mountain hillside cliff valley orchard farm pasture snow",
    "water": "underwater seabed reef",
    "studio": "studio backdrop",
    "sun": "sunny sunlit sunshine sunlight noon midday",
    "grey": "overcast cloudy drizzle foggy misty fog mist rainy",
    "dusk": "dusk dawn sunset sunrise twilight evening",
    "night": "night midnight moonlight moonlit starry nighttime",
    "cold": "snowy snow frost frosty icy frozen blizzard",
    "warm": "summer tropical scorching",
}
CONDITIONS: dict[str, tuple[str, ...]] = {}
"""Words of a scene to conditions of :mod:`prism_fast.prompts.scenes`."""
for _condition, _words in _WHERE_AND_WHEN.items():
    for _word in _words.split():
        CONDITIONS[_word] = (*CONDITIONS.get(_word, ()), _condition)
