"""The peers in one run: every method on the same model, prompts and decoding, each at its best.

    python experiments/arena/arena.py --data FOLDER --peer-site DIR            # hours
    python experiments/arena/arena.py --data FOLDER --peer-site DIR --quick    # shows that it runs

FOLDER holds what people prefer (people.py), DIR the peers (peers.py). Each method (contenders.py)
has the same number of settings, strengths and layers, and answers develop prompts with all of them.
Of those whose answers are as whole as the unsteered model's (judging.py) the one that gains most by
a trait's search measure is the method's best; there is one for each of three bands of likelihood.
The best answer the report prompts, and are judged by another measure (reads.py). A method without
an admissible setting gains nothing.

"This engine" is the best of its methods for each trait, "best peer" the best of the others, both by
the search. What was answered is kept in the work folder, a file a trait: the run can be killed,
resumed, and split over processes with `--traits`; at the end one run over all writes the tables.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from pathlib import Path

import arena_tables
import numpy as np
import peers
import prompting
from answering import UNSTEERED, Setting, answer_all
from answers import Answers
from arena_tables import BEST_PEER, ENGINE, Ratio, Row, Trial, best_settings
from contenders import GATED, MIDDLE, READINGS, Effort, Maker, Source, Workshop, within_budget
from judging import (
    BANDS,
    NO_GAIN,
    Gain,
    coherence,
    difference,
    draws,
    gain,
    mean_gain,
    ratio,
    standardised,
    values,
)
from reads import PAIRS, READS, People, Reads
from running import add_build_dir, common_parser, parsed, store_of, workshop_of

# What experiments share is one folder up.
sys.path.append(str(Path(__file__).parents[1]))
from precision import loaded  # noqa: E402

from steer.generation import Decoding  # noqa: E402
from steer.models import LanguageModel  # noqa: E402
from steer.prompts import load_prompts  # noqa: E402
from steer.versions import versions  # noqa: E402

OURS = (*READINGS, "distilled", f"{GATED}mean difference", f"{GATED}distilled")
OTHERS = ("system prompt", "few-shot", "logit steering", *peers.PEERS)
QUICK = Effort(
    windows=(MIDDLE,),
    kls=(0.1, 0.4),
    teachers=(0.5,),
    distilled_kls=(0.1, 0.4),
    shots=(1,),
    alphas=(1.0,),
    pairs=8,
)
CHECKED = 3  # prompts on which a peer's own application is compared


@dataclass(frozen=True)
class Part:
    """Prompts, and how they are answered."""

    name: str
    prompts: tuple[str, ...]
    decoding: Decoding


class Judge:
    """Answers a part's prompts, keeping what was answered."""

    def __init__(self, language_model: LanguageModel, part: Part, work_dir: Path) -> None:
        """The unsteered model answers at once."""
        self.part = part
        self._model = language_model
        self._work_dir = work_dir
        self.unsteered = self.answers("unsteered", [UNSTEERED])[0]
        self.coherence = coherence(
            part.prompts, self.unsteered.texts, self.unsteered.log_likelihood
        )

    def answers(self, name: str, settings: Sequence[Setting]) -> list[Answers]:
        """Of settings, kept under a name."""
        part = self.part
        path = self._work_dir / part.name / f"{name}.jsonl"
        store = store_of(path, self._model, part.prompts, part.decoding)
        return answer_all(self._model, settings, part.prompts, part.decoding, store)


def main() -> None:
    """Search, report, and write the tables."""
    arguments = read_arguments()
    model = loaded(arguments)
    quick, seed = arguments.quick, arguments.seed
    workshop = workshop_of(model, arguments, QUICK if quick else Effort())
    people = People(arguments.data, seed, arguments.work_dir, 100 if quick else PAIRS)
    reads = {trait: READS[trait](model, people) for trait in arguments.traits}
    search = Judge(model, part("develop", 10, 96, quick), arguments.work_dir)
    trials: dict[str, list[Trial]] = {}
    settings: dict[str, list[Setting]] = {}
    checks: dict[str, int] = defaultdict(int)
    for trait in arguments.traits:
        source = workshop.source(trait)
        settings[trait] = within_budget(makers(workshop, arguments.methods), source)
        trials[trait] = judged(search, trait, settings[trait], reads[trait])
        for peer in peers.PEERS:
            if peer in arguments.methods:
                checks[peer] += unlike(workshop, source, peer, search.part.prompts[:CHECKED])
    report = Judge(model, part("report", 48, 128, quick), arguments.work_dir)
    drawn = draws(len(report.part.prompts), seed)
    rows: list[Row] = []
    # By band, method and trait.
    gains: dict[float, dict[str, dict[str, Gain]]] = {band: defaultdict(dict) for band in BANDS}
    for trait, found in trials.items():
        best = {band: best_settings(found, band) for band in BANDS}
        chosen = {
            setting: bands
            for setting, trial in zip(settings[trait], found, strict=True)
            if (bands := [band for band in BANDS if best[band].get(setting.method) is trial])
        }
        for band, method in product(BANDS, arguments.methods):
            gains[band][method][trait] = NO_GAIN
        for row, one in reported(report, trait, chosen, reads[trait], drawn):
            rows.append(row)
            gains[row.band][row.method][trait] = one
        for band in BANDS:
            for label, members in ((ENGINE, OURS), (BEST_PEER, OTHERS)):
                leading = leader(best[band], members)
                lead = NO_GAIN if leading is None else gains[band][leading][trait]
                gains[band][label][trait] = lead
    ratios = [one for band in BANDS for one in compared(band, gains[band], arguments.traits)]
    content = {
        "model": model.name,
        "fingerprint": str(model.fingerprint),
        "dtype": arguments.dtype,
        "ours": list(OURS),
        "seed": seed,
        "versions": versions(),
        "peers": {name: peers.PEERS[name] for name in checks},
        "answers of a peer's own application that differ": checks,
        "answers compared": CHECKED * len(arguments.traits),
        "parts": {one.part.name: described(one) for one in (search, report)},
        "measures": {
            trait: {"search": one.search.name, "report": one.report.name}
            for trait, one in reads.items()
        },
    }
    tried = [trial for found in trials.values() for trial in found]
    arena_tables.write(arguments.output, content, tried, rows, ratios)


def read_arguments() -> argparse.Namespace:
    """What the script is told."""
    parser = common_parser(__doc__, "peers")
    add_build_dir(parser)
    parser.add_argument("--peer-site", type=Path, help="where the peers are installed (peers.py)")
    parser.add_argument("--traits", nargs="+", choices=list(READS), default=None)
    parser.add_argument("--methods", nargs="+", choices=(*OURS, *OTHERS), default=None)
    arguments = parsed(parser)
    if arguments.traits is None:
        arguments.traits = ["brevity", "formality"] if arguments.quick else list(READS)
    if arguments.methods is None:
        arguments.methods = [*OURS, *OTHERS]
    if any(peer in arguments.methods for peer in peers.PEERS):
        if arguments.peer_site is None:
            parser.error("the peers are installed apart: give --peer-site, or --methods without")
        peers.check_site(arguments.peer_site)
    return arguments


def part(name: str, number: int, tokens: int, quick: bool) -> Part:
    """The first prompts of a split."""
    number, tokens = (4, 24) if quick else (number, tokens)
    prompts = load_prompts("develop" if name == "develop" else "report")[:number]
    return Part(name, tuple(p.text for p in prompts), Decoding(max_new_tokens=tokens))


def makers(workshop: Workshop, methods: Sequence[str]) -> dict[str, Maker]:
    """What gives each method's settings."""
    effort = workshop.effort
    known: dict[str, Maker] = {
        **{
            method: partial(
                workshop.distilled if method.endswith("distilled") else workshop.read_off,
                method=method,
            )
            for method in OURS
        },
        "system prompt": prompting.system_prompts,
        "few-shot": partial(prompting.few_shot, shots=effort.shots, seed=workshop.seed),
        "logit steering": partial(prompting.logit_steering, alphas=effort.alphas),
        **{peer: partial(peers.settings, workshop, peer=peer) for peer in peers.PEERS},
    }
    return {method: known[method] for method in methods}


def judged(judge: Judge, trait: str, settings: Sequence[Setting], reads: Reads) -> list[Trial]:
    """What every setting does on develop prompts."""
    prompts = judge.part.prompts
    base = values(reads.search, prompts, judge.unsteered.texts).mean()
    trials = []
    for setting, answers in zip(settings, judge.answers(trait, settings), strict=True):
        whole = coherence(prompts, answers.texts, answers.log_likelihood)
        mean = values(reads.search, prompts, answers.texts).mean()
        trials.append(
            Trial(
                trait=trait,
                method=setting.method,
                setting=setting.name,
                gain=float(standardised(mean, base)),
                band=min(
                    (band for band in BANDS if whole.holds_against(judge.coherence, band)),
                    default=math.inf,
                ),
                **asdict(whole),
            )
        )
    return trials


def leader(best: Mapping[str, Trial], methods: Sequence[str]) -> str | None:
    """Whichever of some methods gains most on develop prompts; none if none is admissible."""
    mine = [trial for method, trial in best.items() if method in methods]
    return max(mine, key=lambda trial: trial.gain).method if mine else None


def unlike(workshop: Workshop, source: Source, peer: str, prompts: Sequence[str]) -> int:
    """Answers that a peer's own application gives otherwise, at a middling dose."""
    layers = workshop.layers(MIDDLE)
    vectors = peers.trained(workshop, source, peer)
    edit = peers.edit_of(vectors, layers)
    factors = workshop.factors(edit, "all", workshop.effort.kls)
    factor = list(factors.values())[len(factors) // 2]
    return peers.differences(workshop.language_model, peer, vectors, layers, factor, prompts)


def reported(
    judge: Judge,
    trait: str,
    chosen: Mapping[Setting, Sequence[float]],
    reads: Reads,
    drawn: np.ndarray,
) -> Iterator[tuple[Row, Gain]]:
    """What settings do on report prompts, a row for each band, after the unsteered model."""
    prompts = judge.part.prompts
    before = values(reads.report, prompts, judge.unsteered.texts)
    found = judge.answers(trait, list(chosen))
    every = [
        (UNSTEERED, BANDS, judge.unsteered),
        *zip(chosen, chosen.values(), found, strict=True),
    ]
    for setting, bands, answers in every:
        after = values(reads.report, prompts, answers.texts)
        one = gain(after, before, drawn)
        whole = coherence(prompts, answers.texts, answers.log_likelihood)
        low, high = one.interval
        for band in bands:
            row = Row(
                band=band,
                trait=trait,
                method=setting.method,
                setting=setting.name,
                value=float(after.mean()),
                gain=one.value,
                low=low,
                high=high,
                wrong_way=float((after < before).mean()),
                tokens=float(np.mean(answers.tokens)),
                extra_tokens=float(np.mean(answers.extra_tokens)),
                passes=answers.passes,
                holds=whole.holds_against(judge.coherence, band),
                **asdict(whole),
            )
            yield row, one


def compared(
    band: float, gains: Mapping[str, Mapping[str, Gain]], traits: Sequence[str]
) -> Iterator[Ratio]:
    """This engine and each of its methods against each peer: all traits together, then each."""
    for ours in (ENGINE, *(method for method in OURS if method in gains)):
        for theirs in (BEST_PEER, *(method for method in OTHERS if method in gains)):
            pairs = [(gains[ours][trait], gains[theirs][trait]) for trait in traits]
            mine, other = (mean_gain(column) for column in zip(*pairs, strict=True))
            yield Ratio(band, "all", ours, theirs, *ratio(mine, other), *difference(mine, other))
            for trait, (a, b) in zip(traits, pairs, strict=True):
                yield Ratio(band, trait, ours, theirs, *ratio(a, b), *difference(a, b))


def described(judge: Judge) -> dict[str, object]:
    """A part for the JSON."""
    return {
        "prompts": len(judge.part.prompts),
        "decoding": asdict(judge.part.decoding),
        "unsteered": asdict(judge.coherence),
    }


if __name__ == "__main__":
    main()
