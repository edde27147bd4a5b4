"""Interventions: change the outputs or the attention of chosen heads, and see what the model loses."""

from typing import TYPE_CHECKING

from gaguide.lazy import lazy_names

if TYPE_CHECKING:
    from gaguide.interventions.attach import Intervention, intervene
    from gaguide.interventions.edges import ScaleEdges, knock_out_edges, scale_targets
    from gaguide.interventions.outputs import MeanOutput, PatchOutput, ResampleOutput, ZeroOutput
    from gaguide.interventions.record import HeadOutputs, mean_outputs, record_outputs

__all__ = [
    "HeadOutputs",
    "Intervention",
    "MeanOutput",
    "PatchOutput",
    "ResampleOutput",
    "ScaleEdges",
    "ZeroOutput",
    "intervene",
    "knock_out_edges",
    "mean_outputs",
    "record_outputs",
    "scale_targets",
]

__getattr__ = lazy_names(__name__)
