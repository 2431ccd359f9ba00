"""`steer push` and `steer pull`: bundles on a hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from steer.cli.app import app
from steer.cli.console import doing, harmless, out, say
from steer.cli.options import check_file, check_people
from steer.errors import InputError

Repository = Annotated[str, typer.Argument(help="Repository on the hub: user/name.")]


@app.command(
    epilog="Example: [bold]steer push mine.safetensors ann/manners --license apache-2.0 "
    "--show-card[/bold], then the same without --show-card"
)
def push(
    bundle: Annotated[Path, typer.Argument(help="Bundle file.")],
    repo: Repository,
    private: Annotated[
        bool, typer.Option("--private", help="Only for those who may read the repository.")
    ] = False,
    license: Annotated[
        str | None, typer.Option(help="As the hub names it: apache-2.0, cc-by-4.0, ...")
    ] = None,
    base_model: Annotated[
        str | None, typer.Option(help="Hub id of the model, if the bundle knows a folder only.")
    ] = None,
    revision: Annotated[
        str | None, typer.Option(help="Branch, made if there is none. Default: the main one.")
    ] = None,
    message: Annotated[str | None, typer.Option("--message", "-m", help="Of the commit.")] = None,
    profiles: Annotated[
        bool, typer.Option("--profiles", help="Publish the profiles of persons that are in it.")
    ] = False,
    texts: Annotated[
        bool, typer.Option("--texts", help="Publish texts of persons that profiles hold.")
    ] = False,
    show_card: Annotated[
        bool, typer.Option("--show-card", help="Print the card and do nothing else.")
    ] = False,
) -> None:
    """Publish a bundle on a hub, with a card that says what is in it.

    The card takes the place of the repository's README.md.

    Log in with `hf auth login`, or set HF_TOKEN; another hub is named by HF_ENDPOINT.
    """
    from steer.bundle import Bundle
    from steer.card import model_card
    from steer.hub import push as push_bundle

    held = Bundle.load(bundle)
    if show_card:
        # Not through rich, which would wrap long lines.
        print(harmless(str(model_card(held, repo, base_model=base_model, license=license))))
        return
    with doing(f"pushing to {repo}"):
        commit = push_bundle(
            held,
            repo,
            private=private,
            license=license,
            base_model=base_model,
            revision=revision,
            message=message,
            profiles=profiles,
            texts=texts,
        )
    out.print(f"{bundle} -> {commit.commit_url}", soft_wrap=True)


@app.command(
    epilog="Example: [bold]steer pull ann/manners[/bold], then "
    "[bold]steer chat --bundle manners.safetensors[/bold]"
)
def pull(
    repo: Repository,
    output: Annotated[
        Path | None,
        typer.Option(help="Bundle file. Default: the repository's name, if there is none yet."),
    ] = None,
    revision: Annotated[
        str | None, typer.Option(help="Branch, tag or commit. Default: the main branch.")
    ] = None,
    file: Annotated[
        str | None, typer.Option(help="Of the bundle, if the repository has several.")
    ] = None,
) -> None:
    """Fetch a bundle from a hub and check it; no code in it is run."""
    from steer.hub import FILE
    from steer.hub import pull as pull_bundle
    from steer.resources import locked

    path = output or Path(f"{repo.rpartition('/')[2]}.safetensors")
    if output is None and path.exists():
        raise InputError(f"{path} exists; name the file with --output")
    check_file(path)
    check_people(path)
    with doing(f"pulling from {repo}"):
        held = pull_bundle(repo, revision=revision, file=file or FILE)
    with locked(path):
        check_people(path)  # who may have come meanwhile
        held.save(path)
    out.print(f"{', '.join(held.traits)}, for {held.model} -> {path}", soft_wrap=True)
    if held.profiles:
        say(f"it holds {len(held.profiles)} profiles of persons")
