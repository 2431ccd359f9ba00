"""Exports: what other engines make of them is what hooks do."""

from __future__ import annotations

import copy
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from steer.cli import main
from steer.edits import ZERO, Edit, LayerEdit, additive
from steer.errors import DataError, InputError
from steer.export.additive import offsets
from steer.export.checkpoint import bake
from steer.export.control_vector import (
    model_type,
    read_control_vector,
    write_control_vector,
)
from steer.hooks import attach
from steer.models import load_model
from tests.models import LAYERS, WIDTH, tiny
from tests.test_generation import an_edit
from tests.test_steerer import KEPT, TRAITS, a_steerer

IDS = torch.tensor([[1, 9, 20, 33, 47, 5, 60], [1, 8, 7, 6, 5, 4, 70]])


def steered(model, edit: Edit) -> torch.Tensor:
    with attach(model).steer(edit, scope="all"), torch.no_grad():
        return model.model(IDS).logits


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox"])
def test_a_baked_checkpoint_gives_the_logits_of_hooks(family, tmp_path):
    model, edit = tiny(family), an_edit(2)
    before = {name: value.clone() for name, value in model.model.state_dict().items()}
    settings = copy.deepcopy(model.model.config.to_dict())
    # What saving writes down, transformers 4 the second as well.
    settings["architectures"] = [type(model.model).__name__]
    types = {settings.pop("dtype"), "float32"}
    bake(model, offsets(edit), tmp_path / "baked", "brief")
    baked = load_model(tmp_path / "baked")
    with torch.no_grad():
        found = baked.model(IDS).logits
        plain = model.model(IDS).logits
    torch.testing.assert_close(found, steered(model, edit), atol=1e-4, rtol=1e-4)
    assert (found - plain).abs().max() > 0.1
    assert (tmp_path / "baked" / "README.md").read_text() == "brief\n"
    assert baked.tokenizer.get_vocab() == model.tokenizer.get_vocab()
    # The model itself is as it was.
    after = model.model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    now = model.model.config.to_dict()
    assert now.pop("dtype") in types
    assert now == settings
    assert [path.name for path in tmp_path.iterdir()] == ["baked"]


def test_what_cannot_be_baked_is_refused(tmp_path):
    with pytest.raises(InputError, match="no bias that ends in the stream"):
        bake(tiny("gemma2"), offsets(an_edit(1)), tmp_path / "x", "")
    model = tiny("llama")
    for bad in ({LAYERS: np.ones(WIDTH, np.float32)}, {0: np.ones(WIDTH + 1, np.float32)}):
        with pytest.raises(InputError, match="do not fit"):
            bake(model, bad, tmp_path / "x", "")
    (tmp_path / "there").mkdir()
    with pytest.raises(InputError, match="exists"):
        bake(model, offsets(an_edit(1)), tmp_path / "there", "")
    assert [path.name for path in tmp_path.iterdir()] == ["there"]
    assert model.layers[0].mlp.down_proj.bias is None and not model.model.config.mlp_bias


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_quantised_models_are_not_baked(tmp_path):
    declared = tiny("llama")
    declared.model.config.quantization_config = {"quant_method": "fp8"}
    int8 = tiny("llama")
    down = int8.layers[1].mlp.down_proj
    down.weight = torch.nn.Parameter(down.weight.to(torch.int8), requires_grad=False)
    dynamic = tiny("llama")
    torch.ao.quantization.quantize_dynamic(
        dynamic.model, {torch.nn.Linear}, torch.qint8, inplace=True
    )
    for model in (declared, int8, dynamic):
        with pytest.raises(InputError, match="quantised"):
            bake(model, offsets(an_edit(1)), tmp_path / "x", "")
    assert not list(tmp_path.iterdir())


def test_only_what_is_added_can_be_exported():
    edit = an_edit(1)
    found = offsets(edit)
    assert list(found) == list(edit.layers)
    for layer, vector in found.items():
        np.testing.assert_array_equal(vector, edit.layers[layer].e)
    with pytest.raises(InputError, match="does nothing"):
        offsets(ZERO)
    with pytest.raises(InputError, match=r"reads the stream at layers \[2\]"):
        one = np.ones((WIDTH, 1), np.float32)
        layer = LayerEdit(one[:, 0], one, one, np.ones(1, np.float32), np.array([True]))
        offsets(Edit({2: layer}))
    zero = additive({1: np.zeros(WIDTH, np.float32), 2: np.ones(WIDTH, np.float32)})
    assert list(offsets(zero)) == [2]


def test_a_control_vector_is_read_as_it_was_written(tmp_path):
    vectors = {2: np.arange(WIDTH, dtype=np.float32), 11: -np.ones(WIDTH, np.float32)}
    path = tmp_path / "v.gguf"
    write_control_vector(path, vectors, "llama")
    found, kind = read_control_vector(path)
    assert kind == "llama" and list(found) == [2, 11]
    for layer, vector in vectors.items():
        np.testing.assert_array_equal(found[layer], vector)
    # As the format's own reader sees it.
    reader = gguf.GGUFReader(path)
    architecture = reader.get_field("general.architecture")
    assert bytes(architecture.parts[-1]) == b"controlvector"
    assert {tensor.name for tensor in reader.tensors} == {"direction.2", "direction.11"}
    assert int(reader.get_field("controlvector.layer_count").parts[-1][0]) == 2


def test_unusable_control_vectors_are_refused(tmp_path):
    path = tmp_path / "v.gguf"
    with pytest.raises(InputError, match="layer 0"):
        write_control_vector(path, {0: np.ones(4, np.float32)}, "llama")
    with pytest.raises(InputError, match="at least one"):
        write_control_vector(path, {}, "llama")
    assert not path.exists()
    path.write_bytes(b"GGUF")
    with pytest.raises(DataError, match="not a readable GGUF"):
        read_control_vector(path)
    writer = gguf.GGUFWriter(path, "llama")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(DataError, match="no control vector"):
        read_control_vector(path)


def test_the_type_of_a_model():
    for family in ("llama", "qwen2", "gpt2", "gpt_neox"):
        assert model_type(tiny(family).fingerprint) == family


# --- The command ---------------------------------------------------------------------------------


@pytest.fixture()
def files(tmp_path: Path) -> Path:
    steerer = a_steerer()
    steerer.bundle.save(tmp_path / "bundle.safetensors")
    model = steerer.language_model
    model.model.save_pretrained(tmp_path / "model")
    model.tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path


def run(files: Path, *arguments: str) -> int:
    return main(["export", *arguments, "--bundle", str(files / "bundle.safetensors")])


def test_control_vectors_of_weights_and_of_entries(files, capsys):
    assert run(files, "gguf", str(files / "out")) == 0
    for number, edit in enumerate(KEPT, start=1):
        found, _ = read_control_vector(files / "out" / f"entry-{number:02d}.gguf")
        assert {i: v.tolist() for i, v in found.items()} == {
            i: layer.e.tolist() for i, layer in edit.layers.items()
        }
    path = files / f"warm{'-and-kind' * 9}.gguf"
    assert run(files, "repeng", str(path), "-w", "zest=2", "--strength", "0.5") == 0
    found, kind = read_control_vector(path)
    assert kind == "llama"
    for layer, vector in found.items():
        np.testing.assert_allclose(vector, 0.5 * TRAITS["zest"].layers[layer].e, rtol=1e-6)
    assert capsys.readouterr().out.endswith(f"\nzest 2 at strength 0.5 -> {path}\n")
    for wrong in (("--entry", "9"), ("-w", "zest=1", "--entry", "1"), ("-w", "nosuch=1")):
        assert run(files, "gguf", str(files / "x.gguf"), *wrong) == 2
    for needless in (("--model", str(files / "model")), ("--force",)):
        assert run(files, "gguf", str(files / "x.gguf"), "-w", "zest=1", *needless) == 2
        assert "are for checkpoints" in capsys.readouterr().err
    for unmixed in ((), ("--entry", "1")):
        assert run(files, "gguf", str(files / "x.gguf"), *unmixed, "--compose") == 2
        assert "--compose has no effect without weights" in capsys.readouterr().err
    assert not (files / "x.gguf").exists()


def test_a_checkpoint_of_an_entry(files, capsys):
    model = ("--model", str(files / "model"))
    baked = files / f"baked{'-and-named' * 9}"
    assert run(files, "hf", str(baked), "--entry", "2", *model) == 0
    assert capsys.readouterr().out == f"entry 2 -> {baked}\n"
    with torch.no_grad():
        found = load_model(baked).model(IDS).logits
    expected = steered(load_model(files / "model"), KEPT[1])
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert "entry 2" in (baked / "README.md").read_text()
    for refused in ((baked.name, "--entry", "2"), ("other",)):
        assert run(files, "hf", str(files / refused[0]), *refused[1:], *model) == 2
    assert not (files / "other").exists()


def test_what_would_be_lost_is_told_before_the_slow_part(files, capsys, monkeypatch):
    monkeypatch.setattr("steer.models.load_model", lambda _: pytest.fail("loaded a model"))
    (files / "there").mkdir()
    assert run(files, "hf", str(files / "there"), "--entry", "2") == 2
    assert "there exists; name a new folder" in capsys.readouterr().err
    (files / "calm.yml").touch()
    for form in ("gguf", "repeng"):
        for name in ("brief.gguf", "calm.yml"):
            assert run(files, form, str(files / name)) == 2
            assert "add -w TRAIT=NUMBER or --entry N, or name a folder" in capsys.readouterr().err
    assert not (files / "brief.gguf").exists()


def test_a_checkpoint_is_written_without_a_bar(tmp_path, capfd):
    bake(tiny("llama"), {1: np.ones(WIDTH, np.float32)}, tmp_path / "baked", "told")
    assert capfd.readouterr().err == ""


@pytest.mark.real
def test_the_packaged_model_baked(tmp_path):
    import steer
    from steer.mixture import mixture

    steerer = steer.load(dtype=torch.float32)
    model = steerer.language_model
    edit = mixture(steerer.bundle, {"brevity": 1})
    bake(model, offsets(edit), tmp_path / "brief", "brief")
    ids = model.tokenizer("How do I sleep better?", return_tensors="pt")["input_ids"]
    with attach(model).steer(edit, scope="all"), torch.no_grad():
        expected = model.model(ids).logits
    with torch.no_grad():
        found = load_model(tmp_path / "brief", dtype=torch.float32).model(ids).logits
    assert (found - expected).abs().max() < 1e-4
