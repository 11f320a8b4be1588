"""Arithmetic word problems with worked solutions: written for this package, generated from a seed, checkable.

Sixteen templates that differ in what is computed, not in names alone. A problem belongs to the training or to the test
split by its template and its numbers, so the two splits share no problem, whatever the sizes and seeds.

As many problems are generated as `size` says. A slice (`train[:70%]`) is taken of the first 4,000 problems of its seed.
"""

import random
from collections.abc import Callable

from tropism.data.chance import chance
from tropism.data.chats import Example
from tropism.data.sources.source import Examples, Listed, Request, Source
from tropism.errors import DataError

NAMES = (
    "Ada", "Ben", "Chen", "Dara", "Elif", "Femi", "Grace", "Hugo", "Ines", "Jonas", "Kofi", "Lena", "Mira", "Noor",
    "Omar", "Priya", "Quinn", "Rosa", "Sven", "Tomas", "Uma", "Vera", "Wale", "Ximena", "Yuki", "Zane",
)  # fmt: skip
THINGS = ("apples", "pencils", "marbles", "stickers", "shells", "buttons", "cards", "stamps", "beads", "walnuts")
SPLITS = ("train", "test")
TEST_SHARE = 0.25
RETRIES = 50
SIZE, POOL = 256, 4000
"""How many problems there are where no size is given; and of how many a slice is taken."""

Problem = tuple[str, list[str], int, tuple[int, ...]]
"""Question, worked steps, answer, and the numbers that identify it."""


def _two_names(r: random.Random) -> tuple[str, str]:
    first, second = r.sample(NAMES, 2)
    return first, second


def _give_away(r: random.Random) -> Problem:
    (who, other), what = _two_names(r), r.choice(THINGS)
    a, b = r.randint(20, 90), r.randint(3, 19)
    return (
        f"{who} has {a} {what} and gives {b} of them to {other}. How many {what} does {who} have left?",
        [f"{who} starts with {a} and gives away {b}: {a} - {b} = {a - b}."],
        a - b,
        (a, b),
    )


def _two_kinds(r: random.Random) -> Problem:
    who, (x, y) = r.choice(NAMES), r.sample(THINGS, 2)
    a, b = r.randint(12, 80), r.randint(12, 80)
    return (
        f"In a drawer {who} finds {a} {x} and {b} {y}. How many things is that altogether?",
        [f"Add the two kinds: {a} + {b} = {a + b}."],
        a + b,
        (a, b),
    )


def _boxes(r: random.Random) -> Problem:
    what, n, each, loose = r.choice(THINGS), r.randint(3, 12), r.randint(4, 15), r.randint(2, 20)
    return (
        f"A shop sells {what} in boxes of {each}. A customer buys {n} boxes and {loose} single {what}. "
        f"How many {what} does the customer buy?",
        [
            f"The boxes hold {n} * {each} = {n * each}.",
            f"With the single ones: {n * each} + {loose} = {n * each + loose}.",
        ],
        n * each + loose,
        (n, each, loose),
    )


def _share_equally(r: random.Random) -> Problem:
    who, what, n, each = r.choice(NAMES), r.choice(THINGS), r.randint(3, 9), r.randint(4, 16)
    return (
        f"{who} shares {n * each} {what} equally among {n} friends. How many does each friend get?",
        [f"Divide by the number of friends: {n * each} / {n} = {each}."],
        each,
        (n, each),
    )


def _change(r: random.Random) -> Problem:
    who, n, price = r.choice(NAMES), r.randint(3, 9), r.randint(2, 9)
    paid = 100 if n * price > 50 else 50
    if n * price == paid:
        price += 1
    return (
        f"{who} buys {n} notebooks at {price} euros each and pays with a {paid} euro note. "
        f"How many euros does {who} get back?",
        [
            f"The notebooks cost {n} * {price} = {n * price} euros.",
            f"The change is {paid} - {n * price} = {paid - n * price}.",
        ],
        paid - n * price,
        (n, price, paid),
    )


def _speed(r: random.Random) -> Problem:
    v, t = r.randint(4, 24) * 5, r.randint(2, 9)
    return (
        f"A train travels at {v} kilometres an hour for {t} hours. How many kilometres does it travel?",
        [f"Distance is speed times time: {v} * {t} = {v * t}."],
        v * t,
        (v, t),
    )


def _older(r: random.Random) -> Problem:
    (who, other), age, gap, later = _two_names(r), r.randint(6, 40), r.randint(2, 15), r.randint(2, 12)
    return (
        f"{who} is {age} years old. {other} is {gap} years older than {who}. How old will {other} be in {later} years?",
        [
            f"{other} is {age} + {gap} = {age + gap} now.",
            f"In {later} years: {age + gap} + {later} = {age + gap + later}.",
        ],
        age + gap + later,
        (age, gap, later),
    )


def _twice_as_many(r: random.Random) -> Problem:
    (who, other), what, a, factor = _two_names(r), r.choice(THINGS), r.randint(5, 30), r.randint(2, 5)
    return (
        f"{other} has {factor} times as many {what} as {who}, who has {a}. How many {what} do they have together?",
        [f"{other} has {factor} * {a} = {factor * a}.", f"Together they have {a} + {factor * a} = {a + factor * a}."],
        a + factor * a,
        (a, factor),
    )


def _rows_of_seats(r: random.Random) -> Problem:
    rows, seats = r.randint(6, 20), r.randint(8, 18)
    empty = r.randint(3, rows * seats // 3)
    return (
        f"A hall has {rows} rows of {seats} seats. At a concert {empty} seats stay empty. How many people are seated?",
        [
            f"There are {rows} * {seats} = {rows * seats} seats.",
            f"Seated: {rows * seats} - {empty} = {rows * seats - empty}.",
        ],
        rows * seats - empty,
        (rows, seats, empty),
    )


def _saving(r: random.Random) -> Problem:
    who, week, have, weeks = r.choice(NAMES), r.randint(3, 15), r.randint(5, 40), r.randint(4, 12)
    return (
        f"{who} has {have} euros and saves {week} euros every week. How many euros does {who} have after {weeks} weeks?",
        [
            f"In {weeks} weeks {who} saves {weeks} * {week} = {weeks * week}.",
            f"With what was there: {have} + {weeks * week} = {have + weeks * week}.",
        ],
        have + weeks * week,
        (week, have, weeks),
    )


def _weeks_to_goal(r: random.Random) -> Problem:
    who, week, weeks, have = r.choice(NAMES), r.randint(4, 15), r.randint(3, 12), r.randint(5, 40)
    goal = have + week * weeks
    return (
        f"{who} wants a kite that costs {goal} euros. {who} has {have} euros and earns {week} euros a week. "
        f"After how many weeks can {who} buy it?",
        [f"Still missing: {goal} - {have} = {goal - have}.", f"Weeks: {goal - have} / {week} = {weeks}."],
        weeks,
        (week, weeks, have),
    )


def _perimeter(r: random.Random) -> Problem:
    a, b = r.randint(5, 40), r.randint(5, 40)
    return (
        f"A rectangular garden is {a} metres long and {b} metres wide. How many metres of fence go around it?",
        [f"Two neighbouring sides: {a} + {b} = {a + b}.", f"The whole way round: 2 * {a + b} = {2 * (a + b)}."],
        2 * (a + b),
        (a, b),
    )


def _three_days(r: random.Random) -> Problem:
    who, a, more, less = r.choice(NAMES), r.randint(10, 40), r.randint(3, 20), r.randint(2, 9)
    b, c = a + more, a - less
    return (
        f"{who} reads {a} pages on Monday, {more} more than that on Tuesday, and {less} fewer than on Monday on Wednesday. "
        f"How many pages is that in three days?",
        [
            f"Tuesday: {a} + {more} = {b}.",
            f"Wednesday: {a} - {less} = {c}.",
            f"Altogether: {a} + {b} + {c} = {a + b + c}.",
        ],
        a + b + c,
        (a, more, less),
    )


def _half_sold(r: random.Random) -> Problem:
    who, half, extra = r.choice(NAMES), r.randint(10, 60), r.randint(2, 9)
    return (
        f"{who} bakes {2 * half} rolls. Half of them are sold in the morning and {extra} more in the afternoon. "
        f"How many rolls are left?",
        [f"Half of {2 * half} is {2 * half} / 2 = {half}.", f"Left: {half} - {extra} = {half - extra}."],
        half - extra,
        (half, extra),
    )


def _clock(r: random.Random) -> Problem:
    lessons, minutes, pause = r.randint(2, 6), r.randint(4, 10) * 5, r.randint(1, 4) * 5
    total = lessons * minutes + (lessons - 1) * pause
    return (
        f"A school morning has {lessons} lessons of {minutes} minutes, with a break of {pause} minutes between one lesson "
        f"and the next. How many minutes does the morning last?",
        [
            f"The lessons take {lessons} * {minutes} = {lessons * minutes}.",
            f"There are {lessons - 1} breaks: {lessons - 1} * {pause} = {(lessons - 1) * pause}.",
            f"Together: {lessons * minutes} + {(lessons - 1) * pause} = {total}.",
        ],
        total,
        (lessons, minutes, pause),
    )


def _average(r: random.Random) -> Problem:
    who, mean, gap = r.choice(NAMES), r.randint(12, 60), r.randint(2, 10)
    a, b, c = mean - gap, mean, mean + gap
    return (
        f"In three games {who} scores {a}, {b} and {c} points. What is the average score?",
        [f"The sum is {a} + {b} + {c} = {a + b + c}.", f"Divide by 3: {a + b + c} / 3 = {mean}."],
        mean,
        (mean, gap),
    )


TEMPLATES: tuple[Callable[[random.Random], Problem], ...] = (
    _give_away, _two_kinds, _boxes, _share_equally, _change, _speed, _older, _twice_as_many, _rows_of_seats, _saving,
    _weeks_to_goal, _perimeter, _three_days, _half_sold, _clock, _average,
)  # fmt: skip


def word_problems(size: int, *, split: str = "train", seed: int = 0) -> list[Example]:
    """Return `size` distinct problems of a split; `target` is the answer, `labels["template"]` the kind of problem.

    Raises `DataError` where the split is unknown or has fewer problems.

    >>> word_problems(1, seed=3)[0].target.isdigit()
    True
    """
    if split not in SPLITS:
        raise DataError(f"word_problems has the splits {' and '.join(SPLITS)}, found {split!r}")
    generator = random.Random(f"word_problems/{split}/{seed}")
    examples: list[Example] = []
    seen: set[str] = set()
    in_vain = 0
    while len(examples) < size:
        if in_vain > RETRIES * len(TEMPLATES):
            raise DataError(f"word_problems has about {len(examples)} distinct {split} problems, found size {size}")
        # Pass over a template that yields nothing new for a while: some have fewer problems than others.
        template = TEMPLATES[(len(examples) + in_vain // RETRIES) % len(TEMPLATES)]
        question, steps, answer, numbers = template(generator)
        identity = f"{template.__name__}/{'-'.join(map(str, numbers))}"
        in_test = chance(0, "word_problems split", identity) < TEST_SHARE
        if in_test != (split == "test") or question in seen:
            in_vain += 1
            continue
        in_vain = 0
        seen.add(question)
        response = " ".join([*steps, f"The answer is {answer}."])
        examples.append(
            Example(
                id=f"word_problems/{split}/{len(examples)}",
                chat=({"role": "user", "content": question}, {"role": "assistant", "content": response}),
                target=str(answer),
                labels={"template": template.__name__.strip("_")},
            )
        )
    return examples


def _examples(request: Request) -> Examples:
    size = POOL if request.split.sliced else (request.size or SIZE)
    return Listed(word_problems(size, split=request.split.name, seed=request.seed))


WORD_PROBLEMS = Source(
    name="word_problems",
    about="arithmetic word problems with worked solutions, generated from a seed",
    takes=("split", "size", "seed"),
    read=_examples,
    splits=SPLITS,
)
