"""The recommended network, optimizer and loss as source code, in PyTorch and in Keras."""

from typing import TYPE_CHECKING, Any

from batchnorm.study.data import Task
from batchnorm.study.literals import listed
from batchnorm.study.networks import ACTIVATIONS, groups_of

if TYPE_CHECKING:
    from batchnorm.study.script import Setting

ACTIVATION_NAMES = {"relu": "ReLU", "gelu": "GELU", "silu": "SiLU", "leaky-relu": "leaky ReLU", "elu": "ELU"}
NORM_NAMES = {
    "batch": "batch normalization",
    "layer": "layer normalization",
    "group": "group normalization",
    "tanh": "dynamic tanh",
}
COUNTS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
REASONS = {
    "he": "He et al. 2015: signals keep their size through ReLU",
    "glorot": "Glorot and Bengio 2010: signals keep their size",
    "0.1": "as Ioffe and Szegedy 2015 start sigmoid units",
}

TORCH_STARTS = {
    "he": "nn.init.kaiming_normal_(layer.weight)",
    "glorot": "nn.init.xavier_normal_(layer.weight)",
    "0.1": "nn.init.normal_(layer.weight, std=0.1)",
}
TORCH_LAYERS = {"batch": "BatchNorm1d(units)", "layer": "nn.LayerNorm(units)", "tanh": "DynamicTanh(units)"}
TORCH_OPTIMIZERS = {
    "sgd": "torch.optim.SGD(model.parameters(), lr=RATE)",
    "momentum": "torch.optim.SGD(model.parameters(), lr=RATE, momentum=0.9)",
    "rmsprop": "torch.optim.RMSprop(model.parameters(), lr=RATE)",
    "adam": "torch.optim.Adam(model.parameters(), lr=RATE)",
}
TORCH_LOSSES = {
    "classification": "nn.functional.cross_entropy",
    "labels": "nn.functional.binary_cross_entropy_with_logits",
    "regression": "nn.functional.mse_loss",
}

KERAS_STARTS = {
    "he": '"he_normal"',
    "glorot": '"glorot_normal"',
    "0.1": "keras.initializers.RandomNormal(stddev=0.1)",
}
KERAS_LAYERS = {
    "batch": "BatchNormalization(momentum=0.9, epsilon=1e-5)",
    "layer": "keras.layers.LayerNormalization(epsilon=1e-5)",
    "tanh": "DynamicTanh()",
}
KERAS_OPTIMIZERS = {
    "sgd": "keras.optimizers.SGD(RATE)",
    "momentum": "keras.optimizers.SGD(RATE, momentum=0.9)",
    "rmsprop": "keras.optimizers.RMSprop(RATE, rho=0.99)",
    "adam": "keras.optimizers.Adam(RATE)",
}
KERAS_LOSSES = {
    "classification": "keras.losses.SparseCategoricalCrossentropy(from_logits=True)",
    "labels": "keras.losses.BinaryCrossentropy(from_logits=True)",
    "regression": "keras.losses.MeanSquaredError()",
}


def network_words(setting: "Setting") -> dict[str, str]:
    """Return what either template says about the network."""
    return {"described": _described(setting), "start_reason": REASONS[ACTIVATIONS[setting.activation].initialization]}


def torch_network(setting: "Setting", task: Task) -> dict[str, Any]:
    """Return what the template of the PyTorch script asks about the network."""
    activation = f"nn.{ACTIVATIONS[setting.activation].module.__name__}()"
    norm = TORCH_LAYERS.get(setting.norm, f"nn.GroupNorm({_groups(setting)}, units)")
    linear = f"nn.Linear(inputs, units{', bias=False' if setting.placement == 'before' else ''})"
    return {
        "block": listed("layers += [", [linear, *_ordered(setting, norm, activation)], "]", 8),
        "start": TORCH_STARTS[ACTIVATIONS[setting.activation].initialization],
        "optimizer": TORCH_OPTIMIZERS[setting.optimizer],
        "loss": TORCH_LOSSES[task],
    }


def keras_network(setting: "Setting", task: Task) -> dict[str, Any]:
    """Return what the template of the Keras script asks about the network."""
    activation = f'keras.layers.Activation("{setting.activation}")'
    if setting.activation == "leaky-relu":
        activation = "keras.layers.LeakyReLU(negative_slope=0.01)"  # the activation of that name has another slope
    norm = KERAS_LAYERS.get(setting.norm, f"keras.layers.GroupNormalization({_groups(setting)}, epsilon=1e-5)")
    bias = ", use_bias=False" if setting.placement == "before" else ""
    dense = f"keras.layers.Dense(units{bias}, kernel_initializer=start)"
    return {
        "block": [dense, *_ordered(setting, norm, activation)],
        "start": KERAS_STARTS[ACTIVATIONS[setting.activation].initialization],
        "optimizer": KERAS_OPTIMIZERS[setting.optimizer],
        "loss": KERAS_LOSSES[task],
    }


def _ordered(setting: "Setting", norm: str, activation: str) -> list[str]:
    return {"before": [norm, activation], "after": [activation, norm], "none": [activation]}[setting.placement]


def _groups(setting: "Setting") -> str:
    """Return the number of groups: one expression for all hidden layers."""
    groups = {units: groups_of(units) for units in setting.hidden}
    return str(min(groups.values())) if len(set(groups.values())) == 1 else f"{groups}[units]"


def _described(setting: "Setting") -> str:
    widths = set(setting.hidden)
    units = f"{widths.pop()} " if len(widths) == 1 else ""
    count = len(setting.hidden)
    layers = f"{COUNTS[count] if count < len(COUNTS) else count} hidden layer{'' if count == 1 else 's'}"
    if count == 0:
        return "a network without hidden layers"
    activation = ACTIVATION_NAMES.get(setting.activation, setting.activation)
    text = f"a network of {layers} of {units}{activation} units"
    if setting.placement == "none":
        return text
    return f"{text} with {NORM_NAMES[setting.norm]} {setting.placement} each activation"
