"""Every exception that Tropism raises on purpose.

```text
TropismError
├── UsageError                 the caller can mend it; the message is the whole story (exit code 2, no traceback)
│   ├── SpecError              an experiment file: key, value found, what is allowed
│   ├── DataError              chats and their files: file, line, what is wrong
│   ├── ModelError             a model that cannot be found, loaded or understood
│   ├── HubOutOfReach          (a DataError and a ModelError) the hub cannot be asked from here, so nothing is known of a name
│   ├── AdapterMissing         (a ModelError and a KeyError) an adapter that the model does not have
│   ├── SiteError              a site or a layer selector that the model does not have
│   ├── DirectionsError        directions that are empty, zero, not finite, of another width
│   │   └── DirectionsMismatch ... or that were found on another model
│   ├── AttachError            a guard attached twice, detached out of order, or to what it cannot guard
│   ├── RunFolderError         an output folder that belongs to another experiment or is damaged
│   └── MissingExtra           an optional dependency that is not installed
├── GuardNotInForce            a guard was attached and did not do what it promises
│   └── LeakExceeded           the update constraint's ledger passed its tolerance
├── RunFailed                  one run could not finish (a loss that is not finite, say); the others go on
└── ClaimLost                  another process took this one for dead and does its work now
```
"""


class TropismError(Exception):
    """Base of every exception that Tropism raises on purpose."""


class UsageError(TropismError):
    """A user error; its message is one sentence with the parameter, the rule, the value found and the fix."""


class SpecError(UsageError):
    """An invalid experiment file."""


class DataError(UsageError):
    """Chats, or a file of chats, that cannot be used."""


class ModelError(UsageError):
    """A model that cannot be found, loaded or understood."""


class HubOutOfReach(DataError, ModelError):
    """The hub cannot be reached, so whether it has the model or the dataset is unknown."""


class AdapterMissing(ModelError, KeyError):
    """An adapter that the model does not have, looked up by name."""

    # A KeyError shows its message in quotes.
    __str__ = Exception.__str__


class SiteError(UsageError):
    """A site or a layer selector that the model does not have."""


class DirectionsError(UsageError):
    """Directions that are empty, zero, not finite, or of another width than the model."""


class DirectionsMismatch(DirectionsError):
    """Directions that were found on another model than the one they are used on."""


class AttachError(UsageError):
    """A guard attached twice, detached out of order, or attached to what it cannot guard."""


class RunFolderError(UsageError):
    """An output folder that belongs to another experiment, or that is damaged."""


class MissingExtra(UsageError, ImportError):
    """An optional dependency that is not installed; the message names the extra."""


class GuardNotInForce(TropismError):
    """A guard was attached and did not do what it promises: never a silent condition."""


class LeakExceeded(GuardNotInForce):
    """The update constraint's ledger passed its tolerance."""


class RunFailed(TropismError):
    """One run could not finish; it is marked failed and never averaged."""


class ClaimLost(TropismError):
    """Another process assumed that this one had died and took over its work."""
