"""The arrows between modules: no circle, type-checking imports included."""

import grimp
import pytest


@pytest.fixture(scope="module")
def graph():
    return grimp.build_graph("tropism", exclude_type_checking_imports=False, cache_dir=None)


def circles(graph: grimp.ImportGraph) -> list[list[str]]:
    """The sets of modules that import one another, directly or through others (Tarjan's strongly connected components)."""
    number: dict[str, int] = {}
    lowest: dict[str, int] = {}
    waiting: list[str] = []
    found: list[list[str]] = []

    def visit(start: str) -> None:
        # By hand and not by recursion: a chain of imports can be deeper than Python's stack.
        path = [(start, iter(sorted(graph.find_modules_directly_imported_by(start))))]
        number[start] = lowest[start] = len(number)
        waiting.append(start)
        while path:
            module, imported = path[-1]
            following = next(imported, None)
            if following is None:
                path.pop()
                if path:
                    lowest[path[-1][0]] = min(lowest[path[-1][0]], lowest[module])
                if lowest[module] == number[module]:
                    members = waiting[waiting.index(module) :]
                    del waiting[waiting.index(module) :]
                    if len(members) > 1:
                        found.append(sorted(members))
            elif following not in number:
                number[following] = lowest[following] = len(number)
                waiting.append(following)
                path.append((following, iter(sorted(graph.find_modules_directly_imported_by(following)))))
            elif following in waiting:
                lowest[module] = min(lowest[module], number[following])

    for module in sorted(graph.modules):
        if module not in number:
            visit(module)
    return found


def test_no_modules_import_one_another(graph):
    assert circles(graph) == []


def test_a_circle_would_be_seen(graph):
    import copy

    broken = copy.deepcopy(graph)
    broken.add_import(importer="tropism.errors", imported="tropism.data.render")
    (members,) = circles(broken)
    assert {"tropism.errors", "tropism.data.render"} <= set(members)
