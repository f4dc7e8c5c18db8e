"""The pages as HTML, from facts alone. `root` leads from a page's address to the backend's own, which may have a path."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from lplgrad_backend.dashboard.facts import Confusion, Doubtful, Progress, ProjectFacts, Uncertain
from lplgrad_backend.dashboard.making import against_random, making, numbers
from lplgrad_backend.dashboard.markup import Markup, element, join
from lplgrad_backend.dashboard.plots import learning_curve, score_histogram, share_bar

SHADES = 5


NO_WORKER = "No worker is at work, so nothing trains and no queue is made anew. Start one: python -m lplgrad_backend "
NO_WORKER += "serve, or with LPLGRAD_WORKER=external: python -m lplgrad_backend worker"


def overview_page(projects: Sequence[ProjectFacts], root: str, *, worker: bool) -> str:
    """All projects, a card each. `worker`: whether one is at work."""
    if projects:
        cards = [_overview_card(facts, root) for facts in projects]
        shown = element("ul", *cards, class_="cards")
    else:
        shown = _note("No project is connected yet. In Label Studio: Settings > Model > Connect Model.")
    busy = [facts.name for facts in projects if facts.round is not None]
    said = f"A round runs for {', '.join(busy)}." if busy else "No round is running."
    return _page("LPLgrad", root, said, element("h1", "LPLgrad"), _live("projects", join(*_idle(worker), shown)))


def project_page(facts: ProjectFacts, root: str) -> str:
    """One project in full."""
    back = element("nav", element("a", "All projects", href=root or "./"), aria_label="Pages")
    there = facts.link and element("a", "Open in Label Studio", href=facts.link, class_="button")
    head = element("header", element("div", back, element("h1", facts.name)), there or None, class_="top")
    running = f"A round runs: {facts.round.phase}." if facts.round else "No round is running."
    return _page(
        facts.name,
        root,
        running,
        head,
        _live("now", join(_summary(facts), *_trouble(facts))),
        element(
            "div",
            _section("labels", "Labels", _labels(facts)),
            _section("curve", "Agreement with people", _curve(facts)),
            _section("confusion", "Predicted and chosen", _confusion(facts.confusion)),
            _section("scores", "Scores of the queue", _scores(facts)),
            _section("making", "How this version was made", making(facts.making)),
            _section("random", "Active against random", against_random(facts.active_against_random)),
            class_="grid",
        ),
        _section("uncertain", "Most uncertain images", _uncertain(facts.uncertain, facts, root)),
        _section("suspects", "Suspected mistakes", _suspects(facts.suspects, facts, root)),
    )


def _page(title: str, root: str, said: str, *content: object) -> str:
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", title),
        element("link", rel="icon", href=f"{root}static/icon.svg", type="image/svg+xml"),
        element("link", rel="stylesheet", href=f"{root}static/page.css"),
        element("script", src=f"{root}static/page.js", defer=True),
    )
    skip = element("a", "Skip to content", href="#content", class_="skip")
    status = element("p", said, id="said", role="status", class_="said")
    main = element("main", *content, id="content", tabindex="-1")
    return "<!doctype html>" + element("html", head, element("body", skip, main, status), lang="en")


def _live(name: str, content: Markup) -> Markup:
    """A part that page.js replaces when it has changed."""
    return element("div", content, id=name, data_live=True)


def _section(name: str, heading: str, content: Markup) -> Markup:
    title = element("h2", heading, id=f"{name}-heading")
    return element("section", title, _live(name, content), class_="card", aria_labelledby=f"{name}-heading")


def _note(text: object) -> Markup:
    return element("p", text, class_="note")


# Now


def _overview_card(facts: ProjectFacts, root: str) -> Markup:
    link = element("a", facts.name, href=f"{root}projects/{facts.project}")
    said = f"{facts.version or 'no version yet'}, {_count(sum(facts.labels.values()), 'label')}"
    state = _progress(facts.round) if facts.round else _note(f"Next round: {_due(facts)}")
    error = element("p", facts.last_error, class_="error") if facts.last_error else None
    return element("li", element("h2", link), _note(said), state, error, class_="card")


def _idle(worker: bool) -> list[Markup]:
    return [] if worker else [element("p", NO_WORKER, class_="error")]


def _due(facts: ProjectFacts) -> str:
    return "was interrupted and begins anew" if facts.interrupted else facts.due


def _summary(facts: ProjectFacts) -> Markup:
    judged = next((point for point in reversed(facts.curve) if point.agreement is not None), None)
    tiles = [
        _tile("Version", facts.version or "none yet", _published(facts)),
        _tile("Labels", sum(facts.labels.values()), _time(facts.labels_read_at)),
        _tile(
            "Agreement",
            "not known yet" if judged is None else f"{judged.agreement:.0%}",
            "" if judged is None else f"{judged.version}, {judged.agreed} of {judged.compared}",
        ),
        _tile("Next round", "running" if facts.round else _due(facts), _count(facts.rounds, "round") + " so far"),
    ]
    first = _note(facts.cold_start) if facts.cold_start else None
    return join(element("dl", *tiles, class_="tiles"), first, _progress(facts.round) if facts.round else None)


def _published(facts: ProjectFacts) -> object:
    """When the newest version was made, or which other one people are served."""
    if facts.not_published:
        return f"kept; the queue is that of {facts.served}"
    return _time(facts.version_created)


def _tile(name: str, value: object, beside: object) -> Markup:
    inner = [element("dt", name), element("dd", value, class_="value"), element("dd", beside, class_="beside")]
    return element("div", *inner, class_="tile")


def _progress(running: Progress) -> Markup:
    unit = "epoch" if running.phase == "training" else "image"
    place = f", {unit} {running.done} of {running.total}" if running.total else ""
    left = "" if running.seconds_left is None else f", about {_duration(running.seconds_left)} left"
    said = f"{running.phase.capitalize()}{place}{left}"
    bar = element(
        "progress",
        value=None if running.share is None else f"{running.share:.3f}",
        max=1,
        aria_label=f"Progress of {running.phase}",
    )
    return element("div", element("p", said), bar, class_="progress")


def _trouble(facts: ProjectFacts) -> list[Markup]:
    found = _idle(facts.worker_at_work)
    if facts.not_published:
        found.append(element("p", facts.not_published, class_="warning"))
    if facts.last_error:
        when = element("span", _time(facts.last_error_at), class_="beside")
        found.append(element("p", element("strong", "Last error: "), facts.last_error, " ", when, class_="error"))
    if facts.to_do_by_hand:
        found.append(element("p", element("strong", "To do by hand: "), facts.to_do_by_hand, class_="warning"))
    found += [element("p", warning, class_="warning") for warning in facts.warnings]
    if facts.unreadable_count:
        reasons = [element("li", f"Task {task}: {reason}") for task, reason in facts.unreadable.items()]
        summary = element("summary", f"Last in line, since unreadable: {_count(facts.unreadable_count, 'image')}")
        found.append(element("details", summary, element("ul", *reasons), class_="warning", id="unreadable"))
    return found


# Sections


def _labels(facts: ProjectFacts) -> Markup:
    if not facts.labels:
        return _note("No label has been read yet.")
    most = max(1, *facts.labels.values())
    rows = [
        element(
            "tr",
            element("th", name, scope="row"),
            element("td", count, class_="number"),
            element("td", share_bar(count / most), class_="wide"),
        )
        for name, count in facts.labels.items()
    ]
    return _table("Labelled images per class", ["Class", "Images", ""], rows)


def _curve(facts: ProjectFacts) -> Markup:
    compared = [point for point in facts.curve if point.agreement is not None]
    if not compared:
        return _note("Known once images are labelled that a version has predicted before.")
    rows = [
        element(
            "tr",
            element("th", point.version, scope="row"),
            element("td", point.images, class_="number"),
            element("td", f"{point.agreed} of {point.compared}", class_="number"),
            element("td", f"{point.agreement:.0%} ({point.low:.0%} to {point.high:.0%})", class_="number"),
        )
        for point in reversed(compared[-30:])
    ]
    table = _table("Agreement of each version", ["Version", "Labels", "Agreed", "Share (95 %)"], rows)
    return join(
        learning_curve(compared),
        _note(
            "Labels that people gave after a version had predicted. The hardest images come first, so this is lower than "
            "on images taken at random; a class that was shown beforehand may have swayed people the other way."
        ),
        element("details", element("summary", "As a table"), table, id="curve-table"),
    )


def _confusion(confusion: Confusion | None) -> Markup:
    if confusion is None:
        return _note("Known once images are labelled that a version has predicted before (for one class per image).")
    most = max(1, *(count for row in confusion.counts for count in row))
    rows = []
    for at, (name, counts) in enumerate(zip(confusion.classes, confusion.counts, strict=True)):
        cells = [
            element("td", count or "", class_=f"number {'right' if at == to else 'wrong'}-{_shade(count, most)}")
            for to, count in enumerate(counts)
        ]
        rows.append(element("tr", element("th", name, scope="row", title=name), *cells))
    table = _table(f"Rows: predicted by {confusion.version}; columns: chosen", ["", *confusion.classes], rows)
    return element("div", table, class_="scroll", tabindex="0", role="region", aria_labelledby="confusion-heading")


def _shade(count: int, most: int) -> int:
    return -(-count * SHADES // most)


def _scores(facts: ProjectFacts) -> Markup:
    if not any(facts.histogram):
        return _note("No unlabelled image has been scored yet.")
    return join(
        score_histogram(facts.histogram), _note("0.5 is the median image of the round; lower is more informative.")
    )


def _uncertain(entries: Sequence[Uncertain], facts: ProjectFacts, root: str) -> Markup:
    if not entries:
        return _note("No unlabelled image has been scored yet.")
    cards = []
    for one in entries:
        said = [
            element("p", one.predicted, element("span", f" {one.probability:.0%}", class_="beside"), class_="class"),
            _note(f"or {one.runner_up} {one.runner_up_probability:.0%}"),
            _note(f"more uncertain than {one.percentile:.0f}% of the queue"),
            _note(numbers(one)),
        ]
        cards.append(element("li", _thumbnail(facts, one.task, root), *said, _task(one.task, one.link)))
    return element("ul", *cards, class_="images")


def _suspects(entries: Sequence[Doubtful], facts: ProjectFacts, root: str) -> Markup:
    if not entries:
        return _note("No label looks wrong.")
    cards = [
        element(
            "li",
            _thumbnail(facts, one.task, root),
            element("p", one.label, class_="class"),
            _note(f"the model would say {one.predicted or 'none'}"),
            _note(f"loss {one.loss:.2f}, expected {one.expected:.2f}"),
            _task(one.task, one.link),
        )
        for one in entries
    ]
    return element("ul", *cards, class_="images")


def _thumbnail(facts: ProjectFacts, task: int, root: str) -> Markup:
    address = f"{root}projects/{facts.project}/images/{task}"
    return element("img", src=address, alt=f"Image of task {task}", loading="lazy", width=120, height=120)


def _task(task: int, link: str | None) -> Markup:
    return element("a", f"Task {task}", href=link) if link else _note(f"Task {task}")


def _table(caption: str, heads: Sequence[str], rows: Sequence[Markup]) -> Markup:
    head = element("tr", *(element("th", name, scope="col", title=name) if name else element("td") for name in heads))
    return element("table", element("caption", caption), element("thead", head), element("tbody", *rows))


# Words


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _duration(seconds: float) -> str:
    return f"{max(1, round(seconds / 5)) * 5} s" if seconds < 90 else f"{round(seconds / 60)} min"


def _time(moment: datetime | None) -> object:
    if moment is None:
        return ""
    return element("time", moment.strftime("%d %b %Y, %H:%M UTC"), datetime=moment.isoformat(timespec="seconds"))
