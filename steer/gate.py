"""Gates: edits that act on answers in a chat and leave plain text alone.

An additive edit changes whatever the model reads: continue a novel or score a text, and it pushes
there too. Answers in a chat can be told from plain text token by token, at every layer: a direction
v is fitted so that <v, x> is near 1 on the tokens of the model's own answers and near -1 on the
same tokens without the chat around them. The gated edit

    x <- x + relu(<v, x>) e

is of the rank-1 form of `steer.kernel`. That a condition read off the activations decides where an
edit acts is the idea of conditional activation steering (arXiv 2409.05907); there one decision is
taken a prompt, here one a token and layer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from steer.activations import Tokens, read_tokens
from steer.arrays import Rebuilt, read_only
from steer.edits import Array, Edit, LayerEdit, additive
from steer.errors import InputError
from steer.fields import ReadOnly
from steer.models import LanguageModel

# Of the mean square of an activation, each dimension in units of its own: weak, there are many
# more tokens than dimensions.
_RIDGE = 5e-4


@dataclass(frozen=True, eq=False)
class Gate(Rebuilt):
    """Where edits act.

    Attributes:
        directions: v (d,) by 0-based index of the decoder layer.
    """

    directions: Mapping[int, Array]

    def __post_init__(self) -> None:
        ordered = {
            i: read_only(np.asarray(v, np.float32)) for i, v in sorted(self.directions.items())
        }
        for index, v in ordered.items():
            if index < 0 or v.ndim != 1 or not np.isfinite(v).all() or not v.any():
                raise InputError(
                    f"gate, layer {index}: expected a finite direction (d,) other than zero at a "
                    f"layer >= 0, got shape {v.shape}"
                )
        object.__setattr__(self, "directions", ReadOnly(ordered))

    def __repr__(self) -> str:
        """Its layers, not its arrays."""
        return f"Gate(layers={list(self.directions)})"

    @property
    def digest(self) -> str:
        """A name for where it lets edits act."""
        return additive(self.directions).digest

    def __call__(self, edit: Edit) -> Edit:
        """The edit where it acts only behind this gate.

        Raises:
            InputError: If it does not fit.
        """
        self.check(edit)
        return Edit({i: _behind(self.directions[i], layer.e) for i, layer in edit.layers.items()})

    def check(self, edit: Edit) -> None:
        """Refuse an edit that cannot act behind this gate.

        Raises:
            InputError: If it is not additive, or edits a layer that the gate does not know.
        """
        if edit.rank:
            raise InputError("only additive edits can be gated; build without a gate")
        if missing := sorted(edit.layers.keys() - self.directions.keys()):
            raise InputError(
                f"the gate knows layers {sorted(self.directions)}, the edit is of {missing} too"
            )


def behind(gate: Gate | None, edit: Edit) -> Edit:
    """The edit behind a gate, where there is one.

    Raises:
        InputError: If it does not fit the gate.
    """
    return edit if gate is None else gate(edit)


def _behind(v: Array, e: Array) -> LayerEdit:
    one = np.ones(1, np.float32)
    return LayerEdit(np.zeros_like(e), v[:, None], e[:, None], one, np.ones(1, np.bool_))


def fit_gate(
    language_model: LanguageModel,
    answers: Sequence[tuple[Tokens, Tokens]],
    layers: Sequence[int],
) -> Gate:
    """Fit a gate to the model's own answers, by ridge regression on their tokens.

    Args:
        language_model: The model, which must not be steered meanwhile.
        answers: (token ids of the chat up to the answer, token ids of the answer) pairs.
        layers: 0-based decoder layers that it should know.

    Raises:
        InputError: If no answer has two tokens after a chat of at least one, or a layer does not
            exist.
    """
    start = language_model.tokenizer.bos_token_id
    before = [start] if start is not None else []
    usable = [
        (list(chat), list(answer)) for chat, answer in answers if len(chat) and len(answer) > 1
    ]
    if not usable:
        raise InputError("a gate needs answers of at least two tokens, after a chat")
    # An edit acts from the last token of the prompt on. The first word of a plain text cannot
    # know yet where it stands.
    poles = (
        ([(chat[:-1], [chat[-1], *answer]) for chat, answer in usable], 1.0),
        ([([*before, answer[0]], answer[1:]) for _, answer in usable], -1.0),
    )
    width = language_model.width
    squares = {layer: np.zeros((width, width)) for layer in layers}
    moments = {layer: np.zeros(width) for layer in layers}
    for sequences, target in poles:
        for batch in read_tokens(language_model, sequences, layers):
            for layer, x in batch.items():
                squares[layer] += (x.T @ x).cpu().double().numpy()
                moments[layer] += target * x.sum(0).cpu().double().numpy()
    return Gate({layer: _solved(squares[layer], moments[layer]) for layer in layers})


def _solved(squares: np.ndarray, moments: np.ndarray) -> Array:
    """The minimum of sum (<v, x> - y)^2, weighed down by the ridge, from X^T X and X^T y."""
    spread = np.sqrt(np.maximum(squares.diagonal(), 1e-12 * squares.diagonal().max()))
    scaled = squares / np.outer(spread, spread) + _RIDGE * np.eye(len(spread))
    return np.asarray(np.linalg.solve(scaled, moments / spread) / spread, np.float32)
