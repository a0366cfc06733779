"""`python -m tests.deploy.prometheus_rule`: write the operator's form of alerts.yml, line by line the same rules."""

from pathlib import Path

MONITORING = Path(__file__).parents[2] / "k8s" / "components" / "monitoring"
HEAD = """\
# Made from alerts.yml by `python -m tests.deploy.prometheus_rule`; a test compares.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: payments
spec:
"""


def main() -> None:
    rules = (MONITORING / "alerts.yml").read_text(encoding="utf-8")
    lines = [f"  {line}" for line in rules.splitlines() if not line.startswith("#")]
    text = HEAD + "".join(f"{line}\n" if line.strip() else "\n" for line in lines)
    (MONITORING / "prometheus-rule.yml").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
