"""Collators of each kind that trainers have: padding on either side, joining rows (padding-free), chosen and rejected."""

import torch

seen: list[list[dict]] = []
"""The rows that a collator was given."""


def padding(side):
    def collate(rows):
        seen.append(rows)
        width = max(len(row["input_ids"]) for row in rows)
        batch = {"input_ids": [], "attention_mask": [], "labels": []}
        for row in rows:
            n = len(row["input_ids"])
            gap = [0] * (width - n)
            for name, values in (
                ("input_ids", row["input_ids"]),
                ("attention_mask", [1] * n),
                ("labels", row["labels"]),
            ):
                batch[name].append([*values, *gap] if side == "right" else [*gap, *values])
        return {name: torch.tensor(values) for name, values in batch.items()}

    return collate


def joining(rows):
    ids = [token for row in rows for token in row["input_ids"]]
    positions = [place for row in rows for place in range(len(row["input_ids"]))]
    return {"input_ids": torch.tensor([ids]), "position_ids": torch.tensor([positions])}


def doubling(rows):
    one = padding("right")(rows)
    return {name: torch.cat([values, values]) for name, values in one.items()}
