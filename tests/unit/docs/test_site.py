"""The site's pages that are made from code are whole, and links lead where they should."""

from __future__ import annotations

import re
from collections.abc import Sequence

import generate
import pytest
from pydantic import BaseModel
from reference_pages import contract_pages, rpc_pages, setting_pages
from support.documents import ROOT

import rewardloop_client
from rewardloop.formats import keys
from rewardloop.v1 import common_pb2, feedback_pb2, model_pb2, policy_pb2, reward_pb2
from rewardloop_server.settings import ServeSettings
from rewardloop_trainer.settings import TrainSettings

FILES = [module.DESCRIPTOR for module in (common_pb2, feedback_pb2, model_pb2, policy_pb2, reward_pb2)]


def test_every_method_message_and_enum_has_a_section() -> None:
    sections = set(re.findall(r"^##+ (\w+)$", rpc_pages.rpcs(), re.MULTILINE))
    for file in FILES:
        assert {*file.services_by_name, *file.message_types_by_name, *file.enum_types_by_name} <= sections
        assert {method.name for service in file.services_by_name.values() for method in service.methods} <= sections


def test_comments_of_the_protos_are_in_the_page() -> None:
    page = " ".join(rpc_pages.rpcs().split())
    assert "Scores one prompt with 1..N responses, all by one model version." in page
    assert re.search(r"\| `lane` \| 3 \| \[Lane\]\(#lane\) \|", page)


@pytest.mark.parametrize("model", [ServeSettings, TrainSettings])
def test_every_setting_is_listed_with_flag_variable_and_default(model: type[BaseModel]) -> None:
    listed = {setting.path[0] for setting in setting_pages.settings_of(model)}
    assert listed == set(model.model_fields)


def test_settings_of_settings_have_dotted_flags() -> None:
    found = {setting.flag: setting for setting in setting_pages.settings_of(TrainSettings)}
    share = found["--policy.live-test.share"]
    assert (share.variable, share.default, share.kind) == ("REWARDLOOP_POLICY__LIVE_TEST__SHARE", "0", "number")


def test_every_reason_and_its_exception_are_listed() -> None:
    page = contract_pages.errors()
    kinds = [k for k in vars(rewardloop_client).values() if isinstance(k, type)]
    reasons = {k.reason: k for k in kinds if issubclass(k, rewardloop_client.RewardloopError) and k.reason}
    assert reasons
    for reason, kind in reasons.items():
        assert f"| `{reason}` | `{kind.code.name}` | `{kind.__name__}` |" in page


def test_every_redis_key_is_listed() -> None:
    page = contract_pages.redis_keys()
    named = [v for k, v in vars(keys).items() if k.isupper() and isinstance(v, str) and v.startswith("rewardloop:")]
    assert named
    assert [key for key in named if key not in page] == []


@pytest.mark.parametrize(
    ("link", "shown"),
    [
        ("[Capacity](../../deploy/CAPACITY.md#scoring)", "[Capacity](../reference/capacity.md#scoring)"),
        ("[Watch it](watch.md)", "[Watch it](watch.md)"),
        ("[RPCs](../reference/rpcs.md)", "[RPCs](../reference/rpcs.md)"),
        ("[alerts.yml](../../deploy/observability/alerts.yml)", "`deploy/observability/alerts.yml`"),
        ("[the rules](../../deploy/observability/alerts.yml)", "the rules (`deploy/observability/alerts.yml`)"),
        ("![plot](../../deploy/report.png)", "![plot](../pictures/deploy/report.png)"),
        ("[a site](https://example.org)", "[a site](https://example.org)"),
        ("```\n[text](nowhere.md)\n```", "```\n[text](nowhere.md)\n```"),
    ],
)
def test_links_of_a_page_are_those_of_the_site(link: str, shown: str) -> None:
    assert generate.with_site_links(link, "docs/how-to/size.md", "how-to/size.md") == shown


@pytest.mark.parametrize("link", ["[text](nowhere.md)", "![plot](nowhere.png)"])
def test_a_link_to_nowhere_is_an_error(link: str) -> None:
    with pytest.raises(generate.BrokenLink):
        generate.with_site_links(link, "docs/how-to/size.md", "how-to/size.md")


def test_every_page_is_in_the_navigation() -> None:
    listed: Sequence[str] = re.findall(r"(\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    assert sorted(listed) == sorted({*generate.sources(), *generate.GENERATED})
