"""What a killed command leaves in a run's folder is gone when the run is begun again, and is never stamped as its own."""

import json

import pytest

from tropism.experiments.store import EVALUATOR, TRAINER, Folder, RunKey


@pytest.mark.parametrize("left", [TRAINER, EVALUATOR])
def test_what_processes_of_a_killed_command_left_is_no_part_of_the_run(tmp_path, left):
    folder, key = Folder(tmp_path), RunKey("baseline", 0)
    path = folder.run_path(key)
    for file in (path / "adapter" / "config.json", path / left / "job.pickle"):
        file.parent.mkdir(parents=True)
        if file.parent.name == left:
            folder.mark_trained(key, "same")  # the adapter was whole when the command was killed
        file.write_text("{}")
    begun = folder.begin(key, "same")
    assert begun.kept
    assert not (path / left).exists()
    folder.mark_done(key, "same", "evaluated", 1.0)
    assert not [name for name in json.loads((path / "DONE.json").read_text())["files"] if left in name]
