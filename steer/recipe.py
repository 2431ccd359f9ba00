"""How a bundle is built."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from steer.activations import Pooling
from steer.dose import SEARCH_KLS, check_kls
from steer.errors import InputError
from steer.fields import check_fields, check_numbers
from steer.generation import Decoding
from steer.hooks import Scope
from steer.prompts import check_develop_left

Reading = Literal["mean-difference", "svd", "ccs", "probe", "two-step", "two-step-sign-safe"]
Method = Literal[Reading, "distilled"]
Methods = Literal[Method, "gain"]
Layers = Literal["ccs-jump", "middle", "gain"]


@dataclass(frozen=True)
class Recipe:
    """How a bundle is built.

    Attributes:
        method: How a trait's edit is found: read off its subspace, "distilled" from what the
            instructions do to the model's next tokens (some minutes a trait and set of layers), or
            "gain" (mean difference and distilled are both tried, the larger gain on develop
            prompts is kept).
        layers: Which layers are edited: "ccs-jump" (CHAMELEON's rule), "middle" (a fixed window
            of the model's depth), or "gain" (both are tried, the larger gain on develop prompts
            is kept).
        prompts: Number of extract prompts, and so of pairs before any are dropped.
        develop_prompts: Number of develop prompts on which every dose is tried.
        confirm_prompts: Number of further ones on which the leading dose is confirmed.
        interference_prompts: Number of develop prompts on which is measured what traits do to each
            other (`steer.interference`); 0 if it is not.
        pooling: How a response's activations become one vector.
        scope: Where edits act.
        gated: Within that, only on answers in a chat and not on plain text (`steer.gate`). Edits
            of a two-step method are never gated, since they are not additive, nor those of a model
            without a chat template.
        kls: Doses that are tried, in nats per token.
        decoding: How develop prompts are answered.
        seed: Seeds sampling, CCS and its held-out pairs.
    """

    method: Methods = "distilled"
    layers: Layers = "middle"
    prompts: int = 64
    develop_prompts: int = 40
    confirm_prompts: int = 60
    interference_prompts: int = 16
    pooling: Pooling = "mean"
    scope: Scope = "response"
    gated: bool = True
    kls: tuple[float, ...] = SEARCH_KLS
    decoding: Decoding = Decoding()
    seed: int = 0

    @classmethod
    def from_json(cls, value: object, where: str) -> Recipe:
        """The recipe that `asdict` made a JSON object of, as the settings of a bundle hold it.

        Args:
            value: The object.
            where: It stands, for the error.

        Raises:
            InputError: If it has other fields, as that of another version of steer may, or one is
                not what it should be.
        """
        content = check_fields(value, cls, where)
        kls = check_numbers(content["kls"], f"{where}, 'kls'")
        decoding = Decoding.from_json(content["decoding"], f"{where}, 'decoding'")
        return cls(**{**content, "kls": tuple(kls), "decoding": decoding})

    @property
    def is_additive(self) -> bool:
        """Whether edits are of the additive form."""
        return self.method not in ("two-step", "two-step-sign-safe")

    def __post_init__(self) -> None:
        if self.method not in get_args(Methods):
            raise InputError(f"method: expected one of {get_args(Methods)}, got {self.method!r}")
        if self.layers not in get_args(Layers):
            raise InputError(f"layers: expected one of {get_args(Layers)}, got {self.layers!r}")
        for name, split in (("prompts", 300), ("develop_prompts", 100)):
            if not 8 <= getattr(self, name) <= split:
                raise InputError(f"{name}: expected 8 to {split}, got {getattr(self, name)}")
        if self.interference_prompts != 0 and not 4 <= self.interference_prompts <= 100:
            raise InputError(
                f"interference_prompts: expected 0 or 4 to 100, got {self.interference_prompts}"
            )
        check_kls(self.kls)
        check_develop_left("confirm_prompts", self.confirm_prompts, self.develop_prompts)
