"""The pages of the reference that are made from code when the site is built."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from reference_pages import command_pages, contract_pages, rpc_pages, setting_pages

# Page of the site -> what makes its Markdown.
GENERATED: Mapping[str, Callable[[], str]] = {
    "reference/rpcs.md": rpc_pages.rpcs,
    "reference/commands.md": command_pages.commands,
    "reference/settings.md": setting_pages.settings,
    "reference/errors.md": contract_pages.errors,
    "reference/metrics.md": contract_pages.metrics,
    "reference/redis-keys.md": contract_pages.redis_keys,
    "reference/model-store.md": contract_pages.model_store,
}

# Page of the site -> file of the repository that is shown there as it is.
INCLUDED: Mapping[str, str] = {
    "reference/runbook.md": "deploy/observability/RUNBOOK.md",
    "reference/capacity.md": "deploy/CAPACITY.md",
    "reference/learning.md": "trainer/LEARNING.md",
    "reference/benchmarks.md": "tests/bench/README.md",
}
