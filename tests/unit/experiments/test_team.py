"""What processes of a team tell one another: what each found, and in all what one raised."""

import threading

import pytest

from tropism.errors import DataError, RunFailed
from tropism.experiments import team
from tropism.experiments.team import ALONE, Team


def together(monkeypatch, *finds):
    """Let a thread be each process; returns what each got or raised."""
    barrier, board, ended = threading.Barrier(len(finds)), [None] * len(finds), [None] * len(finds)
    rank_of = threading.local()

    def tell_all(told, mine):
        board[rank_of.rank] = mine
        barrier.wait(10)
        told[:] = board

    def be(rank):
        rank_of.rank = rank
        try:
            ended[rank] = Team(rank, len(finds)).gathered(finds[rank])
        except (DataError, RunFailed, RuntimeError, MemoryError, ValueError) as error:
            ended[rank] = error

    monkeypatch.setattr(team, "_tell_all", tell_all)
    threads = [threading.Thread(target=be, args=(rank,)) for rank in range(len(finds))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return ended


def raises(error):
    def find():
        raise error

    return find


def test_each_has_what_all_found_in_the_order_of_ranks(monkeypatch):
    assert together(monkeypatch, lambda: "a", lambda: "b", lambda: "c") == [["a", "b", "c"]] * 3
    assert ALONE.gathered(lambda: 3) == [3]
    assert [number for number in range(5) if Team(1, 2).takes(number)] == [1, 3]


@pytest.mark.parametrize(
    ("error", "kind", "said"),
    [
        (DataError("line 3 is no chat"), DataError, "line 3 is no chat"),
        (RuntimeError("CUDA out of memory. Tried"), MemoryError, "CUDA out of memory. Tried"),
        (ValueError("no number"), RunFailed, r"ValueError: no number \(test_team.py line \d+\)"),
    ],
)
def test_what_one_raises_is_raised_in_all(monkeypatch, error, kind, said):
    mine, other = together(monkeypatch, lambda: "a", raises(error))
    assert other is error
    assert type(mine) is kind
    with pytest.raises(kind, match=said):
        raise mine


def test_alone_an_error_is_what_it_is():
    with pytest.raises(ValueError, match="no number"):
        ALONE.gathered(raises(ValueError("no number")))
