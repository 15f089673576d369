"""What a language model will cost, has cost, and has written, for human eyes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from prism_fast.prompts.llm.cache import AnswerCache
from prism_fast.prompts.llm.config import LlmConfig
from prism_fast.prompts.llm.model import LanguageModel
from prism_fast.prompts.llm.validation import REASONS, Refused
from prism_fast.prompts.llm.writing import Call, Usage, WrittenContent

_MILLION = 1e6
_CUT = 160  # characters of a text that is shown


def estimate_text(calls: Sequence[Call], model: LanguageModel, cache: AnswerCache, config: LlmConfig) -> str:
    """Calls, tokens and price of what is not in the cache; nothing is asked."""
    missing = {call.request.key: call.request for call in calls if cache.get(call.request) is None}
    known = sum(call.request.key not in missing for call in calls)
    asked = sum(len(call.styles) for call in calls)
    given = sum(model.count_tokens(request.messages) for request in missing.values())
    most = sum(request.sampling.max_tokens for request in missing.values())
    return "\n".join(
        (
            f"llm:{model.name}: {asked} texts in {len(calls)} calls, {known} of them in {cache.path} already",
            f"  to make: {len(missing)} calls, about {given} tokens in, at most {most} tokens out",
            f"  price: {_price(given, most, config, 'at most about ')}",
        )
    )


def usage_text(content: WrittenContent, name: str, config: LlmConfig) -> str:
    """What was asked and taken, and what it cost."""
    counts, usage = content.report, content.usage
    lines = [
        f"llm:{name}: {counts['llm_accepted']} of {counts['llm_asked']} texts taken; the grammar's stand in for others",
        *(
            f"  {counts[f'llm_rejected_{reason}']} rejected: {meaning}"
            for reason, meaning in REASONS.items()
            if f"llm_rejected_{reason}" in counts
        ),
        f"  {usage.calls} calls made, {usage.cached} answers from the cache; {_tokens(usage)}",
    ]
    if usage.calls:
        lines.append(f"  price: {_price(usage.input_tokens, usage.output_tokens, config, '')}")
    return "\n".join(lines)


def judged_text(content: WrittenContent, index: int, name: str) -> str:
    """Every text about a class, and what became of it."""
    return "\n".join((f"class {index}, by llm:{name}", *_judged_lines(content, index)))


def _judged_lines(content: WrittenContent, index: int) -> Iterator[str]:
    for judged in content.for_class(index):
        text = " ".join(judged.text.split())
        shown = ascii(text)[1:-1] if not text.isprintable() else text  # a terminal obeys what is not
        shown = shown if len(shown) <= _CUT else f"{shown[:_CUT]}..."
        if isinstance(judged.outcome, Refused):
            yield f"  rejected  {shown or '(nothing)'}"
            yield f"            {judged.outcome.reason}: {REASONS[judged.outcome.reason]}"
        else:
            yield f"  taken     {shown}"


def _tokens(usage: Usage) -> str:
    text = f"{usage.input_tokens} tokens in, {usage.output_tokens} tokens out"
    return f"{text}, without {usage.uncounted} calls that the model did not count" if usage.uncounted else text


def _price(given: int, taken: int, config: LlmConfig, about: str) -> str:
    if config.price_in is None or config.price_out is None:
        return "not known; give --llm.price_in and --llm.price_out, of a million tokens"
    return f"{about}{(given * config.price_in + taken * config.price_out) / _MILLION:.4f}"
