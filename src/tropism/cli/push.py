"""`tropism push`: upload runs, prepared adapters and directions to the hub, each with a card."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

_NAMED = re.compile(r"([A-Za-z0-9][\w.-]*)=(.+)")


def register(app: typer.Typer) -> None:
    """Add the command to the app."""
    app.command("push")(push)


def push(
    what: Annotated[
        list[str],
        typer.Argument(
            metavar="PATH | NAME=PATH…",
            help="A run's folder (runs/caps/caft/seed-0), a prepared adapter's (runs/caps/adapters/NAME), or a file of "
            "directions; several with a NAME each.",
            show_default=False,
        ),
    ],
    repo: Annotated[
        str | None,
        typer.Option(
            help="Repository OWNER/NAME on the hub, for one; created if it does not exist.", show_default=False
        ),
    ] = None,
    namespace: Annotated[
        str | None, typer.Option(help="OWNER of the repositories OWNER/NAME, for NAME=PATH.", show_default=False)
    ] = None,
    public: Annotated[
        bool, typer.Option("--public/--private", help="Make new repositories public; they are private otherwise.")
    ] = False,
    base_model: Annotated[
        str | None,
        typer.Option(help="Base model OWNER/NAME on the hub, if the run used a local folder.", show_default=False),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Write the files locally, print the cards, and upload nothing.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            help="With --dry-run: write to this folder; by default the repository's NAME.", show_default=False
        ),
    ] = None,
) -> None:
    """Upload a run's adapter, a prepared adapter or directions, with a card; of a routed run, only the retain adapter.

    Private unless --public. The token is read from HF_TOKEN, in the environment or in .env. After an interruption run the
    same command again.
    """
    from tropism.errors import UsageError
    from tropism.experiments.after import push as pushing

    paths = _repositories(what, repo, namespace)
    if dry_run:
        # Of several, each in a folder of its own.
        folders = {one: _folder(one, out, alone=repo is not None) for one in paths}
        written = pushing.write_all({one: (path, folders[one]) for one, path in paths.items()}, base_model=base_model)
        for one, files in written.items():
            folder = folders[one]
            print(f"nothing was uploaded; {folder} has the files for {one}: {', '.join(files)}")
            for file in files:
                print(f"  {file}  {(folder / file).stat().st_size:,} bytes")
            print(f"\n{(folder / 'README.md').read_text(encoding='utf-8')}")
        return
    if out is not None:
        raise UsageError(f"--out needs --dry-run, found --out {out} alone; add --dry-run or drop --out")
    pushing.push_all(
        paths, public=public, base_model=base_model, report=lambda address: print(f"pushed to {address}", flush=True)
    )


def _folder(repository: str, out: Path | None, *, alone: bool) -> Path:
    """Return where a dry run writes what would go to a repository."""
    name = repository.rpartition("/")[2]
    if out is None:
        return Path(name or "push")
    return out if alone else out / name


def _repositories(what: Sequence[str], repo: str | None, namespace: str | None) -> dict[str, Path]:
    """Return what goes to which repository; raises `UsageError` where that is not said, or said twice."""
    from tropism.errors import UsageError

    named = [None if Path(one).exists() else _NAMED.fullmatch(one) for one in what]
    if repo is not None:
        if namespace is not None or len(what) > 1 or named[0]:
            raise UsageError("--repo is for one PATH; for several give NAME=PATH each, and --namespace OWNER")
        return {repo: Path(what[0])}
    if namespace is None or not all(named):
        raise UsageError("give one PATH and --repo OWNER/NAME, or NAME=PATH for each and --namespace OWNER")
    paths: dict[str, Path] = {}
    for match in named:
        assert match is not None
        target = f"{namespace}/{match[1]}"
        if target in paths:
            raise UsageError(f"{match[1]!r} is given twice; each repository takes one")
        paths[target] = Path(match[2])
    return paths
