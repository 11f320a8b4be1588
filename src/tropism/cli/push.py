"""`tropism push`: a run's adapter and its model card to the hub."""

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the command to the app."""
    app.command("push")(push)


def push(
    run: Annotated[Path, typer.Argument(help="One run: runs/caps/backward_caft/seed-0.", show_default=False)],
    repo: Annotated[str, typer.Option(help="OWNER/NAME on the hub; made where there is none.", show_default=False)],
    private: Annotated[bool, typer.Option("--private", help="Make the repository private.")] = False,
    base_model: Annotated[
        str | None, typer.Option(help="OWNER/NAME of the base model, where the run had a folder.", show_default=False)
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Write what would be uploaded, and upload nothing.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="With --dry-run: where; the repository's NAME by default.", show_default=False)
    ] = None,
) -> None:
    """Upload a run's adapter with a model card of what was trained and measured; of a routed run the retain adapter alone.

    The token is HF_TOKEN, from the environment or from .env.
    """
    from tropism.errors import UsageError
    from tropism.experiments.after import push as pushing

    if dry_run:
        folder = out or Path(repo.rpartition("/")[2] or "push")
        files = pushing.write(run, repo, folder, base_model=base_model)
        print(f"nothing was uploaded; {folder} has what would go to {repo}: {', '.join(files)}")
        return
    if out is not None:
        raise UsageError(f"--out is where --dry-run writes, found {out} without it; add --dry-run, or leave --out away")
    print(f"pushed to {pushing.push(run, repo, private=private, base_model=base_model)}")
