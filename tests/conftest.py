"""What every test shares."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

# Before torch, onnxruntime or tokenizers are imported: tests run side by side on few cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

settings.register_profile("rewardloop", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("rewardloop")
