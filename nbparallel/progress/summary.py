"""Is given the last Snapshot of a job by a view; hands back what stays of it, as text and as HTML without scripts."""

from __future__ import annotations

from collections import Counter
from html import escape

from ..model import FailureGroup, Lane, Snapshot
from . import phrases

__all__ = ["html", "text"]

#: Bounds of what is listed: groups of failures, characters of a message and of a traceback, lanes and their width.
GROUPS, MESSAGE_CHARACTERS, TRACEBACK_CHARACTERS, LANES, LANE_CHARACTERS = 8, 200, 6000, 16, 48

# Colours that read on white and on black, since a saved page does not know its reader's theme.
_BLUE, _RED, _AMBER = "#4a90d9", "#d0473a", "#b97f00"
_BOX = (
    "border:1px solid rgba(128,128,128,.35);border-radius:6px;padding:8px 14px;margin:4px 0;max-width:1100px;"
    "overflow-wrap:anywhere"
)
_SOFT = "opacity:.75"
_PACE = "the running times of all items together, over the time that passed"
_STRIP = f"flex:1;min-width:0;overflow:hidden;white-space:nowrap;font-size:70%;color:{_BLUE}"
_PICTURE = "display:block;width:100%;height:11px;background:rgba(128,128,128,.15)"
_MARKS = {"done": ("✓", _BLUE), "failed": ("✕", _RED), "cancelled": ("■", _AMBER)}


def text(snapshot: Snapshot) -> str:
    """Plain text: the headline and, below it, the errors by type and place."""
    lines = [phrases.headline(snapshot)]
    for group in _groups(snapshot):
        index, _, message = group.examples[0]
        place = f" ({group.place})" if group.place else ""
        lines.append(f"  {group.type_name} × {phrases.number(group.many)}{place}, first at item {index}: {message}")
    return "\n".join(lines)


def html(snapshot: Snapshot, slot: str = "") -> str:
    """HTML with inline styles only, so that it reads well on GitHub, in nbconvert and without a kernel.

    Args:
        slot: class of an empty element beside the title, where a live page may put a button.
    """
    if not snapshot.finished:
        return _running(snapshot)
    mark, colour = _MARKS[snapshot.state]
    if snapshot.state == "done" and snapshot.failed:
        mark, colour = "!", _AMBER
    title = phrases.title(snapshot)
    if snapshot.state == "cancelled":
        title += f", {phrases.counts(snapshot)} done, kept"
    parts = [
        f'<div><b style="color:{colour}">{mark}</b> <b>{escape(snapshot.name)}</b> '
        f'<span style="{_SOFT}">{escape(title)}</span> <span class="{escape(slot)}"></span></div>',
        f"<div>{' &nbsp; '.join(_facts(snapshot))}</div>",
        _lanes(snapshot),
        *(_failures(group) for group in _groups(snapshot)),
    ]
    more = snapshot.details.more_failures if snapshot.details else 0
    more += sum(group.many for group in snapshot.details.failures[GROUPS:]) if snapshot.details else 0
    parts.append(f'<div style="{_SOFT}">and {phrases.number(more)} more failures</div>' if more else "")
    return f'<div style="{_BOX}">{"".join(parts)}</div>'


def _running(snapshot: Snapshot) -> str:
    line = f"<b>{escape(snapshot.name)}</b>{escape(phrases.headline(snapshot)[len(snapshot.name) :])}"
    return f'<div style="{_BOX}">{line}</div>'


def _facts(snapshot: Snapshot) -> list[str]:
    facts = []
    if snapshot.state != "cancelled":
        head, _, tail = phrases.counts(snapshot).partition(" ")
        facts.append(f"<b>{head}</b> {tail}")
    facts.append(f"<b>{phrases.duration(snapshot.elapsed)}</b>")
    facts += ["<b>{}</b> {}".format(*phrases.rate(snapshot.rate))] if snapshot.rate is not None else []
    if pace := phrases.pace(snapshot):
        head, times, tail = pace.partition(" × ")
        facts.append(f'<span title="{_PACE}"><b>{head}{times}</b>{tail}</span>')
    facts += [f"<b>{phrases.number(snapshot.retried)}</b> retried"] if snapshot.retried else []
    if snapshot.failed:
        facts.append(f'<b style="color:{_RED}">{phrases.number(snapshot.failed)} failed</b>')
    return facts


def _lanes(snapshot: Snapshot) -> str:
    """How busy each worker process was, over the time of the job."""
    if snapshot.details is None or not snapshot.details.lanes:
        return ""
    lanes, seconds = snapshot.details.lanes, snapshot.details.lane_seconds
    pieces = max(*(len(lane.busy) for lane in lanes), round(snapshot.elapsed / seconds), 1)
    hosts = len({lane.worker.rpartition(":")[0] for lane in lanes})
    rows = "".join(_lane(lane, pieces, hosts > 1) for lane in lanes[:LANES])
    more = len(lanes) - LANES + snapshot.details.more_lanes
    note = f" · and {more} more" if more > 0 else ""
    share = sum(sum(lane.busy) for lane in lanes) / (255 * pieces * len(lanes))
    note = f"workers over {phrases.duration(snapshot.elapsed)}, busy {share:.0%}{note}"
    return f'<div style="margin:6px 0">{rows}<div style="{_SOFT};font-size:85%">{note}</div></div>'


def _lane(lane: Lane, pieces: int, with_host: bool) -> str:
    path, level = ["M0 255"], 0
    for place, busy in enumerate((*lane.busy, 0)):
        if busy != level:  # runs of the same level are one step
            path.append(f"H{place}V{255 - busy}")
            level = busy
    # Where SVG is not allowed its tags are cut out and their text stays: then this is the picture.
    step = max(1, -(-pieces // LANE_CHARACTERS))
    levels = [max(lane.busy[start : start + step], default=0) for start in range(0, pieces, step)]
    blocks = "".join("\u2007▁▂▃▄▅▆▇█"[-(-level * 8 // 255)] for level in levels)
    host, _, process = lane.worker.rpartition(":")
    label = escape(f"{host}:{process}" if with_host and host else f"process {process}")
    return (
        '<div style="display:flex;align-items:center;gap:10px;line-height:1.3">'
        f'<span style="flex:none;min-width:7.5em;font-size:85%">{label}</span>'
        f'<span style="{_STRIP}"><svg role="img" aria-label="{label}: {phrases.number(lane.items)} items" '
        f'viewBox="0 0 {pieces} 255" preserveAspectRatio="none" width="100%" height="11" style="{_PICTURE}">'
        f'<desc>{blocks}</desc><path d="{"".join(path)}Z" fill="{_BLUE}"/></svg></span></div>'
    )


def _failures(group: FailureGroup) -> str:
    index, item, message = group.examples[0]
    where = f"item {phrases.number(index)}" + (f" ({item})" if item else "")
    where += f" · {group.place}" if group.place else ""
    head = (
        f'<b style="color:{_RED}">{phrases.number(group.many)} × {escape(group.type_name)}</b>: {escape(message)} '
        f'<span style="{_SOFT};font-size:90%">&nbsp;{escape(where)}</span>'
    )
    if not group.traceback:
        return f"<div>{head}</div>"
    style = "margin:4px 0 8px 18px;white-space:pre;overflow:auto"
    return f'<details><summary>{head}</summary><pre style="{style}">{_trace(group.traceback)}</pre></details>'


def _trace(traceback: str) -> str:
    """The end of a traceback, with the lines that say where, and what, set off."""
    lines = []
    for line in traceback[-TRACEBACK_CHARACTERS:].rstrip("\n").split("\n"):
        shown = escape(line)
        if line.startswith(("  File ", "  Cell ")):
            shown = f'<span style="{_SOFT}">{shown}</span>'
        elif line and not line.startswith((" ", "Traceback", "The above", "During", "…")):
            shown = f'<b style="color:{_RED}">{shown}</b>'
        lines.append(shown)
    return "\n".join(lines)


def _groups(snapshot: Snapshot) -> list[FailureGroup]:
    """The failures, most frequent first; by type alone when the snapshot has no details."""
    if snapshot.details is not None and snapshot.details.failures:
        groups = list(snapshot.details.failures)
    else:
        many = Counter(type_name for _, type_name, _ in snapshot.errors)
        first = {type_name: (index, message) for index, type_name, message in sorted(snapshot.errors, reverse=True)}
        groups = [
            FailureGroup(name, "", count, ((first[name][0], "", first[name][1]),), "")
            for name, count in many.most_common()
        ]
    return [group._replace(examples=(_short(group.examples[0]),)) for group in groups[:GROUPS]]


def _short(example: tuple[int, str, str]) -> tuple[int, str, str]:
    index, item, message = example
    return index, item[:MESSAGE_CHARACTERS], " ".join(message.split())[:MESSAGE_CHARACTERS]
