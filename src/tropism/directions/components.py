"""Which of the directions at a site are taken: `[0, 12]` at every site, or `{10: [0, 12], 20: [10, 11]}`."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from tropism.directions.artifact import Directions
from tropism.errors import DirectionsError
from tropism.site import Site

Components = Sequence[int] | Mapping[int, Sequence[int]]
"""Row numbers from 0, for all sites or by block; blocks that a mapping does not name are left out."""


def choose_components(directions: Directions, components: Components) -> Directions:
    """Keep some of the directions at each site; the provenance records which.

    Raises `DirectionsError` where a number is not there, is named twice, or a block has no directions.

    >>> import torch
    >>> d = Directions({Site(1): torch.eye(3), Site(2): torch.eye(3)})
    >>> choose_components(d, {2: [0, 2]}).vectors[Site(2)].tolist()
    [[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]
    """
    if isinstance(components, Mapping):
        held = {site.layer for site in directions.sites}
        for layer in components:
            if layer not in held:
                raise DirectionsError(
                    f"components: there are no directions at block {layer}; there are at {', '.join(map(str, sorted(held)))}"
                )
    vectors = {}
    for site, rows in directions.vectors.items():
        wanted = wanted_at(site, components)
        if wanted is not None:
            vectors[site] = chosen_rows(rows, wanted, site)
    covariance = {site: factor for site, factor in directions.covariance.items() if site in vectors}
    return Directions(vectors, {**directions.provenance, "components": recorded(components)}, covariance)


def wanted_at(site: Site, components: Components) -> Sequence[int] | None:
    """Return the row numbers at a site, None where the site is left out."""
    return components.get(site.layer) if isinstance(components, Mapping) else components


def chosen_rows(rows: Tensor, wanted: Sequence[int], site: Site) -> Tensor:
    """Return the rows with these numbers; raises `DirectionsError` for one that is not there or comes twice."""
    if not wanted or len(set(wanted)) < len(wanted):
        raise DirectionsError(f"components at {site} must be different row numbers, at least one, found {list(wanted)}")
    beyond = [number for number in wanted if not 0 <= number < len(rows)]
    if beyond:
        raise DirectionsError(
            f"components at {site}: there is no number {beyond[0]}; the {len(rows)} directions are 0 to {len(rows) - 1}"
        )
    return rows[list(wanted)]


def recorded(components: Components) -> object:
    """Return the choice as JSON holds it."""
    if isinstance(components, Mapping):
        return {str(layer): list(numbers) for layer, numbers in components.items()}
    return list(components)


def at_sites(directions: Directions, sites: Sequence[Site]) -> Directions:
    """Keep the directions at these sites; raises `DirectionsError` for a site at which there are none."""
    missing = [site for site in sites if site not in directions.vectors]
    if missing:
        raise DirectionsError(
            f"sites: there are no directions at {missing[0]}; there are at {', '.join(map(str, directions.sites))}"
        )
    vectors = {site: directions.vectors[site] for site in sites}
    covariance = {site: factor for site, factor in directions.covariance.items() if site in vectors}
    return Directions(vectors, directions.provenance, covariance)
