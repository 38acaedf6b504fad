"""The layer in PyTorch, in the shape of the lecture notes: will this student be placed?

Linear(2→3), ReLU, batch normalization, Linear(3→2), ReLU, batch normalization, Linear(2→1), sigmoid, on the generated
table placements.csv, its two columns standardised first.

    python examples/torch_placements.py
"""

from pathlib import Path

import pandas as pd
import torch
from torch import nn

from batchnorm.torch import BatchNorm1d

TABLE = Path(__file__).with_name("placements.csv")
EPOCHS, BATCH = 20, 60


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(2, 3), nn.ReLU(), BatchNorm1d(3),
        nn.Linear(3, 2), nn.ReLU(), BatchNorm1d(2),
        nn.Linear(2, 1), nn.Sigmoid(),
    )  # fmt: skip


def main() -> None:
    torch.manual_seed(0)
    table = pd.read_csv(TABLE)
    x = torch.tensor(table[["cgpa", "iq"]].to_numpy(), dtype=torch.float32)
    y = torch.tensor(table[["placed"]].to_numpy(), dtype=torch.float32)
    mean, std = x[:800].mean(0), x[:800].std(0)
    x_train, y_train, x_test, y_test = (x[:800] - mean) / std, y[:800], (x[800:] - mean) / std, y[800:]
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)  # γ and β are parameters like any other

    for epoch in range(EPOCHS):
        model.train()  # each batch is normalised by its own mean and variance
        for rows in torch.randperm(len(x_train)).split(BATCH):
            optimizer.zero_grad()
            nn.functional.binary_cross_entropy(model(x_train[rows]), y_train[rows]).backward()
            optimizer.step()
        model.eval()  # every row by the running statistics: alone or in a batch, the same answer
        with torch.no_grad():
            accuracy = ((model(x_test) > 0.5) == y_test.bool()).float().mean()
        print(f"epoch {epoch + 1:2}  test accuracy {accuracy:.3f}")

    layer = model[2]
    print(f"γ {layer.weight.tolist()}\nβ {layer.bias.tolist()}")
    print(f"running mean {layer.running_mean.tolist()}\nrunning variance {layer.running_var.tolist()}")
    student = (torch.tensor([[8.1, 112.0]]) - mean) / std
    print(f"one student, cgpa 8.1 and iq 112: placed with probability {model(student).item():.2f}")


if __name__ == "__main__":
    main()
