"""A network of the user's own, as a module and as a function in a file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from linnaeus.errors import UserError
from linnaeus.models import create, load_module, wrap

SOURCE = """
from torch import nn
from neighbor import WIDTH

def build(classes, channels):
    pool = nn.AdaptiveAvgPool2d(1)
    return nn.Sequential(nn.Conv2d(channels, WIDTH, 3), pool, nn.Flatten(), nn.Linear(WIDTH, classes))

def rgb(classes):
    return build(classes, 3)

def none():
    return 3

def number(classes):
    return classes

not_a_function = 3
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "my net.py"
    path.write_text(SOURCE, encoding="utf-8")
    (tmp_path / "neighbor.py").write_text("WIDTH = 6\n", encoding="utf-8")
    return path


def test_a_network_in_a_file_of_the_user(file: Path) -> None:
    network = load_module(f"{file}:build", classes=5, channels=1)
    x = torch.randn(2, 1, 8, 8)
    assert network(x).shape == (2, 5)
    assert network.stages == ("0", "1", "2", "3")
    assert network.head_input == 6
    assert torch.equal(network.run(network.run(x, stop="2"), start="2"), network(x))
    assert {network.stage_of(name) for name, _ in network.named_parameters()} == {"0", "3"}
    assert network.arch["arguments"] == {"source": "my net.py:build"}
    assert load_module(f"{file}:rgb", classes=5)(torch.randn(2, 3, 8, 8)).shape == (2, 5)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("{file}", "name the file and the function"),
        ("nowhere.py:build", "no such file"),
        ("{file}:missing", "has no function 'missing'"),
        ("{file}:not_a_function", "has no function"),
        ("{file}:none", "must take .classes, channels. or .classes."),
        ("{file}:number", "returned int, not a torch.nn.Module"),
        ("{broken}:build", "cannot be imported: ZeroDivisionError"),
        ("{text}:build", "not a Python file"),
    ],
)
def test_misuse_is_named(file: Path, path: str, message: str) -> None:
    broken, text = file.with_name("broken.py"), file.with_name("net.txt")
    broken.write_text("1 / 0", encoding="utf-8")
    text.write_text("", encoding="utf-8")
    with pytest.raises(UserError, match=message):
        load_module(path.format(file=file, broken=broken, text=text), classes=5)


def test_any_module_is_one_stage() -> None:
    class Mine(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.linear(x.mean((2, 3)))

    network = wrap(Mine(), classes=2, channels=4)
    assert network.stages == ("all",)
    assert network.stage_of("module.linear.weight") == "all"
    assert network(torch.randn(3, 4, 2, 2)).shape == (3, 2)


def test_a_network_is_taken_as_it_is() -> None:
    network = create("resnet20", 5)
    assert wrap(network, 5, 3) is network
    with pytest.raises(UserError, match="made for 5 classes, but the data has 7"):
        wrap(network, 7, 3)
