"""From an nn.Module and its data to theory's objects. Knows torch, not Lightning."""

from milkshake_mbp.reading.measure import Clock, measure
from milkshake_mbp.reading.network import Kernel, Reading, read, read_network, registered_kernels
from milkshake_mbp.reading.outputs import Outputs, measure_outputs
from milkshake_mbp.reading.rule import PruneRule
from milkshake_mbp.reading.samples import Samples

__all__ = [
    "Clock",
    "Kernel",
    "Outputs",
    "PruneRule",
    "Reading",
    "Samples",
    "measure",
    "measure_outputs",
    "read",
    "read_network",
    "registered_kernels",
]
