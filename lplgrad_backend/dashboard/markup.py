"""HTML and SVG as values: whatever is not made here is escaped, so that no label, title or address becomes markup."""

from __future__ import annotations

import html


class Markup(str):
    """Text that is markup already. Only `element` and `join` make it."""

    __slots__ = ()


def escaped(value: object) -> str:
    """A value as text of an element or of a quoted attribute. The only place where text becomes markup."""
    return value if isinstance(value, Markup) else html.escape(str(value), quote=True)


def join(*children: object) -> Markup:
    """Children one after the other; None is left out."""
    return Markup("".join(escaped(child) for child in children if child is not None))


def element(tag: str, *children: object, **attributes: object) -> Markup:
    """`element("a", "Go", href="x")`. Attributes that are None or False are left out, True stands alone; `_` at the end
    of a name is dropped (`class_`), elsewhere it is a hyphen (`aria_label`)."""
    given = [
        f" {_name(name)}" if value is True else f' {_name(name)}="{html.escape(str(value), quote=True)}"'
        for name, value in attributes.items()
        if value is not None and value is not False
    ]
    opening = f"<{tag}{''.join(given)}>"
    return Markup(opening) if tag in VOID else Markup(f"{opening}{join(*children)}</{tag}>")


VOID = frozenset({"img", "link", "meta"})


def _name(name: str) -> str:
    return name.rstrip("_").replace("_", "-")
