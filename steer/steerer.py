"""The engine a user holds: a model, a bundle, and requests by weights."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias, overload

import torch
from transformers import StoppingCriteria, StoppingCriteriaList, TextIteratorStreamer
from typing_extensions import Unpack

from steer.bundle import Bundle
from steer.chat import Chat, is_chat, render
from steer.edits import ZERO, Edit
from steer.edits import compose as mix
from steer.errors import InputError
from steer.generation import Decoding, DecodingOptions, Generated, generate_batch
from steer.hooks import attach
from steer.models import LanguageModel, load_model
from steer.portfolio import Entry
from steer.resources import data_dir
from steer.weights import check_strength, doses, normalise_weights

Weights: TypeAlias = Mapping[str, float]

DEFAULT_BUNDLE = "smollm2-135m-instruct.safetensors"


class Steerer:
    """A frozen model that changes its manner by request.

    Every request is resolved by `resolve` to one edit, and applied by hooks that stay on the
    model and do nothing outside a request.
    """

    def __init__(
        self, language_model: LanguageModel, bundle: Bundle, *, force: bool = False
    ) -> None:
        """Put a bundle and a model together.

        Args:
            language_model: The model.
            bundle: The edits.
            force: Use a bundle that was built on another model.

        Raises:
            FingerprintError: If the bundle was built on another model.
        """
        bundle.check_model(language_model.fingerprint, force=force)
        self.language_model = language_model
        self.bundle = bundle
        self._hooks = attach(language_model)

    @property
    def traits(self) -> tuple[str, ...]:
        """Names of the traits that can be asked for."""
        return tuple(sorted(self.bundle.traits))

    def resolve(
        self, weights: Weights | None, strength: float = 1.0, *, compose: bool = False
    ) -> Edit:
        """The edit of a request: a trait's own, a portfolio's entry, or a mixture of own edits.

        Args:
            weights: Trait names with numbers >= 0, scaled to sum to one; None for no edit.
            strength: 0 is the unsteered model, 1 the default dose.
            compose: Mix the traits' edits by their weights, also where a portfolio would serve.

        Raises:
            WeightsError: If a trait is unknown or a number is not usable.
        """
        strength = check_strength(strength)
        if weights is None:
            return ZERO
        shares = normalise_weights(weights, self.bundle.traits)
        portfolio = None if compose else self.bundle.portfolio
        served = None if portfolio is None else portfolio.served(shares)
        if served is None:
            edits = [self.bundle.traits[name].edit for name in shares]
            interference = self.bundle.interference
            parts = doses(shares) if interference is None else interference.doses(shares)
            edit = mix(edits, [strength * parts[name] for name in shares])
        else:
            edit = strength * served
        return self.bundle.behind_gate(edit)

    def route(self, weights: Weights, strength: float = 1.0) -> Entry:
        """How a request is served, what that is worth, and how much it can fall short.

        Args:
            weights: Trait names with numbers >= 0, scaled to sum to one.
            strength: 0 is the unsteered model, 1 the measured edit.

        Raises:
            InputError: If the bundle holds no portfolio.
            WeightsError: If a trait is not among the portfolio's, or a number is not usable.
        """
        if self.bundle.portfolio is None:
            raise InputError(
                "the bundle holds no portfolio, so mixtures are composed; build one that does"
            )
        return self.bundle.portfolio.entry(weights, check_strength(strength))

    @contextmanager
    def steer(
        self,
        weights: Weights | Sequence[Weights | None] | None,
        *,
        strength: float = 1.0,
        compose: bool = False,
        prompt_length: int | None = None,
    ) -> Iterator[None]:
        """Steer every call of the model inside the block: for loops of one's own.

        Args:
            weights: For all rows, or one per row of the batch.
            strength: 0 is the unsteered model, 1 the default dose.
            compose: Mix the traits' edits, also where a portfolio would serve.
            prompt_length: Columns of the prompt, where the first forward pass is not exactly
                the prompt and `model.generate` is not used (see `Hooks.steer`).

        Raises:
            WeightsError: If the weights are not usable.
            EditNeverFiredError: On leaving, if an edit never acted.
        """
        with self._hooks.steer(
            self._edits(weights, strength, compose),
            scope=self.bundle.scope,
            prompt_length=prompt_length,
        ):
            yield

    @overload
    def generate(
        self,
        prompt: str,
        weights: Weights | None = ...,
        *,
        strength: float = ...,
        compose: bool = ...,
        seed: int | None = ...,
        **options: Unpack[DecodingOptions],
    ) -> str: ...

    @overload
    def generate(
        self,
        prompt: Chat | Sequence[str | Chat],
        weights: Weights | Sequence[Weights | None] | None = ...,
        *,
        strength: float = ...,
        compose: bool = ...,
        seed: int | None = ...,
        **options: Unpack[DecodingOptions],
    ) -> str | list[str]: ...

    def generate(
        self,
        prompt: str | Chat | Sequence[str | Chat],
        weights: Weights | Sequence[Weights | None] | None = None,
        *,
        strength: float = 1.0,
        compose: bool = False,
        seed: int | None = None,
        **options: Unpack[DecodingOptions],
    ) -> str | list[str]:
        """Answer one prompt, or a batch in which every row may have its own weights.

        Args:
            prompt: A text, a chat (list of messages with role and content), or a list of these.
            weights: Trait names with numbers >= 0, scaled to sum to one; for a list of prompts,
                one for all or one per prompt (None for an unsteered row).
            strength: 0 is the unsteered model exactly, 1 the default dose.
            compose: Mix the traits' edits, also where a portfolio would serve.
            seed: Makes sampling repeatable.
            **options: How tokens are chosen, by the names of `Decoding`'s fields, such as
                `max_new_tokens=64` or `do_sample=True, temperature=0.7`.

        Returns:
            The answer; a list of answers for a list of prompts.

        Raises:
            InputError: If a prompt, weights or an option is not usable.
        """
        decoding = Decoding.from_options(options)
        single = isinstance(prompt, str) or is_chat(prompt)
        prompts: Sequence[Any] = [prompt] if single else prompt
        answers = self.answer(
            prompts, weights, strength=strength, compose=compose, seed=seed, decoding=decoding
        )
        return answers[0].text if single else [answer.text for answer in answers]

    def answer(
        self,
        prompts: Sequence[Any],
        weights: Weights | Sequence[Weights | None] | None = None,
        *,
        strength: float = 1.0,
        compose: bool = False,
        seed: int | None = None,
        decoding: Decoding = Decoding(),  # noqa: B008  (frozen)
    ) -> list[Generated]:
        """Answer a batch; like `generate`, with token ids and whether each answer ended.

        Args:
            prompts: Texts or chats.
            weights: For all prompts, or one per prompt.
            strength: 0 is the unsteered model exactly, 1 the default dose.
            compose: Mix the traits' edits, also where a portfolio would serve.
            seed: Makes sampling repeatable.
            decoding: How tokens are chosen.

        Raises:
            InputError: If a prompt, weights or an option is not usable.
        """
        if not isinstance(prompts, Sequence) or isinstance(prompts, str) or not prompts:
            raise InputError(f"expected a prompt or a non-empty list of prompts, got {prompts!r}")
        if isinstance(weights, Sequence) and len(weights) != len(prompts):
            raise InputError(f"got {len(weights)} weights for {len(prompts)} prompts")
        texts = [render(self.language_model.tokenizer, prompt) for prompt in prompts]
        with self.steer(weights, strength=strength, compose=compose):
            return generate_batch(self.language_model, texts, decoding, seed=seed)

    def stream(
        self,
        prompt: str | Chat,
        weights: Weights | None = None,
        *,
        strength: float = 1.0,
        compose: bool = False,
        seed: int | None = None,
        **options: Unpack[DecodingOptions],
    ) -> Iterator[str]:
        """Answer one prompt in pieces, as they come.

        Closing the iterator early stops the generation.

        Args:
            prompt: A text or a chat.
            weights: Trait names with numbers >= 0, scaled to sum to one.
            strength: 0 is the unsteered model exactly, 1 the default dose.
            compose: Mix the traits' edits, also where a portfolio would serve.
            seed: Makes sampling repeatable.
            **options: As in `generate`; beams cannot be streamed.

        Yields:
            Pieces of text; joined they are the answer.

        Raises:
            InputError: If the prompt, weights or an option is not usable.
        """
        decoding = Decoding.from_options(options)
        if decoding.num_beams != 1:
            raise InputError("beam search cannot be streamed; expected num_beams=1")
        text = render(self.language_model.tokenizer, prompt)
        edit = self.resolve(weights, strength, compose=compose)
        return self._stream(text, edit, decoding, seed)

    def _stream(self, text: str, edit: Edit, decoding: Decoding, seed: int | None) -> Iterator[str]:
        streamer = TextIteratorStreamer(
            self.language_model.tokenizer, skip_prompt=True, skip_special_tokens=True
        )
        cancelled = threading.Event()
        failures: list[BaseException] = []
        options = {
            "streamer": streamer,
            "stopping_criteria": StoppingCriteriaList([_Cancelled(cancelled)]),
        }

        def work() -> None:
            # The block lives in this thread from beginning to end, so an iterator that is
            # dropped half way cannot leave the model steered.
            try:
                with self._hooks.steer(edit, scope=self.bundle.scope):
                    generate_batch(
                        self.language_model, [text], decoding, seed=seed, generation_options=options
                    )
            except BaseException as error:  # handed to the reading thread, which raises it
                failures.append(error)
            finally:
                streamer.end()

        thread = threading.Thread(target=work, name="steer-stream", daemon=True)
        thread.start()
        try:
            for piece in streamer:
                # Only the last one can end inside a character, if the limit cut it.
                if whole := piece.rstrip("\ufffd"):
                    yield whole
        finally:
            cancelled.set()
            thread.join()
        if failures:
            raise failures[0]

    def _edits(
        self, weights: Weights | Sequence[Weights | None] | None, strength: float, compose: bool
    ) -> Edit | list[Edit | None]:
        if not isinstance(weights, Sequence) or isinstance(weights, str):
            # Text is refused there, as no mapping.
            return self.resolve(weights, strength, compose=compose)
        resolved: dict[tuple[tuple[str, float], ...] | None, Edit] = {}
        rows: list[Edit | None] = []
        for row in weights:
            edit = self.resolve(row, strength, compose=compose)
            # Rows with the same weights share one slot of the tables.
            key = None if row is None else tuple(sorted(row.items()))
            rows.append(resolved.setdefault(key, edit))
        return rows


class _Cancelled(StoppingCriteria):  # type: ignore[misc]  # transformers is untyped here
    """Stops a generation whose reader has gone."""

    def __init__(self, event: threading.Event) -> None:
        self._event = event

    def __call__(
        self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any
    ) -> torch.Tensor:
        return torch.full((input_ids.shape[0],), self._event.is_set(), device=input_ids.device)


def load(
    model: str | Path | LanguageModel | None = None,
    bundle: str | Path | Bundle | None = None,
    *,
    device: str | None = None,
    dtype: torch.dtype | None = None,
    device_map: str | Mapping[str, int | str] | None = None,
    quantization_config: Any = None,
    force: bool = False,
) -> Steerer:
    """Load a model and a bundle.

    Args:
        model: Local folder, hub id or loaded model; None for the packaged SmolLM2.
        bundle: Bundle or its path; None for the default bundle of the packaged model.
        device: See `steer.models.load_model`, also for the next three.
        dtype: Weights' type.
        device_map: Spreads the layers over several devices.
        quantization_config: For quantised weights.
        force: Use a bundle that was built on another model.

    Raises:
        ModelError: If the model cannot be loaded.
        BundleError: If the bundle cannot be loaded or belongs to another model.
    """
    if not isinstance(bundle, Bundle):
        path = data_dir() / "bundles" / DEFAULT_BUNDLE if bundle is None else Path(bundle)
        bundle = Bundle.load(path)
    if not isinstance(model, LanguageModel):
        model = load_model(
            model,
            device=device,
            dtype=dtype,
            device_map=device_map,
            quantization_config=quantization_config,
        )
    return Steerer(model, bundle, force=force)
