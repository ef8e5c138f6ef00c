"""Prompt lookup: drafts of the next ids, copied from earlier in prompt and answer. No second model.

    ids      .. for word in text : .. for word in |       the end, "for word in", stood there before
    drafts                 ^^^^^^                 text :  what followed then may follow now

A forward reads a few ids for little more than the price of one, and gives the scores after each: generate.py reads the
drafts along, draws every id as ever, and keeps what was read for as long as the drafts are the ids drawn. Copies, code
and lists come several ids a pass; what is drawn does not depend on the drafts, only the time it takes.

Drafts that fail cost time, so they are paid from an account, counted in drafts. Each token adds 2 % of a pass, each
draft that held the pass it saved, each draft takes its price. Of what the account allows, as many are drafted as
promise the most tokens for the time, given how often drafts after a match of this length held. So an answer that
repeats nothing takes about 2 % longer, whatever a draft costs on the machine.

Price: what a pass takes longer for each draft, 5 % of a pass on one machine and 80 % on another. It is measured: a pass
with drafts against the one without before or behind it, at first the prompt's; the median of the newest few. Hence how
many drafts there are differs from run to run, the answer does not.

Left out: all but the latest place of a match, and drafts from other conversations.
"""

import statistics
from collections import deque
from collections.abc import Sequence

ALLOWANCE = 0.02  # of a pass, for each token

_LENGTHS = (8, 4, 2, 1)  # of a match in ids, tried in this order
_FIRST_CHANCES = (0.9, 0.7, 0.4, 0.2)  # for each length, that a draft holds; soon replaced by what is seen
_FORGET = 0.1  # how much one draft's fate changes a chance
_FIRST_PRICE, _LEAST_PRICE, _MOST_PRICE = 0.1, 0.05, 1.0  # of a draft, in passes
_FULL = 16.0  # drafts: what a streak of failures after a long success can lose
_RECENT = 9  # prices whose median counts: a machine that stalls once changes nothing
_STREAK = 32  # passes with drafts, then one without, so that the price stays known


class Lookup:
    """The drafts of one answer: `draft` before each pass, `learn` after it."""

    def __init__(self, most: int, prompt_tokens: int, prompt_s: float) -> None:
        """`most` drafts a pass, 0 is plain decoding; the prompt was read in one pass of `prompt_s` seconds."""
        self._most = most
        self._followers: dict[tuple[int, ...], int] = {}  # ids in a row -> the place after their latest occurrence
        self._known = 1  # what ends before this place is in _followers
        self._chances = dict(zip(_LENGTHS, _FIRST_CHANCES, strict=True))
        self._length = _LENGTHS[0]  # of the newest match
        self._account = 0.0
        self._before = max(1, prompt_tokens - 1), prompt_s  # the newest pass: ids read along, seconds
        self._prices = deque([_FIRST_PRICE], maxlen=_RECENT)
        self._streak = 0  # passes with drafts since the newest without

    def draft(self, ids: Sequence[int], room: int) -> list[int]:
        """At most `room` ids that may follow `ids`: the prompt and the answer so far, longer at each call."""
        room = min(room, self._most, int(self._account))
        if room < 1 or self._streak >= _STREAK:
            return []
        place = self._find(ids)
        if place is None:
            return []
        period = len(ids) - place  # a copy that reaches the end goes on with itself
        return [ids[place + n % period] for n in range(self._worth(room))]

    def learn(self, drafts: int, held: int, seconds: float) -> None:
        """A pass with so many drafts took `seconds`, and the first `held` of them were the ids drawn."""
        (before, before_s), self._before = self._before, (drafts, seconds)
        self._streak = self._streak + 1 if drafts else 0
        if (drafts == 0) != (before == 0):  # neighbours: whatever else the machine does, it does to both
            alone_s, along_s = (before_s, seconds) if drafts else (seconds, before_s)
            price = (along_s / max(alone_s, 1e-9) - 1) / (drafts or before)
            self._prices.append(min(max(price, _LEAST_PRICE), _MOST_PRICE))
        gained = ALLOWANCE * (held + 1) + held
        self._account = min(_FULL, self._account + gained / statistics.median(self._prices) - drafts)
        for n in range(min(held + 1, drafts)):  # behind the first that failed nothing is known
            self._chances[self._length] += _FORGET * ((n < held) - self._chances[self._length])

    def _find(self, ids: Sequence[int]) -> int | None:
        """The place after the latest earlier occurrence of the end of `ids`, of the longest end that has one."""
        for place in range(self._known, len(ids)):
            for length in _LENGTHS:
                if length <= place:
                    self._followers[tuple(ids[place - length : place])] = place
        self._known = len(ids)
        for length in _LENGTHS:
            if follower := self._followers.get(tuple(ids[-length:])):
                self._length = length
                return follower
        return None

    def _worth(self, room: int) -> int:
        """How many drafts promise the most tokens for the time, at the chance of the match just found."""
        price, chance = statistics.median(self._prices), self._chances[self._length]
        best, best_rate, tokens = 0, 1.0, 1.0
        for drafts in range(1, room + 1):
            tokens += chance**drafts
            rate = tokens / (1 + price * drafts)
            if rate > best_rate:
                best, best_rate = drafts, rate
        # A full account tries one all the same: chances and price may have changed.
        return max(best, int(self._account >= _FULL))
