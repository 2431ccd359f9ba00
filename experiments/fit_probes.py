"""Fit the packaged probes (`steer.probe_reward.packaged_probe`).

    python experiments/fit_probes.py --data FOLDER    # some ten minutes of a core

FOLDER holds the open data sets that experiments/people.py names. A probe has three sources:

- two thirds of a data set's pairs, of which people prefer one; validate_rewards.py judges the probe
  on the rest;
- answers of the packaged model under the trait's positive instructions against its negative ones;
- the same answers against those under the positive instructions of the other traits with a probe.

People alone do not say what is asked of an answer: a formal one is as polite as a warm one, a brief
one complains as little as a cheerful one does. The model's answers count half as much as people's
pairs: in cross-validation more weight takes accuracy on people's pairs away, and with less an edit
for formality earns as much warmth as one for warmth does, on prompts of the search. They are
written at extract prompts from which no edit is made with the default recipe. Only directions are
stored, with the name of the data: a few hundred numbers a trait.

Where a trait is in LENGTH_EARNS_NOTHING, the first sentences of the model's answers earn as much as
the answers do, in the mean. Without that, an edit for brevity earned more than half as much
positivity as the edit for positivity does, on the prompts of a portfolio's confirmation, where its
answers' sentences are no more positive by VADER (-0.03). Brief answers are colder, though, also
those that are asked for by instruction; so warmth is fitted as it is.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from people import FITTED_TO, for_fitting
from precision import add_dtype, loaded
from probes import against, fitted, poles, shortened

import steer
from steer.contrast import generate_pairs
from steer.probe_reward import STYLE
from steer.prompts import load_prompts
from steer.recipe import Recipe
from steer.resources import atomic_path, cache_dir, data_dir

PROMPTS = 128
LENGTH_EARNS_NOTHING = ("positivity",)


def main() -> None:
    """Fit and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--model", default=None, help="local folder or hub id")
    add_dtype(parser)
    parser.add_argument("--work-dir", type=Path, default=cache_dir() / "probes")
    parser.add_argument("--output", type=Path, default=data_dir() / "probes.json")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    model, seed = loaded(arguments), arguments.seed
    extracted = Recipe().prompts
    prompts = load_prompts("extract")[extracted : extracted + PROMPTS]
    contrasts = {
        trait: generate_pairs(
            model,
            steer.load_traits()[trait],
            prompts,
            arguments.work_dir / model.precision / f"{trait}.jsonl",
            seed=seed,
            progress=True,
        )
        for trait in FITTED_TO
    }
    stored = {}
    for trait, load in FITTED_TO.items():
        people = for_fitting(load(arguments.data, seed))
        mine = contrasts[trait]
        others = [contrasts[other] for other in FITTED_TO if other != trait]
        sources = [poles(mine), *(against(mine, other) for other in others)]
        neutral = shortened(contrasts.values()) if trait in LENGTH_EARNS_NOTHING else []
        probe = fitted(trait, people, sources, STYLE, seed, neutral=neutral)
        pairs = [len(people.better), *map(len, sources)]
        print(f"{trait}: {pairs} pairs, {probe.accuracy:.1%} of those held out")
        stored[trait] = {
            "data": f"{people.name}, and contrasts"
            + (", whatever their length" if neutral else ""),
            "pairs": pairs,
            "model": str(model.fingerprint),
            "precision": model.precision,
            "seed": seed,
            "accuracy": round(probe.accuracy, 4),
            "range": [round(probe.range.zero, 5), round(probe.range.one, 5)],
            "direction": probe.direction.round(5).tolist(),
        }
    with atomic_path(arguments.output) as temporary:
        lines = (f"{json.dumps(trait)}: {json.dumps(one)}" for trait, one in stored.items())
        temporary.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
