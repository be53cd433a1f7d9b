"""The parts of a report, each as HTML; all text that comes from a file is escaped."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from diffunet.report import charts
from diffunet.report.overfit import RULE, Verdict
from diffunet.report.pictures import data_uri, spread
from diffunet.report.reading import Record, Run, table
from diffunet.report.settings import changed, flat
from diffunet.report.summary import newest_copies, suspicious
from diffunet.report.words import duration, percent, plain, short, size

SHOWN_EVENTS = 50


@dataclass(frozen=True)
class Report:
    """What the sections are made of: the run, its summary (see `summarize`), and whether it over-fits."""

    run: Run
    summary: Record
    verdict: Verdict


def text(value: Any) -> str:
    """Foreign text for a page."""
    return escape(plain(value))


def rows(cells: Iterable[Sequence[str]], head: Sequence[str] = (), kind: str = "") -> str:
    """A table of cells that are HTML already; the first of each row names it."""
    top = "".join(f'<th scope="col">{name}</th>' for name in head)
    body = "".join(
        f'<tr><th scope="row">{first}</th>{"".join(f"<td>{cell}</td>" for cell in rest)}</tr>' for first, *rest in cells
    )
    return f'<div class="scroll"><table class="{kind}">{f"<tr>{top}</tr>" if top else ""}{body}</table></div>'


def section(title: str, *parts: str) -> str:
    """A section, or nothing where all its parts are empty."""
    inner = "".join(parts)
    return f"<section><h2>{title}</h2>{inner}</section>" if inner else ""


def picture(uri: str, words: str, wide: bool = False) -> str:
    """A picture that a click enlarges; `words` describe it."""
    kind = "zoom wide" if wide else "zoom"
    return (
        f'<figure><label class="{kind}"><input type="checkbox" aria-label="enlarge {escape(words)}">'
        f'<img src="{uri}" alt="{escape(words)}"></label><figcaption>{escape(words)}</figcaption></figure>'
    )


def header(report: Report) -> str:
    """Name, state, progress, and the numbers that one looks at first."""
    s = report.summary
    step, steps = s["step"], s["steps"]
    part = min(1.0, step / steps) if steps else None
    bar = f'<progress max="1" value="{part:.4f}"></progress>' if part is not None else ""
    of = f" of {steps:,}" if steps is not None else ""
    left = f", {duration(s['seconds_left'])} left" if s["seconds_left"] is not None else ""
    saved = s["checkpoint"]
    numbers = {
        "loss (recent)": short(s["loss"]),
        "held-out loss": short(s["held_out"]),
        "seen loss": short(s["seen"]),
        "gap": short(s["gap"]),
        "images a second": short(s["images_per_second"]),
        "waited for data": percent(s["loader_share"]),
        "peak memory": size(s["memory"]),
        "last checkpoint": f"step {saved['step']:,}" if saved else "none",
    }
    tiles = "".join(f"<div><dt>{name}</dt><dd>{escape(value)}</dd></div>" for name, value in numbers.items())
    message = f'<p class="message">{text(s["message"])}</p>' if s["message"] else ""
    following = f"<p>next: <code>{text(s['next'])}</code></p>" if s["next"] else ""
    return (
        f'<header><h1>{text(s["name"] or report.run.path.name)}</h1><span class="state {_class(s["state"])}">'
        f"{text(s['state'])}</span><p>step {step:,}{of}{left}</p>{bar}<p>{text(_setting(report.run))}</p>"
        f"{message}{following}</header>"
        f"{_warnings(report)}<dl class=tiles>{tiles}</dl>"
    )


def _setting(run: Run) -> str:
    """Precision, device, processes and versions, as far as the files tell."""
    known = {**run.manifest, **run.counters, **run.environment, "host": run.status.get("host")}
    gpu = table(known.get("gpu")).get("name")
    words = {
        "precision": known.get("precision"),
        "on": gpu or known.get("device"),
        "processes": known.get("world"),
        "threads": known.get("threads"),
        "host": known.get("host"),
        "torch": known.get("torch"),
        "diffunet": known.get("diffunet"),
    }
    return ", ".join(f"{name} {value}" for name, value in words.items() if value is not None)


def _class(state: Any) -> str:
    return state if state in ("running", "starting", "done", "interrupted", "failed", "died") else "unknown"


def _warnings(report: Report) -> str:
    """What deserves a look, first of all the rest."""
    words = [f"{count} x {kind.replace('_', ' ')}" for kind, count in report.summary["warnings"].items()]
    if report.verdict.since is not None:
        words.append(report.verdict.text)
    near = suspicious(newest_copies(report.run))
    if near:
        words.append(f"samples lie nearer to training images than new images do, in {' and '.join(near)}")
    words += report.run.remarks
    return f'<ul class="warnings">{"".join(f"<li>{text(word)}</li>" for word in words)}</ul>' if words else ""


def curves(report: Report) -> str:
    """Every chart of the metrics; without matplotlib the last numbers, and how to get the charts."""
    found = charts.charts_of(report.run, report.verdict)
    if not found:
        return section("Curves", "<p>No step has been logged yet.</p>")
    if charts.matplotlib() is None:
        cells = [
            (escape(f"{chart.title}: {line.label}" if line.label else chart.title), short(line.curve.last))
            for chart in found
            for line in chart.known
            if line.alpha == 1
        ]
        missing = "<p>For the curves: <code>pip install 'diffunet[plot]'</code>. Their last values:</p>"
        return section("Curves", missing, rows(cells))
    drawn = "".join(_chart(chart, f"g{i}") for i, chart in enumerate(found))
    return section("Curves", f"<p>{escape(_overfit(report.verdict))}</p>", f'<div class="charts">{drawn}</div>')


def _overfit(verdict: Verdict) -> str:
    words = verdict.text[0].upper() + verdict.text[1:]
    return f"{words}. The rule: {RULE}." if verdict.best is not None else f"{words}."


def _chart(chart: charts.Chart, name: str) -> str:
    kind = "chart wide" if chart.size == charts.WIDE else "chart"
    note = f"<figcaption>{escape(chart.note)}</figcaption>" if chart.note else ""
    return f'<figure class="{kind}"><h3>{escape(chart.title)}</h3>{charts.draw(chart, name)}{note}</figure>'


def previews(report: Report) -> str:
    """What the averaged network drew from the same seeds: first, between, last."""
    found = [(step, data_uri(path)) for step, path in spread(report.run.previews)]
    shown = "".join(picture(uri, f"step {step:,}") for step, uri in found if uri)
    broken = [f"step {step:,}" for step, uri in found if not uri]
    left_out = f"<p>Unreadable: {escape(', '.join(broken))}.</p>" if broken else ""
    strip = f'<div class="strip">{shown}</div>' if shown else ""
    of = f"<p>{len(found)} of {len(report.run.previews)} previews, from the same seeds.</p>" if shown else ""
    return section("Previews over time", of, strip, left_out)


def copies(report: Report) -> str:
    """Are samples copies of training images?"""
    found = newest_copies(report.run)
    if not found:
        return ""
    if "error" in found:
        return section("Copies of training images", f"<p>Not looked for: {text_of(found['error'])}</p>")
    spaces = {name: table(found.get(name)) for name in ("pixels", "features")}
    cells = [
        (
            name,
            *(short(space.get(key)) for key in ("median", "floor", "ratio")),
            percent(space.get("nearer")),
            percent(space.get("alone")),
            "<strong>yes</strong>" if space.get("flag") else "no",
        )
        for name, space in spaces.items()
        if space
    ]
    head = ("", "samples", "held-out images", "ratio", "nearer than 1 %", "nearer than a third", "suspicious")
    about = (
        f"{found.get('samples')} samples of step {short(found['step'], 9)} against {found.get('looked_at')} of "
        f"{found.get('train')} training images; features: {found.get('extractor')}. Distances are medians to the "
        "nearest training image. 'Nearer than 1 %': samples that lie nearer than all but 1 % of the held-out images "
        "do; a model that copies nothing has about 1 % of them, and it is suspicious where fewer than one of a "
        "thousand such models would have as many. 'Nearer than a third': samples three times nearer to one training "
        "image than to any other."
    )
    if table(report.run.config.get("data")).get("crop") is not None:
        about += " Training takes parts of its images (data.crop), and only the middle of each was looked at."
    uri = next((data_uri(path) for step, path in report.run.neighbours[-1:]), None)
    listed = found.get("nearest")
    nearest = [table(row) for row in listed[:8]] if isinstance(listed, list) else []
    pairs = [
        (
            f"seed {text(row.get('seed'))}",
            *(f"{text(table(row.get(s)).get('name'))} ({short(table(row.get(s)).get('distance'))})" for s in spaces),
        )
        for row in nearest
    ]
    shown = (
        picture(uri, "sample, nearest in pixels, nearest in features; the nearest sample first", True) if uri else ""
    )
    names = rows(pairs, ("sample", "nearest in pixels", "nearest in features"), "small") if pairs else ""
    parts = (rows(cells, head), f"<p>{text_of(about)}</p>", f'<div class="pairs">{shown}{names}</div>')
    return section("Copies of training images", *parts)


def text_of(words: Any) -> str:
    """Foreign text of any length."""
    return escape(plain(words, 2000))


def evaluation(report: Report) -> str:
    """What `diffunet evaluate` measured, beside its floors; other results as they are."""
    found = report.run.evaluation
    metrics = table(found.get("metrics"))
    if not metrics:
        return _listed("Evaluation", found)
    cells = [
        (text(name), *(short(table(row).get(key)) for key in ("samples", "floor", "ratio")))
        for name, row in list(metrics.items())[:50]
    ]
    about = f"{found.get('n')} images on each side, {found.get('extractor')}; sampler: {found.get('sampler')}."
    floor = " Floor: as many training images in the samples' place; of the nearest training image, held-out ones."
    head = ("metric", "samples", "floor", "ratio")
    return section("Evaluation", rows(cells, head), f"<p>{text_of(about + floor)}</p>")


def likelihood(report: Report) -> str:
    """What `diffunet evaluate --bits-per-dim` measured."""
    return _listed("Bits per dimension", report.run.bits_per_dim)


def _listed(title: str, found: Record) -> str:
    """Every value of a JSON object, the first hundred."""
    cells = [(text(name), text(json.dumps(value))) for name, value in list(flat(found).items())[:100]]
    return section(title, rows(cells, kind="small")) if cells else ""


def events(report: Report) -> str:
    """What happened, newest first."""
    newest = list(reversed(report.run.events))[:SHOWN_EVENTS]
    cells = [(text(e.get("time", "")), text(e.get("kind", "")), text(e.get("step", "")), text(e.get("message", "")))
             for e in newest]  # fmt: skip
    more = len(report.run.events) - len(newest)
    older = f"<p>and {more:,} older ones in events.jsonl</p>" if more > 0 else ""
    return section("Events", rows(cells, ("time", "kind", "step", ""), "small"), older) if cells else ""


def settings(report: Report) -> str:
    """The config: what differs from the defaults, and all of it."""
    config = report.run.config
    differing = [(text(key), text(json.dumps(value))) for key, value in changed(config).items()]
    everything = escape(json.dumps(config, indent=2)[:200_000])
    whole = f"<details><summary>the whole config</summary><pre>{everything}</pre></details>" if config else ""
    return section("Config", "<p>What differs from the defaults.</p>" + rows(differing, kind="small"), whole)


def environment(report: Report) -> str:
    """Where it ran."""
    run = report.run
    found = {f"status.{k}": v for k, v in run.status.items() if k in ("host", "pid", "started", "updated")}
    found |= {k: v for k, v in run.manifest.items() if k in ("torch", "world", "data", "config")}
    found |= flat(run.environment)
    cells = [(text(key), text(value)) for key, value in list(found.items())[:100]]
    return section("Environment", rows(cells, kind="small")) if cells else ""


SECTIONS = (header, curves, previews, copies, evaluation, likelihood, events, settings, environment)
