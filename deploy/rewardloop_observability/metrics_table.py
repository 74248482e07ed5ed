"""Makes the table of all metrics in deploy/observability/README.md."""

from __future__ import annotations

from rewardloop_observability.definitions import client_metrics, judge_metrics, serving_metrics, trainer_metrics

BEGIN, END = "<!-- metrics: make observability -->\n", "<!-- end of metrics -->\n"


def table() -> str:
    """The metrics by name as a Markdown table."""
    serving, trainer, client, judge = serving_metrics(), trainer_metrics(), client_metrics(), judge_metrics()
    lines = ["| metric | type | labels | of | what it says |", "| --- | --- | --- | --- | --- |"]
    for name, metric in sorted({**client, **judge, **trainer, **serving}.items()):
        processes = {"serving": serving, "trainer": trainer, "judge": judge, "client": client}
        of = ", ".join(process for process, metrics in processes.items() if name in metrics)
        lines.append(f"| `{name}` | {metric.kind} | {', '.join(metric.labels)} | {of} | {metric.text} |")
    return "\n".join(lines) + "\n"


def with_table(readme: str) -> str:
    """The README's text with the present table between the two marks."""
    before, _, rest = readme.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"
