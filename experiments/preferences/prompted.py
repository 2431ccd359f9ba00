"""What words in the prompt are worth on the measures of a portfolio, for simulated_users.py.

    python experiments/preferences/prompted.py --build-dir DIR          # half an hour of a core
    python experiments/preferences/prompted.py --build-dir DIR --quick  # only shows that it runs

For every set of the portfolio's traits the model is told the instruction of each
(`steer.baselines.SystemPrompt`, in the user's message) and answers the prompts on which the
portfolio was confirmed, decoded and rewarded alike; KL(told || not told) on its own answers stands
where that of an edit does. So J of a prompt and J of an entry can be compared. DIR is the work
folder of the build that made the bundle (`steer build --work-dir DIR`): the rewards' scales are set
by its pairs. Written are prompted.md, .csv and .json.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

# What experiments share is one folder up.
sys.path.append(str(Path(__file__).parents[1]))
from precision import loaded  # noqa: E402
from runs import add_bundle, common_parser, last_line, parse, provenance, set_apart  # noqa: E402
from tables import write_csv, write_json, write_markdown  # noqa: E402

from steer.baselines import Request, SystemPrompt  # noqa: E402
from steer.batches import batches, pad, response_logits  # noqa: E402
from steer.bundle import Bundle  # noqa: E402
from steer.chat import render  # noqa: E402
from steer.contrast import read_pairs  # noqa: E402
from steer.default_rewards import WORDS_PER_TOKEN, text_reward  # noqa: E402
from steer.generation import Decoding, generate_batch, prompt_tokens  # noqa: E402
from steer.journal import Journal  # noqa: E402
from steer.likelihood import token_divergence  # noqa: E402
from steer.models import LanguageModel  # noqa: E402
from steer.portfolio import Portfolio  # noqa: E402
from steer.prompts import load_prompts  # noqa: E402
from steer.resources import content_key  # noqa: E402
from steer.rewards import Reward, score  # noqa: E402
from steer.versions import versions  # noqa: E402


@dataclass(frozen=True)
class Row:
    """What one set of instructions is worth.

    Attributes:
        traits: Whose instructions are told, in the order of the portfolio's; none: the plain
            prompt.
        rewards: Means over the prompts, of all traits of the portfolio.
        kl: KL(told || not told), nats per token.
        fluent: Share of answers that neither loop nor are broken.
    """

    traits: tuple[str, ...]
    rewards: tuple[float, ...]
    kl: float
    fluent: float


def main() -> None:
    """Tell, measure, write."""
    arguments = read_arguments()
    model = loaded(arguments)
    bundle = Bundle.load(arguments.bundle)
    portfolio = bundle.portfolio
    assert portfolio is not None, "the bundle holds one"
    prompts, decoding = confirmed_on(bundle)
    rewards = rewards_of(bundle, arguments.build_dir / arguments.dtype / "pairs")
    sets = [
        some
        for size in range(len(portfolio.traits) + 1)
        for some in itertools.combinations(portfolio.traits, size)
    ]
    if arguments.quick:
        prompts, decoding, sets = prompts[:2], Decoding(max_new_tokens=8), sets[:2]
    rows = measured(model, bundle, sets, prompts, decoding, rewards, arguments.work_dir)
    plain = next(rows)
    found, known = np.array(plain.rewards), portfolio.mean_rewards[0]
    if not arguments.quick and not np.allclose(found, known, atol=0.02):
        sys.exit(
            f"unsteered the model earns {found}, and {known} where the portfolio was made: what "
            "prompts are worth cannot be compared with its entries. In bfloat16 other processors "
            "write other answers; make the portfolio here too (`make portfolio`)"
        )
    write([plain, *rows], portfolio, len(prompts), model, arguments)


def read_arguments() -> argparse.Namespace:
    """From the command line."""
    parser = common_parser(__doc__, "preferences")
    add_bundle(parser)
    parser.add_argument(
        "--build-dir", type=Path, required=True, help="work folder of the build of the bundle"
    )
    arguments = parse(parser)
    set_apart(arguments)
    return arguments


def rewards_of(bundle: Bundle, pairs: Path) -> list[Reward]:
    """The rewards that a bundle's portfolio was made by, whose scale hangs on contrast pairs."""
    portfolio = bundle.portfolio
    assert portfolio is not None, "the bundle holds one"
    longest = WORDS_PER_TOKEN * bundle.settings["portfolio"]["decoding"]["max_new_tokens"]
    found = []
    for trait, name in zip(portfolio.traits, portfolio.rewards, strict=True):
        reward = text_reward(trait, read_pairs(pairs / f"{trait}.jsonl"), longest=longest)
        if reward is None or reward.name != name:
            sys.exit(f"{trait}: the portfolio was made by {name!r}, which texts do not show")
        found.append(reward)
    return found


def confirmed_on(bundle: Bundle) -> tuple[list[str], Decoding]:
    """The prompts whose answers a bundle's portfolio was decided by, and how they were decoded."""
    recipe = bundle.settings["portfolio"]
    first, number = recipe["prompts"], recipe["confirm_prompts"]
    develop = [prompt.text for prompt in load_prompts("develop")]
    if not number:
        return develop[:first], Decoding(**recipe["decoding"])
    return develop[first : first + number], Decoding(**recipe["confirm_decoding"])


def measured(
    model: LanguageModel,
    bundle: Bundle,
    sets: Sequence[tuple[str, ...]],
    prompts: Sequence[str],
    decoding: Decoding,
    rewards: Sequence[Reward],
    folder: Path,
) -> Iterator[Row]:
    """A row for each set, as soon as it is measured; what is in the folder costs nothing."""
    header = {
        "model": model.fingerprint.to_dict(),
        "dtype": model.precision,
        "sets": [list(some) for some in sets],
        "prompts": list(prompts),
        "decoding": asdict(decoding),
        "rewards": [reward.name for reward in rewards],
        "versions": versions(),
    }
    journal = Journal(folder / f"prompted-{content_key(header)}.jsonl", header)
    for row in journal.rows:
        yield Row(tuple(row["traits"]), tuple(row["rewards"]), row["kl"], row["fluent"])
    for some in tqdm(sets[len(journal.rows) :], desc="prompts", disable=None):
        shares = dict.fromkeys(some, 1 / len(some)) if some else None
        chats = [SystemPrompt().chat(bundle, Request(prompt, shares)) for prompt in prompts]
        told = [render(model.tokenizer, chat) for chat in chats]
        answers = generate_batch(model, told, decoding)
        values, fluent = score(rewards, prompts, [one.text for one in answers])
        tokens = [one.tokens for one in answers]
        kl = divergence(model, told, prompts, tokens) if some else np.zeros(len(prompts))
        one = Row(some, tuple(values.mean(0).tolist()), float(kl.mean()), float(fluent.mean()))
        journal.append([asdict(one)])
        yield one


def divergence(
    model: LanguageModel,
    told: Sequence[str],
    prompts: Sequence[str],
    answers: Sequence[Sequence[int]],
) -> NDArray[np.float64]:
    """KL of the next token after a rendered prompt from that after the plain one (n,), nats."""
    plain = [prompt_tokens(model, render(model.tokenizer, prompt)) for prompt in prompts]
    asked = [prompt_tokens(model, text) for text in told]
    after_told = list(zip(asked, answers, strict=True))
    after_plain = list(zip(plain, answers, strict=True))
    result = np.zeros(len(told))
    for batch in batches(model, after_told, 2048):
        reference = pad(model, after_plain, batch.indices)
        with torch.inference_mode():
            edited, unedited = (response_logits(model, one) for one in (batch, reference))
        total = token_divergence(edited, unedited, batch.response_mask).sum(1)
        result[batch.indices] = (total / batch.response_mask.sum(1)).cpu().numpy()
    return result


def write(
    rows: Sequence[Row],
    portfolio: Portfolio,
    prompts: int,
    model: LanguageModel,
    arguments: argparse.Namespace,
) -> None:
    """Write JSON, CSV and Markdown."""
    traits = portfolio.traits
    content = {
        **provenance("experiments/preferences/prompted.py", model, arguments),
        "traits": list(traits),
        # What tells of which portfolio, and so of which rewards and prompts, these are.
        "measured edits": portfolio.mean_rewards.tolist(),
        "prompts": prompts,
        "rows": [asdict(row) for row in rows],
    }
    write_json(arguments.output / "prompted.json", content)
    write_csv(arguments.output / "prompted.csv", Row, rows)
    lines = [
        f"{prompts} develop prompts, {model.name}, {arguments.dtype}: mean rewards where the model "
        "is told the traits' instructions.",
        "",
        "| told | " + " | ".join(traits) + " | KL, nats per token | neither loops nor is broken |",
        "|---" * (len(traits) + 3) + "|",
    ]
    lines += [
        f"| {', '.join(row.traits) or 'nothing'} | "
        + " | ".join(f"{one:.3f}" for one in row.rewards)
        + f" | {row.kl:.2f} | {row.fluent:.0%} |"
        for row in rows
    ]
    write_markdown(
        arguments.output / "prompted.md", "\n".join([*lines, "", last_line(content)]) + "\n"
    )


if __name__ == "__main__":
    main()
