"""Render the report of a head as an HTML page: one file, with its plots, without scripts and network access."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from itertools import pairwise
from typing import IO, TYPE_CHECKING, Any

from bioptimus_hf.corpus.html import DARK, LIGHT
from bioptimus_hf.ner.error_analysis import (
    CONFUSIONS,
    CORRECT,
    MISSED,
    SPURIOUS,
    WRONG_BOTH,
    WRONG_BOUNDARY,
    WRONG_TYPE,
)
from bioptimus_hf.plots import plot_calibration, plot_min_scores

if TYPE_CHECKING:
    from jinja2 import Template

_MEANINGS = {
    CORRECT: "same words, same type",
    WRONG_TYPE: "same words, another type",
    WRONG_BOUNDARY: "overlapping words, same type",
    WRONG_BOTH: "overlapping words, another type",
    MISSED: "annotated, nothing found there",
    SPURIOUS: "found, nothing annotated there",
}
_GROUPS = {
    "seen": ("Seen in training or not", "A mention counts as seen if the training set has one with the same words and "
             "type, in upper or lower case."),
    "length": ("By length", ""),
    "type": ("By type", ""),
}  # fmt: skip
_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>What a NER head gets wrong: {{ task }}, {{ model }}, seed {{ seed }}</title>
<style>
:root { color-scheme: light dark; {{ light }} --found: #cfe4ff; --gold: #1a7f37; }
@media (prefers-color-scheme: dark) { :root { {{ dark }} --found: #1d4673; --gold: #56d364; } }
body { max-width: 60rem; margin: 0 auto; padding: 0 1rem 3rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h2 { margin: 2.5rem 0 .5rem; border-bottom: 1px solid var(--faint); }
h3 { margin: 1.8rem 0 .3rem; }
p { margin: .4rem 0; }
.faint { color: var(--faint); }
.wide { overflow-x: auto; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(20rem, 100%), 1fr)); gap: 1rem 2rem; }
img { max-width: 100%; height: auto; background: #fff; border-radius: .3rem; }
table { border-collapse: collapse; margin: .5rem 0; }
th, td { padding: .2rem .8rem .2rem 0; text-align: right; font-variant-numeric: tabular-nums; vertical-align: top;
  overflow-wrap: normal; }
th { font-weight: 600; }
td { border-top: 1px solid color-mix(in srgb, var(--faint) 35%, transparent); }
.text { text-align: left; }
@media (max-width: 30rem) { table { font-size: .82rem; } th, td { padding-right: .45rem; } }
ol { padding-left: 1.6rem; }
li { margin: .8rem 0; }
blockquote { margin: .3rem 0 .3rem .2rem; padding-left: .8rem; border-left: 3px solid var(--faint); font-size: .93rem; }
.found { background: var(--found); border-radius: .2rem; }
.gold { border-bottom: 3px solid var(--gold); }
small { font-weight: 600; }
@media print { .found { print-color-adjust: exact; } }
</style>
</head>
<body>
<h1>What this NER head gets wrong</h1>
<p>Task {{ task }}, model {{ model }}, seed {{ seed }}. Entities are counted on words: {{ scorer }}. Unless they say
otherwise, all figures are of the test set, in percent.</p>
{% if min_score and not min_score.best %}
<p>The best <code>min_score</code> is <b>0</b>: no other one raises {{ "the mean " if tasks | length > 1 }}F1 on the
development set{{ "s" if tasks | length > 1 }}.</p>
{% elif min_score %}
<p>The best <code>min_score</code> is <b>{{ "%.2f" | format(min_score.best) }}</b>: on the development
set{{ "s" if tasks | length > 1 }}, it changes {{ "the mean " if tasks | length > 1 }}F1 from
{{ percent(min_score.f1_of_all) }} to {{ percent(min_score.f1) }}, and leaves out {{ percent(min_score.left_out) }} %
of the entities found.</p>
{% else %}
<p>No entity of the development set is found correctly, so there is no best <code>min_score</code>.</p>
{% endif %}
{% for task in tasks %}
<section>
<h2>{{ task.name }}</h2>
<p>{{ count(task.test.sentences, "sentence") }}, {{ count(task.test.all.mentions, "mention") }},
{{ count(task.test.all.found, "entity") }} found: F1 <b>{{ percent(task.test.all.f1) }}</b>, precision
{{ percent(task.test.all.precision) }}, recall {{ percent(task.test.all.recall) }}.</p>
<h3>Kinds of errors</h3>
<div class="wide"><table>
<tr><th class="text">kind</th><th>test</th><th>dev</th><th class="text">meaning</th></tr>
{% for kind, meaning in meanings.items() %}
<tr><td class="text">{{ kind }}</td><td>{{ task.test.kinds[kind] }}</td><td>{{ task.dev.kinds[kind] }}</td>
<td class="text">{{ meaning }}</td></tr>
{% endfor %}
</table></div>
<p class="faint">Each mention and each entity found is counted once.</p>
{% for key, (title, note) in groups.items() %}
<h3>{{ title }}</h3>
<div class="wide"><table>
<tr><th></th><th>F1</th><th>precision</th><th>recall</th><th>mentions</th><th>found</th></tr>
{% for name, row in task.test[key].items() %}
<tr><td class="text">{{ name }}</td><td>{{ percent(row.f1) }}</td><td>{{ percent(row.precision) }}</td>
<td>{{ percent(row.recall) }}</td><td>{{ row.mentions }}</td><td>{{ row.found }}</td></tr>
{% else %}
<tr><td class="text">no entities</td></tr>
{% endfor %}
</table></div>
{% if note %}<p class="faint">{{ note }}</p>{% endif %}
{% endfor %}
<div class="plots">
<div>
<h3>Calibration of the scores</h3>
{% set scores = task.test.calibration %}
{% if scores.mean_score is none %}
<p>No entities are found, so there are no scores.</p>
{% else %}
<p>The mean score of the entities found is {{ percent(scores.mean_score) }}, and {{ percent(scores.precision) }} % of
them are correct. The expected calibration error is {{ percent(scores.expected_calibration_error) }}
({{ scores.bins | length }} bins).
{% if scores.precision in (0, 1) %}
All of them are {{ "correct" if scores.precision else "wrong" }}, so scores can't tell the better ones from the worse.
{% endif %}
</p>
{% if task.reliability %}
<img src="{{ task.reliability }}" alt="Precision of the entities over their scores, and numbers of entities">
{% endif %}
{% endif %}
</div>
<div>
<h3>Least score</h3>
{% if task.min_score %}
<p>The least score with the best F1 on the development set is {{ "%.2f" | format(task.min_score.best) }}.</p>
{% if task.thresholds %}
<img src="{{ task.thresholds }}" alt="Precision, recall and F1 on the development set over the least score">
{% endif %}
<div class="wide"><table>
<tr><th class="text">entities</th><th>F1</th><th>precision</th><th>recall</th><th>found</th></tr>
{% for split in ("dev", "test") %}
{% for key, label in (("all", "all"), ("best", "from %.2f" | format(task.min_score.best))) %}
{% set row = task.min_score[split][key] %}
<tr><td class="text">{{ split }}, {{ label }}</td><td>{{ percent(row.f1) }}</td><td>{{ percent(row.precision) }}</td>
<td>{{ percent(row.recall) }}</td><td>{{ row.found }}</td></tr>
{% endfor %}
{% endfor %}
</table></div>
{% else %}
<p>No entity of the development set is found correctly.</p>
{% endif %}
</div>
</div>
<h3>Most frequent confusions</h3>
{% if task.test.confusions %}
<p class="faint">The {{ limit }} most frequent, each with up to three sentences. <span class="gold">Underlined</span>:
annotated. <span class="found">Shaded</span>: found.</p>
{% else %}
<p>There are none.</p>
{% endif %}
<ol>
{% for row in task.test.confusions %}
<li><b>{{ row.kind }}</b>, {{ count(row.count, "time") }}:
{% if row.gold %}
<span class="gold">{{ row.gold.text }}</span> <small>{{ row.gold.type }}</small>
{% endif %}
{{ "found as" if row.gold and row.predicted }}
{% if row.predicted %}
<span class="found">{{ row.predicted.text }}</span> <small>{{ row.predicted.type }}</small>
{% endif %}
{% for example in row.examples %}
<blockquote>
{%- for text, style in pieces(example) %}<span class="{{ style }}">{{ text }}</span>{% endfor %}
 <span class="faint">(sentence {{ example.number }})</span></blockquote>
{% endfor %}
</li>
{% endfor %}
</ol>
</section>
{% endfor %}
</body>
</html>"""


def head_page(report: Mapping[str, Any]) -> str:
    """Return the report of a head as a page.

    Args:
        report: the content of `report.json`.
    """
    tasks = [{"name": name, **content, **_plots(content)} for name, content in report["tasks"].items()]
    return _template().render(
        **{**report, "tasks": tasks},
        **{"light": LIGHT, "dark": DARK, "meanings": _MEANINGS, "groups": _GROUPS, "limit": CONFUSIONS},
        **{"percent": _percent, "count": _count, "pieces": _pieces},
    )


@cache
def _template() -> Template:
    import jinja2  # takes longer to import than the rest of this module

    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    return environment.from_string(_PAGE)


def _plots(content: Mapping[str, Any]) -> dict[str, str]:
    """Return the plots of a task as addresses of images; empty without matplotlib, or without anything to plot."""
    bins, min_score = content["test"]["calibration"]["bins"], content["min_score"]
    return {
        "reliability": _image(lambda file: plot_calibration(file, bins)) if any(row["found"] for row in bins) else "",
        "thresholds": _image(lambda file: plot_min_scores(file, min_score["curve"], min_score["best"]))
        if min_score
        else "",
    }


def _image(plot: Callable[[IO[bytes]], None]) -> str:
    file = io.BytesIO()
    plot(file)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}" if file.getvalue() else ""


def _percent(share: float) -> str:
    return f"{100 * share:.2f}"


def _count(number: int, noun: str) -> str:
    plural = f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}s"
    return f"{number:,} {noun if number == 1 else plural}"


def _pieces(example: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the text of a sentence in pieces, each with its style: `gold`, `found`, both or none."""
    text = example["text"]
    spans: Sequence[tuple[str, list[int] | None]] = (("gold", example["gold"]), ("found", example["predicted"]))
    edges = sorted({0, len(text), *(edge for _, span in spans for edge in span or ())})
    for start, end in pairwise(edges):
        styles = [style for style, span in spans if span and span[0] <= start and end <= span[1]]
        yield text[start:end], " ".join(styles)
