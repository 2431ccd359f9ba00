"""Token ids into text, a piece at a time, up to a string at which an answer is to stop.

The pieces together are the text that `steer.generate` gives: without special tokens, and without
white space around it. So a piece is held back while it may still turn out to be the end.
"""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers.decoders import DecodeStream
from transformers import PreTrainedTokenizerBase


class AnswerText:
    """The text of one answer.

    Attributes:
        stopped: Whether it came to a string at which it stops.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, stops: Sequence[str] = (), *, strip: bool = True
    ) -> None:
        """Begin.

        Args:
            tokenizer: The model's; a fast one.
            stops: Strings at which the answer stops; they are not part of it.
            strip: Leave out white space around the answer.
        """
        self._tokenizer = tokenizer.backend_tokenizer
        self._stream = DecodeStream(skip_special_tokens=True)
        self._open: list[int] = []  # tokens since the stream's last text
        self._stops = tuple(stops)
        self._strip = strip
        self._read = 0
        self._held = ""
        self._begun = not strip
        self.stopped = False

    def feed(self, tokens: Sequence[int]) -> str:
        """The next piece of text.

        Args:
            tokens: All token ids of the answer so far.
        """
        if self.stopped:
            return ""
        for token in tokens[self._read :]:
            self._held += self._text_of(token)
        self._read = len(tokens)
        if not self._begun:
            self._held = self._held.lstrip()
            self._begun = bool(self._held)
        found = [place for stop in self._stops if (place := self._held.find(stop)) >= 0]
        if found:
            self.stopped = True
            self._held = self._held[: min(found)]
            return self.end()
        piece = self._held[: len(self._held) - self._beginning_of_a_stop()]
        if self._strip:
            piece = piece.rstrip()
        self._held = self._held[len(piece) :]
        return piece

    def end(self, *, ended: bool = False) -> str:
        """What was held back, now that nothing follows.

        Args:
            ended: Whether the model ended the answer. What it left of a character is a part of it
                then, and is left out where a limit cut it off.
        """
        if ended:
            self._held += self._tokenizer.decode(self._open, skip_special_tokens=True)
            self._open = []
            if not self._begun:
                self._held = self._held.lstrip()
        piece, self._held = self._held, ""
        return piece.rstrip() if self._strip else piece

    def _text_of(self, token: int) -> str:
        """What a token adds; nothing while it may be a part of a character."""
        self._open.append(token)
        try:
            text = self._stream.step(self._tokenizer, token) or ""
        except Exception:  # tokenizers raises no other kind
            # Bytes that are no character make those before them none either, a line feed, say, that
            # was given out. It stays, and what came since is read by itself.
            text = self._tokenizer.decode(self._open, skip_special_tokens=True)
            self._stream = DecodeStream(ids=self._open, skip_special_tokens=True)
        if text:
            self._open = []
        return text

    def _beginning_of_a_stop(self) -> int:
        """How many characters at the end may be the beginning of a stop."""
        lengths = [
            length
            for stop in self._stops
            for length in range(1, min(len(stop), len(self._held) + 1))
            if self._held.endswith(stop[:length])
        ]
        return max(lengths, default=0)
