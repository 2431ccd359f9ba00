"""Vectors of repeng 0.4.0 and steering-vectors 0.12.2, trained by their own functions.

They are installed apart, without what they depend on, which is here already:

    pip install --no-deps --target DIR repeng==0.4.0 steering-vectors==0.12.2

repeng is given what its documentation gives it: the same beginnings of answers after a prompt with
the positive and with the negative instruction; it reads the last token, and its direction at each
layer is the first principal component of the differences (unit length, `pca_diff`). Its
`ControlVector` class names a type that NumPy 2 no longer has, so that it cannot be imported; the
name is put back around the import. That PCA draws from NumPy's global generator, which is seeded.

steering-vectors is given pairs of texts that begin with the same prompt and go on with the positive
and with the negative answer; it takes the mean difference at the last token.

Both add their vectors at the chosen layers to every position. Here this engine's hooks do that, so
that all doses share batches; `differences` checks that the peers' own application gives the same
tokens.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from answering import Setting
from contenders import Source, Workshop

from steer.chat import render
from steer.edits import Edit, additive
from steer.errors import SteeringError
from steer.generation import Decoding, encode, generate_batch
from steer.hooks import attach
from steer.models import LanguageModel
from steer.resources import content_key
from steer.stored import ByLayer, stored_by_layer
from steer.undosed import plain_prompts

PEERS = {"repeng": "0.4.0", "steering-vectors": "0.12.2"}
BEGINNINGS = (1, 4, 8, 16)  # tokens of an answer
PLAIN_GREEDY = Decoding(max_new_tokens=16, repetition_penalty=1.0, no_repeat_ngram_size=None)


def check_site(site: Path) -> None:
    """Make the peers importable.

    Raises:
        SteeringError: If one is missing, or of another version.
    """
    sys.path.append(str(site))
    for name, wanted in PEERS.items():
        try:
            found = version(name)
        except PackageNotFoundError as error:
            raise SteeringError(f"no {name} in {site}; see peers.py") from error
        if found != wanted:
            raise SteeringError(f"{name} {found} in {site}, expected {wanted}")


def settings(workshop: Workshop, source: Source, peer: str) -> Iterator[Setting]:
    """A peer's settings for a trait."""
    vectors = trained(workshop, source, peer)
    for layers in workshop.windows():
        edit = edit_of(vectors, layers)
        yield from workshop.dosed(source, peer, layers, edit, "all", workshop.effort.kls)


def edit_of(vectors: ByLayer, layers: Sequence[int]) -> Edit:
    """What a peer adds at some layers at strength 1."""
    return additive({layer: vectors[layer] for layer in layers})


def trained(workshop: Workshop, source: Source, peer: str) -> ByLayer:
    """A peer's vectors by layer, trained once and then kept."""
    model = workshop.language_model
    texts = repeng_texts(model, source) if peer == "repeng" else answer_texts(model, source)
    what = [peer, PEERS[peer], texts, workshop.seed, model.fingerprint.to_dict()]
    path = workshop.work_dir / "peers" / f"{source.trait.name}-{content_key(what)}.safetensors"

    def train() -> ByLayer:
        if peer == "repeng":
            return _train_repeng(model, texts, workshop.seed)
        return _train_steering_vectors(model, texts)

    return stored_by_layer(path, f"vectors of {peer}", train)


def repeng_texts(model: LanguageModel, source: Source) -> list[tuple[str, str]]:
    """Requests under both poles with the same beginning of an answer, of either pole in turn."""
    tokenizer = model.tokenizer
    result = []
    for number, pair in enumerate(source.pairs.pairs):
        positive, negative = pair.positive, pair.negative
        tokens = (positive, negative)[number % 2].tokens
        for length in BEGINNINGS:
            beginning = tokenizer.decode(tokens[:length], skip_special_tokens=True)
            requests = (render(tokenizer, answer.request) for answer in (positive, negative))
            more, less = (request + beginning for request in requests)
            result.append((more, less))
    return result


def answer_texts(model: LanguageModel, source: Source) -> list[tuple[str, str]]:
    """The plain prompt with the positive and with the negative answer."""
    result = []
    for prompt, pair in zip(plain_prompts(source.pairs), source.pairs.pairs, strict=True):
        asked = render(model.tokenizer, prompt)
        result.append((asked + pair.positive.text, asked + pair.negative.text))
    return result


@contextmanager
def _old_numpy_name() -> Iterator[None]:
    """`np.float_`, which repeng 0.4.0 names in an annotation; NumPy 2 calls it float64."""
    if hasattr(np, "float_"):
        yield
        return
    np.float_ = np.float64  # type: ignore[attr-defined]
    try:
        yield
    finally:
        del np.float_  # type: ignore[attr-defined]


def _repeng() -> Any:
    with _old_numpy_name():
        import repeng
    return repeng


def _train_repeng(model: LanguageModel, texts: Sequence[tuple[str, str]], seed: int) -> ByLayer:
    repeng = _repeng()
    dataset = [repeng.DatasetEntry(positive=a, negative=b) for a, b in texts]
    state = np.random.get_state()
    np.random.seed(seed)
    try:
        vector = repeng.ControlVector.train(
            model.model, model.tokenizer, dataset, method="pca_diff", batch_size=16
        )
    finally:
        np.random.set_state(state)
    return {layer: one for layer, one in vector.directions.items()}


def _train_steering_vectors(model: LanguageModel, texts: Sequence[tuple[str, str]]) -> ByLayer:
    from steering_vectors import train_steering_vector

    vector = train_steering_vector(model.model, model.tokenizer, texts, batch_size=16)
    return {layer: one.cpu().float().numpy() for layer, one in vector.layer_activations.items()}


def differences(
    model: LanguageModel,
    peer: str,
    vectors: ByLayer,
    layers: Sequence[int],
    factor: float,
    prompts: Sequence[str],
) -> int:
    """Answers of which a peer's own application decodes other tokens than this engine's hooks.

    Greedily, a prompt at a time.
    """
    texts = [render(model.tokenizer, prompt) for prompt in prompts]
    edit = factor * edit_of(vectors, layers)
    ours = []
    for text in texts:
        with attach(model).steer(edit, scope="all"):
            ours.append(generate_batch(model, [text], PLAIN_GREEDY)[0].tokens)
    apply = _applied_repeng if peer == "repeng" else _applied_steering_vectors
    with apply(model, vectors, layers, factor):
        theirs = [_greedy(model, text) for text in texts]
    return sum(a != b for a, b in zip(ours, theirs, strict=True))


def _greedy(model: LanguageModel, text: str) -> tuple[int, ...]:
    inputs = encode(model, [text])
    prompt = inputs["input_ids"].shape[1]
    with torch.inference_mode():
        row = model.model.generate(
            **inputs, **PLAIN_GREEDY.options(prompt), pad_token_id=model.tokenizer.pad_token_id
        )[0]
    return tuple(row[prompt:].tolist())


@contextmanager
def _applied_repeng(
    model: LanguageModel, vectors: ByLayer, layers: Sequence[int], factor: float
) -> Iterator[None]:
    repeng = _repeng()
    control = repeng.ControlModel(model.model, list(layers))
    try:
        control.set_control(repeng.ControlVector("", vectors), factor)
        yield
    finally:
        control.unwrap()


@contextmanager
def _applied_steering_vectors(
    model: LanguageModel, vectors: ByLayer, layers: Sequence[int], factor: float
) -> Iterator[None]:
    from steering_vectors import SteeringVector

    vector = SteeringVector({layer: torch.from_numpy(vectors[layer]) for layer in layers})
    with vector.apply(model.model, multiplier=factor):
        yield
