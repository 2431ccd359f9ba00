"""How each request's next token is chosen under vLLM: as everywhere else in steer.

vLLM's own penalties count the prompt, and it bans no repeated n-grams. So a request that asks for
either, or that samples, carries its `Decoding` along, and its row of logits is processed by the
same `Choice` as in transformers' batches; vLLM then takes the likeliest token.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from torch import Tensor
from transformers import GenerationConfig
from vllm.v1.sample.logits_processor import AdapterLogitsProcessor

from steer.generation import Decoding
from steer.serve.choosing import Choice

FIELD = "steer_choice"
"""The extra argument that holds it."""

PATH = f"{__name__}:Choices"
"""What vLLM's `logits_processors` takes."""


def to_field(
    decoding: Decoding, ends: Sequence[int], defaults: GenerationConfig, seed: int | None
) -> Mapping[str, Any]:
    """What a request carries; empty where the likeliest token is taken as it is."""
    if Choice(decoding, (), ends, defaults, seed).plain:
        return {}
    own = {name: getattr(defaults, name, None) for name in ("temperature", "top_k", "top_p")}
    return {
        FIELD: {
            "decoding": asdict(decoding),
            "ends": list(ends),
            "defaults": own if decoding.do_sample else {},
            "seed": seed,
        }
    }


class Choices(AdapterLogitsProcessor):  # type: ignore[misc]  # vLLM is untyped here
    """Processes the rows of requests that carry the field."""

    def is_argmax_invariant(self) -> bool:
        """It changes which token is the likeliest."""
        return False

    def new_req_logits_processor(
        self, params: Any
    ) -> Callable[[Sequence[int], Sequence[int], Tensor], Tensor] | None:
        """What processes a request's row; None for one without the field."""
        said = (params.extra_args or {}).get(FIELD)
        if said is None:
            return None
        decoding = Decoding(**said["decoding"])
        defaults = GenerationConfig(**said["defaults"])
        choice: Choice | None = None

        def process(prompt: Sequence[int], answer: Sequence[int], logits: Tensor) -> Tensor:
            nonlocal choice
            if choice is None:
                choice = Choice(decoding, prompt, said["ends"], defaults, said["seed"])
            return choice(answer, logits.float()).to(logits)

        return process
