"""Fit the packaged probes of what people prefer (`steer.probe_reward.packaged_probe`).

    python experiments/fit_probes.py --data FOLDER    # minutes

FOLDER holds the open data sets that experiments/people.py names. Each probe is fitted to two thirds
of a data set's pairs; validate_rewards.py judges it on the rest. Only directions are written, with
the name of the data: a few hundred numbers a trait.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from people import FITTED_TO, for_fitting

from steer.probe_reward import STYLE, ProbeReward
from steer.resources import atomic_path, data_dir


def main() -> None:
    """Fit and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--output", type=Path, default=data_dir() / "probes.json")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    stored = {}
    for trait, load in FITTED_TO.items():
        pairs = for_fitting(load(arguments.data, arguments.seed))
        probe = ProbeReward.fitted(
            trait, pairs.better, pairs.worse, encoder=STYLE, seed=arguments.seed
        )
        print(f"{trait}: {len(pairs.better)} pairs, {probe.accuracy:.1%} of those held out")
        stored[trait] = {
            "data": pairs.name,
            "pairs": len(pairs.better),
            "seed": arguments.seed,
            "accuracy": round(probe.accuracy, 4),
            "range": [round(probe.range.zero, 5), round(probe.range.one, 5)],
            "direction": probe.direction.round(5).tolist(),
        }
    with atomic_path(arguments.output) as temporary:
        lines = (f"{json.dumps(trait)}: {json.dumps(one)}" for trait, one in stored.items())
        temporary.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
