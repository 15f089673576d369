"""``prism-fast learn-tokens``: a word for each class, in a file for ``sampler.tokens``."""

from __future__ import annotations

from collections.abc import Sequence

from prism_fast.recipes import TOKENS
from prism_fast.recipes.command_line import CommandLine, Option
from prism_fast.recipes.fields import build


def run(arguments: Sequence[str]) -> None:
    """Runs the command."""
    from prism_fast.tokens.config import TokensConfig

    line = CommandLine(
        program="prism-fast learn-tokens",
        description=(
            "Learns a word for each class: the embedding whose images have the least energy under the teacher. No "
            "image is needed. The same command again continues at the first class that is missing."
        ),
        kind=TokensConfig,
        options=[
            Option(name="--out", description="safetensors file to write", metavar="FILE", default="tokens.safetensors")
        ],
        recipe_kind=TOKENS,
    )
    parsed = line.parse(arguments)
    config = build(TokensConfig, parsed.fields)
    from prism_fast.progress import progress
    from prism_fast.tokens.run import learn_tokens, tokens_text

    print(tokens_text(learn_tokens(config, parsed.options["out"], progress)))
