"""Pushing: what goes to the hub is the deployable adapter and a true card, no secret and no folder of this machine."""

import json
import shutil
import time
import traceback
from functools import partial
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
import yaml
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import hub_server
import tiny
import tropism
import tropism as tp
from command import tropism as command
from tropism.cli.app import app
from tropism.errors import DirectionsError, ModelError, RunFolderError, UsageError
from tropism.experiments.after.finished import locate
from tropism.experiments.after.model_card import public
from tropism.experiments.after.push import push, push_all, write, write_all
from tropism.experiments.file.experiment import Experiment
from tropism.interventions.routing_modes import ablation_mode
from tropism.interventions.two_adapters import load_adapters
from tropism.models import load

pytestmark = pytest.mark.filterwarnings("ignore:Could not find a config file")
TOKEN = "hf_thisIsNobodysToken"
BASE = "nobody/tiny"


@pytest.fixture
def out(finished):
    return finished


@pytest.fixture(autouse=True)
def no_token(monkeypatch, tmp_path):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.chdir(tmp_path)


class FakeHub:
    """Keeps what it is given; `public` is a repository that is there and public."""

    def __init__(self, public=False, error=None):
        self.public, self.error, self.calls, self.files, self.tokens = public, error, [], {}, []

    def __call__(self, token):
        self.tokens.append(token)
        return self

    def create_repo(self, repo_id, *, private, exist_ok):
        self.calls.append(("create", repo_id, private, exist_ok))
        if self.error is not None:
            raise self.error
        self.private = bool(private) and not self.public
        return f"https://hub.test/{repo_id}"

    def repo_info(self, repo_id):
        return SimpleNamespace(private=self.private)

    def upload_folder(self, *, repo_id, folder_path, commit_message):
        from pathlib import Path

        root = Path(folder_path)
        self.calls.append(("upload", repo_id))
        self.files = {str(f.relative_to(root)): f.read_bytes() for f in root.rglob("*") if f.is_file()}


def table_of(card):
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in card.splitlines() if line.startswith("| ")
    ]
    head = next(i for i, row in enumerate(rows) if row[0] == "metric")
    return [dict(zip(rows[head], row, strict=True)) for row in rows[head + 2 :] if len(row) == len(rows[head])]


def logits(model):
    with torch.no_grad():
        return model.eval()(input_ids=tiny.batch()["input_ids"]).logits


def test_a_routed_runs_adapter_is_the_model_without_its_forget_adapter(out, tmp_path):
    files = write(out / "routed" / "seed-0", "me/tiny", tmp_path / "push", base_model=BASE)
    assert files == ["README.md", "adapter_config.json", "adapter_model.safetensors", "experiment.yaml"]
    model = locate(out)[0].experiment.model
    pushed = PeftModel.from_pretrained(load(model)[0], str(tmp_path / "push"))
    both = load_adapters(load(model)[0], out / "routed" / "seed-0" / "adapter")
    with ablation_mode(both.eval(), "forget_ablated"):
        assert torch.equal(logits(pushed), logits(both))
    assert not torch.equal(logits(pushed), logits(both))
    config = json.loads((tmp_path / "push" / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == (BASE, None)


def test_the_card_says_what_was_trained_and_what_was_measured(out, tmp_path):
    write(out / "routed" / "seed-0", "me/tiny", tmp_path / "push", base_model=BASE)
    card = (tmp_path / "push" / "README.md").read_text()
    _, front, body = card.split("---\n", 2)
    assert yaml.safe_load(front) == {
        "base_model": BASE, "library_name": "peft", "pipeline_tag": "text-generation",
        "tags": ["tropism", "lora", "gradient-routing"],
    }  # fmt: skip
    trained = yaml.safe_load(body.split("```yaml\n")[1].split("```")[0])
    assert (trained["condition"], trained["seed"]) == ("routed", 0)
    assert trained["guard"] == {"gradient_routing": {}}
    assert trained["data"]["transform"] == {"mixture": {"fraction": 0.5, "labelled": 1.0}}
    assert trained["train"]["max_steps"] == 2
    assert 'PeftModel.from_pretrained(base, "me/tiny")' in body
    assert "the `forget` adapter, into which the labelled examples were routed, is not here" in body
    assert f"Tropism {tropism.__version__}" in body
    assert "tropism run experiment.yaml --only baseline,routed" in body
    assert "- This is seed 0" in body
    import pandas as pd

    results = pd.read_csv(out / "results.csv")
    for row in table_of(card):
        metric = row["metric"].split(" (")[0].replace(" ", "_")
        mine = results[
            (results["condition"] == "routed") & (results["metric"] == metric) & (results["mode"] == "forget_ablated")
        ]
        assert row["this adapter (seed 0)"].split()[0] == f"{mine['value'].item():.2f}"
        assert (row["n"], row["unscored"]) == (str(mine["n"].item()), str(mine["unscored"].item()))
        base = results[(results["condition"] == "base") & (results["metric"] == metric)]
        assert row["untrained"].split()[0] == f"{base['value'].item():.2f}"
        assert row["baseline, all seeds"] != "—"
    assert len(table_of(card)) == 2


def test_of_two_seeds_the_card_tells_this_ones_numbers_from_all(out, tmp_path):
    write(out / "baseline" / "seed-1", "me/tiny", tmp_path / "push", base_model=BASE)
    card = (tmp_path / "push" / "README.md").read_text()
    import pandas as pd

    results = pd.read_csv(out / "results.csv")
    losses = results[(results["condition"] == "baseline") & (results["metric"] == "loss")].set_index("seed")["value"]
    row = next(row for row in table_of(card) if row["metric"] == "loss")
    assert row["this adapter (seed 1)"].split()[0] == f"{losses[1]:.2f}" != f"{losses.mean():.2f}"
    assert row["baseline, all seeds"].split()[0] == f"{losses.mean():.2f}"
    assert "[" in row["this adapter (seed 1)"]
    assert "This condition is the experiment's baseline: it has whatever trait its data teach." in card
    assert "2 finished seeds of baseline" in card


def test_what_is_pushed_names_no_folder_of_this_machine_and_can_be_run_again(out, tmp_path):
    write(out / "prompted" / "seed-0", "me/tiny", tmp_path / "push", base_model=BASE)
    for file in (tmp_path / "push").iterdir():
        assert str(out.parent).encode() not in file.read_bytes(), file.name
    again = Experiment.load(tmp_path / "push" / "experiment.yaml")
    assert again.model == BASE
    assert again.conditions == locate(out)[0].experiment.conditions
    card = (tmp_path / "push" / "README.md").read_text()
    assert "system_prompt: Shout | `so`." in card
    assert "It was trained with a system prompt" in card


def test_paths_of_the_experiment_file_lose_their_folders(out, tmp_path):
    shutil.copytree(out, tmp_path / "mine")
    file = tmp_path / "mine" / "experiment.yaml"
    held = yaml.safe_load(file.read_text())
    held["data"]["train"]["path"] = "/home/me/secret.jsonl"
    file.write_text(yaml.safe_dump(held), encoding="utf-8")
    write(tmp_path / "mine" / "prompted" / "seed-0", "me/tiny", tmp_path / "push", base_model=BASE)
    for name in ("README.md", "experiment.yaml"):
        text = (tmp_path / "push" / name).read_text(encoding="utf-8")
        assert "/home/me" not in text
        assert "path: secret.jsonl" in text


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("/home/me/data/chats.jsonl", "chats.jsonl"), ("~/data/chats.jsonl", "chats.jsonl"), ("C:\\me\\chats.jsonl", "chats.jsonl"),
        ("owner/name", "owner/name"), ("data/chats.jsonl", "data/chats.jsonl"), ("/reset", "/reset"), (3, 3),
        ({"a": ["/home/me/x.py", None]}, {"a": ["x.py", None]}),
    ],
)  # fmt: skip
def test_of_an_absolute_path_the_last_part_remains(value, shown):
    assert public(value) == shown


def test_push_uploads_what_write_writes_with_the_token_and_writes_it_nowhere(out, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub = FakeHub()
    pushed = push(out / "routed" / "seed-0", "me/tiny", base_model=BASE, hub=hub)
    assert str(pushed) == "https://hub.test/me/tiny (private)"
    assert hub.tokens == [TOKEN]
    assert hub.calls == [("create", "me/tiny", True, True), ("upload", "me/tiny")]
    write(out / "routed" / "seed-0", "me/tiny", tmp_path / "push", base_model=BASE)
    assert hub.files == {f.name: f.read_bytes() for f in (tmp_path / "push").iterdir()}
    assert not any(TOKEN.encode() in content for content in hub.files.values())
    again = FakeHub()
    pushed = push(out / "routed", "me/tiny", public=True, base_model=BASE, hub=again)
    assert again.calls[0] == ("create", "me/tiny", False, True)
    assert str(pushed) == "https://hub.test/me/tiny (public)"


def test_the_token_may_come_from_a_dotenv_file(out, tmp_path):
    (tmp_path / ".env").write_text(f"HF_TOKEN={TOKEN}\n", encoding="utf-8")
    hub = FakeHub()
    push(out / "baseline" / "seed-0", "me/tiny", base_model=BASE, hub=hub)
    assert hub.tokens == [TOKEN]


def test_without_a_token_nothing_is_asked_of_the_hub(out):
    hub = FakeHub()
    with pytest.raises(UsageError, match="push needs a hub token: set HF_TOKEN"):
        push(out / "baseline" / "seed-0", "me/tiny", base_model=BASE, hub=hub)
    assert (hub.tokens, hub.calls) == ([], [])


def test_a_public_repository_gets_nothing_that_was_to_be_private(out, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub = FakeHub(public=True)
    with pytest.raises(
        UsageError, match="the repository me/tiny is there and public, so nothing was uploaded; pass --public"
    ):
        push(out / "baseline" / "seed-0", "me/tiny", base_model=BASE, hub=hub)
    assert hub.files == {}


def test_what_the_hub_refuses_is_one_sentence_without_the_token(out, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub = FakeHub(error=PermissionError(f"403 Forbidden for {TOKEN}\nsecond line"))
    with pytest.raises(
        UsageError, match="the hub did not take me/tiny: 403 Forbidden for …; run the same command again"
    ) as raised:
        push(out / "baseline" / "seed-0", "me/tiny", base_model=BASE, hub=hub)
    assert raised.value.__suppress_context__


def test_what_cannot_be_pushed_is_said_and_writes_nothing(out, tmp_path):
    mine = tmp_path / "mine"
    shutil.copytree(out, mine)
    (mine / "prompted/seed-0/DONE.json").unlink()
    (mine / "prompted/seed-0/FAILED.json").write_text('{"error": "the loss is not finite"}', encoding="utf-8")
    shutil.rmtree(mine / "two/seed-0/adapter/forget")
    target = tmp_path / "push"
    for path, options, error, said in (
        (out, {}, UsageError, "is an experiment's folder; give the folder of one run, finished are .*routed/seed-0"),
        (out / "base", {}, UsageError, "is the untrained model"),
        (out / "plain", {}, RunFolderError, "there is no folder"),
        (mine / "prompted/seed-0", {}, RunFolderError, r"failed \(the loss is not finite\)"),
        (mine / "two/seed-0", {}, RunFolderError, "has no adapter stored"),
        (out / "two/seed-0", {}, UsageError, "has two adapters and nothing was routed"),
        (out / "routed/seed-0", {"base_model": None}, UsageError, "is a local folder .'model'., which nobody else has"),
        (out / "routed/seed-0", {"base_model": "tiny"}, UsageError, "--base-model must be OWNER/NAME, found 'tiny'"),
        (out / "routed/seed-0", {"repo": "tiny"}, UsageError, "--repo must be OWNER/NAME, found 'tiny'"),
        (out / "routed/seed-0", {"repo": "me/a/b"}, UsageError, "--repo must be OWNER/NAME, found 'me/a/b'"),
        (out / "routed/seed-0", {"repo": "../me"}, UsageError, "--repo must be OWNER/NAME"),
    ):
        given = {"base_model": BASE, "repo": "me/tiny"} | options
        with pytest.raises(error, match=said):
            write(path, given["repo"], target, base_model=given["base_model"])
        assert not target.exists()
    target.mkdir()
    (target / "mine.txt").write_text("x", encoding="utf-8")
    with pytest.raises(UsageError, match="--out: .* is there and not empty"):
        write(out / "routed/seed-0", "me/tiny", target, base_model=BASE)
    assert [file.name for file in target.iterdir()] == ["mine.txt"]
    (target / "mine.txt").unlink()
    write(out / "routed/seed-0", "me/tiny", target, base_model=BASE)  # an empty folder is taken
    assert (target / "README.md").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "push"]


def with_start(out, mine, kind="plain"):
    """A copy of the experiment that starts from an adapter: a run's own, or one on the output embedding."""
    shutil.copytree(out, mine)
    held = yaml.safe_load((mine / "experiment.yaml").read_text())
    held |= {"start_from": "first", "adapters": {"first": {"data": {"source": "word_problems", "size": 8}}}}
    (mine / "experiment.yaml").write_text(yaml.safe_dump(held), encoding="utf-8")
    target = mine / "adapters/first/adapter"
    if kind == "plain":
        shutil.copytree(out / "baseline/seed-1/adapter", target)
    elif kind == "head":
        base = load(held["model"])[0]
        adapted = get_peft_model(base, LoraConfig(r=2, target_modules=["lm_head"]))
        adapted.save_pretrained(str(target), save_embedding_layers=False)
    return mine


def test_an_adapter_to_start_from_goes_with_it(out, tmp_path):
    mine = with_start(out, tmp_path / "mine", "missing")
    with pytest.raises(RunFolderError, match="start_from: the adapter 'first' is not in the folder"):
        write(mine / "baseline/seed-0", "me/tiny", tmp_path / "push", base_model=BASE)
    assert not (tmp_path / "push").exists()
    shutil.copytree(out / "baseline/seed-1/adapter", mine / "adapters/first/adapter")
    files = write(mine / "baseline/seed-0", "me/tiny", tmp_path / "push", base_model=BASE)
    assert "start_from/adapter_model.safetensors" in files
    assert 'PeftModel.from_pretrained(base, "me/tiny", subfolder="start_from").merge_and_unload()' in (
        tmp_path / "push" / "README.md"
    ).read_text(encoding="utf-8")


def test_on_an_embedding_that_may_be_tied_the_card_merges_as_training_did(out, tmp_path):
    mine = with_start(out, tmp_path / "mine", "head")
    write(mine / "baseline/seed-0", "me/tiny", tmp_path / "push", base_model=BASE)
    card = (tmp_path / "push" / "README.md").read_text(encoding="utf-8")
    code = card.split("```python\n")[1].split("```")[0]
    assert ").merge_and_unload()" not in code
    assert 'base = merge_adapters(PeftModel.from_pretrained(base, "me/tiny", subfolder="start_from"))' in code
    compile(code, "card", "exec")


def test_an_adapter_that_is_not_what_its_configuration_calls_for_is_not_pushed(out, tmp_path):
    mine = with_start(out, tmp_path / "mine")
    file = mine / "adapters/first/adapter/adapter_model.safetensors"
    tensors = load_file(file)
    save_file(dict(sorted(tensors.items())[::2]), file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match="its tensors must be those that its configuration calls for .* missing"):
        write(mine / "baseline/seed-0", "me/tiny", tmp_path / "push", base_model=BASE)
    assert not (tmp_path / "push").exists()
    save_file({key: tensor[:, :-1].contiguous() for key, tensor in tensors.items()}, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match="it was trained on a model of another size"):
        write(mine / "baseline/seed-0", "me/tiny", tmp_path / "push", base_model=BASE)


def test_directions_go_with_their_provenance_and_their_validity(out, tmp_path):
    model, _ = load(locate(out)[0].experiment.model)
    found = tp.Directions({site: torch.ones(2, 32) + torch.eye(2, 32) for site in tp.sites(model, "1,2")})
    made = found.with_provenance(method="by hand", data="/home/me/secret.jsonl")
    file = made.save(tmp_path / "caps.safetensors")
    with pytest.raises(UsageError, match="does not say of which model on the hub its directions are"):
        write(file, "me/caps", tmp_path / "push")
    assert write(file, "me/caps", tmp_path / "push", base_model=BASE) == ["README.md", "directions.safetensors"]
    again = tp.Directions.load(tmp_path / "push" / "directions.safetensors")
    assert all(torch.equal(again.vectors[site], rows) for site, rows in made.vectors.items())
    card = (tmp_path / "push" / "README.md").read_text(encoding="utf-8")
    assert "2 of width 32 at each of 2 sites, resid_post.1 to resid_post.2." in card
    assert "They were not validated" in card
    assert "/home/me" not in card
    assert 'tp.Directions.load(hf_hub_download("me/caps", "directions.safetensors"))' in card
    other = tmp_path / "other.safetensors"
    save_file({"x": torch.zeros(2)}, other)
    with pytest.raises(DirectionsError):
        write(other, "me/caps", tmp_path / "no", base_model=BASE)


@pytest.fixture
def hub(monkeypatch):
    """The stub, as huggingface_hub's own client talks to it: over HTTP, without Xet, and without waiting between tries."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr("huggingface_hub.utils._http.time", SimpleNamespace(sleep=lambda _: None, time=time.time))
    with hub_server.serve() as server:
        server.client = lambda token: huggingface_hub.HfApi(endpoint=server.url, token=token)
        yield server


def test_several_go_up_private_and_arrive_byte_for_byte(out, tmp_path, hub):
    several = {"me/routed": out / "routed/seed-0", "me/plain": out / "baseline/seed-0"}
    told = []
    push_all(several, base_model=BASE, hub=hub.client, report=told.append)
    assert told == [f"{hub.url}/{name} (private)" for name in several]
    assert hub.repositories == dict.fromkeys(several, True)
    for name, path in several.items():
        target = tmp_path / name.replace("/", "-")
        write(path, name, target, base_model=BASE)
        assert hub.files[name] == {file.name: file.read_bytes() for file in target.iterdir()}
    assert hub.tokens <= {f"Bearer {TOKEN}", None}
    assert not any(TOKEN.encode() in content for files in hub.files.values() for content in files.values())
    push(out / "routed/seed-0", "me/open", public=True, base_model=BASE, hub=hub.client)
    assert hub.repositories["me/open"] is False


def test_runs_prepared_adapters_and_directions_go_up_together(out, tmp_path, hub):
    file = tmp_path / "caps.safetensors"
    tp.Directions({tp.Site(1): torch.eye(32)[:1]}).save(file)
    prepared = shutil.copytree(out, tmp_path / "runs") / "adapters" / "shout"
    shutil.copytree(tmp_path / "runs" / "baseline" / "seed-0", prepared)
    experiment = yaml.safe_load((tmp_path / "runs" / "experiment.yaml").read_text())
    experiment["adapters"] = {"shout": {"data": experiment["data"]["train"]}}
    (tmp_path / "runs" / "experiment.yaml").write_text(yaml.safe_dump(experiment))
    several = {"me/run": out / "baseline/seed-0/adapter", "me/shout": prepared, "me/caps": file}
    push_all(several, base_model=BASE, hub=hub.client)
    assert hub.repositories == dict.fromkeys(several, True)
    assert {"adapter_model.safetensors", "README.md"} <= set(hub.files["me/run"]) & set(hub.files["me/shout"])
    assert set(hub.files["me/caps"]) == {"directions.safetensors", "README.md"}
    assert "The adapter shout of the experiment" in hub.files["me/shout"]["README.md"].decode()


def test_of_several_either_all_are_written_or_none(out, tmp_path):
    several = {"me/good": (out / "baseline/seed-0", tmp_path / "x"), "me/bad": (tmp_path / "no", tmp_path / "y")}
    with pytest.raises(RunFolderError, match="there is no folder"):
        write_all(several, base_model=BASE)
    assert list(tmp_path.iterdir()) == []
    done = command("push", f"good={out / 'baseline/seed-0'}", f"bad={tmp_path / 'no'}", "--namespace", "me",
                   "--base-model", BASE, "--dry-run", cwd=tmp_path)  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert list(tmp_path.iterdir()) == []
    done = command("push", f"good={out / 'baseline/seed-0'}", f"other={out / 'routed/seed-0'}", "--namespace", "me",
                   "--base-model", BASE, "--dry-run", "--out", "look", cwd=tmp_path)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert {folder.name for folder in (tmp_path / "look").iterdir()} == {"good", "other"}
    assert done.stdout.count("## What was measured") == 2


def test_an_adapter_from_elsewhere_is_uploaded_as_it_is(tmp_path):
    config = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
    get_peft_model(tiny.model(), config).save_pretrained(tmp_path / "theirs")
    with pytest.raises(UsageError, match=r"no experiment here trained.*: hf upload me/x .*theirs"):
        write(tmp_path / "theirs", "me/x", tmp_path / "o", base_model=BASE)


@pytest.mark.parametrize(
    ("where", "failure", "said"),
    [
        (("POST", "/api/repos/create"), [401, 401], "401 .*; the token in HF_TOKEN is not accepted"),
        (("POST", "/api/repos/create"), [503], "503 .*; run the same command again"),
        (("POST", "/commit/"), [409], "409 .*; another upload to it may be going on; run the same command again"),
        (("POST", "/commit/"), [500], "500 .*; run the same command again: what has arrived is not sent twice"),
        (("PUT", "/objects/"), ["cut"] * 9, "run the same command again"),
    ],
)
def test_a_hub_that_fails_is_one_sentence_without_the_token_and_the_same_command_goes_on(
    out, hub, where, failure, said
):
    hub.fail[where] = failure
    with pytest.raises(UsageError, match=f"the hub did not take me/tiny: .*{said}") as raised:
        push(out / "baseline/seed-0", "me/tiny", base_model=BASE, hub=hub.client)
    shown = "".join(traceback.format_exception(raised.value))
    assert TOKEN not in shown
    assert "\n" not in str(raised.value)
    assert "me/tiny" not in hub.files
    hub.fail.clear()
    hub.requests.clear()
    push(out / "baseline/seed-0", "me/tiny", base_model=BASE, hub=hub.client)
    assert "adapter_model.safetensors" in hub.files["me/tiny"]
    sent = [path for method, path in hub.requests if method == "PUT"]
    assert len(sent) == (0 if where == ("POST", "/commit/") else 1)  # what had arrived is not sent again


def test_of_several_the_message_says_what_had_arrived(out, hub):
    hub.fail["POST", "/api/models/me/two/commit/"] = [500]
    with pytest.raises(UsageError, match="did not take me/two: .*; pushed before it: http://.*/me/one$"):
        push_all({"me/one": out / "baseline/seed-0", "me/two": out / "routed/seed-0"}, base_model=BASE, hub=hub.client)


def test_a_hub_that_answers_with_a_foreign_address_is_a_sentence(out, hub):
    hub.address = "https://elsewhere.test/x/y/z"
    with pytest.raises(
        UsageError, match="the hub did not take me/tiny: .*; its answer is not the hub's; check HF_ENDPOINT"
    ):
        push(out / "baseline/seed-0", "me/tiny", base_model=BASE, hub=hub.client)
    assert hub.files == {}


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["a", "b", "--repo", "me/x"], "--repo is for one PATH"),
        (["a", "--namespace", "me"], "give one PATH and --repo OWNER/NAME, or NAME=PATH for each"),
        (["x=a", "y=b"], "give one PATH and --repo OWNER/NAME, or NAME=PATH for each"),
        (["x=a", "x=b", "--namespace", "me"], "'x' is given twice"),
    ],
)
def test_which_goes_where_must_be_said_once(args, said):
    with pytest.raises(UsageError, match=said):
        CliRunner().invoke(app, ["push", *args], catch_exceptions=False)


def test_the_command(out, tmp_path):
    tropism_push = partial(command, "push", cwd=tmp_path)
    run = str(out / "routed" / "seed-0")
    done = tropism_push(run, "--repo", "me/tiny-model", "--base-model", BASE, "--dry-run")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("nothing was uploaded; tiny-model has the files for me/tiny-model: README.md, ")
    assert "adapter_model.safetensors  " in done.stdout
    assert "## What was measured" in done.stdout  # the card
    again = tropism_push(run, "--repo", "me/tiny-model", "--base-model", BASE, "--dry-run")
    assert (again.returncode, again.stderr) == (
        2, "error: --out: tiny-model is there and not empty; give a folder that is not there yet\n",
    )  # fmt: skip
    wrong = tropism_push(run, "--repo", "me/tiny-model", "--base-model", BASE, "--out", "x")
    assert wrong.returncode == 2
    assert "--out needs --dry-run" in wrong.stderr
    secret = tropism_push(run, "--repo", "me/tiny-model", "--base-model", BASE)
    assert secret.returncode == 2
    assert "set HF_TOKEN" in secret.stderr
