"""Quality against time by depth, one task a picture: an SVG that any browser shows."""

import math
from collections.abc import Sequence
from xml.sax.saxutils import escape

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 860, 480, 70, 300, 40, 50
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#555555", "#b8a800")


def picture(contents: Sequence[dict]) -> str:
    """nDCG@10 over milliseconds a query (logarithmic) of one task's pipelines; a line follows one reranker's depths."""
    lines = _lines(contents)
    times = [ms for points in lines.values() for ms, *_ in points]
    scores = [value for points in lines.values() for _, value, *_ in points]
    left, right = math.log10(min(times) / 1.3), math.log10(max(times) * 1.3)
    low, high = min(scores) - 0.02, min(max(scores) + 0.02, 1.02)

    def x(ms: float) -> float:
        return LEFT + (math.log10(ms) - left) / (right - left) * (WIDTH - LEFT - RIGHT)

    def y(score: float) -> float:
        return HEIGHT - BOTTOM - (score - low) / (high - low) * (HEIGHT - TOP - BOTTOM)

    (split,) = contents[0]["scores"]
    head = f"{contents[0]['task_name']}, {split}: nDCG@10 against milliseconds a query, by depth"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
        'font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{LEFT}" y="22" font-size="15">{escape(head)}</text>',
        *_axes(x, y, (left, right), (low, high)),
    ]
    for number, (name, points) in enumerate(lines.items()):
        colour = COLOURS[number % len(COLOURS)]
        path = " ".join(f"{x(ms):.1f},{y(value):.1f}" for ms, value, _ in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        for ms, value, label in points:
            parts.append(f'<circle cx="{x(ms):.1f}" cy="{y(value):.1f}" r="4" fill="{colour}"/>')
            parts.append(f'<text x="{x(ms) + 6:.1f}" y="{y(value) - 6:.1f}" fill="{colour}">{label}</text>')
        place = TOP + 18 * number + 10
        parts.append(f'<rect x="{WIDTH - RIGHT + 16}" y="{place - 9}" width="10" height="10" fill="{colour}"/>')
        parts.append(f'<text x="{WIDTH - RIGHT + 32}" y="{place}">{escape(name)}</text>')
    return "\n".join([*parts, "</svg>", ""])


def _lines(contents: Sequence[dict]) -> dict[str, list[tuple[float, float, str]]]:
    """Line name -> (ms, nDCG@10, depth) by depth; a reranked line begins at its first stage."""
    first, lines = {}, {}
    for content in contents:
        koir = content["koir"]
        (scores,) = next(iter(content["scores"].values()))
        point = (max(koir["latency"]["total_ms"], 1e-3), scores["ndcg_at_10"])
        own = koir["pipeline"]["first_stage"]
        if koir["pipeline"]["reranker"] is None:
            first[own] = (*point, "")
            lines[koir["name"]] = [first[own]]
        else:
            name = koir["name"].replace(f"@{koir['pipeline']['depth']}", "")
            lines.setdefault(name, [first[own]] if own in first else []).append(
                (*point, str(koir["pipeline"]["depth"]))
            )
    return lines


def _axes(x, y, times: tuple[float, float], scores: tuple[float, float]) -> list[str]:
    parts, bottom, end = [], HEIGHT - BOTTOM, WIDTH - RIGHT
    for power in range(math.floor(times[0]), math.ceil(times[1]) + 1):
        for step in (1, 2, 5):
            ms = step * 10.0**power
            if times[0] <= math.log10(ms) <= times[1]:
                parts.append(f'<line x1="{x(ms):.1f}" x2="{x(ms):.1f}" y1="{TOP}" y2="{bottom}" stroke="#ddd"/>')
                parts.append(f'<text x="{x(ms):.1f}" y="{bottom + 18}" text-anchor="middle">{ms:g}</text>')
    size = next(step for step in (0.01, 0.02, 0.05, 0.1, 0.2) if (scores[1] - scores[0]) / step <= 10)
    for number in range(math.ceil(scores[0] / size), math.floor(scores[1] / size) + 1):
        value = number * size
        parts.append(f'<line x1="{LEFT}" x2="{end}" y1="{y(value):.1f}" y2="{y(value):.1f}" stroke="#ddd"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y(value) + 4:.1f}" text-anchor="end">{value:.2f}</text>')
    parts.append(f'<text x="{(LEFT + end) / 2}" y="{HEIGHT - 12}" text-anchor="middle">milliseconds a query</text>')
    return parts
