"""The card of a bundle: what people read of it on a hub, made of what the bundle itself holds."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # no __all__

from steer.bundle import Bundle
from steer.errors import InputError
from steer.packaged import HUB_ID, NAME
from steer.pipeline import LOW_RELIABILITY
from steer.portfolio import Portfolio
from steer.portfolio_summary import served
from steer.profile import holds_text
from steer.trait_entry import gain

_TAGS = ["steer", "activation-steering", "steering-vectors", "personalization"]

_INTRODUCTION = """\
Edits of the activations of one frozen language model, for `steer` (the Python package
`steer-engine`). They change *how* the model answers, by request, at inference. No weights of the
model are in here, and loading runs no code."""


def model_card(
    bundle: Bundle, repo_id: str, *, base_model: str | None = None, license: str | None = None
) -> ModelCard:
    """The card of a bundle. No network is needed.

    Args:
        bundle: The bundle.
        repo_id: Of the repository that it is for, "user/name".
        base_model: Hub id of the model that it was built on; None for what the bundle says, where
            that is one.
        license: Of the bundle, as the hub names it, such as "apache-2.0"; None to say nothing.

    Raises:
        InputError: If an id is none.
    """
    check_hub_id(repo_id)
    bundle = published(bundle, base_model)
    base_model = base_model or _hub_id(bundle.model)
    data = ModelCardData(
        base_model=base_model,
        base_model_relation=None if base_model is None else "adapter",
        library_name="steer",
        license=license,
        pipeline_tag="text-generation",
        tags=_TAGS,
    )
    sections = (
        f"# {repo_id.rpartition('/')[2]}\n\n{_INTRODUCTION}",
        _model(bundle),
        _loading(bundle, repo_id, base_model),
        _traits(bundle),
        "" if bundle.portfolio is None else _portfolio(bundle.portfolio),
        _limits(bundle),
    )
    text = "\n\n".join(section for section in sections if section)
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}\n")


def published(bundle: Bundle, base_model: str | None = None) -> Bundle:
    """A bundle as others may see it: without the path of a folder of which its model was loaded.

    Args:
        bundle: The bundle.
        base_model: As `model_card`'s.

    Raises:
        InputError: If the id is none.
    """
    if base_model is not None:
        check_hub_id(base_model)
    if bundle.model == NAME or _hub_id(bundle.model):
        return bundle
    return replace(bundle, model=base_model or Path(bundle.model).name)


def check_hub_id(text: str) -> str:
    """The id of a repository on a hub.

    Raises:
        InputError: If it cannot be one.
    """
    try:
        validate_repo_id(text)
    except HFValidationError as error:
        raise InputError(f"{text!r}: expected a repository's id, user/name: {error}") from error
    return text


def _hub_id(model: str) -> str | None:
    """The hub id of a model by the name that it was loaded as; None of a folder."""
    if model == NAME:
        return HUB_ID
    if "/" not in model or Path(model).exists():
        return None
    try:
        return check_hub_id(model)
    except InputError:
        return None


def _model(bundle: Bundle) -> str:
    where = "the response" if bundle.scope == "response" else "all tokens, the prompt's too"
    gated = "acts where the model answers in a chat, not on plain text" if bundle.gate else "none"
    packaged = ", the packaged Q4_1 weights" if bundle.model == NAME else ""
    rows = [
        ("built on", f"{_code(bundle.model)}{packaged}"),
        ("fingerprint", _code(str(bundle.fingerprint))),
        ("acts on", where),
        ("gate", gated),
        ("built with", ", ".join(f"{name} {number}" for name, number in bundle.versions.items())),
    ]
    if bundle.profiles:
        rows.append(("profiles", f"{len(bundle.profiles)}, each made of somebody's texts"))
    return _table(("", ""), rows)


def _loading(bundle: Bundle, repo_id: str, base_model: str | None) -> str:
    model = "" if bundle.model == NAME else f'"{base_model or "the model it was built on"}", '
    asked = json.dumps({next(iter(bundle.traits)): 1.0}) if bundle.traits else "None"
    return (
        "## Use\n\n"
        "```python\n"
        "import steer\n\n"
        f'steerer = steer.load({model}bundle=steer.pull("{repo_id}"))\n'
        f'print(steerer.generate("How do I sleep better?", {asked}))\n'
        "```\n\n"
        "A model with another fingerprint is refused: the doses were measured on this one."
    )


def _traits(bundle: Bundle) -> str:
    rows = [
        (
            name,
            entry.negative,
            entry.positive,
            f"{entry.dose:.2f}",
            gain(entry),
            f"{entry.reliability:.2f}",
            entry.method,
        )
        for name, entry in bundle.traits.items()
    ]
    headings = ("trait", "from", "to", "dose", "gain", "reliability", "method")
    return (
        "## Traits\n\n"
        "The dose is the divergence of the edited from the unedited model, KL in nats per token, "
        "at strength 1; the gain is how far it moved answers to develop prompts towards that "
        "pole, by a measure of the trait; the reliability says how well the contrast pairs agree "
        "on a direction.\n\n"
        f"{_table(headings, rows)}"
    )


def _portfolio(portfolio: Portfolio) -> str:
    shares, _ = served(portfolio)
    rows = [
        (
            f"entry {number}" if number else "unsteered",
            f"{share:.0%}",
            f"{portfolio.kl[index]:.2f}",
            *(f"{reward:.2f}" for reward in portfolio.mean_rewards[index]),
        )
        for number, (index, share) in enumerate(
            zip((0, *portfolio.kept), shares.tolist(), strict=True)
        )
    ]
    return (
        "## Portfolio\n\n"
        f"{len(portfolio.kept)} measured edits that serve every mixture of "
        f"{', '.join(map(_text, portfolio.traits))}: the share of all mixtures that each serves, "
        "its divergence, and its mean rewards in [0, 1].\n\n"
        f"{_table(('', 'serves', 'KL', *portfolio.traits), rows)}\n\n"
        f"Certificate: {portfolio.certificate}."
    )


def _limits(bundle: Bundle) -> str:
    limits = [
        "It changes the model's manner, not its knowledge: answers can be wrong in any manner.",
        "Doses were searched with one way of decoding, on develop prompts; another may bear less.",
    ]
    low = [name for name, entry in bundle.traits.items() if entry.reliability < LOW_RELIABILITY]
    if low:
        limits.append(
            f"Contrast pairs hardly agree on a direction (reliability below {LOW_RELIABILITY}) for "
            f"{', '.join(map(_text, low))}: expect a weak or uneven effect."
        )
    if bundle.gate is None:
        limits.append("Without a gate the edits push on whatever the model reads, plain text too.")
    if bundle.portfolio is None:
        limits.append("Mixtures are sums of the traits' own edits, and were not measured.")
    else:
        limits.append(
            "The certificate is relative to the edits that were measured; it says nothing of edits "
            "that were never tried, or of other prompts."
        )
    if bundle.profiles:
        limits.append(
            "What a profile was made of can show in what it makes the model write."
            + (" Some hold texts." if any(map(holds_text, bundle.profiles.values())) else "")
        )
    return "## Limits\n\n" + "\n".join(f"- {limit}" for limit in limits)


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(map(_text, line))} |" for line in lines)


def _text(value: str) -> str:
    """Words of others on one line, without what would end a table's cell or begin a tag."""
    plain = " ".join(value.split())
    return plain.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")


def _code(value: str) -> str:
    return f"`{value.replace('`', '')}`"
