"""How long a hand-over takes: from bandwidth and distance to an edge's ``transfer_s``."""

from dataclasses import dataclass

from splitpoint.checks import finite_number, instance_of
from splitpoint.edge.request import PARAMETERS
from splitpoint.offloading import SystemParameters


@dataclass(frozen=True)
class Link:
    """A link between a device and an edge.

    Args:
        rate_bps: bits a second; the released 100 MHz times 10 bit/s/Hz if left out.
        delay_s: one way, for the distance.
    """

    rate_bps: float = PARAMETERS.bandwidth_hz * PARAMETERS.spectral_efficiency
    delay_s: float = 0.0

    def __post_init__(self):
        finite_number("rate_bps", self.rate_bps, 0.0, open_end=True)
        finite_number("delay_s", self.delay_s, 0.0)

    def transfer_s(self, parameters: SystemParameters = PARAMETERS) -> float:
        """Prompt up, intermediate result down, and the way both ways, in seconds."""
        instance_of("parameters", parameters, SystemParameters)
        return (parameters.prompt_bits + parameters.intermediate_bits) / self.rate_bps + 2 * self.delay_s
