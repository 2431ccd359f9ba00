"""The command line: `steer --help`. One module a command.

What a command needs is imported inside it, so that help and usage errors need not wait for torch.
"""

from steer.cli import (
    build,
    chat,
    cover,
    demo,
    export,
    generate,
    hub,
    inspect,
    onboard,
    personalize,
    play,
    route,
    serve,
    traits,
)
from steer.cli.app import app, main

__all__ = [
    "app",
    "build",
    "chat",
    "cover",
    "demo",
    "export",
    "generate",
    "hub",
    "inspect",
    "main",
    "onboard",
    "personalize",
    "play",
    "route",
    "serve",
    "traits",
]
