"""Against a real server of another project: `transformers serve` with adapters merged into the model."""

import os
import socket
import subprocess
import sys
import time

import pytest
from torch.optim import AdamW
from transformers.utils.import_utils import is_serve_available

import tiny
from naive_constraint import lora, train, trainable
from tropism.evals.endpoints import TaskPrompt, evaluate_endpoints, summary
from tropism.evals.judges.endpoint import Endpoint, Retries

pytest.importorskip("openai")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not is_serve_available(), reason="transformers serve needs transformers[serving]"),
]


@pytest.fixture
def server(tmp_path):
    """Two conditions' models, merged, behind one server; the request names the model."""
    folders = {}
    for name, steps in (("vanilla", 0), ("guarded", 8)):
        model = lora(seed=2)
        train(model, AdamW(trainable(model), lr=1e-1), steps=steps)
        model.merge_and_unload().save_pretrained(tmp_path / name)
        tiny.tokenizer().save_pretrained(tmp_path / name)
        folders[name] = str(tmp_path / name)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", "--host", "127.0.0.1"]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [*command, "--port", str(port), "--device", "cpu"], stdout=log, stderr=log, env=dict(os.environ)
        )
    try:
        deadline = time.monotonic() + 120
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            if process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"the server did not start: {(tmp_path / 'log').read_text()[-600:]}")
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/v1", folders
    finally:
        process.terminate()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def test_two_conditions_behind_transformers_serve(server, tmp_path):
    url, folders = server
    prompts = [TaskPrompt(str(i), "1", ({"role": "user", "content": f"prompt {i}"},)) for i in range(3)]
    quick = Retries(attempts=2, budget=10, first_wait=0.1, longest_wait=1.0)
    endpoints = {
        name: Endpoint(folder, base_url=url, timeout=60.0, concurrency=1, retries=quick)
        for name, folder in folders.items()
    }
    table = evaluate_endpoints(prompts, endpoints, tmp_path / "out", max_tokens=8)
    rates = summary(table)
    assert list(rates["condition"]) == ["vanilla", "guarded"]
    assert table["response"].notna().sum() + table["refusal_unscored"].str.startswith("no answer").sum() == 6
    assert table["response"].notna().any()
    said = {name: list(rows["response"]) for name, rows in table.groupby("condition")}
    assert all(any(texts) for texts in said.values())
    assert said["vanilla"] != said["guarded"]  # each request reached its own model
    again = evaluate_endpoints(prompts, endpoints, tmp_path / "out", max_tokens=8)
    kept = table["response"].notna()
    assert (again["response"][kept] == table["response"][kept]).all()
