"""A finder that asks for more directions than its chats can hold is refused before weights are loaded."""

import pytest

import command
import tiny_experiment

SITES = "    sites: 1,2\n"


@pytest.mark.parametrize(("k", "code"), [(9, 0), (10, 2)])
def test_more_components_than_chats_are_refused_by_validate(tmp_path, k, code):
    # Nine of the contrast's twelve pairs find the directions, and three validate them.
    file = tiny_experiment.write(tmp_path, (SITES, SITES + f"    finder: {{pca: {{k: {k}}}}}\n"))
    done = command.tropism("validate", file)
    assert done.returncode == code, done.stderr
    said = "directions.caps: PCA.k must be at most the 9 components that 9 rows can hold, found 10"
    assert (said in " ".join(done.stderr.split())) == (code == 2)
