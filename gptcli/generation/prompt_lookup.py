"""Guessing the next tokens from what stands before, for greedy decoding.

Where the last tokens have stood before, what followed them then is tried: one step of the model shows
for all of them at once how many it would have made itself, and these are kept. Text that repeats its
input takes fewer steps, and no token differs (Saxena, "Prompt lookup decoding", 2023).
"""

from __future__ import annotations

# Tokens that have to stand before as they do now.
MATCHED = 3
MOST_DRAFTED = 8


class PromptLookup:
    """The tokens of one text, by those before them."""

    def __init__(self, ids: list[int]) -> None:
        self._ids: list[int] = []
        self._behind: dict[tuple[int, ...], int] = {}
        # Guesses that fail cost a part of a step: after some, fewer are made.
        self._most = MOST_DRAFTED
        self.extend(ids)

    def extend(self, ids: list[int]) -> None:
        """Add the tokens that follow."""
        for token_id in ids:
            if len(self._ids) >= MATCHED:
                # Those before this token: the newest place counts.
                self._behind[tuple(self._ids[-MATCHED:])] = len(self._ids)
            self._ids.append(token_id)

    def draft(self, most: int) -> list[int]:
        """Return a guess at the next tokens, at most so many; none where nothing has stood before.

        Where what followed ends with the text, the guess is that it goes round.
        """
        place = self._behind.get(tuple(self._ids[-MATCHED:]))
        if place is None or most < 1:
            return []
        followed = self._ids[place:]
        count = min(most, self._most)
        return (followed * -(-count // len(followed)))[:count]

    def note(self, drafted: int, right: int) -> None:
        """Learn how many of those that were drafted were right."""
        self._most = min(MOST_DRAFTED, 2 * self._most) if right == drafted else max(1, right)
