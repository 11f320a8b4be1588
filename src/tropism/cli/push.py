"""`tropism push`: upload a run's adapter and its model card to the hub."""

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the command to the app."""
    app.command("push")(push)


def push(
    run: Annotated[
        Path, typer.Argument(help="Folder of one run, such as runs/caps/backward_caft/seed-0.", show_default=False)
    ],
    repo: Annotated[
        str, typer.Option(help="Repository OWNER/NAME on the hub; created if it does not exist.", show_default=False)
    ],
    private: Annotated[bool, typer.Option("--private", help="Make the repository private.")] = False,
    base_model: Annotated[
        str | None,
        typer.Option(help="Base model OWNER/NAME on the hub, if the run used a local folder.", show_default=False),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Write the files locally and upload nothing.")] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            help="With --dry-run: write to this folder; by default the repository's NAME.", show_default=False
        ),
    ] = None,
) -> None:
    """Upload a run's adapter with a model card; of a routed run, only the retain adapter.

    The token is read from HF_TOKEN, in the environment or in .env.
    """
    from tropism.errors import UsageError
    from tropism.experiments.after import push as pushing

    if dry_run:
        folder = out or Path(repo.rpartition("/")[2] or "push")
        files = pushing.write(run, repo, folder, base_model=base_model)
        print(f"nothing was uploaded; {folder} has the files for {repo}: {', '.join(files)}")
        return
    if out is not None:
        raise UsageError(f"--out needs --dry-run, found --out {out} alone; add --dry-run or drop --out")
    print(f"pushed to {pushing.push(run, repo, private=private, base_model=base_model)}")
