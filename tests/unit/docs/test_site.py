"""The site's pages that are made from code are whole, and links lead where they should."""

from __future__ import annotations

import re
from collections.abc import Sequence

import generate
import pytest
from reference_pages import contract_pages, rpc_pages, setting_pages
from support.documents import ROOT

import rewardloop_client
from rewardloop.formats import keys
from rewardloop.process.process_table import PROCESSES
from rewardloop.process.setting_names import settings_of
from rewardloop.v1 import (
    access_pb2,
    common_pb2,
    feedback_pb2,
    labelling_pb2,
    model_pb2,
    operations_pb2,
    policy_pb2,
    reward_pb2,
)

FILES = [
    module.DESCRIPTOR
    for module in (
        *(access_pb2, common_pb2, feedback_pb2, labelling_pb2),
        *(model_pb2, operations_pb2, policy_pb2, reward_pb2),
    )
]


def test_every_method_message_and_enum_has_a_section() -> None:
    sections = set(re.findall(r"^##+ (\w+)$", rpc_pages.rpcs(), re.MULTILINE))
    for file in FILES:
        assert {*file.services_by_name, *file.message_types_by_name, *file.enum_types_by_name} <= sections
        assert {method.name for service in file.services_by_name.values() for method in service.methods} <= sections


def test_comments_of_the_protos_are_in_the_page() -> None:
    page = " ".join(rpc_pages.rpcs().replace("\\", "").split())
    commented = [
        (method, " ".join(re.sub(r"^ *//", "", comment, flags=re.MULTILINE).split()))
        for proto in (ROOT / "protos/rewardloop/v1").glob("*.proto")
        for comment, method in re.findall(r"((?:^ *//.*\n)+) *rpc (\w+)", proto.read_text("utf-8"), re.MULTILINE)
    ]
    assert [method for method, comment in commented if comment not in page] == []
    assert len(commented) == sum(len(service.methods) for file in FILES for service in file.services_by_name.values())
    assert re.search(r"\| `lane` \| 3 \| \[Lane\]\(#lane\) \|", page)


def test_every_setting_of_every_process_is_listed_with_its_names() -> None:
    page = setting_pages.settings()
    for process in PROCESSES:
        section = page.partition(f"## rewardloop {process.name}\n")[2].partition("\n## ")[0]
        for setting in settings_of(process.settings_class()):
            assert f"| `{setting.flag}` | `{setting.env}` |" in section
    assert "| `--policy.live-test.share` | `REWARDLOOP_POLICY__LIVE_TEST__SHARE` | number | `0` |" in page


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
