"""Content of a task's prompts by a language model: calls planned, answered from the cache or asked, and judged."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cached_property
from itertools import islice

from prism_fast.errors import UserError
from prism_fast.progress import ProgressFactory, silent
from prism_fast.prompts.choices import choices
from prism_fast.prompts.clip_tokens import fits_clip, names_early
from prism_fast.prompts.fit import Fits
from prism_fast.prompts.grammar import Grammar, load_grammar
from prism_fast.prompts.llm.answers import read_answer
from prism_fast.prompts.llm.cache import AnswerCache
from prism_fast.prompts.llm.config import LlmConfig
from prism_fast.prompts.llm.messages import scene_request
from prism_fast.prompts.llm.model import Answer, LanguageModel, Request
from prism_fast.prompts.llm.validation import REASONS, OtherClasses, Refused, Validator
from prism_fast.prompts.prompt_config import PromptConfig
from prism_fast.prompts.prompt_list import class_phrase
from prism_fast.prompts.vocabulary import Vocabulary
from prism_fast.prompts.written import Slot, Written

_AVOIDED = 40  # classes that are listed in a call; of larger tasks none are, and the check alone finds them


@dataclass(frozen=True, kw_only=True)
class Call:
    """A request, and the slots of one class that it is for."""

    class_index: int
    first: int
    styles: tuple[tuple[str, ...], ...]
    request: Request

    @property
    def slots(self) -> list[Slot]:
        """One for each text."""
        return [(self.class_index, self.first + place) for place in range(len(self.styles))]


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A text and what became of it; ``text`` is empty where there was none."""

    slot: Slot
    text: str
    outcome: Written | Refused


@dataclass(frozen=True, kw_only=True)
class Usage:
    """What the answers cost; ``calls`` were made now, ``cached`` were not. Tokens are those of the calls made."""

    calls: int
    cached: int
    input_tokens: int
    output_tokens: int
    uncounted: int
    """Calls whose tokens the model did not tell."""


@dataclass(frozen=True, kw_only=True)
class WrittenContent:
    """Every text that was asked for, judged, in the order of its slots."""

    judged: tuple[Judged, ...]
    usage: Usage

    @cached_property
    def accepted(self) -> dict[Slot, Written]:
        """What replaces the grammar's content."""
        return {each.slot: each.outcome for each in self.judged if isinstance(each.outcome, Written)}

    @cached_property
    def report(self) -> dict[str, int]:
        """Counts: ``llm_asked``, ``llm_accepted``, ``llm_rejected``, and ``llm_rejected_REASON`` that are not 0."""
        reasons = Counter(each.outcome.reason for each in self.judged if isinstance(each.outcome, Refused))
        return {
            "llm_asked": len(self.judged),
            "llm_accepted": len(self.accepted),
            "llm_rejected": sum(reasons.values()),
            **{f"llm_rejected_{reason}": reasons[reason] for reason in REASONS if reasons[reason]},
        }

    def for_class(self, index: int) -> list[Judged]:
        """The texts about a class."""
        return [each for each in self.judged if each.slot[0] == index]


def plan_calls(
    vocabulary: Vocabulary,
    prompts: PromptConfig,
    config: LlmConfig,
    model: LanguageModel,
    classes: Sequence[int] | None = None,
) -> list[Call]:
    """The calls that write the content of every prompt of some classes; a pure function of its arguments.

    Each text has a choice of the grammar behind it: its content is the idea, its style the style, and where the text is
    refused it stands in.

    Args:
        vocabulary: of the task.
        prompts: which prompts.
        config: of the model.
        model: which one.
        classes: indices; every class where None.

    Raises:
        UserError: ``prompts`` asks for no content, for that of a file, or for measured frequencies.
    """
    if prompts.file is not None or prompts.content != "uniform":
        asked = "a file" if prompts.file is not None else f"content {prompts.content!r}"
        raise UserError(f"a language model writes content 'uniform' alone, not {asked}: leave one of them out")
    grammar, calls = load_grammar(vocabulary.grammar), []
    few = len(vocabulary) <= _AVOIDED
    for index in range(len(vocabulary)) if classes is None else classes:
        sense = vocabulary.senses[index]
        drawn = list(islice(choices(grammar, sense, prompts), prompts.per_class))
        for first in range(0, len(drawn), config.per_call):
            part = drawn[first : first + config.per_call]
            request = scene_request(
                sense,
                class_phrase(sense, prompts),
                [(grammar.join(content), ", ".join(filter(None, style))) for content, style in part],
                avoid=[each.bare for each in vocabulary.senses if each.bare != sense.bare] if few else [],
                config=config,
                model=model.identity,
                key=(prompts.seed, sense.name, first),
            )
            calls.append(
                Call(class_index=index, first=first, styles=tuple(style for _, style in part), request=request)
            )
    return calls


def ask(
    calls: Sequence[Call], model: LanguageModel, cache: AnswerCache, progress: ProgressFactory = silent
) -> tuple[list[Answer], Usage]:
    """The answers to calls, in their order, from the cache or the model. Every answer is kept as soon as it is there.

    Raises:
        UserError: no answer to one of them; those that came are kept, and asking again goes on from there.
    """
    known = {call.request.key for call in calls if cache.get(call.request) is not None}
    missing = {call.request.key: call.request for call in calls if call.request.key not in known}
    made: list[Answer] = []
    stop = threading.Event()
    shown = progress if missing else silent
    with shown(len(missing), "calls", model.name, 0) as bar, ThreadPoolExecutor(model.concurrent) as pool:
        futures = [pool.submit(_asked, request, model, cache, stop) for request in missing.values()]
        try:
            for done in as_completed(futures):
                made.append(done.result())
                bar.update()
        except BaseException:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    usage = Usage(
        calls=len(made),
        cached=len(calls) - len(made),
        input_tokens=sum(answer.input_tokens or 0 for answer in made),
        output_tokens=sum(answer.output_tokens or 0 for answer in made),
        uncounted=sum(answer.input_tokens is None or answer.output_tokens is None for answer in made),
    )
    return [_found(call, cache) for call in calls], usage


def _asked(request: Request, model: LanguageModel, cache: AnswerCache, stop: threading.Event) -> Answer:
    answer = model.answer(request, stop)
    cache.put(request, answer)
    return answer


def _found(call: Call, cache: AnswerCache) -> Answer:
    found = cache.get(call.request)
    if found is None:
        raise RuntimeError(f"the answer to {call.request.key} was not kept")
    return found


def judge(
    vocabulary: Vocabulary,
    prompts: PromptConfig,
    config: LlmConfig,
    calls: Sequence[Call],
    answers: Sequence[Answer],
    *,
    source: str,
    fits: Fits = fits_clip,
) -> list[Judged]:
    """What of the answers is used; a pure function of its arguments.

    Args:
        vocabulary, prompts, config: those that the calls were planned for.
        calls: every call of a class together.
        answers: one for each.
        source: what the column ``source`` says of accepted texts.
        fits: whether the pipeline's tokenizer takes a text without cutting it.
    """
    grammar, others = load_grammar(vocabulary.grammar), OtherClasses(vocabulary)
    validators: dict[int, Validator] = {}
    judged: list[Judged] = []
    for call, answer in zip(calls, answers, strict=True):
        index = call.class_index
        if index not in validators:
            validators[index] = Validator(
                vocabulary,
                others,
                index,
                class_phrase(vocabulary.senses[index], prompts),
                max_words=config.max_words,
                fits=_budget(grammar, class_phrase(vocabulary.senses[index], prompts), fits),
                source=source,
            )
        judged += _judged_call(call, answer, validators[index])
    return judged


def _judged_call(call: Call, answer: Answer, validator: Validator) -> Iterator[Judged]:
    texts = read_answer(answer.text)
    for place, (slot, style) in enumerate(zip(call.slots, call.styles, strict=True)):
        if texts is None:
            fault = "form" if answer.text.strip() else "empty"
            yield Judged(slot=slot, text=answer.text if not place else "", outcome=Refused(reason=fault))
        elif place >= len(texts):
            yield Judged(slot=slot, text="", outcome=Refused(reason="missing"))
        else:
            yield Judged(slot=slot, text=texts[place], outcome=validator(texts[place], style))


def _budget(grammar: Grammar, phrase: str, fits: Fits) -> Callable[[str, Sequence[str]], bool]:
    """Whether a subject fits, with the medium that opens its prompt; other styles can be dropped."""

    def fitting(subject: str, medium: Sequence[str]) -> bool:
        text = grammar.render(subject, (), tuple(medium))
        return names_early(text, phrase) and fits(text)

    return fitting


def write_content(
    vocabulary: Vocabulary,
    prompts: PromptConfig,
    config: LlmConfig,
    model: LanguageModel,
    cache: AnswerCache,
    *,
    fits: Fits = fits_clip,
    classes: Sequence[int] | None = None,
    progress: ProgressFactory = silent,
) -> WrittenContent:
    """Plans, asks and judges; deterministic once the answers are in the cache.

    Raises:
        UserError: as :func:`plan_calls` and :func:`ask`.
    """
    calls = plan_calls(vocabulary, prompts, config, model, classes)
    answers, usage = ask(calls, model, cache, progress)
    source = f"llm:{model.name}"
    judged = judge(vocabulary, prompts, config, calls, answers, source=source, fits=fits)
    return WrittenContent(judged=tuple(judged), usage=usage)
