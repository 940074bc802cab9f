"""The table of tiles: lookups, choices that do not follow noise, and a stored table that fits the steps it is for."""

import importlib
import json
from typing import NamedTuple

import pytest
import torch

from flashmoe_nb import bench, cli, reference, tune


def row(step="step", head_dim=64, causal=False, seqlen=512, choice=1, **median_ms):
    return dict(step=step, key=dict(head_dim=head_dim, causal=causal), near=dict(seqlen=seqlen), choice=dict(n=choice),
                median_ms=median_ms or {"(1,)": 1.0})


@pytest.fixture
def stored(tmp_path, monkeypatch):
    "A function that stores rows as the table of sm_90."
    monkeypatch.setattr(tune, "table_path", lambda architecture: tmp_path / f"{architecture}.json")
    tune._index.cache_clear()
    yield lambda rows: tune.write_table(rows, tmp_path / "sm_90.json")
    tune._index.cache_clear()


def test_lookup_takes_the_nearest_ratio(stored):
    stored([row(seqlen=512, choice=1), row(seqlen=8192, choice=2), row(seqlen=512, causal=True, choice=3)])
    key = dict(causal=False, head_dim=64)  # in any order
    found = [tune.lookup("step", key, dict(seqlen=seqlen))["n"] for seqlen in (0, 1, 2048, 2049, 10**9)]
    assert found == [1, 1, 1, 2, 2]
    assert tune.lookup("step", key | dict(causal=True), dict(seqlen=9999)) == dict(n=3)
    assert tune.lookup("step", key) == dict(n=1)  # nothing said of the length: the smallest problem


def test_where_the_table_is_silent_the_rule_decides(stored):
    key = dict(head_dim=64, causal=False)
    assert tune.lookup("step", key, dict(seqlen=64)) is None  # no file
    stored([row()])
    assert tune.lookup("step", key, dict(seqlen=64)) == dict(n=1)  # written in this process, seen in this process
    assert tune.lookup("step", key, dict(seqlen=64), architecture="sm_80") is None
    assert tune.lookup("step", key | dict(head_dim=96), dict(seqlen=64)) is None
    assert tune.lookup("other", key, dict(seqlen=64)) is None


def test_a_choice_cannot_be_changed_by_its_reader(stored):
    stored([row()])
    tune.lookup("step", row()["key"])["n"] = 7
    assert tune.lookup("step", row()["key"]) == dict(n=1)


def test_choices_are_listed_once(stored):
    stored([row(choice=2), row(seqlen=1024, choice=1), row(seqlen=2048, choice=2), row(step="other", choice=3)])
    assert tune.choices("step") == [dict(n=2), dict(n=1)] and tune.choices("step", "sm_80") == []


def test_pick_prefers_the_rule_within_noise():
    assert tune.pick({"rule": 1.0149, "b": 1.0}) == "rule" and tune.pick({"rule": 1.0151, "b": 1.0}) == "b"
    assert tune.pick({"rule": 2.0, "b": 1.01, "c": 1.0}) == "b" and tune.pick({"a": 1.01, "b": 1.0}, noise=0) == "b"


def test_disagreements():
    old = [row(choice=1), row(seqlen=1024, choice=2), row(seqlen=2048, choice=9)]
    times = {"(1,)": 1.02, "(2,)": 1.0}
    assert tune.disagreements(old, [row(choice=2, **times)]) == []  # another choice, within the noise
    slower, = tune.disagreements(old, [row(choice=2, **times | {"(1,)": 1.2})])
    assert "seqlen=512" in slower and "20.0% slower" in slower
    gone, missing = tune.disagreements(old, [row(seqlen=2048, **times), row(seqlen=4096, **times)])
    assert "no candidate any more" in gone and "not in the table" in missing


class Tile(NamedTuple):
    n: int


def with_tile(tile, q, k, v, *, causal=False):
    if tile.n == 4: raise NotImplementedError("no kernel of 4")
    out = reference.attention(q, k, v, causal=causal, dtype=torch.float32).to(q.dtype)
    return out + 1 if tile.n == 2 else out


def test_tune_shape_times_what_is_right(capsys):
    step = tune.Tunable("step", lambda head_dim, seqlen, causal: [Tile(4), Tile(2), Tile(1), Tile(3)], with_tile)
    shape = bench.AttentionShape(1, 2, 16, 32, True)
    found = tune.tune_shape(step, shape, samples=3, warmup=1, device="cpu")
    assert set(found["median_ms"]) == {"(1,)", "(3,)"} and found["choice"]["n"] in (1, 3)
    assert found["key"] == dict(head_dim=32, causal=True) and found["near"] == dict(seqlen=16)
    printed = capsys.readouterr().out
    assert "no kernel of 4" in printed and "wrong: (2,)" in printed
    wrong = step._replace(candidates=lambda *shape: [Tile(2)])
    with pytest.raises(RuntimeError, match="no candidate is right"):
        tune.tune_shape(wrong, shape, samples=3, device="cpu")


def test_the_tuner_knows_what_can_be_tuned(monkeypatch):
    monkeypatch.setattr(tune, "tunable_steps", lambda: {"step": tune.Tunable("step", None, None)})
    with pytest.raises(ValueError, match="other offers no candidates; there are step"):
        tune.tune(["other"])


def test_the_stored_tables_fit_their_steps():
    "Every stored choice is offered by its step today, and listed among the instances that are checked for spills."
    tables = sorted(tune.table_path("sm_90").parent.glob("*.json"))
    steps = tune.tunable_steps()
    for table in tables:
        stored = json.loads(table.read_text())
        assert stored["env"]["gpu"] and stored["rows"], f"{table} was not measured on a GPU"
        for entry in stored["rows"]:
            shape = entry["key"]["head_dim"], entry["near"]["seqlen"], entry["key"]["causal"]
            offered = [tile._asdict() for tile in steps[entry["step"]].candidates(*shape)]
            assert entry["choice"] in offered, f"{table.name}: {entry['step']} does not offer {entry['choice']}: tune again"
    for name, step in steps.items():
        module = importlib.import_module(f"flashmoe_nb.attention.{name}")
        first = step.candidates(64, 1024, False)
        assert len(first) == len(set(first)) >= 2, f"{name}: candidates are to differ"
        assert callable(module.instances)


# The command


@pytest.fixture
def on_gpu(monkeypatch, tmp_path, stored):
    monkeypatch.setattr(cli.importlib.import_module("flashmoe_nb.cuda"), "available_backend", lambda: "cuda")
    monkeypatch.setattr(tune, "tunable_steps", lambda: {"step": None, "other": None})
    monkeypatch.setattr(tune, "current_architecture", lambda: "sm_90")
    measured = [row(choice=2, **{"(1,)": 1.5, "(2,)": 1.0})]
    monkeypatch.setattr(tune, "tune", lambda steps: measured)
    return tmp_path / "sm_90.json"


def test_tune_writes_and_keeps_what_it_did_not_measure(on_gpu, stored, capsys):
    stored([row(choice=1), row(step="other", choice=5)])
    assert cli.main(["tune", "step"]) == 0
    assert {(r["step"], r["choice"]["n"]) for r in json.loads(on_gpu.read_text())["rows"]} == {("other", 5), ("step", 2)}
    assert "1 choices" in capsys.readouterr().out


def test_tune_check_writes_nothing(on_gpu, stored, capsys):
    stored([row(choice=1)])
    before = on_gpu.read_bytes()
    assert cli.main(["tune", "--check"]) == 1 and on_gpu.read_bytes() == before
    assert "50.0% slower" in capsys.readouterr().out
    stored([row(choice=2)])
    assert cli.main(["tune", "--check"]) == 0
    assert "1 of 1 stored choices are as fast as the best." in capsys.readouterr().out


def test_tune_says_what_it_cannot_do(on_gpu, monkeypatch, capsys):
    assert cli.main(["tune", "nothing"]) == 2
    assert "no candidates from 'nothing'; there are step, other" in capsys.readouterr().err
    monkeypatch.setattr(cli.importlib.import_module("flashmoe_nb.cuda"), "available_backend", lambda: "emulator")
    assert cli.main(["tune"]) == 2
    assert "no CUDA device" in capsys.readouterr().err
