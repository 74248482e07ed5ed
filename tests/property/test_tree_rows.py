"""A score does not depend on the plan: padded, in buckets, in tree rows, with whatever neighbours."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.adapter_graphs import lora, publish_decoder, publish_delta
from support.graph_runners import graph_runner
from support.reward_bases import exported

from rewardloop.formats.graphs.inputs import tree_rows, tree_tokens
from rewardloop.formats.store import Manifest, ModelStore
from rewardloop.formats.text import Encoded
from rewardloop_server.device.choose import Device
from rewardloop_server.loading.sessions import SessionPool
from rewardloop_server.observe.metrics import ServerMetrics
from rewardloop_server.scoring.cost import CostModel
from rewardloop_server.scoring.engine import Floats, RewardModel
from rewardloop_server.scoring.plan import Run, plan_runs

# Which plan comes out of these: trees of all that shares a prompt; short trees; buckets; each row alone.
COSTS = [CostModel(1.0, 1e-3, 0.0), CostModel(1e-4, 1e-5, 1e-6), CostModel(1e-2, 0.0, 1e-4), CostModel(1e-4, 1e-4, 0)]


def scores(model: RewardModel, rows: list[Encoded], runs: list[Run]) -> Floats:
    found = np.full((len(rows), model.manifest.heads), np.nan, dtype=np.float32)
    for run in runs:
        found[list(run.rows)] = model.execute(model.lay_out(rows, run))
    return found


def alone(model: RewardModel, rows: list[Encoded]) -> Floats:
    return scores(model, rows, [Run(((i,),), len(row.ids), 0.0) for i, row in enumerate(rows)])


@st.composite
def groups(draw: st.DrawFn) -> list[Encoded]:
    """Groups of 1 to 6 responses of 0 to 20 tokens (1 without a prompt), after prompts of 0 to 40 tokens, shuffled.

    Prompts agree in 0 to all of their tokens, and responses may be equal.
    """
    ids = st.integers(4, 11)
    shared = draw(st.lists(ids, max_size=40))
    rows = []
    for _ in range(draw(st.integers(1, 4))):
        prompt = [*shared[: draw(st.integers(0, len(shared)))], *draw(st.lists(ids, max_size=5))]
        for _ in range(draw(st.integers(1, 6))):
            response = draw(st.lists(ids, min_size=0 if prompt else 1, max_size=20))
            rows.append(Encoded([*prompt, *response], None, False, 1, len(prompt)))
    return draw(st.permutations(rows))


def load(manifest: Manifest, pool: SessionPool, store: ModelStore) -> RewardModel:
    return pool.load(manifest, store.fetch("reward", manifest.version))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, RewardModel]:
    torch.set_num_threads(1)
    store = ModelStore(tmp_path_factory.mktemp("store"))
    pool = SessionPool(store, Device("cpu", 1, spin=False), ServerMetrics())
    by_hand = publish_decoder(store, takes="responses")
    found = {
        "by hand": load(by_hand, pool, store),
        "by hand, branches": load(publish_decoder(store, takes="branches"), pool, store),
        "by hand, a mask": load(publish_decoder(store), pool, store),
        "by hand, a mask for each row": load(publish_decoder(store, mask_rows="rows"), pool, store),
        "by hand, delta": load(publish_delta(store, by_hand, lora(1)), pool, store),
    }
    for kind in ("llama", "gpt2"):
        export = exported(kind)
        manifest = Manifest(
            model="reward",
            version=kind,
            digest=kind,
            text_format=export.encoder.format.to_json(),
            max_length=200,
            heads=3,
        )
        found[kind] = pool.load(manifest, export.directory)
    return found


BY_HAND = ["by hand", "by hand, branches", "by hand, a mask", "by hand, a mask for each row"]


@pytest.mark.parametrize("name", [*BY_HAND, "by hand, delta", "llama", "gpt2"])
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=groups())
def test_scores_do_not_depend_on_the_plan(models: dict[str, RewardModel], name: str, rows: list[Encoded]) -> None:
    model = models[name]
    assert model.signature.is_decoder
    expected = alone(model, rows)
    for cost in COSTS:
        for trees in (True, False):
            found = scores(model, rows, plan_runs(rows, cost, trees=trees, shares=model.signature.shares_prompts))
            np.testing.assert_allclose(found, expected, atol=1e-4, rtol=1e-4)


def test_tree_row_gives_torchs_score_of_each_pair_alone(models: dict[str, RewardModel]) -> None:
    reference = exported("llama").model
    prompt = list(range(10, 50))
    rows = [Encoded([*prompt, *range(60, 60 + n)], None, False, n, 40) for n in (1, 7, 30)]
    with torch.inference_mode():
        expected = [reference(torch.tensor([r.ids]), torch.ones(1, len(r.ids)).long())[0].numpy() for r in rows]
    run = Run(((0, 1, 2),), 40 + 38, 0.0)
    np.testing.assert_allclose(scores(models["llama"], rows, [run]), np.array(expected), atol=1e-4)


@pytest.mark.parametrize("name", ["by hand", "llama", "gpt2"])
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=groups())
def test_a_row_over_its_prompts_keys_and_values_scores_as_with_a_mask(
    models: dict[str, RewardModel], name: str, rows: list[Encoded]
) -> None:
    model = models[name]
    session = graph_runner(model)._sessions[0].alone
    by_prompt: dict[tuple[int, ...], list[Encoded]] = {}
    for row in rows:
        by_prompt.setdefault(tuple(row.ids[: row.prompt_tokens]), []).append(row)
    for prompt, group in by_prompt.items():
        if not prompt or all(len(row.ids) == len(prompt) for row in group):
            continue
        length = tree_tokens(group) + 3  # with padding
        shared, masked = (
            session.run(["logits"], tree_rows([group], length, 0, shares_prompt=shares))[0] for shares in (True, False)
        )
        np.testing.assert_allclose(shared, masked, atol=1e-5)


def test_a_row_is_run_over_its_prompts_keys_and_values_if_that_takes_less_time(
    models: dict[str, RewardModel],
) -> None:
    def columns(*sizes: int) -> Any:
        rows = [Encoded([5] * 40 + [6] * n, None, False, n, 40) for n in sizes]
        run = Run((tuple(range(len(rows))),), 40 + sum(sizes), 0.0)
        return models["by hand"].lay_out(rows, run).inputs["response_columns"].shape

    assert columns(60, 50, 40) == (3, 60)
    assert columns(4, 4) == (0, 0)  # copies of the prompt's keys and values take longer than the scores that are saved
    assert columns(200, 1, 1, 1) == (0, 0)  # three responses would be padded to 200 tokens
    assert columns(0, 0) == (0, 0)


def test_shared_prompts_are_grouped_across_requests(models: dict[str, RewardModel]) -> None:
    model = models["by hand"]
    prompt = [5] * 300
    rows = [Encoded([*prompt, 6, n], None, False, 2, 300) for n in (4, 5, 6, 7)]
    assert [run.kind for run in plan_runs(rows, CostModel(1e-4, 1e-4, 0.0), trees=True)] == ["tree"]
    feeds = model.lay_out(rows, Run(((0, 1, 2, 3),), 308, 0.0))
    assert (feeds.rows, feeds.tokens, feeds.real_tokens) == (4, 308, 308)


def test_a_graph_of_an_earlier_export_gets_a_mask_for_all_plain_rows_or_for_each(
    models: dict[str, RewardModel],
) -> None:
    rows = [Encoded([5, 6, n], None, False, 1, 2) for n in (4, 5)]
    run = Run(((0,), (1,)), 3, 0.0)
    for name, shape in (("by hand, a mask", (1, 1, 3, 3)), ("by hand, a mask for each row", (2, 1, 3, 3))):
        given = models[name].signature.given(models[name].lay_out(rows, run))
        assert sorted(given) == ["ends", "input_ids", "mask", "position_ids"]
        assert given["mask"].shape == shape


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=groups())
def test_graphs_of_this_and_of_earlier_exports_give_the_same_scores(
    models: dict[str, RewardModel], rows: list[Encoded]
) -> None:
    for trees in (True, False):
        runs = plan_runs(rows, COSTS[0], trees=trees)
        shared, branches, mask, each = (scores(models[name], rows, runs) for name in BY_HAND)
        np.testing.assert_allclose(shared, mask, atol=1e-5)
        np.testing.assert_allclose(branches, mask, atol=1e-5)
        np.testing.assert_array_equal(mask, each)


def test_the_event_loop_lays_out_no_mask_of_a_long_tree_row(models: dict[str, RewardModel]) -> None:
    rows = [Encoded([5] * 2048 + [4 + n] * 256, None, False, 256, 2048) for n in range(8)]
    for name in BY_HAND:
        feeds = models[name].lay_out(rows, Run((tuple(range(8)),), 4096, 0.0))
        assert sum(array.nbytes for array in feeds.inputs.values()) < 41 * 4096
