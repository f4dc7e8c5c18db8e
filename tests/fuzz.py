"""`make fuzz`: inputs made up by hypothesis, until so many were tried; what is not handled is kept in tests/corpus.

An input is handled when it gives a result or this package's own error about it. Writes benchmarks/fuzz.md.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import random
import resource
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from test_image_decoding import SAMPLES, STARTS, png_header

from lplgrad_backend.errors import ImageUnreadable, LabelConfigError, LPLGradError, RequestError
from lplgrad_backend.image_decoding import Decoder
from lplgrad_backend.labeling import (
    Labeling,
    image_uri,
    named_control,
    parse_label_config,
    project_number,
    read_annotations,
)

HERE = Path(__file__).parent
CORPUS, PAGE = HERE / "corpus", HERE.parent / "benchmarks" / "fuzz.md"
DECODER = Decoder(1_000_000)
LABELING = Labeling("kind", "image", "image", ("cat", "dog"), True, (("Cat", "cat"),))
PARTS = (
    "<View>", "</View>", "<Image", "<Choices", "</Choices>", "<Choice", "/>", ">", "<Style>", "<![CDATA[", "]]>", "<!--",
    "-->", '<?xml version="1.0" encoding="utf-16"?>', "<!DOCTYPE x [<!ENTITY a 'b'>]>", "&a;", "&amp;", "&#0;", "&#x1F600;",
    ' name="kind"', ' name="image"', ' toName="image"', ' toName="image,other"', ' value="$image"', ' value="$"',
    ' value="cat"', ' value="dog"', ' alias="c"', ' choice="single"', ' choice="multiple"', ' choice="x"',
    ' perRegion="true"', ' xmlns:a="b"', " a:b='c'", "\0", "\ud800", "\ufeff", "<a:b/>", "\u2028", '"', "'", "<", "{", "$",
)  # fmt: skip
GOOD = (
    '<View><Image name="image" value="$image"/><Choices name="kind" toName="image" choice="single">'
    '<Choice value="cat"/><Choice value="dog" alias="d"/></Choices></View>'
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(["cat", "kind", "/a.png"]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.text()
            | st.sampled_from(["id", "data", "annotations", "result", "value", "choices", "from_name", "image"]),
            inner,
            max_size=5,
        )
    ),
    max_leaves=20,
)


def mutated(chance: random.Random, content: bytes, others: Iterable[bytes]) -> bytes:
    """Bytes with some of them changed, moved, doubled, dropped, or taken from another sample."""
    found, pool = bytearray(content), list(others)
    for _ in range(chance.randint(1, 8)):
        at, length = chance.randint(0, len(found)), chance.choice((1, 1, 2, 4, 4, 8, 32, 200))
        other = chance.choice(pool)
        from_other = chance.randint(0, len(other))
        found[at : at + chance.choice((0, length))] = chance.choice((
            chance.randbytes(length), bytes(length), b"\xff" * length, found[at : at + length] * 2, b"",
            other[from_other : from_other + length], chance.choice((b"\x7f\xff\xff\xff", b"\0\0\0\x01", b"\x80\0\0\0")),
        ))  # fmt: skip
    return bytes(found[: chance.randint(0, len(found))] if chance.random() < 0.1 else found)


def picture(number: int) -> bytes:
    chance = random.Random(number)
    kind = chance.random()
    if kind < 0.1:
        return chance.choice(STARTS) + chance.randbytes(chance.randint(0, 400))
    if kind < 0.15:
        return png_header(chance.getrandbits(chance.randint(1, 31)), chance.getrandbits(chance.randint(1, 31)))
    return mutated(chance, chance.choice(SAMPLES), SAMPLES)


ATTRIBUTES = tuple(part for part in PARTS if part.startswith(" ") and "xmlns" not in part and "a:b" not in part)


def tag(chance: random.Random, name: str, depth: int) -> str:
    """A well-formed element with attributes that may or may not fit it, and others in it."""
    chosen = {part.partition("=")[0]: part for part in chance.sample(ATTRIBUTES, chance.randint(0, 6))}
    below = {"Choices": ("Choice",) * 5, "View": ("Image", "Choices", "Choices", "View"), "Choice": ("Choice",)}
    inner = chance.choices((*below.get(name, ()), "Text"), k=chance.randint(0, 4) if depth and name != "Choice" else 0)
    return f"<{name}{''.join(chosen.values())}>{''.join(tag(chance, one, depth - 1) for one in inner)}</{name}>"


def label_config(number: int) -> str:
    chance = random.Random(number)
    kind = chance.random()
    if kind < 0.3:
        return "".join(chance.choice(PARTS) for _ in range(chance.randint(0, 40)))
    if kind < 0.6:
        image = '<Image name="image" value="$image"/>' if chance.random() < 0.8 else ""
        return f"<View>{image}{tag(chance, 'View', 3)}{tag(chance, 'Choices', 2)}</View>"
    text = GOOD
    for _ in range(chance.choice((1, 1, 1, 2, 3, 6))):
        at = chance.randint(0, len(text))
        text = text[:at] + chance.choice((*PARTS, "", "")) + text[at + chance.choice((0, 0, 1, 5, 20)) :]
    return text * (chance.randint(2, 50) if kind > 0.98 else 1)


EXPORT = {
    "id": 7,
    "data": {"image": "/a.png"},
    "annotations": [{
        "id": 1, "was_cancelled": False,
        "result": [{"from_name": "kind", "to_name": "image", "type": "choices", "value": {"choices": ["cat", "Cat"]}}],
    }],
}  # fmt: skip


def changed(value: Any, other: Any, where: int) -> Any:
    """A value with one of its parts, the value itself being the first, replaced."""
    left = [where]

    def copied(part: Any) -> Any:
        left[0] -= 1
        if left[0] == -1:
            return other
        if isinstance(part, dict):
            return {key: copied(inner) for key, inner in part.items()}
        return [copied(inner) for inner in part] if isinstance(part, list) else part

    return copied(value)


def decode(content: bytes) -> str:
    said = []
    for read in (lambda: DECODER.size(content, "a"), lambda: DECODER.decode(content, 8, "a").shape):
        try:
            read()
            said.append("read")
        except ImageUnreadable:
            said.append("refused")
    return " and ".join(dict.fromkeys(said))


def parse(text: str) -> str:
    named_control(text)
    for control in (None, "kind"):
        try:
            parse_label_config(text, control)
        except LabelConfigError:
            return "refused"
    return "read"


def understand(value: Any) -> str:
    """What Label Studio might send: an export, a project's number, a task."""
    examples = read_annotations(LABELING, value if isinstance(value, list) else [value]).examples
    for act in (lambda: project_number(value), lambda: image_uri(LABELING, value if isinstance(value, dict) else {})):
        try:
            act()
        except (RequestError, LPLGradError):
            continue
    return "with examples" if examples else "without examples"


@dataclass
class Tally:
    """What became of one kind of input."""

    name: str
    ends: Counter[str] = field(default_factory=Counter)
    unhandled: list[str] = field(default_factory=list)
    slowest: float = 0.0  # processor seconds of one input
    seconds: float = 0.0


def run(name: str, inputs: st.SearchStrategy[Any], handle: Callable[[Any], str], count: int) -> Tally:
    """Try `count` inputs."""
    tally = Tally(name)

    @seed(int(hashlib.sha256(name.encode()).hexdigest()[:8], 16))
    @settings(max_examples=count, database=None, deadline=None, phases=[Phase.generate],
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(inputs)
    def one(value: Any) -> None:
        started = time.process_time()
        try:
            tally.ends[handle(value)] += 1
        except Exception:  # noqa: BLE001
            tally.unhandled.append(keep(name, value))
        tally.slowest = max(tally.slowest, time.process_time() - started)

    started = time.monotonic()
    one()
    tally.seconds = time.monotonic() - started
    return tally


def keep(name: str, value: Any) -> str:
    """Keep an input that was not handled, and say why."""
    content = value if isinstance(value, bytes) else value.encode(errors="surrogatepass") if isinstance(value, str) else json.dumps(value).encode()  # fmt: skip  # noqa: E501
    file = CORPUS / name.replace(" ", "_") / hashlib.sha256(content).hexdigest()[:16]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    reason = traceback.format_exc()
    sys.stderr.write(f"{file}:\n{reason}\n")
    return f"{file.parent.name}/{file.name}: {reason.splitlines()[-1]}"


def page(tallies: list[Tally]) -> str:
    rows = []
    for tally in tallies:
        ends = ", ".join(f"{count:,} {end}" for end, count in tally.ends.most_common())
        total = sum(tally.ends.values()) + len(tally.unhandled)
        rows.append(f"| {tally.name} | {total:,} | {ends} | {len(tally.unhandled)} | {tally.slowest * 1000:.0f} ms | {tally.seconds:.0f} s |")  # fmt: skip  # noqa: E501
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    unhandled = [f"- {reason}" for tally in tallies for reason in tally.unhandled]
    return "\n".join([
        "# Fuzzing", "",
        "`make fuzz` makes up inputs and hands each to the code that reads such from strangers. An input is handled that",
        "ends with a result or with this package's own error about it; any other exception is unhandled. What was ever so",
        "is kept in [tests/corpus](../tests/corpus/README.md) and tried by every `make test`.", "",
        "| input | tried | ends | unhandled | most processor time of one | in all |", "|---|---|---|---|---|---|", *rows, "",
        f"Peak memory of the process: {peak:.0f} MiB (PyTorch is not in it). Python {platform.python_version()}, "
        f"{platform.machine()}, two cores shared with other programs: the last column is an upper bound.", *unhandled,
    ]) + "\n"  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=100_000, help="inputs of each kind")
    parser.add_argument("--page", type=Path, default=PAGE, help="where to write what was found")
    asked = parser.parse_args()
    warnings.simplefilter("error")
    numbers = st.integers(0, 2**64)
    tallies = [
        run("images", numbers.map(picture), decode, asked.count),
        run("label configs", numbers.map(label_config), parse, asked.count),
        run("annotations", st.builds(changed, st.just(EXPORT), JSON, st.integers(0, 19)), understand, asked.count // 5),
    ]
    asked.page.write_text(page(tallies))
    sys.stdout.write(asked.page.read_text())
    return min(1, sum(len(tally.unhandled) for tally in tallies))


if __name__ == "__main__":
    sys.exit(main())
