"""A report as one HTML file: no script, nothing fetched, legible in grey, on paper and on a phone."""

import base64
from collections.abc import Mapping
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lit_papers.diagnose.report import Finding, Report, Shown

_STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { font: 16px/1.5 Georgia, "Times New Roman", serif; color: #111; background: #fff; margin: 0 auto;
  max-width: 60rem; padding: 1rem; overflow-wrap: anywhere; }
h1, h2, h3, th, nav, .small, .tag { font-family: system-ui, -apple-system, "Segoe UI", Roboto, Arial, sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: .5rem 0; }
h2 { font-size: 1.25rem; margin: 2.2rem 0 .4rem; border-top: 1px solid #999; padding-top: .8rem; }
h3 { font-size: 1rem; margin: 1.2rem 0 .3rem; }
p { margin: .4rem 0; }
table { border-collapse: collapse; width: 100%; margin: .6rem 0; }
th, td { text-align: left; vertical-align: top; padding: .3rem .6rem .3rem 0; border-bottom: 1px solid #ccc; }
th { font-size: .8rem; color: #444; font-weight: 600; }
.data { font-weight: normal; font-size: .8rem; color: #444; }
td.value { font-variant-numeric: tabular-nums; font-weight: bold; white-space: nowrap; padding-right: 1.2rem; }
figure { margin: .8rem 0; }
figure img { max-width: 100%; height: auto; display: block; }
figcaption, .small { font-size: .85rem; color: #444; }
.tag { font-size: .75rem; border: 1px solid #666; border-radius: .2rem; padding: 0 .35rem; white-space: nowrap; }
.warning { border: 2px solid #111; padding: .5rem .8rem; margin: .8rem 0; }
nav a { color: inherit; }
code { font-size: .85em; overflow-wrap: anywhere; }
@media (max-width: 40rem) {
  body { padding: .7rem; }
  figure.wide { overflow-x: auto; }
  figure.wide img { max-width: none; width: 46rem; }
  table.numbers thead { display: none; }
  table.numbers tr { display: block; border-bottom: 1px solid #ccc; padding: .35rem 0; }
  table.numbers td { display: block; border: 0; padding: 0; }
  table.numbers td.meaning { font-size: .85rem; color: #444; }
}
@media print { h2 { break-after: avoid; } figure, table { break-inside: avoid; } }
"""


def page(report: "Report") -> str:
    """The HTML of a report; no part of it comes from elsewhere."""
    measured = [finding for finding in report.findings if finding.status == "measured"]
    others = [finding for finding in report.findings if finding.status != "measured"]
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(report.title)}</title><style>{_STYLE}</style></head><body>",
        f"<h1>{escape(report.title)}</h1>",
        f'<p class="small">{_facts(report.network)}</p>',
        *(f'<p class="warning"><strong>Careful:</strong> {escape(warning)}</p>' for warning in report.warnings),
        _summary(report),
        *(_section(finding) for finding in measured),
        _without(others),
        _provenance(report.provenance),
        "</body></html>",
    ]
    return "\n".join(part for part in parts if part)


def _facts(facts: Mapping[str, Any]) -> str:
    return " · ".join(f"{escape(str(name))}: {escape(str(value))}" for name, value in facts.items())


def _summary(report: "Report") -> str:
    lines = []
    for finding in report.findings:
        first = finding.shown[0] if finding.shown else None
        if finding.status == "measured" and first is not None:
            result = f"{escape(first.label)}{_of(first.data)}: <strong>{escape(first.text)}</strong>"
        else:
            result = f'<span class="tag">{finding.status}</span>'
        lines.append(f'<tr><td><a href="#{finding.name}">{escape(finding.title)}</a></td><td>{result}</td></tr>')
    return f"<nav><table><tbody>{''.join(lines)}</tbody></table></nav>"


def _of(data: str) -> str:
    return f" ({escape(data)})" if data else ""


def _section(finding: "Finding") -> str:
    by_key: dict[str, list[Shown]] = {}
    for shown in finding.shown:
        by_key.setdefault(shown.key, []).append(shown)
    rows = "".join(
        f'<tr><td>{escape(same[0].label)}</td><td class="value">{"<br>".join(map(_value, same))}</td>'
        f'<td class="meaning">{escape(same[0].meaning)}</td></tr>'
        for same in by_key.values()
    )
    table = (
        '<table class="numbers"><thead><tr><th>number</th><th>value</th><th>what it means</th></tr></thead>'
        f"<tbody>{rows}</tbody></table>"
        if rows
        else ""
    )
    pictures = "".join(
        f'<figure{_wide(png)}><img alt="{escape(caption, quote=True)}" src="data:image/png;base64,'
        f'{base64.b64encode(png).decode()}"><figcaption>{escape(caption)}</figcaption></figure>'
        for caption, png in finding.figures.items()
    )
    missing = [
        f"{entry['checkpoint']}: {entry['reason']}"
        for history in finding.histories.values()
        for entry in history
        if "reason" in entry
    ]
    return "\n".join(
        [
            f'<section id="{finding.name}"><h2>{escape(finding.title)}</h2>',
            f"<p>{escape(finding.what)}</p>",
            f'<p class="small"><strong>Measured with less than usual:</strong> {escape(finding.reduced)}.</p>'
            if finding.reduced
            else "",
            table,
            f'<p class="small">{escape(finding.error)}</p>' if finding.error else "",
            pictures,
            *(f'<p class="small"><strong>Not measured</strong> at {escape(each)}</p>' for each in missing),
            *(f'<p class="small"><strong>Note:</strong> {escape(note)}</p>' for note in finding.notes),
            f'<p class="small">Source: {escape(finding.source)}. Took {finding.seconds:.1f} s '
            f"(estimated {finding.estimated_seconds:.1f} s).</p></section>",
        ]
    )


def _value(shown: "Shown") -> str:
    return escape(shown.text) + (f' <span class="data">{escape(shown.data)}</span>' if shown.data else "")


def _wide(png: bytes) -> str:
    """A class for figures of several panels side by side, which a phone shows at a size to be read and moved."""
    width, height = (int.from_bytes(png[start : start + 4], "big") for start in (16, 20))
    return ' class="wide"' if width > 900 and width > 1.6 * height else ""


def _without(findings: "list[Finding]") -> str:
    if not findings:
        return ""
    rows = "".join(
        f'<section id="{finding.name}"><h3>{escape(finding.title)} <span class="tag">{finding.status}</span></h3>'
        f"<p>{escape(finding.reason or '')}</p></section>"
        for finding in findings
    )
    return f"<h2>Not measured here, and why</h2>{rows}"


def _provenance(facts: Mapping[str, Any]) -> str:
    rows = "".join(
        f"<tr><td>{escape(str(name))}</td><td><code>{escape(str(value))}</code></td></tr>"
        for name, value in facts.items()
    )
    return (
        "<h2>Where this comes from</h2>"
        f'<table class="numbers"><thead><tr><th>what</th><th></th></tr></thead><tbody>{rows}</tbody></table>'
        '<p class="small">Zeros, limits and bounds are the papers\' theorems; words such as "nearly" or "usual" are '
        "rules of thumb. All numbers, of every layer and checkpoint, are in report.json beside this page.</p>"
    )
