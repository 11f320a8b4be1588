"""`Directions`: vectors at sites, with where they came from; one safetensors file, never a pickle."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tropism import linalg, notebook
from tropism.directions import provenance as where_from
from tropism.directions.stored import Kind
from tropism.errors import DirectionsError, DirectionsMismatch
from tropism.site import Site, base_model

FORMAT = "tropism.directions/1"
FILE = Kind(FORMAT, "directions", "other formats go through 'tropism directions import'")


@dataclass(frozen=True, eq=False)
class Directions:
    """Vectors at sites: each `Site` maps to `[k, d_model]` (or `[d_model]`, read as `k = 1`), as found, not normalised.

    `provenance` is JSON: who found them, on what. Vectors are kept as float32 on the CPU. Raises `DirectionsError`
    where there is no site, a vector is not finite, a row is zero, or widths differ between sites.

    >>> d = Directions(vectors={Site(1): torch.tensor([[3.0, 4.0]])})
    >>> d.basis(Site(1)).tolist(), d.width
    ([[0.6000000238418579, 0.800000011920929]], 2)
    """

    vectors: Mapping[Site, Float[Tensor, "..."]]
    provenance: Mapping[str, Any] = field(default_factory=dict)
    covariance: Mapping[Site, Float[Tensor, "..."]] = field(default_factory=dict, repr=False)
    """Optional, for covariance-matched controls: per site a factor `[m, d_model]`, `Σ ≈ factorᵀ·factor`."""

    def __post_init__(self) -> None:
        if not self.vectors:
            raise DirectionsError("Directions.vectors must hold at least one site, found none")
        checked: dict[Site, Tensor] = {}
        for site, vector in self.vectors.items():
            if not isinstance(site, Site):
                raise DirectionsError(
                    f"Directions.vectors must be keyed by Site, found {site!r}; write Site.parse({site!r})"
                )
            rows = vector.detach().to("cpu", torch.float32)
            rows = (rows.unsqueeze(0) if rows.dim() == 1 else rows).contiguous().clone()
            if rows.dim() != 2 or 0 in rows.shape:
                raise DirectionsError(f"directions at {site} must have shape [k, d_model], found {list(vector.shape)}")
            if not torch.isfinite(rows).all():
                raise DirectionsError(f"directions at {site} must be finite, found NaN or infinity")
            if (rows.norm(dim=1) == 0).any():
                zero = int((rows.norm(dim=1) == 0).nonzero()[0])
                raise DirectionsError(f"directions at {site} must not be zero, found a zero vector in row {zero}")
            checked[site] = rows
        widths = {rows.shape[1] for rows in checked.values()}
        if len(widths) > 1:
            raise DirectionsError(f"directions must have one width at all sites, found {sorted(widths)}")
        object.__setattr__(self, "vectors", MappingProxyType(dict(sorted(checked.items()))))
        for site, factor in self.covariance.items():
            if site not in checked or factor.dim() != 2 or factor.shape[1] not in widths or not factor.isfinite().all():
                raise DirectionsError(
                    f"Directions.covariance at {site} must be a finite factor [m, {next(iter(widths))}] at a site "
                    f"that has "
                    f"vectors, found shape {list(factor.shape)}"
                )
        object.__setattr__(self, "covariance", MappingProxyType(dict(self.covariance)))

    def __reduce__(self) -> tuple[Any, ...]:
        # A read-only mapping cannot be pickled; another process makes the object anew from plain ones.
        return Directions, (dict(self.vectors), dict(self.provenance), dict(self.covariance))

    @property
    def sites(self) -> tuple[Site, ...]:
        """The sites, in order of layer."""
        return tuple(self.vectors)

    @property
    def width(self) -> int:
        """`d_model`."""
        return int(next(iter(self.vectors.values())).shape[1])

    @cached_property
    def _bases(self) -> dict[Site, Tensor]:
        return {site: linalg.orthonormal_basis(rows) for site, rows in self.vectors.items()}

    def basis(self, site: Site) -> Float[Tensor, "r d"]:
        """Orthonormal rows that span the vectors at `site`, float32 `[r, d_model]`, `r` the rank."""
        if site not in self.vectors:
            held = ", ".join(str(s) for s in self.sites)
            raise DirectionsError(f"these directions have no vectors at {site}; they have: {held}")
        return self._bases[site]

    def random_like(self, seed: int, kind: Literal["isotropic", "covariance"] = "isotropic") -> "Directions":
        """A control: random directions at the same sites, of the same rank and the same norms.

        `isotropic` draws rows from N(0, I); `covariance` draws them as the activations vary (needs directions whose
        finder kept the covariance). Deterministic in `seed`; the caller's global generator is untouched.
        """
        generator = torch.Generator().manual_seed(seed)
        drawn: dict[Site, Tensor] = {}
        for site, rows in self.vectors.items():
            if kind == "isotropic":
                noise = torch.randn(rows.shape, generator=generator)
            elif kind == "covariance":
                if site not in self.covariance:
                    raise DirectionsError(
                        f"random_like(kind='covariance') needs the covariance at {site}, which these directions do not "
                        f"carry; find them with find_directions, or use kind='isotropic'"
                    )
                factor = self.covariance[site]
                noise = torch.randn((rows.shape[0], factor.shape[0]), generator=generator) @ factor
            else:
                raise DirectionsError(f"random_like kind must be 'isotropic' or 'covariance', found {kind!r}")
            drawn[site] = noise * (rows.norm(dim=1) / noise.norm(dim=1)).unsqueeze(1)
        return Directions(drawn, self._control(kind, seed), self.covariance)

    def orthogonal_complement(self, seed: int, k: int | None = None) -> "Directions":
        """A control: random directions with nothing of these in them, `⟨u, V⟩ = 0` at every site.

        The same number and norms at each site by default; with `k`, that many orthonormal rows (`k = d_model − rank` is
        the whole complement). Deterministic in `seed`.
        """
        generator = torch.Generator().manual_seed(seed)
        drawn: dict[Site, Tensor] = {}
        for site, rows in self.vectors.items():
            basis = self.basis(site).double()
            count = rows.shape[0] if k is None else k
            if not 1 <= count <= self.width - basis.shape[0]:
                raise DirectionsError(
                    f"orthogonal_complement: the complement at {site} has {self.width - basis.shape[0]} dimensions, "
                    f"found k={count}"
                )
            noise = torch.randn((count, self.width), generator=generator).double()
            # Twice, because once leaves the rounding of the first projection.
            for _ in range(2):
                noise = noise - (noise @ basis.T) @ basis
            if k is None:
                drawn[site] = noise * (rows.norm(dim=1) / noise.norm(dim=1)).unsqueeze(1)
            else:
                drawn[site] = torch.linalg.qr(noise.T)[0].T
        return Directions(drawn, self._control("orthogonal_complement", seed), self.covariance)

    def _control(self, kind: str, seed: int) -> dict[str, Any]:
        """Where a control comes from; it is of the same model as what it is a control of."""
        of_model = {key: self.provenance[key] for key in ("model", "forced_onto") if key in self.provenance}
        return {"control": kind, "seed": seed, "of": dict(self.provenance), **of_model}

    def with_provenance(self, **facts: Any) -> "Directions":
        """Return the same directions with `facts` added to their provenance."""
        return Directions(self.vectors, {**self.provenance, **facts}, self.covariance)

    def check_model(self, model: nn.Module, *, force: bool = False) -> "Directions":
        """These directions, if they were found on a model of this architecture; else `DirectionsMismatch`.

        Compares the config hash in the provenance. `force=True` takes directions of another hash all the same and
        records that in the provenance of what it returns; another width is refused whatever `force` says. Directions
        made by hand have no hash, and only their width is compared.
        """
        return self.check_config(base_model(model).config, force=force)

    def check_config(self, config: Any, *, force: bool = False) -> "Directions":
        """`check_model` by a transformers config alone, before any weights are loaded."""
        here, mine = where_from.of_config(config), self.provenance.get("model")
        width = config.get_text_config(decoder=True).hidden_size
        if width != self.width:
            raise DirectionsMismatch(
                f"these directions are {self.width} wide and the model {here['name']!r} is {width} wide: they belong "
                f"to another model; find them on this one"
            )
        if where_from.is_of(self.provenance, here["config_hash"]):
            return self
        assert isinstance(mine, Mapping)
        if not force:
            raise DirectionsMismatch(
                f"these directions were found on {mine.get('name')!r}, whose config hash {mine['config_hash'][:12]} "
                f"is not that of {here['name']!r} ({here['config_hash'][:12]}); find them on this model, or force it"
            )
        return self.with_provenance(forced_onto=here)

    def save(self, path: str | Path) -> Path:
        """Write one safetensors file: a tensor per site, the provenance as JSON in its header."""
        tensors = {f"vectors/{site}": rows for site, rows in self.vectors.items()}
        tensors |= {f"covariance/{site}": factor.contiguous() for site, factor in self.covariance.items()}
        return FILE.write(path, tensors, provenance=dict(self.provenance))

    @classmethod
    def load(cls, path: str | Path) -> "Directions":
        """Read a file written by `save`, executing nothing in it; raises `DirectionsError` for anything else."""
        tensors, header = FILE.read(path, "provenance")
        split: dict[str, dict[Site, Tensor]] = {"vectors": {}, "covariance": {}}
        for name, tensor in tensors.items():
            kind, _, where = name.partition("/")
            if kind not in split:
                raise DirectionsError(f"{path}: unknown tensor {name!r}; expected vectors/SITE or covariance/SITE")
            split[kind][Site.parse(where)] = tensor
        return cls(split["vectors"], header["provenance"], split["covariance"])

    def _repr_html_(self) -> str:
        about, model = self.provenance, self.provenance.get("model")
        facts = {
            "model": model.get("name") if isinstance(model, Mapping) else model,
            "method": about.get("method") or about.get("finder") or about.get("control"),
            "contrast": about.get("contrast"),
            "width": self.width,
            "covariance": f"at {len(self.covariance)} sites" if self.covariance else None,
        }
        facts |= {str(site): f"{len(rows)} of norm {_norms(rows)}" for site, rows in self.vectors.items()}
        return notebook.shown(f"Directions at {len(self.sites)} sites", facts)

    def null_cosine(self) -> float:
        """Standard deviation of the cosine of two random vectors of this width, `1/√d`: the scale of nothing."""
        return 1 / math.sqrt(self.width)


def _norms(rows: Tensor) -> str:
    low, high = float(rows.norm(dim=1).min()), float(rows.norm(dim=1).max())
    return f"{low:.3g}" if len(rows) == 1 else f"{low:.3g} to {high:.3g}"
