"""Files and folders as sources: splits, ids, what an option means, and what is refused."""

import datasets
import pytest

import row_files
from tropism.data import sources
from tropism.errors import DataError


def rows(count, text="q"):
    return [{"prompt": f"{text} {i}", "completion": f"a {i}"} for i in range(count)]


@pytest.mark.parametrize("ending", row_files.ENDINGS)
def test_a_file_of_any_kind_is_a_source_with_stable_ids(tmp_path, ending):
    path = row_files.write(tmp_path / f"mine.{ending}", rows(10))
    examples = sources.load(str(path))
    assert [e.response for e in examples] == [f"a {i}" for i in range(10)]
    assert [e.id for e in examples] == [f"mine.{ending}/{i}" for i in range(1, 11)]
    part = sources.load(str(path), split="train[70%:]")
    assert part == examples[7:]
    assert sources.load(str(path), split="train[2:4]") == examples[2:4]
    some = sources.load(str(path), size=3, seed=1)
    assert len(some) == 3
    assert all(example in examples for example in some)


def test_two_parts_of_a_file_share_no_row(tmp_path):
    path = str(row_files.write(tmp_path / "a.jsonl", rows(100)))
    train, test = sources.load(path, split="train[:70%]"), sources.load(path, split="train[70%:]")
    assert (len(train), len(test)) == (70, 30)
    assert not {e.id for e in train} & {e.id for e in test}
    sampled = sources.load(path, split="train[70%:]", size=10)
    assert {e.id for e in sampled} < {e.id for e in test}


def test_another_split_than_train_is_no_split_of_a_file(tmp_path):
    path = str(row_files.write(tmp_path / "a.jsonl", rows(3)))
    with pytest.raises(DataError, match=r"a.jsonl is the split 'train' and has no split 'test'; .* in train\[90%:\]"):
        sources.load(path, split="test")


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet", "json.gz"])
def test_a_folder_has_a_file_for_each_split(tmp_path, ending):
    for split, count in (("train", 4), ("test", 2), ("my-own.part", 1)):
        row_files.write(tmp_path / f"{split}.{ending}", rows(count))
    assert [len(sources.load(str(tmp_path), split=split)) for split in ("train", "test", "my-own.part")] == [4, 2, 1]
    assert len(sources.load(str(tmp_path), split="train[:50%]")) == 2
    with pytest.raises(DataError, match=f"has no file for the split 'dev'; it has my-own.part.{ending}, test.{ending}"):
        sources.load(str(tmp_path), split="dev")


def test_a_copy_of_a_hub_repository_is_read_by_its_shards(tmp_path):
    (tmp_path / "data").mkdir()
    for shard in range(3):
        row_files.write(tmp_path / "data" / f"train-{shard:05}-of-00003.parquet", rows(4, f"shard {shard}"))
    row_files.write(tmp_path / "data" / "test-00000-of-00001.parquet", rows(1))
    examples = sources.load(str(tmp_path))
    assert [e.prompt[0]["content"] for e in examples[3:5]] == ["shard 0 3", "shard 1 0"]
    assert [e.id for e in examples[3:5]] == ["train/4", "train/5"]
    assert sources.load(str(tmp_path), split="train[3:9]") == examples[3:9]
    assert len(sources.load(str(tmp_path), split="test")) == 1
    assert len(sources.local_files(str(tmp_path))) == 4


def test_two_files_for_one_split_are_refused(tmp_path):
    row_files.write(tmp_path / "train.jsonl", rows(1))
    row_files.write(tmp_path / "train.csv", rows(1))
    with pytest.raises(DataError, match="has several files for the split 'train': train.csv, train.jsonl"):
        sources.load(str(tmp_path))


def test_an_empty_folder_says_so(tmp_path):
    with pytest.raises(DataError, match=r"has no file for the split 'train'; it has no file that ends in .jsonl"):
        sources.load(str(tmp_path))


def test_what_datasets_saved_is_a_folder_too(tmp_path):
    one = datasets.Dataset.from_list(rows(10))
    one.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict({"train": one, "test": one.select([9])}).save_to_disk(str(tmp_path / "two"))
    one.shuffle(seed=1).select(range(4)).save_to_disk(str(tmp_path / "shuffled"))
    assert [e.response for e in sources.load(str(tmp_path / "one"))] == [f"a {i}" for i in range(10)]
    assert [e.id for e in sources.load(str(tmp_path / "one"), split="train[8:]")] == ["one/train/8", "one/train/9"]
    assert [e.response for e in sources.load(str(tmp_path / "two"), split="test")] == ["a 9"]
    assert [e.response for e in sources.load(str(tmp_path / "shuffled"))] == one.shuffle(seed=1)[:4]["completion"]
    with pytest.raises(DataError, match="has no split 'dev'; it has train, test"):
        sources.load(str(tmp_path / "two"), split="dev")
    with pytest.raises(DataError, match="is the split 'train' and has no split 'test'"):
        sources.load(str(tmp_path / "one"), split="test")
    assert sources.local_files(str(tmp_path / "two"))


def test_a_damaged_saved_dataset_is_refused(tmp_path):
    (tmp_path / "state.json").write_text("{}")
    with pytest.raises(DataError, match="looks like a saved dataset and cannot be loaded"):
        sources.load(str(tmp_path))
