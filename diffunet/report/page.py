"""The page around the sections of a report: one HTML file that needs nothing else, no network and no script."""

from __future__ import annotations

from html import escape

from diffunet.report.sections import SECTIONS, Report
from diffunet.report.words import plain

STYLE = """
:root { color-scheme: light dark; --ground: #ffffff; --panel: #f4f5f7; --ink: #1d2530; --soft: #5d6876;
  --faint: #c9ced6; --warn: #8a4b00; --warn-ground: #fff3df;
  --c0: #2563a8; --c1: #c2410c; --c2: #15803d; --c3: #7e3fa8;
  --b0: #3b0f70; --b1: #57157e; --b2: #721f81; --b3: #8c2981; --b4: #a8327d;
  --b5: #c43c75; --b6: #de4968; --b7: #ef6548; --b8: #e07b1a; --b9: #b98a00; }
@media (prefers-color-scheme: dark) { :root { --ground: #14181e; --panel: #1e242c; --ink: #e4e8ee; --soft: #9aa5b3;
  --faint: #414b58; --warn: #ffcf87; --warn-ground: #38290f;
  --c0: #7db4f0; --c1: #ff9a62; --c2: #6fd08c; --c3: #cf9bf2;
  --b0: #8f7bff; --b1: #a274f5; --b2: #b46fe8; --b3: #c76cd8; --b4: #d86cc4;
  --b5: #e771ab; --b6: #f27a90; --b7: #fa8a74; --b8: #ffa057; --b9: #ffc24a; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 72rem; padding: 1rem; background: var(--ground); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { display: inline; margin: 0 .6rem 0 0; font-size: 1.6rem; }
h2 { margin: 2rem 0 .6rem; font-size: 1.15rem; border-bottom: 1px solid var(--faint); }
h3 { margin: 0; font-size: .9rem; font-weight: 600; }
p { margin: .5rem 0; max-width: 60rem; }
code, pre { font-family: ui-monospace, monospace; font-size: .85rem; }
pre { overflow: auto; max-height: 30rem; padding: .6rem; background: var(--panel); }
progress { width: 100%; height: .6rem; accent-color: var(--c0); }
.state { padding: .1rem .6rem; border-radius: 1rem; background: var(--panel); }
.running, .starting { background: var(--c0); color: var(--ground); }
.done { background: var(--c2); color: var(--ground); }
.failed, .died, .interrupted { background: var(--c1); color: var(--ground); }
.message, .warnings { padding: .5rem .8rem; border-radius: .4rem; background: var(--warn-ground); color: var(--warn); }
.warnings { margin: .8rem 0; padding-left: 1.8rem; }
.tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(8.5rem, 1fr)); gap: .5rem; margin: 1rem 0; }
.tiles div { padding: .5rem .7rem; border-radius: .4rem; background: var(--panel); }
dt { color: var(--soft); font-size: .8rem; }
dd { margin: 0; font-size: 1.05rem; font-variant-numeric: tabular-nums; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(26rem, 100%), 1fr)); gap: 1rem; }
.chart.wide { grid-column: 1 / -1; }
.chart { overflow-x: auto; }
.chart.wide svg { min-width: 36rem; }
.chart svg { display: block; width: 100%; height: auto; font-family: system-ui, sans-serif; }
figure { margin: 0; }
figcaption { color: var(--soft); font-size: .8rem; }
.strip { display: flex; gap: .6rem; overflow-x: auto; padding-bottom: .4rem; }
.strip figure { flex: 0 0 auto; width: 11rem; }
.pairs { display: flex; flex-wrap: wrap; gap: 1rem; }
.pairs figure { width: 14rem; }
.zoom input { position: absolute; opacity: 0; }
.zoom img { width: 100%; image-rendering: pixelated; cursor: zoom-in; border: 1px solid var(--faint); }
.zoom input:focus-visible + img { outline: 2px solid var(--c0); }
.zoom input:checked + img { position: fixed; inset: 2vmin; width: 96vw; height: 96vh; object-fit: contain; z-index: 9;
  background: var(--ground); cursor: zoom-out; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; overflow-wrap: normal; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .8rem .2rem 0; text-align: left; border-bottom: 1px solid var(--faint); vertical-align: top; }
th[scope=row] { font-weight: 500; }
th[scope=col] { color: var(--soft); font-size: .8rem; font-weight: 500; }
.small { font-size: .85rem; }
.small td:last-child { overflow-wrap: anywhere; min-width: 12rem; }
details summary { cursor: pointer; }
footer { margin: 2rem 0 1rem; color: var(--soft); font-size: .8rem; }
"""


def page(report: Report, made: str) -> str:
    """The whole HTML text.

    Args:
        report: what it is about.
        made: when and by what, for the foot.
    """
    name = escape(plain(report.summary["name"] or report.run.path.name))
    body = "".join(make(report) for make in SECTIONS)
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
        'content="width=device-width, initial-scale=1"><meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">"
        f"<title>{name}</title><style>{STYLE}</style></head><body>{body}<footer>{escape(made)}</footer></body></html>\n"
    )
