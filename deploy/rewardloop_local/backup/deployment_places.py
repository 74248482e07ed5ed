"""Finds the places of a deployment from the settings of a command."""

from __future__ import annotations

from rewardloop_local.backup.places import Place
from rewardloop_local.backup.settings import PlacesSettings
from rewardloop_local.plan import DeploymentPlan


def places_of(settings: PlacesSettings) -> list[Place]:
    """Return the places, those under the data directory unless a setting names another one."""
    plan = DeploymentPlan(settings.data)
    places = [
        Place("models", settings.store or str(plan.store.resolve())),
        Place("ledger", settings.archive or str(plan.ledger.resolve())),
        Place("work", str((settings.work_dir or plan.trainer_work).resolve())),
    ]
    return places + ([Place("spool", str(settings.spool.resolve()))] if settings.spool else [])
