"""The terms of the report in plain words, in alphabetical order."""

GLOSSARY: tuple[tuple[str, str], ...] = (
    ("accuracy", "The share of rows whose class is predicted correctly."),
    (
        "arrives",
        "A run arrives at the first evaluated step at which its test score is at the goal, provided that its last "
        "score is at the goal too.",
    ),
    (
        "AUC",
        "The probability that a row of a class is ranked above a row of another class. Guessing scores 0.5, whatever "
        "the sizes of the classes.",
    ),
    (
        "balanced accuracy",
        "The accuracy within each class, averaged over the classes, so that a rare class counts as much as a common "
        "one.",
    ),
    ("batch", "The rows that one training step looks at. Their number is the batch size."),
    (
        "batch normalization",
        "A layer that subtracts the mean of its inputs over the batch, divides by their standard deviation, then "
        "multiplies by a learned scale γ and adds a learned shift β. In prediction it uses averages collected during "
        "training.",
    ),
    (
        "censored",
        "Known only as a bound. If the run without batch normalization has not arrived after 400 steps and the run "
        "with it needs 24, the ratio is at least 400 ÷ 24 = 16.7.",
    ),
    (
        "check",
        "A test of the layer itself. No data can make it fail unless the layer is wrong, so that passing says nothing "
        "about your data.",
    ),
    ("claim", "A statement about batch normalization, with an effect and a threshold that are fixed before the run."),
    ("decade", "A factor of ten. From 0.01 to 1 are two decades."),
    ("diverged", "A run whose outputs are no longer finite numbers."),
    (
        "goal",
        "The score that a run must reach. It is a fixed share of the way from guessing to the best score that any run "
        "reaches, or an accuracy fixed beforehand.",
    ),
    (
        "gradient noise",
        "How much the gradients of single rows differ from one another. The noisier they are, the larger the batches "
        "that still save steps.",
    ),
    ("guessing", "What a prediction scores that does not look at the inputs, such as always the commonest class."),
    (
        "interval",
        "The range that holds the median with 95 % confidence, from the ranks of the seeds. It needs at least 6 seeds.",
    ),
    ("learning rate", "The length of a training step, relative to the gradient."),
    (
        "log-loss skill",
        "The share by which the predicted probabilities lower the log loss of predicting the frequencies of the "
        "classes. 0 is guessing, 1 is certain and right.",
    ),
    ("median", "The middle value over the seeds."),
    (
        "reference models",
        "A linear model and a forest with their usual settings, to show what a score is worth on this data.",
    ),
    (
        "R²",
        "The share of the variance of the target that the prediction explains. 1 is perfect, 0 is always predicting "
        "the mean, and a negative value is worse than that.",
    ),
    (
        "seed",
        "A number that fixes the split of the rows, the initial weights and the order of the batches. Both sides of a "
        "comparison use the same seeds.",
    ),
    ("step", "One update of the weights, from one batch."),
    (
        "threshold",
        "The size from which an effect counts for the claim. It is fixed before the run, and the interval must lie "
        "entirely beyond it.",
    ),
    (
        "validation and test rows",
        "Rows that are not trained on. Settings are chosen by the validation rows, and results are reported on the "
        "test rows.",
    ),
    (
        "virtual batch",
        "A part of a batch with statistics of its own. It adds the noise of small batches to training with large ones.",
    ),
    (
        "×, without ÷ with",
        "The value without batch normalization divided by the value with it, seed by seed. Above 1 the side with "
        "batch normalization needs less.",
    ),
)
