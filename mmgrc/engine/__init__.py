"""What runs beside training: hooks."""

from .monitor import GRCMonitorHook as GRCMonitorHook
