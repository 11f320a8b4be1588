"""PCA: the directions along which two sides differ most from pair to pair, or one side from the other's mean."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from tropism.directions.finder import Collector, Finder, Found, Unit, Window
from tropism.directions.mean_difference import RunningMean
from tropism.errors import DirectionsError
from tropism.linalg import principal_angles
from tropism.site import Site

EXACT_UP_TO = 1024
"""Below this size of the smaller side an exact decomposition is the faster one."""
RANK_SHARE = 1e-10
"""An eigenvalue below this share of the largest is no component: the data have no such direction."""


@dataclass(frozen=True)
class PCA(Finder):
    """The top `k` principal components, unit rows `[k, d_model]`, strongest first.

    `of="differences"`: of `x_i = h_i⁺ − h_i⁻` over pairs (the default, for paired contrasts). `of="positive"`: of
    `x_i = h_i⁺ − mean(h⁻)`. Not centred by default: centring takes the mean difference, usually the strongest part of
    what separates the sides, out of the subspace. Either way the facts say which share of the mean difference the
    subspace holds: `‖P(m⁺ − m⁻)‖² / ‖m⁺ − m⁻‖²`.

    `per="token"` takes every token as a row, where both sides read the same tokens (a contrast of models). Rows are
    kept until they outnumber the width, and then folded into a second-moment matrix: memory is bounded by `d_model²`.
    The positive side projects positively on every component. Raises `DirectionsError` where the data hold fewer than
    `k` components. Source: CAFT (Casademunt et al., 2025), with `k = 20` and models' differences on response tokens.

    >>> PCA(k=2).options()["of"]
    'differences'
    """

    k: int = 20
    """How many components per site."""
    of: Literal["differences", "positive"] = "differences"
    """What the components are of: differences of pairs, or the positive side about the negative mean."""
    centred: bool = False
    """Centre the rows first, which takes the mean difference out."""
    per: Unit = "chat"
    """One row per chat, or one per token where both sides read the same tokens."""

    name: ClassVar[str] = "pca"

    def __post_init__(self) -> None:
        if self.k < 1:
            raise DirectionsError(f"PCA.k must be at least 1, found {self.k}")
        if self.of not in ("differences", "positive"):
            raise DirectionsError(f"PCA.of must be 'differences' or 'positive', found {self.of!r}")

    @property
    def unit(self) -> Unit:
        return self.per

    @property
    def needs_pairs(self) -> bool:
        return self.of == "differences"

    def check_rows(self, rows: int) -> None:
        held = rows - 1 if self.centred else rows
        if held < self.k:
            raise DirectionsError(
                f"PCA.k must be at most the {held} components that {rows} rows can hold, found {self.k}; "
                "lower k or give more chats"
            )

    def collector(self, site: Site, width: int, seed: int) -> Collector:
        return PCACollector(self, site, width, seed)


class PCACollector(Collector):
    """Rows, or their second moment once there are many; and both sides' means."""

    def __init__(self, options: PCA, site: Site, width: int, seed: int) -> None:
        self._options, self._site, self._width, self._seed = options, site, width, seed
        self._positive, self._negative = RunningMean(width), RunningMean(width)
        self._origin: Tensor | None = None
        self._rows: list[Tensor] = []
        self._held = 0
        self._moment: Tensor | None = None
        self._sum = RunningMean(width)

    def add(self, window: Window) -> None:
        self._positive.add(window.positive)
        self._negative.add(window.negative)
        if self._options.of == "differences":
            if not window.paired:
                raise DirectionsError(
                    "PCA(of='differences') needs pairs: a paired contrast (and, with per='token', the same tokens on both "
                    "sides); use PCA(of='positive')"
                )
            rows = (window.positive - window.negative).to(torch.float64)
        else:
            # About a point near the data until the negative mean is known: squares of large numbers lose digits.
            if self._origin is None:
                self._origin = window.negative.to(torch.float64).mean(dim=0)
            rows = window.positive.to(torch.float64) - self._origin
        self._sum.add(rows)
        self._rows.append(rows)
        self._held += rows.shape[0]
        if self._held > self._width:
            self._fold()

    def result(self) -> Found:
        k = self._options.k
        about = self._about()
        values, vectors = self._decompose(about)
        difference = self._positive.mean - self._negative.mean
        floor = float(values[0]) * RANK_SHARE if len(values) else 0.0
        rank = int((values > floor).sum())
        if rank < k:
            raise DirectionsError(
                f"PCA.k={k} at {self._site} is more than the {rank} components that {self._sum.count} rows hold; "
                "lower k or give more chats"
            )
        rows = vectors[:k]
        along = rows @ difference
        largest = rows.gather(1, rows.abs().argmax(dim=1, keepdim=True)).squeeze(1)
        # Centred components can be blind to the difference of means; then their largest entry decides.
        blind = along.abs() <= 1e-9 * difference.norm()
        rows = rows * torch.where(torch.where(blind, largest, along) < 0, -1.0, 1.0).unsqueeze(1)
        held = float(((rows @ difference) ** 2).sum() / (difference @ difference).clamp_min(1e-300))
        return Found(
            rows.to(torch.float32),
            {
                "mean_difference_share": min(held, 1.0),
                "explained": [float(value) for value in values[:k] / self._total(about)],
                "rows": self._sum.count,
            },
        )

    def _about(self) -> Float[Tensor, "d"]:
        """The point, in the coordinates of the rows kept, about which components are taken."""
        if self._options.centred:
            return self._sum.mean
        return (
            torch.zeros(self._width, dtype=torch.float64)
            if self._origin is None
            else self._negative.mean - self._origin
        )

    def _fold(self) -> None:
        rows = torch.cat(self._rows)
        self._moment = rows.T @ rows if self._moment is None else self._moment.addmm_(rows.T, rows)
        self._rows, self._held = [], 0

    def _matrix(self, about: Float[Tensor, "d"]) -> Float[Tensor, "d d"]:
        """`Σ (x − a)(x − a)ᵀ` from the second moment."""
        if self._rows:
            self._fold()
        assert self._moment is not None
        mean, n = self._sum.mean, self._sum.count
        return self._moment - n * (torch.outer(mean, about) + torch.outer(about, mean) - torch.outer(about, about))

    def _total(self, about: Float[Tensor, "d"]) -> float:
        if self._moment is None:
            return float(((torch.cat(self._rows) - about) ** 2).sum())
        return float(self._matrix(about).trace())

    def _decompose(self, about: Float[Tensor, "d"]) -> tuple[Float[Tensor, "m"], Float[Tensor, "m d"]]:
        """Eigenvalues of `XᵀX`, descending, and their vectors as rows; at least `k` where there are as many."""
        k = self._options.k
        if self._moment is None:
            X = torch.cat(self._rows) - about
            if min(X.shape) <= EXACT_UP_TO or 3 * k > min(X.shape):
                _, sizes, vectors = torch.linalg.svd(X, full_matrices=False)
                return sizes**2, vectors
            return subspace_iteration(lambda Q: X.T @ (X @ Q), self._width, k, self._seed)
        S = self._matrix(about)
        if self._width <= EXACT_UP_TO or 3 * k > self._width:
            sizes, vectors = torch.linalg.eigh(S)
            return sizes.flip(0), vectors.T.flip(0)
        return subspace_iteration(lambda Q: S @ Q, self._width, k, self._seed)


def subspace_iteration(
    apply: Callable[[Tensor], Tensor], width: int, k: int, seed: int, tolerance: float = 1e-5, most: int = 200
) -> tuple[Float[Tensor, "m"], Float[Tensor, "m d"]]:
    """Top eigenpairs of a symmetric positive operator on `[d, m]` blocks, iterated until the subspace stands still.

    Randomised range finding (Halko, Martinsson and Tropp, 2011) with as many power steps as it takes for the top `k`
    to turn by less than `tolerance` radians in one step. Raises `DirectionsError` where it does not settle: then the
    k-th and the next component are equally strong, and there is no top `k`.
    """
    generator = torch.Generator().manual_seed(seed)
    Q = torch.linalg.qr(torch.randn((width, min(2 * k + 10, width)), generator=generator, dtype=torch.float64))[0]
    before: Tensor | None = None
    for _ in range(most):
        image = apply(Q)
        sizes, turn = torch.linalg.eigh(Q.T @ image)
        ritz = (Q @ turn).T.flip(0)
        if before is not None and float(principal_angles(ritz[:k], before).max()) < tolerance:
            return sizes.flip(0), ritz
        before = ritz[:k]
        Q = torch.linalg.qr(image)[0]
    raise DirectionsError(
        f"PCA: the top {k} components did not settle in {most} steps, because the next ones are as strong; change k"
    )
