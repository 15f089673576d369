"""A prompt list for human eyes: what was made, and a few prompts of each class."""

from __future__ import annotations

from collections.abc import Sequence

from prism_fast.prompts.draw import shuffled
from prism_fast.prompts.prompt_list import PromptList
from prism_fast.prompts.vocabulary import Vocabulary

_MOST_CLASSES = 12  # shown unless classes are asked for; a task may have thousands
_COUNTS = (
    ("shortened", "cut to fit the tokenizer"),
    ("duplicates", "duplicates dropped"),
    ("short_classes", "classes with fewer prompts than asked for, as the grammar has no more"),
    ("without_gloss", "classes without a gloss, where the bare name is used"),
)


def sample_text(
    prompts: PromptList,
    vocabulary: Vocabulary,
    *,
    per_class: int = 3,
    classes: Sequence[int] | None = None,
    seed: int = 0,
) -> str:
    """A few prompts of each class under a line of counts.

    Args:
        prompts: the list.
        vocabulary: names its classes.
        per_class: prompts shown of each.
        classes: indices to show; the first few where None.
        seed: which prompts are shown.

    Raises:
        UserError: a class without prompts.
    """
    known = range(len(vocabulary))
    shown = list(known)[:_MOST_CLASSES] if classes is None else list(classes)
    width = max((len(vocabulary.senses[index].name) for index in shown), default=0)
    lines = [_summary(prompts, vocabulary)]
    for index in shown:
        chosen = shuffled(prompts.for_class(index), seed, index)[:per_class]
        label = f"{index:>4} {vocabulary.senses[index].name:<{width}}"
        for prompt in chosen:
            lines.append(f"{label}  {prompt.prompt}")
            label = " " * len(label)
    hidden = len(vocabulary) - len(shown)
    if classes is None and hidden:
        lines.append(f"     ... and {hidden} more classes")
    return "\n".join(lines)


def _summary(prompts: PromptList, vocabulary: Vocabulary) -> str:
    sizes = [len(prompts.for_class(index)) for index in prompts.class_indices()]
    each = f"{min(sizes)}" if min(sizes) == max(sizes) else f"{min(sizes)} to {max(sizes)}"
    lines = [f"{vocabulary.name}: {len(prompts)} prompts of {len(vocabulary)} classes, {each} a class"]
    lines += [f"  {words}: {prompts.report[key]}" for key, words in _COUNTS if prompts.report.get(key)]
    return "\n".join(lines)
