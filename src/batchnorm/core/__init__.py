"""Batch normalization without a framework: what a layer's options mean, on any array namespace.

A front-end makes a `NormSpec` of its options, has a `CallPlan` made for a call, chooses a `Policy`, and runs `passes`
or `step`. It adds how its framework differentiates, and where it keeps the running statistics.
"""
