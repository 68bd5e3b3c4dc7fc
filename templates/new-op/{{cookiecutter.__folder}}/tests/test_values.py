"""What the op computes, by hand."""

import torch

from {{ cookiecutter.__package }}.ops import {{ cookiecutter.op }}


def test_a_row_of_values() -> None:
    gate, up = torch.tensor([[-1.0, 2.0, 3.0]]), torch.tensor([[5.0, 0.5, -1.0]])
    assert {{ cookiecutter.op }}(gate, up).tolist() == [[0.0, 2.0, -9.0]]
