"""The board's pictures; each has a table beside it that says the same."""

from collections.abc import Sequence

import altair as alt

OURS, PUBLISHED, FRONT, INK = "#8fbbe8", "#d5d8dc", "#c2410c", "#1f2933"
SERIES = ["#2f6fb3", "#d9772b", "#3a8f5c", "#a0457e", "#7a6ff0", "#8a6d3b", "#3c9fb0", "#c0392b", "#6b7280", "#b8a10c"]
SCORE = ".4f"


def _values(records: Sequence[dict]) -> alt.Data:
    return alt.Data(values=list(records))


def _tips(word: dict[str, str], *keys: str) -> list[alt.Tooltip]:
    """What hover tells of a record's texts, each under its word on the page."""
    return [alt.Tooltip(f"{key}:N", title=word[key]) for key in keys]


def bars(records: Sequence[dict], metric: str, word: dict[str, str]) -> alt.Chart:
    """Horizontal bars, each under its name, with 95% intervals.

    records: name, mean, low, high, interval, coverage, ours, text. word: what hover calls them, as in every chart here.
    """
    order = [record["name"] for record in records]
    base = alt.Chart(_values(records)).encode(y=alt.Y("name:N", sort=order, axis=None))
    tip = [*_tips(word, "name"), alt.Tooltip("mean:Q", title=metric, format=SCORE)]
    tip += _tips(word, "interval", "coverage")
    fill = alt.condition("datum.ours", alt.value(OURS), alt.value(PUBLISHED))
    bar = base.mark_bar(height=9, yOffset=9).encode(x=alt.X("mean:Q", title=metric), color=fill, tooltip=tip)
    sure = base.transform_filter("isValid(datum.low)")
    rule = sure.mark_rule(color=INK, strokeWidth=1.5, yOffset=9).encode(x="low:Q", x2="high:Q", tooltip=tip)
    ends = [sure.mark_tick(color=INK, size=9, yOffset=9).encode(x=f"{end}:Q", tooltip=tip) for end in ("low", "high")]
    name = base.mark_text(align="left", dx=1, dy=-4, color=INK, fontSize=12)
    name = name.encode(x=alt.datum(0), text="text:N", tooltip=tip)
    return (bar + rule + ends[0] + ends[1] + name).properties(height=34 * len(order) + 40)


def cost(
    records: Sequence[dict], front: Sequence[dict], metric: str, cost_name: str, word: dict[str, str]
) -> alt.Chart:
    """Points of quality over cost (log scale) and the Pareto front. records: name, cost, mean, what hover tells."""
    tip = [*_tips(word, "name"), alt.Tooltip("mean:Q", title=metric, format=SCORE)]
    tip.append(alt.Tooltip("cost:Q", title=cost_name))
    tip += _tips(word, "interval", "milliseconds", "parameters", "depth", "kind", "coverage", "origin")
    scale = alt.Scale(type="log") if all(record["cost"] > 0 for record in records) else alt.Scale(type="symlog")
    x = alt.X("cost:Q", scale=scale, title=cost_name, axis=alt.Axis(format="~s", tickCount=6))
    y = alt.Y("mean:Q", title=metric, scale=alt.Scale(zero=False, padding=12))
    line = alt.Chart(_values(front)).mark_line(color=FRONT, interpolate="step-after", strokeWidth=2, tooltip=None)
    line = line.encode(x=x, y=y)
    color = alt.Color(
        "origin:N", title=None, scale=alt.Scale(range=["#2f6fb3", "#8a9099"]), legend=alt.Legend(orient="top")
    )
    points = alt.Chart(_values(records)).mark_point(filled=True, size=90, opacity=0.85)
    points = points.encode(x=x, y=y, color=color, tooltip=tip, shape=alt.Shape("kind:N", title=None, legend=None))
    ring = alt.Chart(_values(front)).mark_point(size=190, color=FRONT, strokeWidth=2).encode(x=x, y=y, tooltip=tip)
    return (line + ring + points).properties(height=420).interactive()


def stages(records: Sequence[dict], metric: str, names: tuple[str, str, str], word: dict[str, str]) -> alt.Chart:
    """First stage, reranked and ceiling of each task. records: task, stage, value. names: of the three stages."""
    ladder = [record for record in records if record["stage"] != names[2]]
    ceiling = [record for record in records if record["stage"] == names[2]]
    tip = [*_tips(word, "task", "stage"), alt.Tooltip("value:Q", title=metric, format=SCORE)]
    y = alt.Y("task:N", title=None, sort=None, axis=alt.Axis(labelLimit=130))
    scale = alt.Scale(domain=list(names), range=["#b8c4d0", "#2f6fb3", FRONT])
    color = alt.Color("stage:N", title=None, sort=list(names), scale=scale,
                      legend=alt.Legend(orient="top"))  # fmt: skip
    bar = alt.Chart(_values(ladder)).mark_bar(height={"band": 0.95})
    bar = bar.encode(
        y=y,
        yOffset=alt.YOffset("stage:N", sort=list(names[:2])),
        x=alt.X("value:Q", title=metric),
        color=color,
        tooltip=tip,
    )
    mark = (
        alt.Chart(_values(ceiling)).mark_tick(thickness=3, size=34).encode(y=y, x="value:Q", color=color, tooltip=tip)
    )
    tasks = len({record["task"] for record in records})
    return (bar + mark).properties(height=52 * tasks + 110)


def by_depth(records: Sequence[dict], metric: str, word: dict[str, str]) -> alt.Chart:
    """Reranked score and ceiling over depth, a line a task. records: task, depth, stage, value."""
    tip = [*_tips(word, "task", "depth", "stage"), alt.Tooltip("value:Q", title=metric, format=SCORE)]
    axis = alt.Axis(values=sorted({record["depth"] for record in records}))
    x = alt.X("depth:Q", title=word["depth"], scale=alt.Scale(type="symlog"), axis=axis)
    y = alt.Y("value:Q", title=metric, scale=alt.Scale(zero=False))
    color = alt.Color("task:N", title=None, scale=alt.Scale(range=SERIES), legend=alt.Legend(orient="top", columns=2))
    shape = alt.Legend(orient="top", symbolType="stroke", symbolStrokeColor=INK)
    dash = alt.StrokeDash("stage:N", title=None, legend=shape)
    chart = (
        alt.Chart(_values(records)).mark_line(point=True).encode(x=x, y=y, color=color, strokeDash=dash, tooltip=tip)
    )
    return chart.properties(height=340 + 13 * len({record["task"] for record in records}))


def scatter(records: Sequence[dict], first: str, second: str, word: dict[str, str]) -> alt.Chart:
    """Queries that have the same pair of values as one circle. records: x, y, queries, query (one of them)."""
    tip = [alt.Tooltip("x:Q", title=second, format=SCORE), alt.Tooltip("y:Q", title=first, format=SCORE)]
    tip += _tips(word, "queries", "query")
    scale = alt.Scale(domain=[0, 1])
    line = alt.Chart(_values([{"x": 0, "y": 0}, {"x": 1, "y": 1}]))
    line = line.mark_line(color="#9aa5b1", strokeDash=[4, 4], tooltip=None)
    points = alt.Chart(_values(records)).mark_circle(color="#2f6fb3", opacity=0.65, stroke=INK, strokeWidth=0.5)
    points = points.encode(
        x=alt.X("x:Q", title=second, scale=scale), y=alt.Y("y:Q", title=first, scale=scale),
        size=alt.Size("queries:Q", legend=None, scale=alt.Scale(range=[30, 900])), tooltip=tip,
    )  # fmt: skip
    return (line.encode(x="x:Q", y="y:Q") + points).properties(height=380)


def differences(records: Sequence[dict], title: str, word: dict[str, str]) -> alt.Chart:
    """A histogram of per-query differences. records: low, high (of a bin, neither side of zero), between, queries."""
    sign = alt.condition("datum.high > 0", alt.value("#2f6fb3"), alt.value(FRONT))
    x = alt.X("low:Q", title=title, scale=alt.Scale(domain=[-1, 1]))
    tip = [alt.Tooltip("between:N", title=title), *_tips(word, "queries")]
    y = alt.Y("queries:Q", title=word["queries"], scale=alt.Scale(domainMin=0))
    chart = alt.Chart(_values(records)).mark_rect(stroke="white")
    chart = chart.encode(x=x, x2="high:Q", y=y, y2=alt.datum(0), color=sign, tooltip=tip)
    return chart.properties(height=340)


def curves(records: Sequence[dict], title: str, axis: str, points: bool, word: dict[str, str]) -> alt.Chart:
    """A line a run. records: run, x, value and, for dev scores, task."""
    tip = [alt.Tooltip("run:N", title=word["runs"]), alt.Tooltip("x:Q", title=axis)]
    tip.append(alt.Tooltip("value:Q", title=title, format=".5~g"))
    runs, tasks = ({record.get(key) for record in records} for key in ("run", "task"))
    legend = alt.Legend(orient="top", columns=2, labelLimit=160, symbolType="stroke")
    color = alt.Color("run:N", title=None, scale=alt.Scale(range=SERIES), legend=legend)
    y = alt.Y("value:Q", title=title, scale=alt.Scale(zero=False))
    chart = alt.Chart(_values(records)).mark_line(point=points)
    chart = chart.encode(x=alt.X("x:Q", title=axis), y=y, color=color, tooltip=tip)
    if None not in tasks:
        dash = alt.Legend(orient="top", columns=2, labelLimit=160, symbolType="stroke", symbolStrokeColor=INK)
        chart = chart.encode(strokeDash=alt.StrokeDash("task:N", title=None, legend=dash), detail="task:N")
    return chart.properties(height=270 + 13 * len(runs) + 16 * len(tasks))
