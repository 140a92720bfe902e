"""Watch connections: their status, alerts that are raised once and cleared once, metrics for Prometheus.

``RULES`` and ``DASHBOARD`` are files to copy: alert rules for Prometheus, and a dashboard for Grafana.
"""

from pathlib import Path

from labkit.monitor.alerts import Alert, AlertKind
from labkit.monitor.health import Health
from labkit.monitor.monitor import ConnectionMonitor
from labkit.monitor.status import LinkStatus, MonitorStatus

RULES = Path(__file__).parent / "prometheus" / "labkit-alerts.yml"
DASHBOARD = RULES.with_name("labkit-dashboard.json")

__all__ = ["DASHBOARD", "RULES", "Alert", "AlertKind", "ConnectionMonitor", "Health", "LinkStatus", "MonitorStatus"]
