"""Which formats figures are saved in, as the environment says it; read before hours of training as when one is drawn."""

import os

from tropism.errors import RunFolderError

NAMES = ("svg", "png", "pdf")


def wanted() -> set[str]:
    """Return the formats that `TROPISM_FIGURES` names, all where it is not set.

    Raises `RunFolderError` where it names one that there is not.
    """
    given = os.environ.get("TROPISM_FIGURES", ",".join(NAMES))
    named = {form.strip() for form in given.split(",")} - {""}
    if unknown := sorted(named - set(NAMES)):
        raise RunFolderError(
            f"TROPISM_FIGURES must name formats out of {', '.join(NAMES)}, found {', '.join(unknown)!r}"
        )
    return named
