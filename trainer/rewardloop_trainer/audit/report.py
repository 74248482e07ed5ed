"""An audit as a report: what was found first, then the tables that show it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial

from rewardloop_trainer.audit.audit import Audit
from rewardloop_trainer.audit.holm import holm
from rewardloop_trainer.audit.leanings import Leaning
from rewardloop_trainer.reports.parts import Cell, Intervals, Measured, Paragraph, Part, Report, Section, Table

_MOST_FLAGS = 500
# The probability with which an audit of people and models without a bias names one.
_ALPHA = 0.05
# A leaning below this is found only where there is a great deal of data, and moves little.
_LEAST_LEANING = 0.05
# A slice with an upper bound of alpha below this agrees no better than by chance, as far as anybody could use it.
_LITTLE_AGREEMENT = 0.1
# Fewer items are no finding: most of them may be of one kind.
_LEAST_ITEMS = 20


def findings(audit: Audit) -> list[str]:
    """Return what somebody should look at, one sentence each."""
    return list(_findings(audit))


def figures_of(audit: Audit) -> dict[str, float]:
    """Return the figures that other programs read. Those that are unknown are left out."""
    whole, crowd = audit.slices[0], audit.crowd
    found = {
        "signals": float(audit.signals),
        "people": float(whole.people),
        "alpha": crowd.agreement.alpha,
        "self_consistency": crowd.consistency.same,
        "crowd_accuracy": crowd.reliability.crowd,
        "flagged_people": float(len({flag.person for flag in crowd.flags})),
        "first_leaning": whole.first.leaning.value,
        "longer_chosen": whole.longer.chosen.value,
        "findings": float(len(findings(audit))),
        **{f"alpha_{each.name}": each.agreement.alpha for each in audit.kinds},
        **{f"self_consistency_{each.name}": each.consistency.same for each in audit.kinds},
        **{f"probe_{each.name}_shift": each.shift.value for each in audit.probes},
    }
    if whole.model is not None:
        found |= {
            "model_accuracy": whole.model.accuracy.value,
            "model_accuracy_lower": whole.model.accuracy.lower,
            "model_calibration_error": whole.model.calibration_error,
            "model_longer_beyond_people": whole.model.longer_beyond_people.value,
        }
    return {name: value for name, value in found.items() if math.isfinite(value)}


def report_of(audit: Audit, facts: Mapping[str, Cell]) -> Report:
    """Return the report of an audit, with what was read as its facts."""
    found = findings(audit)
    lead = f"{len(found)} things to look at." if found else "Nothing stands out."
    sections = [
        Section("findings", "What to look at", [Paragraph(each, "bad") for each in found] or [_nothing()]),
        Section("slices", "Signals by slice", _slices(audit)),
        Section("people", "People", _people(audit)),
    ]
    if audit.slices[0].model is not None:
        sections.append(Section("model", "The model by slice", _model(audit)))
    if audit.probes:
        sections.append(Section("probes", "What the model makes of form alone", _probes(audit)))
    sections.append(Section("coverage", "Signals beside the traffic", _coverage(audit)))
    return Report("Audit of signals and model", lead, dict(facts), figures_of(audit), sections)


def _nothing() -> Paragraph:
    return Paragraph("No leaning, no flag and no gap was found that the data are enough to show.", "good")


def _findings(audit: Audit) -> Iterator[str]:
    biases = list(_biases(audit))
    stand = holm([is_beyond for is_beyond, _ in biases], _ALPHA)
    yield from (text for place, (_, text) in enumerate(biases) if place in stand)
    for each in audit.slices:
        if each.agreement.items >= _LEAST_ITEMS and each.agreement.upper < _LITTLE_AGREEMENT:
            yield f"{each.name}: people hardly agree (alpha {each.agreement.alpha:.2f})."
    flagged = {flag.detector for flag in audit.crowd.flags}
    for detector in sorted(flagged):
        people = {flag.person for flag in audit.crowd.flags if flag.detector == detector}
        yield f"{len(people)} people are flagged by the detector “{detector}”."
    for burst in audit.crowd.bursts:
        usual = f"usually {burst.usual:.0f}"
        yield f"A burst of {burst.signals} signals in ten minutes ({usual}), of {burst.new_people} new people."
    for covered in audit.coverage:
        if covered.is_little:
            yield (
                f"{covered.name}: {100 * covered.traffic:.0f}% of the traffic, but "
                f"{100 * covered.signals.value:.1f}% of the signals."
            )


def _biases(audit: Audit) -> Iterator[tuple[Callable[[float], bool], str]]:
    """Yield every bias of people or of the model that is looked for: whether it is there at a level, and in words.

    All of them are tested together: of audits of people and models without any bias, one in twenty names one.
    """
    for each in audit.slices:
        for what, leaning in (("the response they see first", each.first), ("the longer response", each.longer)):
            if leaning.bounds is None:
                continue
            against = "by chance" if leaning is each.first else "than the others do"
            how = "more often" if leaning.leaning.value > 0 else "less often"
            share = f"{100 * abs(leaning.leaning.value):.0f}%"
            text = f"in {share} of their choices people take {what} {how} {against}, whatever it says."
            yield partial(_leans, leaning), f"{each.name}: {text}"
        if (model := each.model) is not None:
            text = "the model orders fewer pairs as people do than always taking the longer one would."
            yield model.is_below_baseline, f"{each.name}: {text}"
            more = 100 * model.longer_beyond_people.value
            text = f"the model prefers the longer response {more:.0f} points more often than people."
            yield partial(model.is_fonder_than_people, _LEAST_LEANING), f"{each.name}: {text}"
    for probe in audit.probes:
        way = "prefers" if probe.preferred.value > 0.5 else "dislikes"
        most = max(probe.preferred.value, 1 - probe.preferred.value)
        yield probe.is_beyond, f"The model {way} {probe.name} alone in {100 * most:.0f}% of the responses."


def _leans(leaning: Leaning, alpha: float) -> bool:
    return abs(leaning.leaning.value) >= _LEAST_LEANING and leaning.is_beyond(alpha)


def _slices(audit: Audit) -> list[Part]:
    rows: list[tuple[Cell, ...]] = [
        (
            each.name,
            each.signals,
            each.people,
            Measured(each.agreement.alpha, each.agreement.lower, each.agreement.upper),
            each.longer.chosen,
            _of(each.longer),
            each.first.chosen,
            _of(each.first),
        )
        for each in audit.slices
    ]
    columns = (
        *("slice", "signals", "people", "alpha"),
        *("longer chosen", "leaning to it", "first chosen", "leaning to first"),
    )
    parts: list[Part] = [
        Table(
            "slices",
            columns,
            rows,
            note="A leaning is the share of choices that people give to the longer or first response whatever it says: "
            "to the longer one against the people outside the slice, to the first one against chance.",
        )
    ]
    if audit.small:
        small = ", ".join(f"{name} ({count})" for name, count in sorted(audit.small.items()))
        parts.append(Paragraph(f"Too few signals to tell anything: {small}.", "note"))
    known = [(each.name, each.first.leaning) for each in audit.slices if math.isfinite(each.first.leaning.value)]
    if known:
        parts.append(Intervals("first", "Leaning to the response seen first", "share of choices", known, 0.0))
    longer = [(each.name, each.longer.leaning) for each in audit.slices if math.isfinite(each.longer.leaning.value)]
    if longer:
        parts.append(Intervals("longer", "Leaning to the longer response", "share of choices", longer, 0.0))
    return parts


def _of(leaning: Leaning) -> Measured:
    return leaning.leaning


def _people(audit: Audit) -> list[Part]:
    crowd = audit.crowd
    same = crowd.consistency
    facts: list[tuple[Cell, ...]] = [
        ("people who compared", len(crowd.reliability.people)),
        ("alpha", Measured(crowd.agreement.alpha, crowd.agreement.lower, crowd.agreement.upper)),
        ("same answer when asked again", Measured(same.same, same.lower, same.upper)),
        ("accuracy of a new person", crowd.reliability.crowd),
        ("share of votes that could be compared", crowd.reliability.compared),
        ("share of signals that weigh nothing", crowd.muted),
        ("hands with several ids", len(set(crowd.hands.values()))),
    ]
    flags: list[tuple[Cell, ...]] = [
        (
            flag.detector,
            _shown(flag.person),
            flag.signals,
            flag.share,
            flag.bound,
            f"{flag.probability:.1e}",
            _shown(flag.about),
        )
        for flag in crowd.flags[:_MOST_FLAGS]
    ]
    parts: list[Part] = [Table("crowd", ("figure", "value"), facts), _kinds(audit)]
    columns = ("detector", "person", "signals", "share", "honest below", "by chance", "about")
    more = len(crowd.flags) - len(flags)
    note = f"{more} more are in no list." if more > 0 else ""
    parts.append(Table("flags", columns, flags, title="Flagged people", note=note))
    ranked = sorted(crowd.reliability.people.items(), key=lambda item: item[1].accuracy)[:_MOST_FLAGS]
    known: list[tuple[Cell, ...]] = [
        (_shown(name), each.votes, each.informed, each.accuracy, each.deviation)
        for name, each in ranked
        if each.informed >= 1
    ]
    of_people = ("person", "votes", "of which tell", "accuracy", "deviation")
    parts.append(Table("reliability", of_people, known, title="Reliability, the least first"))
    return parts


def _kinds(audit: Audit) -> Table:
    rows: list[tuple[Cell, ...]] = [
        (
            each.name,
            Measured(each.agreement.alpha, each.agreement.lower, each.agreement.upper),
            each.agreement.items,
            each.agreement.votes,
            Measured(each.consistency.same, each.consistency.lower, each.consistency.upper),
            each.consistency.repeats,
            each.consistency.people,
        )
        for each in audit.kinds
    ]
    columns = ("signals", "alpha", "items", "votes on them", "same answer when asked again", "repeats", "people")
    note = "Krippendorff's alpha is 1 if all agree and 0 if no more than by chance. That of ratings counts how far two "
    note += "of them are apart; a rating that is given again is the same only if it is equal. A dash stands "
    note += "where no two people judged the same item, or all said the same of all items, which chance would give too. "
    note += "An alpha of one item has no interval."
    return Table("kinds", columns, rows, title="Agreement by kind of signal", note=note)


def _shown(person: str) -> str:
    """Return a person's name as people read it: the caller before the id."""
    return person.replace("\x1f", " / ")


def _model(audit: Audit) -> list[Part]:
    rows: list[tuple[Cell, ...]] = []
    plotted = []
    for each in audit.slices:
        if (model := each.model) is not None:
            rows.append(
                (
                    each.name,
                    model.pairs,
                    model.accuracy,
                    model.length_baseline,
                    model.accuracy_shorter_won,
                    model.longer_beyond_people,
                    model.calibration_error,
                    model.slope,
                )
            )
            plotted.append((each.name, model.accuracy))
    columns = (
        *("slice", "pairs", "accuracy", "always the longer", "where the shorter won", "longer beyond people"),
        *("calibration error", "slope"),
    )
    note = "On comparisons that the model has not learned from. A slope below 1 says that the model is too sure."
    return [
        Table("model", columns, rows, note=note),
        Intervals("accuracy", "Accuracy by slice", "share of pairs ordered as people did", plotted, 0.5),
    ]


def _probes(audit: Audit) -> list[Part]:
    rows: list[tuple[Cell, ...]] = [(each.name, each.responses, each.preferred, each.shift) for each in audit.probes]
    note = "The shift of the logit is in standard deviations of the difference between two compared responses."
    columns = ("form", "responses", "preferred with it", "shift")
    shifts = [(each.name, each.shift) for each in audit.probes]
    return [
        Table("probes", columns, rows, note=note),
        Intervals("shifts", "Shift by form alone", "standard deviations", shifts, 0.0),
    ]


def _coverage(audit: Audit) -> list[Part]:
    if not audit.coverage:
        return [
            Paragraph("No traffic was given (--traffic), so that nothing is known of who gives no signals.", "note")
        ]
    rows: list[tuple[Cell, ...]] = [
        (each.name, each.traffic, each.signals, each.count, each.is_little) for each in audit.coverage
    ]
    columns = ("slice", "share of the traffic", "share of the signals", "signals", "under-represented")
    return [Table("coverage", columns, rows)]
