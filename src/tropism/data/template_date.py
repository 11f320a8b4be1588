"""Chat templates that write today's date, frozen: the same chat renders the same tomorrow.

Llama 3.2's and gpt-oss' templates call `strftime_now(FORMAT)`, which transformers answers with the clock. A run that is
resumed on another day, or evaluated on another day than it was trained, would see other prompts. `template_kwargs` may
therefore hold `frozen_date`, an ISO date, and every call is replaced by that date before the template is compiled. The
callable cannot be passed as a variable instead: transformers 5.23 lets nothing but plain data into a template.
"""

import re
from collections.abc import Mapping
from datetime import date, datetime, time
from functools import lru_cache
from typing import Any

from tropism.errors import DataError

FROZEN_DATE = "frozen_date"
"""The key of `template_kwargs` that holds the date, as in `2026-01-31`."""

_NOW = re.compile(r"strftime_now\(\s*(?P<quote>[\"'])(?P<format>.*?)(?P=quote)\s*\)")


def writes_date(template: str | Mapping[str, str] | None, template_kwargs: Mapping[str, Any]) -> bool:
    """Return whether a tokenizer's chat template asks for today's date.

    A template that takes `date_string` (Llama's) does not where `template_kwargs` gives it.

    >>> writes_date("{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}", {})
    True
    """
    texts = list(template.values()) if isinstance(template, Mapping) else [template or ""]
    given = "date_string" in template_kwargs
    return any("strftime_now(" in text and not (given and "date_string" in text) for text in texts)


def split_date(template_kwargs: Mapping[str, Any] | None) -> tuple[dict[str, Any], str | None]:
    """Return the variables for the template, and the frozen date, which is not one of them."""
    variables = dict(template_kwargs or {})
    frozen = variables.pop(FROZEN_DATE, None)
    return variables, None if frozen is None else str(frozen)


@lru_cache(maxsize=16)
def freeze(template: str, frozen: str) -> str:
    """Return the template with every `strftime_now(FORMAT)` replaced by the date in that format.

    Raises `DataError` where the date is not an ISO date, or a format is not written out in the template.

    >>> freeze("Today: {{ strftime_now('%d %b %Y') }}", "2024-07-26")
    "Today: {{ '26 Jul 2024' }}"
    """
    try:
        moment = datetime.combine(date.fromisoformat(frozen), time())
    except ValueError:
        raise DataError(
            f"template_kwargs: {FROZEN_DATE} must be a date like 2026-01-31, found {frozen!r}; give one, or leave it out"
        ) from None

    def written(call: re.Match[str]) -> str:
        return f"{call['quote']}{moment.strftime(call['format'])}{call['quote']}"

    text = _NOW.sub(written, template)
    if "strftime_now(" in text:
        raise DataError(
            "the chat template computes the format in which it writes today's date, so the date cannot be frozen; give "
            "a template that writes the format out"
        )
    return text
