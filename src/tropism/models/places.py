"""Where models and what is made of them are kept on this machine, and what a person's token for the hub is."""

import os
from pathlib import Path

SMOLLM2 = "HuggingFaceTB/SmolLM2-135M-Instruct"


def cache_folder() -> Path:
    """`$TROPISM_CACHE`, else `tropism` in the user's cache directory."""
    if configured := os.environ.get("TROPISM_CACHE"):
        return Path(configured)
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "tropism"


def hub_token() -> str | None:
    """`HF_TOKEN` from the environment or from `.env` in the working directory; never written anywhere."""
    if token := os.environ.get("HF_TOKEN"):
        return token
    from dotenv import dotenv_values

    return dotenv_values(".env").get("HF_TOKEN") if Path(".env").is_file() else None
