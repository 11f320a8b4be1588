"""Check that Tropism installs beside each stack that people use, and with each of its own extras; installs nothing.

    python tools/resolve_stacks.py            # every stack and extra; needs uv and a package index
    python tools/resolve_stacks.py axolotl

A stack's pins are those of its release named here. Exit code 1 where one does not resolve.
"""

import argparse
import platform
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

STACKS = {
    "unsloth": "unsloth==2026.10.9",
    "llamafactory": "llamafactory==0.9.5",
    "axolotl": "axolotl==0.19.0",
    "trl-0.24": "trl==0.24.0",
    "trl-1.8": "trl==1.8.0",
    "inspect": "inspect-ai==0.3.285",
    "lm-eval": "lm-eval[hf]==0.4.13",
    "trackers": "tensorboard\nwandb\ntrackio\nmlflow",
}
"""Each stack as a requirement; several stand on lines of their own."""

SHOWN = ("torch", "transformers", "peft", "accelerate", "datasets", "trl", "huggingface-hub", "fsspec")


def main() -> int:
    """Resolve what was asked for and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="stacks and extras, by default all")
    parser.add_argument("--python", default=platform.python_version(), help="the Python version to resolve for")
    asked = parser.parse_args()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    own = list(project["dependencies"])
    extras = {f"extra {name}": name for name in project["optional-dependencies"]}
    unknown = set(asked.names) - set(STACKS) - set(extras.values())
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join([*STACKS, *extras.values()])}")
    failed = []
    for name, requirement in STACKS.items():
        if not asked.names or name in asked.names:
            failed += _resolve(name, [*own, *requirement.split("\n")], [], asked.python)
    # What make and CI install must leave every extra and every tracker installable.
    pinned = ["--constraint", str(ROOT / "constraints.txt")]
    for shown, extra in extras.items():
        if not asked.names or extra in asked.names:
            failed += _resolve(shown, [f"tropism[{extra}] @ {ROOT.as_uri()}"], pinned, asked.python)
    if not asked.names or "trackers" in asked.names:
        trackers = STACKS["trackers"].split("\n")
        failed += _resolve("trackers, with constraints.txt", [*own, *trackers], pinned, asked.python)
    if failed:
        print(f"\nnot resolved: {', '.join(failed)}")
    return 1 if failed else 0


def _resolve(name: str, requirements: list[str], options: list[str], python: str) -> list[str]:
    """Print what a resolver finds; returns the name where it finds nothing."""
    with tempfile.TemporaryDirectory() as folder:
        wanted = Path(folder) / "wanted.in"
        wanted.write_text("\n".join(requirements) + "\n", encoding="utf-8")
        command = ["uv", "pip", "compile", "--quiet", "--python-version", python, *options, str(wanted)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        print(f"{name}: does not resolve\n{done.stderr[:2000]}", flush=True)
        return [name]
    found = dict(
        line.split("==") for line in done.stdout.splitlines() if "==" in line and not line.startswith((" ", "#"))
    )
    print(f"{name}: " + ", ".join(f"{package} {found[package]}" for package in SHOWN if package in found), flush=True)
    return []


if __name__ == "__main__":
    sys.exit(main())
