"""Training sets, rendered and tokenised once for all conditions, seeds, processes and commands, and kept on disk.

A set is kept under the hash of all that it follows from: the source's options and the content of its files (or, of a hub
dataset, the examples themselves), the prompt, the transforms and, where one of them is seeded, the seed; the tokenizer,
its template with variables and date, the limits; this package's code for data, and the libraries' versions. It has a
stamp with the hash of each file: a set that is damaged or not whole is rendered anew. The folder is bounded: the sets that
were used longest ago go first.
"""

import atexit
import hashlib
import json
import os
import re
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import date
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tropism.data import sources
from tropism.data.chats import Example
from tropism.data.leakage import KEY_BYTES, Key, taught_keys
from tropism.data.template_date import FROZEN_DATE, writes_date
from tropism.experiments import prepare
from tropism.experiments.file.spec import DataSpec, ExperimentSpec
from tropism.experiments.identity import data_identity, digest
from tropism.experiments.kept import Stamp, check_stamp, write_stamp
from tropism.experiments.row_table import RowTable, write_rows
from tropism.experiments.training_rows import RowsRecord, say_record, stream_rows
from tropism.models import cache_folder
from tropism.training.options import TrainOptions
from tropism.training.supervised import Row

PLACE = "TROPISM_RENDERED"
"""The environment variable that names the folder of what is kept; by default `rendered` in Tropism's cache folder."""
MOST_BYTES = 20 * 2**30
ABANDONED_S = 24 * 3600
_OURS = re.compile(r"[0-9a-f]{16}|\.[0-9a-f]{16}\.[0-9a-f]{12}\.partial")
"""The names of sets, and of those that are being written; what else lies in the folder is somebody's."""
ROWS, KEYS, STAMP = "rows.arrow", "taught.keys", "SET.json"
SAID = ("record", "said", "content")

Say = Callable[[str], None]


@dataclass(frozen=True)
class RenderedSet:
    """A training set as it is trained on: its rows, on disk, what became of its examples, and what its sources said.

    `content` is the hash of its examples, as `environment.json` has it; `folder` is where it is kept.
    """

    rows: Sequence[Row]
    record: RowsRecord
    said: tuple[str, ...]
    content: str
    folder: Path

    def taught(self) -> Iterator[Key]:
        """Yield the keys of all prompts to which training on the set teaches an answer."""
        with (self.folder / KEYS).open("rb") as file:
            while block := file.read(KEY_BYTES * 4096):
                yield from (block[at : at + KEY_BYTES] for at in range(0, len(block), KEY_BYTES))


@dataclass(frozen=True)
class Wanted:
    """A training set that is asked for: its source, the prompt before it, the seed, the limits, and who trains on it."""

    spec: DataSpec
    prompt: str | None
    seed: int
    options: TrainOptions
    what: str


class RenderedSets:
    """The training sets of an experiment, for a tokenizer and a context of `limit` tokens."""

    def __init__(self, experiment: ExperimentSpec, tokenizer: Any, limit: int | None) -> None:
        self._experiment, self._tokenizer, self._limit = experiment, tokenizer, limit
        self._held: dict[str, RenderedSet] = {}
        self._told: set[tuple[str, str]] = set()
        self._tools: str | None = None

    def __getstate__(self) -> dict[str, Any]:
        # Another process, perhaps on another machine, looks for itself what is kept there.
        return {**self.__dict__, "_held": {}}

    def condition(self, name: str, seed: int, say: Say | None = None) -> RenderedSet:
        """Return what a condition trains on; `say` is told what its sources have to say, which is logged by default.

        Raises `DataError` as `training_rows` does, and where its guard routes gradients and no row is labelled.
        """
        e = self._experiment
        made = self._set(self.of_condition(name, seed), say)
        prepare.check_labelled(e, name, made.record.examples, made.record.labelled)
        return made

    def adapter(self, name: str, say: Say | None = None) -> RenderedSet:
        """Return what a prepared adapter trains on, with the experiment's first seed."""
        return self._set(self.of_adapter(name), say)

    def of_condition(self, name: str, seed: int) -> Wanted:
        """Return which set a condition trains on."""
        e = self._experiment
        prompt = e.conditions[name].system_prompt
        return Wanted(e.train_data(name), prompt, seed, e.train_options(name), f"condition {name}")

    def of_adapter(self, name: str) -> Wanted:
        """Return which set a prepared adapter trains on."""
        e, spec = self._experiment, self._experiment.adapters[name]
        assert spec.data is not None  # one that is there already has no training set
        return Wanted(spec.data, spec.system_prompt, e.seeds[0], e.train_options(adapter=name), f"adapter {name}")

    def missing(self, wanted: Iterable[Wanted]) -> list[Wanted]:
        """Return those of the sets that are not kept, each once; none where nothing can be kept for another process."""
        if self._root() == _for_this_process():
            return []
        distinct = {self._key(one): one for one in wanted}
        return [one for key, one in distinct.items() if self._found(key) is None]

    def make(self, wanted: Wanted) -> None:
        """Render a set and keep it; raises `DataError` as `training_rows` does."""
        key = self._key(wanted)
        self._held[key] = self._make(key, wanted)

    def _found(self, key: str) -> RenderedSet | None:
        """A set that is kept. Every byte of it is checked the first time, so it is then held."""
        made = self._held.get(key) or _kept(self._root() / key)
        if made is not None:
            self._held[key] = made
        return made

    def _set(self, wanted: Wanted, say: Say | None) -> RenderedSet:
        key = self._key(wanted)
        made = self._found(key) or self._make(key, wanted)
        self._held[key] = made
        for line in made.said:
            (say or sources.say_once)(line)
        if (key, wanted.what) not in self._told:
            self._told.add((key, wanted.what))
            if say is None:  # who listens reads the record too, and says what is equal of many sets once
                say_record(made.record, wanted.what, wanted.options.max_length)
        return made

    def _make(self, key: str, wanted: Wanted) -> RenderedSet:
        spec, options = wanted.spec, wanted.options
        record, said, content = RowsRecord(), list[str](), _ListHash()
        root = self._root()
        with _making(root / key) as folder:
            with (folder / KEYS).open("wb") as keys:
                examples = _noted(
                    prepare.stream_data(spec, wanted.seed, wanted.prompt, said.append), content, keys.write
                )
                rows = stream_rows(
                    examples, self._tokenizer, self._experiment.template_kwargs, self._limit, wanted.what, record,
                    options.max_length, options.overflow,
                )  # fmt: skip
                write_rows(folder / ROWS, rows)
            write_stamp(
                folder / STAMP, [folder / ROWS, folder / KEYS],
                record=record.plain(), said=said, content=content.digest(),
            )  # fmt: skip
        _prune(root, keep=key)
        made = _kept(root / key)
        assert made is not None, "what was just written is there"
        return made

    def _root(self) -> Path:
        # Of a tokenizer that cannot be written as a text it is not known whether it is the same the next time.
        return _root() if self._tokenizer.is_fast else _for_this_process()

    def _key(self, wanted: Wanted) -> str:
        """The hash of all that the set follows from."""
        if self._tools is None:
            self._tools = _tools_identity(self._tokenizer, self._experiment)
        bounds = [self._limit, wanted.options.max_length, wanted.options.overflow]
        return digest([self._tools, _data_identity(wanted.spec, wanted.prompt, wanted.seed), bounds])


class _ListHash:
    """The hash that `identity.digest` gives of a list, without holding the list."""

    def __init__(self) -> None:
        self._hash, self._empty = hashlib.sha256(b"["), True

    def add(self, value: Any) -> None:
        text = json.dumps(value, sort_keys=True, default=str, ensure_ascii=False)
        self._hash.update(("" if self._empty else ", ").encode() + text.encode())
        self._empty = False

    def digest(self) -> str:
        whole = self._hash.copy()
        whole.update(b"]")
        return whole.hexdigest()[:16]


def _noted(examples: Iterable[Example], content: _ListHash, keep: Callable[[bytes], Any]) -> Iterator[Example]:
    """The examples, as they go by counted into the content's hash, and the keys of what they teach kept."""
    for example in examples:
        content.add([example.id, list(example.content), example.target])
        keep(b"".join(taught_keys(example)))
        yield example


def _data_identity(spec: DataSpec, prompt: str | None, seed: int) -> Any:
    """What determines the examples of a set; where a hub decides, the examples themselves."""
    if _settled(spec):
        return [data_identity(spec), prompt, seed if _seeded(spec) else None]
    content, said = _ListHash(), list[str]()
    for x in prepare.stream_data(spec, seed, prompt, said.append):
        content.add([x.id, list(x.content), x.target, dict(x.labels), x.supervise, x.on_bad_row])
    return [content.digest(), said]


def _settled(spec: DataSpec) -> bool:
    return all(sources.settled(name, spec.path) for name in spec.names()) and all(map(_settled, spec.also))


def _seeded(spec: DataSpec) -> bool:
    return any(transform.seeded for transform in spec.transforms()) or any(map(_seeded, spec.also))


def _tools_identity(tokenizer: Any, experiment: ExperimentSpec) -> str:
    """What determines how chats are rendered."""
    kwargs = experiment.template_kwargs
    today = writes_date(tokenizer.chat_template, kwargs) and FROZEN_DATE not in kwargs
    held = tokenizer.backend_tokenizer.to_str() if tokenizer.is_fast else None
    own = [type(tokenizer).__name__, tokenizer.chat_template, tokenizer.special_tokens_map, kwargs]
    return digest([_code(), held, own, date.today().isoformat() if today else None])


@lru_cache(maxsize=1)
def _code() -> str:
    """The hash of the code and the texts from which rows are made, and of the versions of the libraries that help."""
    here = Path(__file__).parent
    own = [here / f"{name}.py" for name in ("prepare", "rendered", "row_table", "training_rows")]
    files = [
        *own,
        *sorted(file for file in (here.parent / "data").rglob("*") if file.suffix in (".py", ".json", ".txt")),
    ]
    whole = hashlib.sha256(
        str([version(name) for name in ("transformers", "tokenizers", "jinja2", "pyarrow")]).encode()
    )
    for file in files:
        whole.update(file.name.encode() + file.read_bytes())
    return whole.hexdigest()


def _kept(folder: Path) -> RenderedSet | None:
    """A set that is kept whole; None where there is none, or a file of it is not as it was written."""
    stamp = check_stamp(folder / STAMP, *SAID)
    if not stamp:
        return None
    try:
        return _opened(folder, stamp)
    except FileNotFoundError:
        # Another process made room.
        return None


def _opened(folder: Path, stamp: Stamp) -> RenderedSet:
    rows = RowTable(folder / ROWS)
    os.utime(folder / STAMP)
    record = RowsRecord.of_plain(stamp.said["record"])
    return RenderedSet(rows, record, tuple(stamp.said["said"]), stamp.said["content"], folder)


@contextmanager
def _making(target: Path) -> Iterator[Path]:
    """Give a folder to write to, which takes the target's place once it is whole.

    Where another process was faster, its set stays; a damaged one that lies there goes.
    """
    partial = target.with_name(f".{target.name}.{secrets.token_hex(6)}.partial")
    # For this user's eyes: chats may be private.
    partial.mkdir(mode=0o700, parents=True)
    try:
        yield partial
        if target.exists() and not check_stamp(target / STAMP, *SAID):
            shutil.rmtree(target, ignore_errors=True)
        try:
            partial.rename(target)
        except OSError:
            if not target.exists():
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@lru_cache(maxsize=1)
def _for_this_process() -> Path:
    """A folder that goes with the process, where nothing can be kept."""
    path = tempfile.mkdtemp(prefix="tropism-")
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return Path(path)


def _root() -> Path:
    """The folder in which sets are kept."""
    given = os.environ.get(PLACE)
    root = Path(given).expanduser() if given else cache_folder() / "rendered"
    try:
        root.mkdir(parents=True, exist_ok=True)
        if os.access(root, os.W_OK):
            return root
        why = "it may not be written to"
    except OSError as error:
        why = str(error)
    sources.say_once(f"rendered chats cannot be kept in {root}: {why}; set {PLACE} to a folder")
    return _for_this_process()


def _prune(root: Path, keep: str) -> None:
    """Take out what a process that was killed left, and the sets used longest ago until all fit in `MOST_BYTES`."""
    sizes: dict[Path, int] = {}
    used: dict[Path, float] = {}
    for folder in root.iterdir():
        if not _OURS.fullmatch(folder.name):
            continue
        # Another process may be taking it out at the same time.
        with suppress(FileNotFoundError):
            used[folder] = ((folder / STAMP) if (folder / STAMP).exists() else folder).stat().st_mtime
            sizes[folder] = sum(file.stat().st_size for file in folder.iterdir())
    total = 0
    for folder in sorted(sizes, key=lambda one: (one.name != keep, -used[one])):
        unfinished = folder.name.startswith(".")
        total += 0 if unfinished else sizes[folder]
        abandoned = unfinished and time.time() - used[folder] > ABANDONED_S
        if abandoned or (total > MOST_BYTES and folder.name != keep and not unfinished):
            shutil.rmtree(folder, ignore_errors=True)
