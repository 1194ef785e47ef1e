"""The picture of the batch study (batch_size.py): quality by batch, with intervals."""


def drawn(lines: list[dict], task: str, variants: dict[str, str]) -> str:
    """An SVG of one task: nDCG@10 over the batch, a line a variant, a bar an interval.

    lines: as results.json holds them. variants: name -> what the legend calls it.
    """
    width, height, left, bottom = 640, 400, 60, 50
    batches = sorted({line["batch"] for line in lines})
    ends = [end for line in lines for end in line["scores"][task]["interval"]]
    low, high = min(ends) - 0.01, max(ends) + 0.01
    x = {batch: left + 30 + i * (width - left - 190) / max(len(batches) - 1, 1) for i, batch in enumerate(batches)}

    def y(score: float) -> float:
        return 30 + (high - score) / (high - low) * (height - bottom - 30)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
        'font-size="12">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        f'<text x="{left}" y="18" font-size="14">{task}, test: nDCG@10 by batch, equal epochs</text>',
    ]
    parts += [f'<text x="{x[b]:.0f}" y="{height - 25}" text-anchor="middle">{b:,}</text>' for b in batches]
    for step in range(5):
        score = low + (high - low) * step / 4
        parts.append(f'<text x="{left - 8}" y="{y(score) + 4:.0f}" text-anchor="end">{score:.2f}</text>')
        parts.append(f'<line x1="{left}" x2="{width - 150}" y1="{y(score):.0f}" y2="{y(score):.0f}" stroke="#ddd"/>')
    for number, (variant, colour) in enumerate(zip(variants, ("#0072b2", "#d55e00", "#009e73"), strict=True)):
        of = [line for line in lines if line["variant"] == variant]
        points = [(x[line["batch"]] + 5 * (number - 1), line["scores"][task]) for line in of]
        path = " ".join(f"{at:.1f},{y(score['value']):.1f}" for at, score in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        for at, score in points:
            top, foot = y(score["interval"][1]), y(score["interval"][0])
            parts.append(f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{top:.1f}" y2="{foot:.1f}" stroke="{colour}"/>')
            parts.append(f'<circle cx="{at:.1f}" cy="{y(score["value"]):.1f}" r="3.5" fill="{colour}"/>')
        if of:
            parts.append(f'<text x="{width - 140}" y="{50 + 18 * number}" fill="{colour}">{variants[variant]}</text>')
    return "\n".join([*parts, "</svg>\n"])
