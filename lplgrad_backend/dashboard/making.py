"""Parts of the project's page: how a version was made, what its random share says, and an image's numbers."""

from __future__ import annotations

from lplgrad_backend.dashboard.facts import Uncertain
from lplgrad_backend.dashboard.markup import Markup, element, join
from lplgrad_backend.dashboard.version_facts import ActiveAgainstRandom, Making, Share


def making(made: Making | None) -> Markup:
    """Recipe, strategy, health and confidences of the version that people are served."""
    if made is None:
        return element("p", "There is no version yet.", class_="note")
    said = [
        ("Recipe", made.recipe or "not known"),
        ("Ordered by", made.ordered_by),
        ("Order asked for", _health(made)),
        ("Confidences", f"at temperature {made.temperature:.2f} ({made.temperature_from or 'not fitted'})"),
    ]
    parts = (part for name, text in said for part in (element("dt", name), element("dd", text)))
    return element("dl", *parts, class_="made")


def _health(made: Making) -> str:
    if made.health is not None:
        return made.health
    if made.duplicates is None:
        return "not known"
    seen = []
    if made.correlation is not None:
        seen.append(f"rank correlation with uncertainty {made.correlation:.2f}")
    return f"healthy ({', '.join([*seen, f'{made.duplicates:.0%} near-duplicates in its head'])})"


def against_random(found: ActiveAgainstRandom) -> Markup:
    """The running accuracy, and a table of both kinds of labels."""
    if not found.drawn.labels and not found.chosen.labels:
        text = "Known once images are labelled that a version's queue has shown."
        return element("p", text, class_="note")
    rows = [_row("Drawn at random", found.drawn), _row("Chosen by the queue", found.chosen)]
    heads = element("tr", element("td"), *(element("th", name, scope="col") for name in ("Labels", "Agreed (95 %)")))
    caption = element("caption", "Labels by how their image came to the queue")
    table = element("table", caption, element("thead", heads), element("tbody", *rows))
    return join(element("p", _accuracy(found)), table, element("p", WHY, class_="note"))


WHY = (
    "Images drawn at random stand for all that were unlabelled, so agreement on them is the accuracy there. Those chosen "
    "are images that the version was unsure of, so it names fewer of them right."
)


def _accuracy(found: ActiveAgainstRandom) -> str:
    known = found.accuracy
    if found.versions is None or known.share is None:
        return "Accuracy: not known yet, no image drawn at random has been labelled."
    first, last = found.versions
    of = first if first == last else f"{first} to {last}"
    return f"Accuracy {known.share:.0%} ({known.low:.0%} to {known.high:.0%}), from {known.labels} images of {of}."


def _row(name: str, known: Share) -> Markup:
    share = "" if known.share is None else f"{known.share:.0%} ({known.low:.0%} to {known.high:.0%})"
    cells = [element("td", known.labels, class_="number"), element("td", share, class_="number")]
    return element("tr", element("th", name, scope="row"), *cells)


def numbers(one: Uncertain) -> str:
    """What is known of an image beside its place."""
    said = [f"score {one.score:.3f}", f"gradient norm {one.gradient_norm:.3g}"]
    if one.predicted_loss is not None:
        said.append(f"predicted loss {one.predicted_loss:.2f}")
    return ", ".join([*said, "drawn at random"] if one.drawn else said)
