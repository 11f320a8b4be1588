"""Does runs in this process, one after another, and shares them with other processes that work on the same folder.

A run that another process is at is left to it; in the end this process waits until each run has ended, whoever does it,
and takes over what a dead process left.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from accelerate.utils.memory import clear_device_cache

from tropism.errors import ClaimLost
from tropism.experiments import identity
from tropism.experiments.claims import POLL_S, Claim
from tropism.experiments.one_run import Outcome, run_one
from tropism.experiments.plan import needs
from tropism.experiments.prepared import Prepared
from tropism.experiments.progress import Progress
from tropism.experiments.store import Folder, RunKey
from tropism.experiments.store_claims import claims_of

SOON_S = 0.2
"""How often a worker looks whether another one's last run has ended."""


def work(
    prepared: Prepared,
    todo: Sequence[RunKey],
    before: Mapping[RunKey, str],
    progress: Progress,
    after_each: Callable[[], object],
    *,
    one_of_many: bool = False,
) -> list[Outcome]:
    """Do the runs of `todo` that nobody else does, and return how each of them ended.

    `before` says how each run had ended when the work was planned (see `last_attempts`): what has ended otherwise since was
    done, or failed, by another process. `after_each` is called after every run that this process did. `one_of_many` is a
    worker that was started with others: what those do is not its to say.
    """
    waits_for = _order(prepared, todo)
    pending, outcomes, told = list(todo), list[Outcome](), ""
    while pending:
        ended = []
        for key in list(pending):
            if any(other in pending for other in waits_for[key]):
                continue
            outcome = _attempt(prepared, key, before.get(key, ""), progress, (len(outcomes) + 1, len(todo)))
            if outcome is None:
                continue
            pending.remove(key)
            ended.append(outcome)
            outcomes.append(outcome)
            if outcome.elsewhere and one_of_many:
                continue
            if one_of_many:
                clear_device_cache()  # what this run freed is for whoever shares the GPU
            if outcome.elsewhere:
                progress.say(f"{key}: {outcome}, by another process")
            else:
                progress.finish(str(key), outcome.seconds, str(outcome))
                after_each()
        if pending and not ended:
            told = told if one_of_many else _tell(prepared.folder, pending, told, progress)
            time.sleep(SOON_S if one_of_many else POLL_S)
    return outcomes


def last_attempts(folder: Folder, keys: Sequence[RunKey]) -> dict[RunKey, str]:
    """Return which attempt each run's folder holds the end of, so that a later one can be told from it."""
    return {key: folder.attempt(key) for key in keys}


def _order(prepared: Prepared, todo: Sequence[RunKey]) -> dict[RunKey, list[RunKey]]:
    """Return, for each run, the runs before it in `todo` whose adapters it reads; alone, they have ended by its turn."""
    place = {key: index for index, key in enumerate(todo)}
    return {
        key: [
            other
            for other in needs(prepared.experiment, prepared.public, key)
            if place.get(other, len(todo)) < place[key]
        ]
        for key in todo
    }


def _attempt(
    prepared: Prepared, key: RunKey, before: str, progress: Progress, place: tuple[int, int]
) -> Outcome | None:
    """Do one run, unless another process is at it (None), or has done or failed it since."""
    claim = claims_of(prepared.folder.path).take(f"runs/{key}")
    if claim is None:
        return None
    with claim:
        # Looked at under the claim: until it was taken, the run may have been another's.
        folder = prepared.folder
        if folder.attempt(key) != before:
            if folder.is_done(key, identity.evaluate_identity(prepared.experiment, prepared.public, key)):
                return Outcome(key, 0.0, elsewhere=True, problems=folder.problems(key))
            if failure := folder.failure(key):
                return Outcome(key, 0.0, str(failure.get("error", "no reason was written")), elsewhere=True)
        progress.start(str(key), *place)
        try:
            return run_one(prepared, key, _Claimed(progress, claim), claim.check)
        except ClaimLost as lost:
            progress.say(f"{key}: {lost}")
            return None


@dataclass(frozen=True)
class _Claimed(Progress):
    """Passes progress on for as long as the run is this process's."""

    progress: Progress
    claim: Claim

    def say(self, line: str) -> None:
        self.progress.say(line)

    def phase(self, what: str, done: int, of: int, values: Mapping[str, float] | None = None) -> None:
        self.claim.check()
        self.progress.phase(what, done, of, values)


def _tell(folder: Folder, pending: Sequence[RunKey], told: str, progress: Progress) -> str:
    """Say whom this process waits for, where that is not what it said last."""
    claims = claims_of(folder.path)
    others = [f"{key} ({owner})" for key in pending if (owner := claims.holder(f"runs/{key}"))]
    line = f"waiting for {', '.join(others)}"
    if others and line != told:
        progress.say(line)
    return line if others else told
