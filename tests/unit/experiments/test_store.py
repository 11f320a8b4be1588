"""What a killed command leaves in a run's folder is gone when the run is begun again, and is never stamped as its own."""

import json

import pytest

import tiny_experiment
from tropism.errors import RunFolderError
from tropism.experiments.file.experiment import Experiment
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


def test_a_folder_that_cannot_be_written_is_refused_before_anything_is_done(tmp_path, monkeypatch):
    file = tiny_experiment.write(tmp_path)
    experiment = Experiment.load(file)
    with pytest.raises(RunFolderError, match="cannot be made or written, since .*tiny.yaml is a file; give another"):
        Folder.of(file / "out", experiment)
    # Root may write to any folder, so what the system says of a read-only one is put in its place.
    monkeypatch.setattr("os.access", lambda path, mode: path != tmp_path)
    with pytest.raises(RunFolderError, match=f"since {tmp_path} may not be written to; give another with --out"):
        Folder.of(tmp_path / "new" / "out", experiment)
    assert not (tmp_path / "new").exists()
