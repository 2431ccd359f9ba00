"""The engine a user holds: a model, a bundle, and requests by weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias, cast, overload

import torch
from typing_extensions import Unpack

from steer.baselines import Method, Request, Serving, named
from steer.bundle import Bundle
from steer.chat import Chat, is_chat, render
from steer.edits import ZERO, Edit
from steer.errors import InputError
from steer.fields import check_seed
from steer.generation import Decoding, DecodingOptions, Generated, generate_batch
from steer.history import History
from steer.hooks import attach
from steer.likelihood import KLMeter
from steer.mixture import mixture, of_profile
from steer.models import LanguageModel, load_model
from steer.personalizer import Personalization, Personalizer, personal_meter
from steer.portfolio import Entry
from steer.profile import Profile
from steer.resources import default_bundle_path
from steer.streaming import pieces
from steer.weights import check_strength, normalise_weights

Weights: TypeAlias = Mapping[str, float]
Person: TypeAlias = Profile | str
"""A profile, or the name of one in the bundle."""


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
        self._meter: KLMeter | None = None

    @property
    def traits(self) -> tuple[str, ...]:
        """Names of the traits that can be asked for."""
        return tuple(sorted(self.bundle.traits))

    def resolve(
        self,
        weights: Weights | None,
        strength: float = 1.0,
        *,
        compose: bool = False,
        profile: Person | None = None,
    ) -> Edit:
        """The edit of a request: a profile's or a trait's own, an entry, or a mixture of own edits.

        Args:
            weights: Trait names with numbers >= 0, scaled to sum to one; None for no edit.
            strength: 0 is the unsteered model, 1 the default dose.
            compose: Mix the traits' edits by their weights, also where a portfolio would serve.
            profile: Of the person that is served, in place of weights.

        Raises:
            WeightsError: If a trait is unknown or a number is not usable.
            InputError: If the profile is unknown or of another model, or weights are given too.
        """
        strength = check_strength(strength)
        if profile is not None:
            if weights is not None:
                # What the sum of the two edits does is not known: nothing measured it.
                raise InputError("a request has weights or a profile, got both")
            return self._profile_edit(profile, strength)
        if weights is None:
            return ZERO
        return self.bundle.behind_gate(mixture(self.bundle, weights, strength, compose=compose))

    def _profile_edit(self, profile: Person, strength: float) -> Edit:
        if isinstance(profile, str):
            profile = self.bundle.profile(profile)
        elif not isinstance(profile, Profile):
            raise InputError(f"profile: expected a Profile or the name of one, got {profile!r:.80}")
        # The bundle's, where it is used on another model by force.
        elif profile.fingerprint not in (
            self.language_model.fingerprint,
            self.bundle.fingerprint,
        ):
            raise InputError(
                f"the profile was made with another model, {profile.fingerprint}, than this one, "
                f"{self.language_model.fingerprint}; make it anew with this one"
            )
        return of_profile(self.bundle, profile, strength)

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

    def personalizer(
        self,
        settings: Personalization = Personalization(),  # noqa: B008  (frozen)
    ) -> Personalizer:
        """What makes profiles for this model and bundle; all of them share the answers it writes.

        Args:
            settings: How profiles are made.
        """
        if self._meter is None:
            self._meter = personal_meter(self.language_model, self.bundle.scope)
        return Personalizer(
            self.language_model, gate=self.bundle.gate, meter=self._meter, settings=settings
        )

    def personalize(
        self,
        history: History,
        settings: Personalization = Personalization(),  # noqa: B008  (frozen)
        *,
        start: Profile | None = None,
        keep_evidence: bool = False,
    ) -> Profile:
        """The profile of a person; the model must not be steered meanwhile.

        Args:
            history: What they wrote or liked, in the order of time: texts, (prompt, answer) pairs
                or `HistoryItem`s.
            settings: How the profile is made.
            start: Of a group, to begin with (`steer.groups`).
            keep_evidence: Keep what was used of the history, and insights, in the profile;
                otherwise it holds no text.

        Raises:
            InputError: If the history or the start is not usable.
            DataError: If the history gives no usable pairs.
            CalibrationError: If no dose of the edit has the divergence that is asked for.
        """
        return self.personalizer(settings).profile(
            history, start=start, keep_evidence=keep_evidence
        )

    @contextmanager
    def steer(
        self,
        weights: Weights | Sequence[Weights | None] | None = None,
        *,
        strength: float = 1.0,
        compose: bool = False,
        profile: Person | Sequence[Person | None] | None = None,
        prompt_length: int | None = None,
    ) -> Iterator[None]:
        """Steer every call of the model inside the block: for loops of one's own.

        Args:
            weights: For all rows, or one per row of the batch.
            strength: 0 is the unsteered model, 1 the default dose.
            compose: Mix the traits' edits, also where a portfolio would serve.
            profile: In place of weights, for all rows, or one per row of the batch.
            prompt_length: Columns of the prompt, where the first forward pass is not exactly
                the prompt and `model.generate` is not used (see `Hooks.steer`).

        Raises:
            WeightsError: If the weights are not usable.
            EditNeverFiredError: On leaving, if an edit never acted.
        """
        with self._hooks.steer(
            self._edits(weights, profile, strength, compose),
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
        profile: Person | None = ...,
        method: Method | str | None = ...,
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
        profile: Person | Sequence[Person | None] | None = ...,
        method: Method | str | None = ...,
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
        profile: Person | Sequence[Person | None] | None = None,
        method: Method | str | None = None,
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
            profile: In place of weights: a profile or the name of one in the bundle; for a list of
                prompts, one for all or one per prompt (None for a row with weights, or unsteered).
            method: Another way than edits, of `steer.baselines`, or its name. A profile is then
                the name of a person that the method knows.
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
            prompts,
            weights,
            strength=strength,
            compose=compose,
            profile=profile,
            method=method,
            seed=seed,
            decoding=decoding,
        )
        return answers[0].text if single else [answer.text for answer in answers]

    def answer(
        self,
        prompts: Sequence[Any],
        weights: Weights | Sequence[Weights | None] | None = None,
        *,
        strength: float = 1.0,
        compose: bool = False,
        profile: Person | Sequence[Person | None] | None = None,
        method: Method | str | None = None,
        seed: int | None = None,
        decoding: Decoding = Decoding(),  # noqa: B008  (frozen)
    ) -> list[Generated]:
        """Answer a batch; like `generate`, with token ids and whether each answer ended.

        Args:
            prompts: Texts or chats.
            weights: For all prompts, or one per prompt.
            strength: 0 is the unsteered model exactly, 1 the default dose.
            compose: Mix the traits' edits, also where a portfolio would serve.
            profile: In place of weights, for all prompts, or one per prompt.
            method: Another way than edits, of `steer.baselines`, or its name.
            seed: Makes sampling repeatable.
            decoding: How tokens are chosen.

        Raises:
            InputError: If a prompt, weights or an option is not usable.
        """
        if not isinstance(prompts, Sequence) or isinstance(prompts, str) or not prompts:
            raise InputError(
                f"expected a prompt or a non-empty list of prompts, got {prompts!r:.80}"
            )
        for what, rows in (("weights", weights), ("profiles", profile)):
            if (
                not isinstance(rows, str)
                and isinstance(rows, Sequence)
                and len(rows) != len(prompts)
            ):
                raise InputError(f"got {len(rows)} {what} for {len(prompts)} prompts")
        if seed is not None:
            seed = check_seed(seed)
        texts = [render(self.language_model.tokenizer, prompt) for prompt in prompts]
        if method is not None:
            if compose:
                raise InputError("compose mixes edits, and has no effect with another method")
            requests = self._requests(prompts, weights, profile, strength)
            if all(one.shares is None and one.person is None for one in requests):
                raise InputError("a method has no effect without weights or a profile; give some")
            # Nothing is steered, nor can another thread steer the model meanwhile.
            with self._hooks.steer(ZERO):
                serving = Serving(self.language_model, self.bundle, decoding, seed)
                return named(method).answer(serving, requests)
        with self.steer(weights, strength=strength, compose=compose, profile=profile):
            return generate_batch(self.language_model, texts, decoding, seed=seed)

    def _requests(
        self,
        prompts: Sequence[str | Chat],
        weights: Weights | Sequence[Weights | None] | None,
        profile: Person | Sequence[Person | None] | None,
        strength: float,
    ) -> list[Request]:
        strength = check_strength(strength)
        rows = zip(prompts, _rows(weights, len(prompts)), _rows(profile, len(prompts)), strict=True)
        requests = []
        for prompt, wanted, person in rows:
            if person is not None and not isinstance(person, str):
                raise InputError(
                    "a profile's edit is nothing to another method; name the person instead"
                )
            shares = None if wanted is None else normalise_weights(wanted, self.bundle.traits)
            requests.append(Request(prompt, shares, strength, person))
        return requests

    def stream(
        self,
        prompt: str | Chat,
        weights: Weights | None = None,
        *,
        strength: float = 1.0,
        compose: bool = False,
        profile: Person | None = None,
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
            profile: In place of weights.
            seed: Makes sampling repeatable.
            **options: As in `generate`; beams cannot be streamed.

        Yields:
            Pieces of text; joined they are the answer, before white space around it is stripped.

        Raises:
            InputError: If the prompt, weights or an option is not usable.
            ConcurrentSteeringError: If this thread is steering the model already.
        """
        decoding = Decoding.from_options(options)
        if decoding.num_beams != 1:
            raise InputError("beam search cannot be streamed; expected num_beams=1")
        if seed is not None:
            seed = check_seed(seed)
        text = render(self.language_model.tokenizer, prompt)
        edit = self.resolve(weights, strength, compose=compose, profile=profile)
        return pieces(
            self.language_model,
            text,
            decoding,
            seed=seed,
            steering=lambda: self._hooks.steer(edit, scope=self.bundle.scope),
        )

    def _edits(
        self,
        weights: Weights | Sequence[Weights | None] | None,
        profile: Person | Sequence[Person | None] | None,
        strength: float,
        compose: bool,
    ) -> Edit | list[Edit | None]:
        # Text is refused further on, as no mapping; as a profile it is a name.
        many = [
            len(one)
            for one in (weights, profile)
            if isinstance(one, Sequence) and not isinstance(one, str)
        ]
        if not many:
            return self.resolve(
                cast("Weights | None", weights),
                strength,
                compose=compose,
                profile=cast("Person | None", profile),
            )
        if min(many) != max(many):
            raise InputError(f"got {many[0]} weights and {many[1]} profiles for one batch")
        resolved: dict[Any, Edit] = {}
        rows: list[Edit | None] = []
        for row, person in zip(_rows(weights, many[0]), _rows(profile, many[0]), strict=True):
            edit = self.resolve(row, strength, compose=compose, profile=person)
            # Rows with the same weights or profile share one slot of the tables.
            key = (None if row is None else tuple(sorted(row.items())), person)
            rows.append(resolved.setdefault(key, edit))
        return rows


def _rows(value: Any, count: int) -> Sequence[Any]:
    """A value for each row."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        return value
    return [value] * count


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
        path = default_bundle_path() if bundle is None else Path(bundle)
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
