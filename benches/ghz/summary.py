"""One line from the JSON report of a ghz run on standard input."""

import json
import sys

report = json.load(sys.stdin)
latency = {entry["percentage"]: entry["latency"] / 1e6 for entry in report["latencyDistribution"] or []}
columns = " ".join(f"{latency.get(percent, float('nan')):7.1f} ms" for percent in (50, 95, 99))
print(f"{sys.argv[1]:<18} {report['rps']:12.1f} {columns}  {report['statusCodeDistribution']}")
