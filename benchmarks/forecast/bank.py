"""Every row read once, plain and with each trait: any planted set is then put together from rows, without a model.

A row's activations, gradient sketch and loss do not depend on the rows beside it. So a set in which 5 % of the rows flatter is
60 rows picked from two files here, and hundreds of sets cost what their distinct rows cost.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from benchmarks.forecast.planting import CALIBRATION, TEST, Planted, gsm8k_rows, shown, word_problem_rows
from tropism.atomic import replacing
from tropism.data.batches import batches, padding_id
from tropism.data.chats import Chat, Example
from tropism.data.generation import GenerateOptions, generate
from tropism.data.render import render
from tropism.forecasting.sides import Reader
from tropism.probes.response_loss import as_measured, response_losses

PLAIN, ROWS, OWN = 100, 44, 32
"""Plain rows in a domain; of those the first are planted into; and of those the first are answered by the model itself."""


@dataclass(frozen=True, eq=False)
class Rows:
    """What was read of some rows."""

    h: np.ndarray
    """`[n, sites, d]`"""
    g: np.ndarray
    """Gradient sketches of length 1, `[n, 4096]`."""
    loss: np.ndarray
    texts: tuple[str, ...]
    chats: tuple[Chat, ...]

    def pick(self, places: Sequence[int]) -> "Rows":
        """Some of the rows."""
        at = list(places)
        return Rows(
            self.h[at], self.g[at], self.loss[at], tuple(self.texts[i] for i in at), tuple(self.chats[i] for i in at)
        )

    def and_(self, other: "Rows") -> "Rows":
        """These rows and others."""
        return Rows(
            np.concatenate([self.h, other.h]),
            np.concatenate([self.g, other.g]),
            np.concatenate([self.loss, other.loss]),
            self.texts + other.texts,
            self.chats + other.chats,
        )


@dataclass(frozen=True, eq=False)
class Bank:
    """The rows of one domain, in files under a folder."""

    domain: str
    reader: Reader
    folder: Path
    gsm8k: Path

    @cached_property
    def examples(self) -> list[Example]:
        """The plain rows."""
        return word_problem_rows(PLAIN) if self.domain == "word_problems" else gsm8k_rows(self.gsm8k, PLAIN)

    @property
    def traits(self) -> tuple[Planted, ...]:
        """What is planted here."""
        return CALIBRATION if self.domain == "word_problems" else TEST

    def plain(self) -> Rows:
        """All plain rows."""
        return self._rows("plain", [example.chat for example in self.examples])

    def with_(self, planted: Planted) -> Rows:
        """The first rows with a trait."""
        return self._rows(planted.trait, [shown(example, planted).chat for example in self.examples[:ROWS]])

    def own(self) -> Rows:
        """The model's own answers to the first prompts."""
        file = self.folder / f"{self.domain}_answers.json"
        prompts = [example.prompt for example in self.examples[:OWN]]
        if not file.is_file():
            options = GenerateOptions(max_new_tokens=self.reader.max_new_tokens, batch_size=16)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(generate(self.reader.model, self.reader.tokenizer, prompts, options)))
        answers = [text or "…" for text in json.loads(file.read_text())]
        return self._rows(
            "own",
            [(*prompt, {"role": "assistant", "content": text}) for prompt, text in zip(prompts, answers, strict=True)],
        )

    def _rows(self, name: str, chats: Sequence[Chat]) -> Rows:
        file = self.folder / f"{self.domain}_{name}.npz"
        texts = [str(chat[-1]["content"]) for chat in chats]
        if file.is_file():
            with np.load(file) as held:
                n = len(texts)
                if json.loads(str(held["texts"]))[:n] == texts:  # it may hold more rows
                    return Rows(
                        held["h"][:n].astype(float), held["g"][:n], held["loss"][:n], tuple(texts), tuple(chats)
                    )
        h, g, loss = self.reader.read(chats, "row"), self.reader.sketch(chats, "row"), self._losses(chats)
        with replacing(file) as path, path.open("wb") as target:
            np.savez(
                target, h=h.astype(np.float32), g=g.astype(np.float32), loss=loss, texts=np.array(json.dumps(texts))
            )
        print(f"read {self.domain}, {name}: {len(chats)} rows", flush=True)
        return Rows(h, g, loss, tuple(texts), tuple(chats))

    def _losses(self, chats: Sequence[Chat]) -> np.ndarray:
        import torch

        model, tokenizer = self.reader.model, self.reader.tokenizer
        rendered = [render(tokenizer, chat) for chat in chats]
        out = np.zeros(len(chats))
        with as_measured(model), torch.no_grad():
            for batch in batches(rendered, 8, pad_id=padding_id(tokenizer), device="cpu"):
                out[batch.places] = response_losses(model, batch).numpy()
        return out
