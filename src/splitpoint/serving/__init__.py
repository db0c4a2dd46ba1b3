"""The running edge: an engine and its server, devices, a link that misbehaves; on ``edge`` and ``diffusion``.

``splitpoint edge`` starts a server, ``splitpoint device`` a device, ``splitpoint load`` many of them.
"""

from splitpoint.lazy import on_first_use

_HOMES = {
    "Conductor": "conductor",
    "Device": "device",
    "Forecast": "forecast",
    "LinkProxy": "link",
    "running": "processes",
    "replay": "conductor",
}

__all__ = list(_HOMES)

__getattr__ = on_first_use(__name__, _HOMES)
