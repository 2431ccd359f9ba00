"""Many clients at once: is everybody answered as alone, and is nobody lost?

    python experiments/serving/load.py            # seven minutes; needs `make venv-serving`
    python experiments/serving/load.py --quick    # only shows that it runs
    python experiments/serving/load.py --engine vllm --python .venv-vllm/bin/python

`steer serve` runs in a process of its own. Edits are mixtures of the traits' own at several
strengths, and are taken until so many give answers that differ pairwise. Each is asked for once,
alone; then so many clients (locust, clients.py) ask at once, without a pause, for so long. Told
are answers that were another than alone, requests that failed, latencies, tokens a second, and the
server's memory at the beginning and at the end. The same load without edits stands beside it.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

# What experiments share is one folder up.
sys.path.append(str(Path(__file__).parents[1]))
from runs import add_output, last_line, parse  # noqa: E402
from tables import write_csv, write_json, write_markdown  # noqa: E402
from timing import command  # noqa: E402

from steer.bundle import Bundle  # noqa: E402
from steer.cover import random_weights  # noqa: E402
from steer.resources import default_bundle_path  # noqa: E402
from steer.serve.server import ENGINES  # noqa: E402
from steer.versions import versions  # noqa: E402

PROMPT = "How do I sleep better?"
STRENGTHS = (0.6, 1.0, 1.4)
# As many edits as clients have, so that nobody waits for a slot.
VLLM = {"dtype": "float32", "max_model_len": 1024, "block_size": 32, "max_num_seqs": 64}
VLLM_ON_CPUS = {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_CPU_KVCACHE_SPACE": "1"}
HERE = Path(__file__).parent


@dataclass(frozen=True)
class Row:
    """One load.

    Attributes:
        load: Steered or plain.
        clients: At once.
        edits: Different ones among them.
        seconds: It lasted.
        answers: That came.
        other: Of them, those that were another than alone.
        failed: Requests that were answered with an error, or not at all.
        speed: Tokens written a second.
        p50: Seconds until an answer, median.
        p95: 95% of answers came in so many seconds.
        p99: 99% did.
        memory_before: The server's, MB, with all its processes, a third into the load.
        memory_after: At its end.
    """

    load: str
    clients: int
    edits: int
    seconds: float
    answers: int
    other: int
    failed: int
    speed: float
    p50: float
    p95: float
    p99: float
    memory_before: float
    memory_after: float


def main() -> None:
    """Serve, load, write."""
    arguments = read_arguments()
    traits = tuple(Bundle.load(default_bundle_path()).traits)
    rows = []
    with server(arguments) as (url, process):
        asked, expected = different(url, traits, arguments)
        steering = ("weights", "strength", "compose")
        plain = {key: value for key, value in asked[0].items() if key not in steering}
        rows.append(loaded("steered", url, process, asked, expected, arguments))
        alone = answer(url, plain)
        rows.append(loaded("plain", url, process, [plain], [alone], arguments))
    write(rows, arguments)


def read_arguments() -> argparse.Namespace:
    """From the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--edits", type=int, default=50)
    parser.add_argument("--seconds", type=int, default=120)
    parser.add_argument("--tokens", type=int, default=12, help="of an answer")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--engine", choices=ENGINES, default="transformers")
    parser.add_argument("--python", default=sys.executable, help="what the server runs in")
    add_output(parser, Path(__file__).parents[1] / "results" / "serving")
    arguments = parse(parser)
    if arguments.quick:
        arguments.clients, arguments.edits, arguments.seconds = 4, 3, 6
    return arguments


@contextlib.contextmanager
def server(arguments: argparse.Namespace) -> Iterator[tuple[str, psutil.Process]]:
    """`steer serve`, until the block is left."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    more = ["--queue", str(2 * arguments.clients), "--timeout", "600", "--store", "sqlite://"]
    if arguments.engine == "vllm":
        more += ["--engine", "vllm", "--engine-options", json.dumps(VLLM)]
    process = subprocess.Popen(
        [arguments.python, "-m", "steer.cli", "serve", "--port", str(port), *more],
        env={**VLLM_ON_CPUS, **os.environ},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    url = f"http://127.0.0.1:{port}"
    try:
        while True:
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{url}/health").status_code == 200:
                    break
            if process.poll() is not None:
                sys.exit("the server did not start")
            time.sleep(0.2)
        yield url, psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait()


def answer(url: str, body: dict[str, Any]) -> str:
    """What a request is answered."""
    response = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=600)
    text: str = response.raise_for_status().json()["choices"][0]["message"]["content"]
    return text


def different(
    url: str, traits: Sequence[str], arguments: argparse.Namespace
) -> tuple[list[dict[str, Any]], list[str]]:
    """Requests whose answers differ pairwise, and those answers."""
    asked: list[dict[str, Any]] = []
    expected: list[str] = []
    for number, row in enumerate(random_weights(len(traits), 20 * arguments.edits, arguments.seed)):
        body = {
            "messages": [{"role": "user", "content": PROMPT}],
            "max_tokens": arguments.tokens,
            "min_tokens": arguments.tokens,
            "weights": dict(zip(traits, row.round(4).tolist(), strict=True)),
            "strength": STRENGTHS[number % len(STRENGTHS)],
            "compose": True,
        }
        text = answer(url, body)
        if text not in expected:
            asked.append(body)
            expected.append(text)
        if len(asked) == arguments.edits:
            return asked, expected
    sys.exit(f"only {len(asked)} of {arguments.edits} edits give answers that differ")


def loaded(
    load: str,
    url: str,
    process: psutil.Process,
    asked: Sequence[dict[str, Any]],
    expected: Sequence[str],
    arguments: argparse.Namespace,
) -> Row:
    """What many clients saw."""
    memory: list[float] = []
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.5):
            with contextlib.suppress(psutil.NoSuchProcess):
                everything = [process, *process.children(recursive=True)]
                memory.append(sum(one.memory_info().rss for one in everything) / 1e6)

    with tempfile.TemporaryDirectory() as folder:
        given = Path(folder) / "load.json"
        given.write_text(json.dumps({"asked": list(asked), "expected": list(expected)}))
        watcher = threading.Thread(target=watch)
        watcher.start()
        done = subprocess.run(
            [
                *(sys.executable, "-m", "locust", "-f", str(HERE / "clients.py"), "--headless"),
                *("--host", url, "-u", str(arguments.clients), "-r", str(arguments.clients)),
                # Whoever waits for an answer at the end gets it.
                *("-t", f"{arguments.seconds}s", "--stop-timeout", "600"),
                *("--csv", str(Path(folder) / "stats"), "--only-summary"),
            ],
            env={**os.environ, "LOAD": str(given)},
            capture_output=True,
            text=True,
        )
        over.set()
        watcher.join()
        stats = _read(Path(folder) / "stats_stats.csv")
        failures = _read(Path(folder) / "stats_failures.csv")
    total = [row for row in stats if row["Name"] == "Aggregated"]
    if not total:
        sys.exit(f"locust failed: {done.stderr[-2000:]}")
    (row,) = total
    answers = int(row["Request Count"])
    other = sum(int(one["Occurrences"]) for one in failures if "another answer" in one["Error"])
    seconds = answers / float(row["Requests/s"])
    return Row(
        load,
        arguments.clients,
        len(asked),
        seconds,
        answers,
        other,
        int(row["Failure Count"]) - other,
        answers * arguments.tokens / seconds,
        *(float(row[share]) / 1000 for share in ("50%", "95%", "99%")),
        memory[len(memory) // 3],
        memory[-1],
    )


def _read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def write(rows: Sequence[Row], arguments: argparse.Namespace) -> None:
    """Write JSON, CSV and Markdown."""
    content = {
        "command": command("experiments/serving/load.py"),
        "seed": arguments.seed,
        "versions": versions(),
        "engine": arguments.engine,
        "prompt": PROMPT,
        "tokens": arguments.tokens,
        "rows": [asdict(row) for row in rows],
    }
    stem = "load" if arguments.engine == "transformers" else f"load_{arguments.engine}"
    write_json(arguments.output / f"{stem}.json", content)
    write_csv(arguments.output / f"{stem}.csv", Row, rows)
    lines = [
        f"`steer serve --engine {arguments.engine}` with the packaged model in fp32, answers of "
        f"{arguments.tokens} tokens, clients that ask again as soon as they are answered.",
        "",
        "| | clients | edits | answers | another than alone | failed | tokens a second | "
        "p50, s | p95, s | p99, s | memory, MB |",
        "|---" * 11 + "|",
    ]
    lines += [
        f"| {row.load} | {row.clients} | {row.edits if row.load == 'steered' else 0} | "
        f"{row.answers} | {row.other} | {row.failed} | {row.speed:.1f} | {row.p50:.1f} | "
        f"{row.p95:.1f} | {row.p99:.1f} | {row.memory_before:.0f} to {row.memory_after:.0f} |"
        for row in rows
    ]
    lines += ["", last_line(content)]
    write_markdown(arguments.output / f"{stem}.md", "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
