"""The layer in Keras, in the shape of the lecture notes, trained by four optimizers: will this student be placed?

Dense(3, relu), batch normalization, Dense(2, relu), batch normalization, Dense(1, sigmoid), on the generated table
placements.csv, its two columns standardised first. γ and β are weights like any other: every optimizer learns them.

    KERAS_BACKEND=jax python examples/keras_placements.py     # or tensorflow, or torch
"""

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd
from rich.console import Console
from rich.progress import track
from rich.table import Table

from batchnorm.keras import BatchNormalization

TABLE = Path(__file__).with_name("placements.csv")
EPOCHS, BATCH = 20, 60
OPTIMIZERS = {
    "SGD": lambda: keras.optimizers.SGD(0.1),
    "momentum": lambda: keras.optimizers.SGD(0.03, momentum=0.9),
    "RMSprop": lambda: keras.optimizers.RMSprop(0.01),
    "Adam": lambda: keras.optimizers.Adam(0.01),
}


def network() -> keras.Sequential:
    return keras.Sequential(
        [
            keras.Input((2,)),
            keras.layers.Dense(3, activation="relu"),
            BatchNormalization(),
            keras.layers.Dense(2, activation="relu"),
            BatchNormalization(),
            keras.layers.Dense(1, activation="sigmoid"),
        ]
    )


def rows() -> tuple[np.ndarray, np.ndarray]:
    """Return the two columns, standardised by the first 800 rows, and who was placed."""
    table = pd.read_csv(TABLE)
    x = table[["cgpa", "iq"]].to_numpy("float32")
    return (x - x[:800].mean(0)) / x[:800].std(0), table["placed"].to_numpy("float32")


def trained(optimizer: Any, x: np.ndarray, y: np.ndarray) -> tuple[keras.Sequential, float]:
    """Return the network after training on the first 800 rows, and its accuracy on the others."""
    keras.utils.set_random_seed(0)  # the same weights at the start for every optimizer
    model = network()
    model.compile(optimizer, "binary_crossentropy", metrics=["accuracy"])
    model.fit(x[:800], y[:800], batch_size=BATCH, epochs=EPOCHS, verbose=0)  # each batch by its own mean and variance
    _, accuracy = model.evaluate(x[800:], y[800:], verbose=0)  # every row by the moving statistics
    return model, accuracy


def main() -> None:
    x, y = rows()
    found = Table("optimizer", "test accuracy", "γ", "β", title=f"{EPOCHS} epochs, Keras on {keras.backend.backend()}")
    for name in track(OPTIMIZERS, description="training"):
        model, accuracy = trained(OPTIMIZERS[name](), x, y)
        gamma, beta, *_ = model.layers[1].get_weights()
        found.add_row(name, f"{accuracy:.3f}", str(gamma.round(2)), str(beta.round(2)))
    Console().print(found)
    alone, among = model.predict(x[:1], verbose=0), model.predict(x[:60], verbose=0)[:1]
    print(f"the first student is placed with probability {alone.item():.3f}, in a batch of 60 {among.item():.3f}")


if __name__ == "__main__":
    main()
