"""A replica is killed under load, with its node: who loses what?

    python experiments/serving/replicas.py        # three minutes; needs `make venv-cluster`

`steer serve --replicas 3` runs on a Ray cluster of three nodes, simulated on this machine. People
ask without a pause, every other time for a stream, each time with other weights than their
neighbour; what the answers should be was made without a server. A third into the load one node is
killed with its replica; told are the answers that were another than alone, the requests that were
told that their replica had stopped, those that failed in any other way, and how long it took until
a node that came in its place had a replica that serves.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

# What experiments share is one folder up.
sys.path.append(str(Path(__file__).parents[1]))
import numpy as np  # noqa: E402
from crowd import Asked, crowd  # noqa: E402
from nodes import kill_node, simulated, wait_for_replicas  # noqa: E402
from tables import write_json, write_markdown  # noqa: E402
from timing import command  # noqa: E402

import steer  # noqa: E402
from steer.cover import random_weights  # noqa: E402
from steer.versions import versions  # noqa: E402

PROMPTS = ("How do I sleep better?", "What is a comet?", "Tell me about Rome.")


@dataclass(frozen=True)
class Row:
    """The requests of one time.

    Attributes:
        when: Against the kill.
        requests: In all.
        right: Answered as alone.
        other: Answered otherwise.
        told: Told that their replica had stopped.
        failed: In any other way.
        p50: Seconds until an answer, median.
        longest: The most.
    """

    when: str
    requests: int
    right: int
    other: int
    told: int
    failed: int
    p50: float
    longest: float


def main() -> None:
    """Serve, ask, kill, write."""
    arguments = read_arguments()
    steerer = steer.load()
    traits = tuple(steerer.bundle.traits)
    rows = random_weights(len(traits), arguments.edits, arguments.seed).round(4)
    bodies = [
        {
            "messages": [{"role": "user", "content": PROMPTS[number % len(PROMPTS)]}],
            "max_tokens": arguments.tokens,
            "weights": dict(zip(traits, row.tolist(), strict=True)),
            "compose": True,
        }
        for number, row in enumerate(rows)
    ]
    expected = [
        steerer.generate(
            body["messages"][0]["content"],
            body["weights"],
            compose=True,
            max_new_tokens=arguments.tokens,
        )
        for body in bodies
    ]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with simulated(arguments.replicas) as cluster:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "steer.cli", "serve", "--port", str(port)),
                *("--replicas", str(arguments.replicas), "--ray-address", cluster.address),
                *("--store", f"sqlite:///{cluster.head_node.get_session_dir_path()}/people"),
            ],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        try:
            assert process.stdout is not None
            if not process.stdout.readline():
                sys.exit("the replicas did not start")
            url = f"http://127.0.0.1:{port}"
            wait_for_replicas(url, cluster, arguments.replicas)
            asked, killed = asyncio.run(loaded(url, cluster, bodies, expected, arguments))
            began = time.monotonic()
            cluster.add_node(num_cpus=1)
            wait_for_replicas(url, cluster, arguments.replicas)
            back = time.monotonic() - began
        finally:
            process.terminate()
            process.wait()
    write(asked, killed, back, len(set(expected)), arguments)


def read_arguments() -> argparse.Namespace:
    """From the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--replicas", type=int, default=3)
    parser.add_argument("--clients", type=int, default=12)
    parser.add_argument("--edits", type=int, default=9)
    parser.add_argument("--seconds", type=int, default=45)
    parser.add_argument("--tokens", type=int, default=24, help="of an answer")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--output", type=Path, default=Path(__file__).parents[1] / "results" / "serving"
    )
    return parser.parse_args()


async def loaded(
    url: str,
    cluster: Any,
    bodies: Sequence[dict[str, Any]],
    expected: Sequence[str],
    arguments: argparse.Namespace,
) -> tuple[list[Asked], tuple[float, float]]:
    """What people met, and when the kill began and was done."""
    end = time.monotonic() + arguments.seconds
    people = asyncio.create_task(
        crowd(url, bodies, expected, arguments.clients, lambda: time.monotonic() < end)
    )
    await asyncio.sleep(arguments.seconds / 3)
    begun = time.monotonic()
    await asyncio.to_thread(kill_node, cluster, next(iter(cluster.worker_nodes)))
    killed = (begun, time.monotonic())
    return await people, killed


def counted(when: str, asked: Sequence[Asked]) -> Row:
    """The requests of one time."""
    seconds = [one.ended - one.began for one in asked if one.outcome == "right"]
    by = {kind: sum(one.outcome == kind for one in asked) for kind in ("right", "other", "told")}
    return Row(
        when,
        len(asked),
        by["right"],
        by["other"],
        by["told"],
        len(asked) - sum(by.values()),
        round(float(np.median(seconds)), 2),
        round(max(seconds), 2),
    )


def write(
    asked: Sequence[Asked],
    killed: tuple[float, float],
    back: float,
    different: int,
    arguments: argparse.Namespace,
) -> None:
    """Write JSON and Markdown."""
    begun, done = killed
    rows = [
        counted("answered before", [one for one in asked if one.ended <= begun]),
        counted("in flight", [one for one in asked if one.began < done and one.ended > begun]),
        counted("asked after", [one for one in asked if one.began >= done]),
    ]
    # When those that the replica held were told, after the kill.
    told = [one.ended - begun for one in asked if one.outcome == "told"]
    content = {
        "command": command("experiments/serving/replicas.py"),
        "model": steer.load().language_model.name,
        "seed": arguments.seed,
        "versions": versions(),
        "replicas": arguments.replicas,
        "clients": arguments.clients,
        "different answers": different,
        "tokens": arguments.tokens,
        "seconds": arguments.seconds,
        "rows": [asdict(row) for row in rows],
        "streams": sum(one.stream for one in asked),
        "told after, s": [round(seconds, 2) for seconds in sorted(told)],
        "serving again after, s": round(back, 1),
        "failures": sorted({one.detail for one in asked if one.outcome in ("other", "failed")}),
    }
    write_json(arguments.output / "replicas.json", content)
    lines = [
        f"`steer serve --replicas {arguments.replicas}` with {content['model']} on as many "
        f"simulated nodes, {arguments.clients} people who ask again as soon as they are answered "
        f"(answers of {arguments.tokens} tokens, {different} different ones, every other one a "
        "stream). One node is killed with its replica.",
        "",
        "| requests | | as alone | another | told that the replica stopped | failed otherwise | "
        "p50, s | longest, s |",
        "|---" * 8 + "|",
    ]
    lines += [
        f"| {row.when} | {row.requests} | {row.right} | {row.other} | {row.told} | {row.failed} | "
        f"{row.p50:.1f} | {row.longest:.1f} |"
        for row in rows
    ]
    lines += [
        "",
        f"Those that it held were told within {max(told, default=0):.1f} s. A node that joined "
        f"after the load had a replica that served {back:.0f} s later.",
        "",
        f"`{content['command']}`",
    ]
    write_markdown(arguments.output / "replicas.md", "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
