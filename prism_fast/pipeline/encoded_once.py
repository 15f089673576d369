"""Embeddings that are made once and kept while they are in use."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class EncodedOnce(Generic[Key, Value]):
    """The values of the keys that were asked for last.

    Args:
        encode: values of distinct keys, in their order.
        most: how many are kept.
    """

    def __init__(self, encode: Callable[[Sequence[Key]], Iterable[Value]], most: int) -> None:
        self._encode = encode
        self._most = most
        self._kept: OrderedDict[Key, Value] = OrderedDict()

    def __call__(self, keys: Iterable[Key]) -> dict[Key, Value]:
        """By key; what is not kept is encoded, in one call of ``encode``."""
        distinct = dict.fromkeys(keys)
        new = [key for key in distinct if key not in self._kept]
        made = dict(zip(new, self._encode(new), strict=True)) if new else {}
        for key in distinct:
            self._kept[key] = made[key] if key in made else self._kept.pop(key)  # newest last
        found = {key: self._kept[key] for key in distinct}
        while len(self._kept) > self._most:
            self._kept.popitem(last=False)
        return found

    def forget(self) -> None:
        """Drops everything: an encoder has changed."""
        self._kept.clear()
