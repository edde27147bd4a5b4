"""Guidance inside other training frameworks: a thin module for each, with its library as an extra.

Plain loops, PEFT, DDP, FSDP2, Accelerate and Lightning Fabric need no module: `gaguide.guidance.guide` takes
their models as they are (docs/integrations.md).
"""
