"""Torch sources: both exporters and the Hugging Face directory name the same points; factories; what cannot be read."""

from __future__ import annotations

import json
import shutil
import textwrap

import numpy as np
import pytest
import torch
import transformers
from torch.func import functional_call

from edgelora.bundle import Bundle
from edgelora.cli.main import main
from edgelora.errors import ConversionError
from edgelora_tools.compile import ConvertOptions, convert
from edgelora_tools.sources import open_source
from edgelora_tools.sources.torch_export import EXPORTERS, module_source
from tests import families
from tests.convert.bundles import assert_checked, base_outputs, relative, train_feeds

LINEARS = [
    *(
        f"encoder.layer.{layer}.{name}"
        for layer in range(2)
        for name in (
            "attention.self.query",
            "attention.self.key",
            "attention.self.value",
            "attention.output.dense",
            "intermediate.dense",
            "output.dense",
        )
    ),
    "pooler.dense",
]


@pytest.fixture(scope="session")
def bert():
    return families.build("bert")


@pytest.fixture(scope="session")
def bert_folder(bert, tmp_path_factory):
    """The model as a Hugging Face directory, with a tokenizer."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    folder = tmp_path_factory.mktemp("hub") / "tiny-bert"
    bert.save_pretrained(folder)
    words = {"[PAD]": 0, "[UNK]": 1, **{f"w{i}": i + 2 for i in range(90)}}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["[PAD]"])
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="session")
def bert_bundles(bert, bert_folder, tmp_path_factory):
    """By source: exports of the module by both exporters, and the directory."""
    folder = tmp_path_factory.mktemp("bert")
    options = ConvertOptions(task="feature-extraction", target_modules="all-linear")
    made = {}
    for exporter in EXPORTERS:
        convert(families.source("bert", exporter), folder / f"{exporter}.edgelora", options)
        made[exporter] = Bundle.open(folder / f"{exporter}.edgelora")
    convert(open_source(str(bert_folder)), folder / "folder.edgelora", options)
    made["folder"] = Bundle.open(folder / "folder.edgelora")
    return made


def test_the_same_points_from_every_source(bert, bert_bundles):
    modules = [name for name, m in bert.named_modules() if isinstance(m, torch.nn.Linear)]
    assert sorted(LINEARS) == sorted(modules)
    points = {kind: {p.id: p for p in bundle.manifest.points} for kind, bundle in bert_bundles.items()}
    for found in points.values():
        assert sorted(found) == sorted(LINEARS)
        for name, point in found.items():
            module = bert.get_submodule(name)
            assert (point.in_features, point.out_features) == (module.in_features, module.out_features)
            assert point.layer == (None if name == "pooler.dense" else int(name.split(".")[2]))
    assert {name for bundle in bert_bundles.values() for name in (v.name for v in bundle.manifest.inputs)} == {
        "input_ids",
        "attention_mask",
        "token_type_ids",
    }


def test_the_same_outputs_from_every_source(bert, bert_bundles):
    inputs = families.sample("bert", rows=3, length=5, seed=4)
    with torch.no_grad():
        wanted = bert(**{k: torch.from_numpy(v) for k, v in inputs.items()})
    for bundle in bert_bundles.values():
        got = base_outputs(bundle, inputs)
        assert set(got) == {"last_hidden_state", "pooler_output"}
        for name, y in got.items():
            assert relative(y, wanted[name].numpy()) < 1e-5
    digests = {bundle.manifest.base_digest for kind, bundle in bert_bundles.items() if kind != "torchscript"}
    assert len(digests) == 1


def test_the_directory_brings_its_tokenizer(bert_folder, bert_bundles):
    manifest = bert_bundles["folder"].manifest
    assert manifest.name == "tiny-bert"
    assert manifest.preprocessing == {"kind": "text", "tokenizer": "tokenizer.json", "max_length": 64, "pad_id": 0}
    stored = (bert_bundles["folder"].path / "tokenizer.json").read_bytes()
    assert stored == (bert_folder / "tokenizer.json").read_bytes()
    assert bert_bundles["dynamo"].manifest.preprocessing == {"kind": "arrays"}


def test_the_directory_on_the_command_line(bert_folder, tmp_path, capsys):
    out = tmp_path / "out.edgelora"
    command = ["convert", str(bert_folder), "-o", str(out), "--exporter", "torchscript", "--pooling", "pooler"]
    assert main([*command, "--max-length", "32", "--json"]) == 0
    manifest = json.loads(capsys.readouterr().out)
    assert manifest["verification"]["passed"]
    assert manifest["preprocessing"]["max_length"] == 32
    assert {p["id"].rpartition(".")[2] for p in manifest["points"]} == {"query", "value"}
    inputs = tmp_path / "inputs.npz"
    np.savez(inputs, allow_pickle=False, **families.sample("bert", rows=2, length=9, seed=7))
    assert main(["check", str(out), "--source", str(bert_folder), "--inputs", str(inputs)]) == 0


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(bert_folder, tmp_path):
    body = json.loads((bert_folder / "tokenizer.json").read_text())
    body["model"]["vocab"] |= {f"word{i}": 10_000 + i for i in range(5)}
    (tmp_path / "tokenizer.json").write_text(json.dumps(body))
    with pytest.raises(ConversionError, match="has ids up to 10004"):
        open_source(str(bert_folder), tokenizer=tmp_path / "tokenizer.json")


def test_another_tokenizer(bert_folder, tmp_path):
    other = tmp_path / "other.json"
    body = json.loads((bert_folder / "tokenizer.json").read_text())
    body["truncation"] = {"max_length": 20, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}
    other.write_text(json.dumps(body))
    source = open_source(str(bert_folder), "torchscript", other)
    assert source.preprocessing(None)["max_length"] == 20
    assert source.preprocessing(7)["max_length"] == 7
    with pytest.raises(ConversionError, match="no such tokenizer"):
        open_source(str(bert_folder), "torchscript", tmp_path / "missing.json")
    other.write_text("[1, 2]")
    with pytest.raises(ConversionError, match=r"not a tokenizer\.json"):
        open_source(str(bert_folder), "torchscript", other)


def test_a_directory_with_a_vocabulary_alone(bert_folder, tmp_path):
    """Older checkpoints have vocab.txt and no tokenizer.json: the bundle's is made from it."""
    from tokenizers import Tokenizer

    folder = tmp_path / "model"
    shutil.copytree(bert_folder, folder)
    (folder / "tokenizer.json").unlink()
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "light", "on", "off"]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    source = open_source(str(folder), "torchscript")
    assert source.preprocessing(None)["kind"] == "text"
    tokenizer = Tokenizer.from_str(source.files["tokenizer.json"].decode())
    assert tokenizer.encode("Light off").tokens == ["[CLS]", "light", "off", "[SEP]"]
    (folder / "vocab.txt").unlink()
    assert open_source(str(folder), "torchscript").preprocessing(None) == {"kind": "arrays"}


DAMAGES = ["no config", "no weights", "cut weights", "strange config", "unknown model", "encoder-decoder"]


@pytest.mark.parametrize("damage", DAMAGES)
def test_directories_that_cannot_be_read(damage, bert_folder, tmp_path, capsys):
    folder = tmp_path / "model"
    shutil.copytree(bert_folder, folder)
    config, weights = folder / "config.json", folder / "model.safetensors"
    if damage == "no config":
        config.unlink()
    elif damage == "no weights":
        weights.unlink()
    elif damage == "cut weights":
        weights.write_bytes(weights.read_bytes()[:1000])
    elif damage == "strange config":
        config.write_text("{")
    elif damage == "unknown model":
        config.write_text(json.dumps({"model_type": "perceiver-of-tomorrow"}))
    else:
        transformers.T5Model(
            transformers.T5Config(vocab_size=50, d_model=8, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
        ).save_pretrained(folder)
    assert main(["convert", str(folder), "-o", str(tmp_path / "out.edgelora")]) == 2
    error = capsys.readouterr().err
    assert str(folder) in error
    assert "Traceback" not in error


FACTORY = """
import torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first = torch.nn.Linear(6, 8)
        self.layers = torch.nn.ModuleList([torch.nn.Linear(8, 8) for _ in range(2)])
        self.v_proj = torch.nn.Linear(8, 4, bias=False)
        self.drop = torch.nn.Dropout(0.5)

    def forward(self, features):
        x = torch.tanh(self.first(features))
        for layer in self.layers:
            x = x + torch.nn.functional.gelu(self.drop(layer(x)))
        return self.v_proj(x)

def make():
    return Net().train(), {"features": torch.randn(3, 6)}

def double():
    return Net().double(), {"features": torch.randn(3, 6, dtype=torch.float64)}

def sequence():
    batch, length = torch.export.Dim("rows"), torch.export.Dim("steps")
    return Net(), {"features": torch.randn(3, 5, 6)}, {"features": {0: batch, 1: length}}

def failing():
    raise RuntimeError("no such checkpoint")

def wrong():
    return Net()

value = 3
"""


@pytest.fixture
def factory(tmp_path, monkeypatch, request):
    """A factory module in the working directory, under a name of its own; returns the name."""
    name = "factory_" + "".join(c for c in request.node.name if c.isalnum())
    (tmp_path / f"{name}.py").write_text(textwrap.dedent(FACTORY))
    monkeypatch.chdir(tmp_path)
    return name


@pytest.mark.parametrize("exporter", EXPORTERS)
@pytest.mark.parametrize("function", ["make", "double", "sequence"])
def test_factories(function, exporter, factory, tmp_path, capsys):
    command = ["convert", f"{factory}:{function}", "-o", "out.edgelora", "--task", "feature-extraction"]
    assert main([*command, "--exporter", exporter, "--target-modules", "all-linear", "--json"]) == 0
    manifest = json.loads(capsys.readouterr().out)
    assert manifest["verification"]["passed"]
    assert [(p["id"], p["layer"]) for p in manifest["points"]] == [
        ("first", None),
        ("layers.0", 0),
        ("layers.1", 1),
        ("v_proj", None),
    ]
    (spec,) = manifest["inputs"]
    dynamic = [d for d in spec["shape"] if isinstance(d, str)]
    assert len(dynamic) == (2 if function == "sequence" else 1)
    assert spec["dtype"] == "float32"
    bundle = Bundle.open(tmp_path / "out.edgelora")
    for size in ((1, 1), (4, 7)):
        x = np.random.default_rng(0).standard_normal((*size[: len(dynamic)], 6)).astype(np.float32)
        (y,) = base_outputs(bundle, {"features": x}).values()
        assert y.shape == (*x.shape[:-1], 4)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("nothing", "has no attribute 'nothing'"),
        ("failing", "no such checkpoint"),
        ("wrong", r"must return \(module, sample inputs"),
        ("value", "not callable"),
        ("", "importable from here"),
    ],
)
def test_factories_that_fail(function, message, factory, capsys):
    with pytest.raises(ConversionError, match=message):
        open_source(f"{factory}:{function}")
    assert main(["convert", f"{factory}:{function}", "-o", "out.edgelora"]) == 2
    assert "edgelora: " in capsys.readouterr().err


def test_a_tensor_that_a_factory_does_not_return(factory, capsys):
    command = ["convert", f"{factory}:make", "-o", "out.edgelora", "--task", "feature-extraction"]
    assert main([*command, "--source-output", "layers.1"]) == 2
    assert "let module:factory return that tensor" in capsys.readouterr().err


def test_factory_modules_that_cannot_be_imported(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken_syntax.py").write_text("def make(:\n")
    (tmp_path / "broken_import.py").write_text("raise RuntimeError('at import')")
    for spec in ("nowhere_at_all:make", "broken_syntax:make", "broken_import:make"):
        with pytest.raises(ConversionError, match=spec):
            open_source(spec)
    with pytest.raises(ConversionError, match="one of dynamo, torchscript"):
        module_source(torch.nn.Linear(2, 2), {"input": torch.ones(1, 2)}, "linear", "jit")


class Untraceable(torch.nn.Module):
    """Its Python depends on the values."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2 if float(x.sum()) > 0 and x.tolist() else x


def test_an_exporter_that_fails_names_the_other():
    with pytest.raises(ConversionError, match=r"untraceable: the dynamo exporter failed; try --exporter"):
        module_source(Untraceable(), {"x": torch.ones(2, 3)}, "untraceable", "dynamo")


class Shared(torch.nn.Module):
    """ALBERT in small: a projection straight into a block that is called three times."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.mapping = torch.nn.Linear(6, 8)
        self.block = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 8))
        self.out = torch.nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.mapping(x)
        for _ in range(3):
            x = x + self.block(x)
        return self.out(x)


def torch_gradients(module, inputs, feeds, points, cotangent):
    """Output, and the gradients of A and B, with W + (A·B)ᵀ in place of every weight; in float64."""
    tensors = {
        name: torch.from_numpy(feeds[name].astype(np.float64)).requires_grad_()
        for p in points
        for name in (p.input_a, p.input_b)
    }
    module = module.double()
    weights = {
        f"{p.id}.weight": module.get_submodule(p.id).weight.detach() + (tensors[p.input_a] @ tensors[p.input_b]).T
        for p in points
    }
    given = {k: torch.from_numpy(v) for k, v in inputs.items()}
    given = {k: v.double() if v.is_floating_point() else v for k, v in given.items()}
    output = functional_call(module, weights, kwargs=given)
    output = output if isinstance(output, torch.Tensor) else output.last_hidden_state
    (output * torch.from_numpy(cotangent)).sum().backward()
    return output.detach().numpy(), {n: t.grad.numpy() for n, t in tensors.items() if t.grad is not None}


def compare_with_torch(bundle, module, inputs, name):
    feeds = train_feeds(bundle, inputs)
    output = bundle.forward.run(feeds)[name]
    cotangent = np.random.default_rng(2).standard_normal(output.shape).astype(np.float32)
    wanted, gradients = torch_gradients(module, inputs, feeds, bundle.manifest.points, cotangent)
    assert relative(output, wanted) < 1e-5
    record = bundle.training("cotangent", dropout=False)
    got = bundle.graph(record.file).run({**feeds, f"cotangent.{name}": cotangent})
    assert len(gradients) == 2 * len(bundle.manifest.points) == len(got)
    for tensor, gradient in gradients.items():
        assert relative(got[f"grad.{tensor}"], gradient) < 1e-4, tensor


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_a_module_that_is_called_several_times(exporter, tmp_path):
    module = Shared()
    x = np.random.default_rng(0).standard_normal((4, 6)).astype(np.float32)
    source = module_source(module, {"x": torch.from_numpy(x[:2])}, "shared", exporter, outputs=["y"])
    options = ConvertOptions(task="feature-extraction", target_modules="all-linear")
    convert(source, tmp_path / "out.edgelora", options)
    bundle = Bundle.open(tmp_path / "out.edgelora")
    assert [p.id for p in bundle.manifest.points] == ["mapping", "block.0", "block.2", "out"]
    assert_checked(bundle)
    compare_with_torch(bundle, Shared(), {"x": x}, "y")


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_albert(exporter, tmp_path):
    config = transformers.AlbertConfig(
        vocab_size=50,
        embedding_size=8,
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=40,
    )
    config._attn_implementation = "eager"
    torch.manual_seed(0)
    module = transformers.AlbertModel(config, add_pooling_layer=False).eval()
    inputs = {
        name: x % 50 if name == "input_ids" else x
        for name, x in families.sample("bert", rows=2, length=6).items()
        if name != "token_type_ids"
    }
    given = {k: torch.from_numpy(v) for k, v in inputs.items()}
    source = module_source(module, given, "albert", exporter, outputs=["last_hidden_state"])
    options = ConvertOptions(task="feature-extraction", target_modules="all-linear", output="last_hidden_state")
    convert(source, tmp_path / "out.edgelora", options)
    bundle = Bundle.open(tmp_path / "out.edgelora")
    modules = [name for name, m in module.named_modules() if isinstance(m, torch.nn.Linear)]
    assert sorted(p.id for p in bundle.manifest.points) == sorted(modules)
    compare_with_torch(bundle, module, inputs, "last_hidden_state")
