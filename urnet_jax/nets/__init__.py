"""Networks and what they cost; they know nothing of configs, files, runs or training.

For applications: `architecture.Architecture`, `resnet.ResNet`, `contract.GateInputs` and `Output`,
`mode.Mode` and `Build`, `network.apply`, `cost.flops_per_sample`; and for networks of your own all
of `contract`, `execution.run_gated` and `cost.UnitCost`.
"""
