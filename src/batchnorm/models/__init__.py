"""What the tools share: how to look at a model, and leave it as it was."""
