"""How each request's next token is chosen, in an engine that knows one way for all.

transformers' continuous batching takes the likeliest token of every row, and its own processors
leave out penalties. Here each request's row is processed as its `Decoding` says, and where it
samples, Gumbel noise from a generator of its own is added: the likeliest of log p + noise is a
sample of p (Gumbel, 1954; Maddison et al., arXiv 1411.0030). The noise is that of the seed and the
token's number: so what a request samples does not depend on who else is being answered, nor on how
often the engine has to ask.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, inf
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from steer.generation import Decoding
from steer.repetition import NoRepeatedNGrams, RepetitionPenalty


class Choice:
    """Chooses the tokens of one answer."""

    def __init__(
        self,
        decoding: Decoding,
        prompt: Sequence[int],
        ends: Sequence[int],
        defaults: GenerationConfig,
        seed: int | None,
    ) -> None:
        """Set up for one request.

        Args:
            decoding: How.
            prompt: Token ids.
            ends: Token ids that end an answer.
            defaults: The model's own, for what the decoding leaves open.
            seed: Of sampling; None for a new one.
        """
        self._prompt = list(prompt)
        self._ends = list(ends)
        self._least = decoding.min_new_tokens or 0
        self._steps = LogitsProcessorList()
        if decoding.no_repeat_ngram_size:
            self._steps.append(NoRepeatedNGrams(decoding.no_repeat_ngram_size))
        if decoding.repetition_penalty != 1.0:
            self._steps.append(RepetitionPenalty(decoding.repetition_penalty, len(prompt)))
        self._generator: torch.Generator | None = None
        self._seed = 0
        self._drawn = 0  # tokens whose noise the generator has given
        if decoding.do_sample:
            self._add_sampling(decoding, defaults)
            self._generator = torch.Generator()
            self._seed = self._generator.seed() if seed is None else seed
            self._generator.manual_seed(self._seed)

    def _add_sampling(self, decoding: Decoding, defaults: GenerationConfig) -> None:
        def setting(name: str) -> float | None:
            own: float | None = getattr(decoding, name)
            given: float | None = getattr(defaults, name, None)
            return given if own is None else own

        if (temperature := setting("temperature")) not in (None, 1.0):
            self._steps.append(TemperatureLogitsWarper(temperature))
        if top_k := setting("top_k"):
            self._steps.append(TopKLogitsWarper(int(top_k)))
        if (top_p := setting("top_p")) is not None and top_p < 1:
            self._steps.append(TopPLogitsWarper(top_p))

    @property
    def plain(self) -> bool:
        """Whether the likeliest token is taken as it is."""
        return not self._least and not self._steps and self._generator is None

    def __call__(self, answer: Sequence[int], logits: Tensor) -> Tensor:
        """Scores (vocabulary,) of which the largest is chosen.

        Args:
            answer: Token ids so far.
            logits: Of the next token (vocabulary,), fp32.
        """
        scores = logits.unsqueeze(0)
        if len(answer) < self._least:
            known = [end for end in self._ends if 0 <= end < len(logits)]
            places = torch.tensor(known, dtype=torch.int64, device=logits.device)
            scores = scores.index_fill(1, places, -inf)
        if self._steps:
            ids = torch.tensor([[*self._prompt, *answer]], device=logits.device)
            scores = self._steps(ids, scores.clone())
        if self._generator is not None:
            uniform = self._uniform(self._generator, len(answer), scores.shape)
            noise = -torch.log(-torch.log(uniform.clamp_min(1e-300)))
            scores = scores + noise.to(scores)
        return scores[0]

    def _uniform(self, generator: torch.Generator, token: int, shape: torch.Size) -> Tensor:
        """Of an answer's token, the same whenever it is asked for.

        An engine asks more than once while it reads a prompt in parts, and in the midst of an
        answer where it began anew.
        """
        if token != self._drawn:
            generator.manual_seed(self._seed)
            for _ in range(token):
                torch.rand(shape, generator=generator, dtype=torch.float64)
        self._drawn = token + 1
        return torch.rand(shape, generator=generator, dtype=torch.float64)
