import pytest
import torch
from helpers import ROOT
from torch import nn

from mip_lightning import HyperModel, HypernetworkConfig, Uniform, UsageError
from mip_lightning.cli.main import main
from mip_lightning.core.module import HyperLightningModule
from mip_lightning.networks import LeNet, MultilayerPerceptron
from mip_lightning.trainer._recalibration import recalibrate
from mip_lightning.trainer.export import SUFFIXES, export_network

QUICK = str(ROOT / "tests" / "conf" / "quick.yaml")

pytestmark = pytest.mark.filterwarnings(
    # torch.export and torch.onnx of torch 2.11 to 2.15 call what they themselves deprecate.
    "ignore::DeprecationWarning",
    "ignore::FutureWarning",
    # torch.export.load of torch 2.11 reads weights into memory that it only reads.
    "ignore:The given buffer is not writable",
)


def convolutional() -> nn.Module:
    layers = [nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(36, 10))


def read(path, format):
    """A function that a program without this library would make of the file."""
    if format == "state_dict":
        network = convolutional()
        network.load_state_dict(torch.load(path, weights_only=True))
        return network.eval()
    if format == "torch_export":
        return torch.export.load(path).module()
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda x: torch.from_numpy(session.run(None, {name: x.numpy()})[0])


@pytest.mark.parametrize("samples", [1, 2])
@pytest.mark.parametrize("format", SUFFIXES)
def test_an_exported_network_computes_the_same_for_any_number_of_samples(tmp_path, format, samples):
    config = HypernetworkConfig([4, 8])
    model = HyperModel(convolutional(), Uniform(), hypernetwork=config).eval()
    path = tmp_path / f"network{SUFFIXES[format]}"
    export_network(model.materialize(0.3), torch.rand(samples, 1, 9, 9), path, format)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    function = read(path, format)
    for size in (2, 5):
        x = torch.rand(size, 1, 9, 9)
        torch.testing.assert_close(function(x), model(x, 0.3), atol=1e-4, rtol=1e-4)


def test_a_file_that_is_there_is_not_overwritten(tmp_path):
    path = tmp_path / "network.pt"
    path.write_text("mine")
    with pytest.raises(UsageError, match="is there already"):
        export_network(LeNet(), torch.rand(2, 1, 9, 9), path, "state_dict")
    assert path.read_text() == "mine"


class Random(nn.Linear):
    """Never computes the same."""

    def forward(self, x):
        return super().forward(x) + torch.rand(())


def test_a_file_that_does_not_compute_the_same_is_not_kept(tmp_path):
    with pytest.raises(UsageError, match="differs by"):
        export_network(Random(3, 3), torch.rand(2, 3), tmp_path / "a.pt", "state_dict")
    assert not list(tmp_path.iterdir())


class Deciding(nn.Linear):
    """Looks at a value, which no program that torch.export writes can."""

    def forward(self, x):
        return super().forward(x) if x.sum() > 0 else x.nonzero()


def test_what_pytorch_cannot_write_is_refused_with_its_reason(tmp_path):
    with pytest.raises(UsageError, match=r"cannot write Deciding so \(.*choose another format"):
        export_network(Deciding(3, 3), torch.rand(2, 3), tmp_path / "a.pt2", "torch_export")
    assert not list(tmp_path.iterdir())


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("mip_lightning.trainer.export.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"package onnx: pip install 'mip-lightning\[export\]'"):
        export_network(LeNet(), torch.rand(2, 1, 9, 9), tmp_path / "a.onnx", "onnx")


def test_recalibrated_statistics_are_those_of_the_one_network():
    model = HyperModel(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)), Uniform())
    x = torch.rand(64, 3)
    for gamma in torch.rand(5, 1):
        model(x, gamma)
    network = model.materialize(0.3)
    network.eval()
    recalibrate(network, [part.clone() for part in x.split(16)])
    assert not any(module.training for module in network.modules())
    features = network[0](x).detach()
    torch.testing.assert_close(network[1].running_mean, features.mean(dim=0))
    within = torch.stack([part.var(dim=0) for part in features.split(16)]).mean(dim=0)
    torch.testing.assert_close(network[1].running_var, within)


def test_the_command_writes_a_network_that_needs_this_library_no_more(caplog):
    main(["fit", "--config", QUICK, "--run_dir", "run"])
    checkpoint = "run/checkpoints/best.ckpt"
    main(["export", "--ckpt_path", checkpoint, "--gamma", "0.3"])
    path = "run/export/MultilayerPerceptron_gamma_0.3.pt"
    assert path in caplog.text
    network = MultilayerPerceptron(64, hidden_sizes=[16])
    network.load_state_dict(torch.load(path, weights_only=True))
    module = HyperLightningModule.load_from_checkpoint(checkpoint)
    x = torch.rand(3, 1, 8, 8)
    torch.testing.assert_close(network(x), module.eval().model(x, 0.3))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--gamma", "1.5"], "gamma[0, 0] is 1.5, outside [0, 1]"),
        (["--gamma", "[0.1, 0.2]", "--path", "a.pt"], "holds 2 values: leave path out"),
        ([], "gamma"),
    ],
)
def test_a_wrong_gamma_gets_one_line(options, says, capsys):
    main(["fit", "--config", QUICK, "--run_dir", "run"])
    with pytest.raises(SystemExit) as exit_info:
        main(["export", "--ckpt_path", "run/checkpoints/best.ckpt", *options])
    message = str(exit_info.value) + capsys.readouterr().err
    assert says in message
