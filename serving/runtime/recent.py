"""Which class was predicted for which id, for the last while: what turns a label into a cell of the confusion matrix.

A fixed table in memory that all forked workers share, because a label often reaches another worker than its prediction did. It is a
cache: bounded, lossy under collisions, without locks. The log is the record; this only feeds counters.
"""

from __future__ import annotations

import hashlib
import mmap

WAYS = 4
"""Slots that one id may use; the oldest written of them gives way."""
CLASSES_MAX = 2**15 - 1
_COUNTED = 1 << 15
_CLASS_MASK = _COUNTED - 1
_TAG_SHIFT = 16


class RecentPredictions:
    """Id → index of the predicted class, for about the last `slots` ids. Create before forking.

    A slot is one aligned 64-bit word (48 bits of the id's hash, 1 bit "already counted", 15 bits class + 1), written in one store, so
    that workers need no lock: a lost race loses one count.
    """

    def __init__(self, slots: int = 2**18) -> None:
        assert slots % WAYS == 0, slots
        self._sets = slots // WAYS
        self._words = memoryview(mmap.mmap(-1, slots * 8)).cast("Q")

    def remember(self, row_id: str, predicted: int) -> None:
        """Note the class index predicted for an id. Indexes from `CLASSES_MAX` on are not remembered."""
        if predicted >= CLASSES_MAX:
            return
        base, tag = self._place(row_id)
        words = self._words
        words[base + 3] = words[base + 2]
        words[base + 2] = words[base + 1]
        words[base + 1] = words[base]
        words[base] = tag << _TAG_SHIFT | (predicted + 1)

    def take(self, row_id: str) -> tuple[int, bool] | None:
        """The class index predicted for an id and whether it was taken before; None if it is not remembered."""
        base, tag = self._place(row_id)
        for slot in range(base, base + WAYS):
            word = self._words[slot]
            if word >> _TAG_SHIFT == tag and word & _CLASS_MASK:
                self._words[slot] = word | _COUNTED
                return (word & _CLASS_MASK) - 1, bool(word & _COUNTED)
        return None

    def _place(self, row_id: str) -> tuple[int, int]:
        digest = int.from_bytes(hashlib.blake2b(row_id.encode(), digest_size=14).digest(), "little")
        return (digest >> 48) % self._sets * WAYS, digest & (2**48 - 1)
