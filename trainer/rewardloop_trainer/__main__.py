"""``python -m rewardloop_trainer``."""

from rewardloop_trainer.app import main

raise SystemExit(main())
