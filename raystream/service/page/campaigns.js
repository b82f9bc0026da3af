// Loops, simulations and streams: the lists, and a page for each.

import { html } from "./preact.js";
import { LineChart } from "./charts.js";
import { count, duration, number, percent, several } from "./format.js";
import { Crumb, Empty, Facts, Loaded, Spec, State, Warnings } from "./parts.js";
import { useData } from "./source.js";

const CAMPAIGN_EVERY = 5000;
const KINDS = {
  loops: ["Loops", "loop", "raystream loop loop.yaml", "Rounds of asking for labels, training and judging; raystream demo --loop plays one."],
  simulations: ["Simulations", "simulation", "raystream simulate simulate.yaml", "They compare strategies on a pool whose labels are known, random always among them."],
  streams: ["Streams", "stream", "raystream stream stream.yaml", "They decide on rows as they arrive, within a budget."],
};

function list(kind) {
  const [title, one, command, about] = KINDS[kind];
  return function List() {
    const found = useData("campaigns", CAMPAIGN_EVERY);
    return html`<h1>${title}</h1>
      <${Loaded} of=${found} what=${`The list of ${kind}`}>${(data) => data[kind].length
        ? html`<p class="note">${about}</p><ul class="names">${data[kind].map((name) => html`<li key=${name}><a href=${`#/${one}/${encodeURIComponent(name)}`}>${name}</a></li>`)}</ul>`
        : html`<${Empty}><p>This store holds no ${one} yet. ${about}</p><p>Begin one by <code>${command}</code>.</p><//>`}<//>`;
  };
}

export const Loops = list("loops");
export const Simulations = list("simulations");
export const Streams = list("streams");

// a loop

export function Loop({ given }) {
  const found = useData(`loops/${encodeURIComponent(given[0])}`, CAMPAIGN_EVERY);
  return html`<${Crumb} href="#/loops">All loops<//>
    <${Loaded} of=${found} what=${`Loop ${given[0]}`}>${(data) => html`<${LoopShown} data=${data} />`}<//>`;
}

const SECONDS = ["seconds_query", "seconds_train"];

function LoopShown({ data }) {
  const history = data.history.filter((row) => row.labels);
  const last = history[history.length - 1];
  const controlled = history.some((row) => row.control_accuracy !== null && row.control_accuracy !== undefined);
  const paid = history.filter((row) => row.cost !== null && row.cost !== undefined);
  const first = data.metrics[0];
  const facts = last === undefined ? [] : [
    { name: "labels", value: count(last.labels), meaning: `after ${several(history.filter((row) => row.round).length, "round")}` },
    ...(first && last[first.name] !== null ? [{ name: first.name, value: first.percent ? percent(last[first.name]) : number(last[first.name]), meaning: `of the last model, on ${data.judged_by}${gained(history, first)}` }] : []),
    ...(last.control_accuracy !== null && last.control_accuracy !== undefined ? [{ name: "accuracy on control rows", value: percent(last.control_accuracy), meaning: `95% interval ${percent(last.control_low)} to ${percent(last.control_high)}` }] : []),
    ...(paid.length ? [{ name: "cost of the labels", value: number(paid[paid.length - 1].cost), meaning: "by the column of select.cost" }] : []),
    { name: "computing time", value: duration(history.reduce((sum, row) => sum + SECONDS.reduce((of, key) => of + (row[key] ?? 0), 0), 0)), meaning: "to choose batches and to train" },
  ];
  return html`<div class="head"><h1>${data.name}</h1><p><${State} state=${data.state} /></p></div>
    <p class="lede">${data.reason[0].toUpperCase() + data.reason.slice(1)}.</p>
    <section class="todo" aria-label="What to do now"><strong>What to do now</strong><p>${data.todo}</p></section>
    <${Facts} facts=${facts} />
    <section aria-labelledby="worth">
      <h2 id="worth">Does it help?</h2>
      <p class="note">By the labels given so far${controlled ? "; grey: accuracy on control rows with its 95% interval, which are labelled but never trained on" : ""}. Vertical lines: where a rule would have stopped first.</p>
      <${Metrics} data=${data} rows=${history} over="labels" words="labels" controlled=${controlled} />
      ${!history.length && html`<p class="note">No round is judged yet: curves appear after the first.</p>`}
    </section>
    ${paid.length > 0 && html`<section aria-labelledby="costly">
      <h2 id="costly">By what the labels cost</h2>
      <p class="note">The same, by the sum of the pool's column of costs over labelled rows.</p>
      <${Metrics} data=${data} rows=${paid} over="cost" words="what the labels cost" controlled=${controlled} />
    </section>`}
    ${data.rules.length > 0 && html`<section aria-labelledby="rules"><h2 id="rules">When to stop</h2>
      <div class="scroll" tabindex="0" role="group" aria-label="Stopping rules"><table><thead><tr><th scope="col">rule</th><th scope="col">its part</th><th scope="col">would have stopped first</th></tr></thead>
        <tbody>${data.rules.map((rule) => html`<tr><td>${rule.name}</td><td>${rule.asked ? (data.advise ? "asked for advice" : "asked for") : "only looked at"}</td><td>${rule.labels === null ? "not yet" : `round ${rule.round}, ${several(rule.labels, "label")}`}</td></tr>`)}</tbody></table></div></section>`}
    <section aria-labelledby="rounds"><h2 id="rounds">Rounds</h2>
      ${data.batches.length === 0 && html`<p class="note">No batch was asked for yet.</p>`}
      ${data.batches.map((batch) => html`<div class="batch" key=${batch.round}><h3>Round ${batch.round} <span class="by">${batch.judged ? "judged" : batch.closed ? "labelled" : "waiting for labels"}</span></h3>
        <p class="note">${several(batch.rows, "row")} by ${batch.strategy}${batch.controls ? (batch.controls === 1 ? ", the last of them a control row" : `, the last ${batch.controls} of them control rows`) : ""}.${batch.why ? ` Chosen so because ${batch.why}.` : ""}
          ${batch.query && html` <a href=${`#/query/${encodeURIComponent(batch.query)}`}>Look at its rows</a>`}</p></div>`)}
    </section>
    <section aria-labelledby="file"><h2 id="file">Its file</h2><${Spec} text=${data.spec} name=${`${data.name}.yaml`} /></section>`;
}

// The metrics of rounds over labels or what they cost: all shares in one chart, each other metric in its own.
function Metrics({ data, rows, over, words, controlled }) {
  if (!rows.length) return null;
  const of = (name) => rows.map((row) => row[name]);
  const lines = data.metrics.filter((metric) => metric.percent).map((metric) => ({ name: metric.name, x: of(over), y: of(metric.name) }));
  if (controlled) lines.push({ name: "control rows", x: of(over), y: of("control_accuracy"), low: of("control_low"), high: of("control_high"), control: true });
  const marks = data.rules.map((rule) => ({ value: rows.find((row) => row.round === rule.round && row.round)?.[over], name: rule.name })).filter((mark) => mark.value !== undefined);
  return html`${lines.length > 0 && html`<${LineChart} lines=${lines} xLabel=${words} yLabel="" asPercent marks=${marks} title=${`Metrics by ${words}`} />`}
    ${data.metrics.filter((metric) => !metric.percent).map((metric) => html`<h3>${metric.name} <span class="by">${metric.lower ? "lower is better" : "higher is better"}</span></h3>
      <${LineChart} lines=${[{ name: metric.name, x: of(over), y: of(metric.name) }]} xLabel=${words} yLabel=${metric.name} marks=${marks} />`)}`;
}

function gained(history, metric) {
  const values = history.map((row) => row[metric.name]).filter((value) => value !== null && value !== undefined);
  if (values.length < 2) return "";
  const by = values[values.length - 1] - values[0];
  const better = metric.lower ? by < 0 : by > 0;
  if (Math.abs(by) < (metric.percent ? 0.0005 : 1e-9)) return ", the same as that of the first";
  return `, ${better ? "better" : "worse"} by ${metric.percent ? `${Math.abs(100 * by).toFixed(1)} points` : number(Math.abs(by))} than the first`;
}

// a simulation

export function Simulation({ given }) {
  const found = useData(`simulations/${encodeURIComponent(given[0])}`, CAMPAIGN_EVERY);
  return html`<${Crumb} href="#/simulations">All simulations<//>
    <${Loaded} of=${found} what=${`Simulation ${given[0]}`}>${(data) => data.state === "running"
      ? html`<h1>${data.name}</h1><p class="lede">It is being played: ${several(data.played, "run")} so far. Curves and verdict come with the last one; if nothing runs, run raystream simulate with its file again, which goes on.</p><${Spec} text=${data.spec} name=${`${data.name}.yaml`} />`
      : html`<${SimulationShown} data=${data} />`}<//>`;
}

function SimulationShown({ data }) {
  const shown = (value) => (value === null || value === undefined ? "" : data.percent ? percent(value) : number(value));
  const best = data.table.find((row) => row.strategy === data.best);
  const facts = [
    { name: "advised", value: data.best, meaning: "the strategy to take here" },
    ...(data.best === data.control ? [] : [{ name: "labels saved by it", value: best.labels_saved === null ? "none" : percent(best.labels_saved, 0), meaning: best.low === null ? `of those that ${data.control} needs` : `${percent(best.low, 0)} to ${percent(best.high, 0)} with 95% confidence, of those that ${data.control} needs` }]),
    ...(data.best === data.control || !data.cost_curves.length ? [] : [{ name: "cost saved by it", value: best.cost_saved === null ? "none" : percent(best.cost_saved, 0), meaning: best.cost_low === null ? `of what the labels of ${data.control} cost` : `${percent(best.cost_low, 0)} to ${percent(best.cost_high, 0)} with 95% confidence, of what those of ${data.control} cost` }]),
    ...(data.ceiling === null ? [] : [{ name: `${data.metric} with all labels`, value: shown(data.ceiling), meaning: "the same trainer, the mean over seeds" }]),
    { name: "seeds", value: count(data.seeds), meaning: "starts and splits, the same for every strategy" },
  ];
  const control = (line) => ({ ...line, control: line.name === data.control });
  return html`<div class="head"><h1>${data.name}</h1></div>
    <p class="lede">${data.verdict}</p>
    <${Facts} facts=${facts} />
    <section aria-labelledby="curves"><h2 id="curves">${data.metric} by labels</h2>
      <${LineChart} lines=${data.curves.map(control)} xLabel="labels" yLabel=${data.metric} asPercent=${data.percent} levels=${data.ceiling === null ? [] : [{ value: data.ceiling, name: "all labels" }]} />
      <p class="note">Lines are means over seeds; bands are 95% intervals of these means. Strategies share seeds, so that their differences are known better than the bands suggest.</p></section>
    ${data.beside.length > 0 && html`<section aria-labelledby="beside"><h2 id="beside">Beside ${data.control}</h2>
      <${LineChart} lines=${data.beside} xLabel="labels" yLabel="difference" asPercent=${data.percent} levels=${[{ value: 0, name: data.control }]} />
      <p class="note">Each strategy minus ${data.control}, seed by seed: means with their 95% intervals.</p></section>`}
    ${data.cost_curves.length > 0 && html`<section aria-labelledby="costly"><h2 id="costly">${data.metric} by what the labels cost</h2>
      <${LineChart} lines=${data.cost_curves.map(control)} xLabel="what the labels cost" yLabel=${data.metric} asPercent=${data.percent} levels=${data.ceiling === null ? [] : [{ value: data.ceiling, name: "all labels" }]} />
      <p class="note">The same, by the sum of the pool's column of costs over labelled rows: the verdict goes by this.</p></section>`}
    <section aria-labelledby="fared"><h2 id="fared">How the strategies fared</h2>
      <div class="scroll" tabindex="0" role="group" aria-label="Figures of the strategies"><table><thead><tr>
        ${["strategy", "area", "final", "labels saved", "95%", ...(data.cost_curves.length ? ["cost saved", "95%"] : []), "p", "choosing", "training", "verdict"].map((name) => html`<th scope="col" class=${name === "strategy" || name === "verdict" ? "" : "n"}>${name}</th>`)}</tr></thead>
        <tbody>${data.table.map((row) => html`<tr class=${row.strategy === data.best ? "best" : ""}><th scope="row">${row.strategy}</th>
          <td class="n">${shown(row.auc)}${row.auc_se === null ? "" : ` ± ${shown(row.auc_se)}`}</td><td class="n">${shown(row.final)}</td>
          <td class="n">${row.labels_saved === null ? "" : percent(row.labels_saved, 0)}</td><td class="n">${row.low === null ? "" : `${percent(row.low, 0)} to ${percent(row.high, 0)}`}</td>
          ${data.cost_curves.length > 0 && html`<td class="n">${row.cost_saved === null ? "" : percent(row.cost_saved, 0)}</td><td class="n">${row.cost_low === null ? "" : `${percent(row.cost_low, 0)} to ${percent(row.cost_high, 0)}`}</td>`}
          <td class="n">${row.p_value === null ? "" : number(row.p_value, 2)}</td><td class="n">${duration(row.seconds_query)}</td><td class="n">${duration(row.seconds_train)}</td>
          <td class=${`verdict ${row.verdict.split(" ")[0]}`}>${row.strategy === data.control ? "" : row.verdict}</td></tr>`)}</tbody></table></div>
      <p class="note">area: ${data.metric}, the mean over all labels. labels saved: of those that ${data.control} needs for the same quality. pays: ${data.cost_curves.length ? "cost saved and area over costs" : "both"} are better with 95% confidence; costs: both are worse.</p></section>
    <section aria-labelledby="file"><h2 id="file">Its file</h2><${Spec} text=${data.spec} name=${`${data.name}.yaml`} /></section>`;
}

// a stream

export function Stream({ given }) {
  const found = useData(`streams/${encodeURIComponent(given[0])}`, CAMPAIGN_EVERY);
  return html`<${Crumb} href="#/streams">All streams<//>
    <${Loaded} of=${found} what=${`Stream ${given[0]}`}>${(data) => html`<${StreamShown} data=${data} />`}<//>`;
}

function StreamShown({ data }) {
  const { line, drift } = data;
  const enough = Math.max(20, data.seen / 100); // the share of a handful of rows says nothing, and would decide the scale
  const thresholds = line.threshold.some((value) => value !== null);
  const facts = [
    { name: "share chosen", value: data.share === null ? "none" : percent(data.share, 2), meaning: `of a budget of ${percent(data.budget, 2)}${data.strict ? ", never above it" : ""}` },
    { name: "rows seen", value: count(data.seen), meaning: `${count(data.rows)} were decided on; those without a score don't count` },
    { name: "chosen", value: count(data.chosen), meaning: `by manager ${data.manager}` },
    { name: "models", value: count(data.epoch), meaning: "that have scored so far" },
  ];
  const tests = [
    ["the mean of scores (Page-Hinkley)", drift.page_hinkley, `above ${number(drift.page_hinkley_limit)} means drift`],
    ["their distribution (Kolmogorov-Smirnov)", drift.kolmogorov_smirnov, drift.p_value === null ? "" : `p ${number(drift.p_value, 2)}`],
  ];
  return html`<div class="head"><h1>${data.name}</h1></div>
    <${Warnings} warnings=${data.warnings} />
    <${Facts} facts=${facts} />
    ${!line.seen.length
      ? html`<${Empty}><p>Nothing was decided yet. Files younger than two seconds wait; then run raystream stream with its file, which decides on all that arrived.</p><//>`
      : html`<section aria-labelledby="share"><h2 id="share">Share chosen</h2>
          <${LineChart} step lines=${[{ name: "share chosen", x: line.seen, y: line.share.map((share, at) => (line.seen[at] < enough ? null : share)) }]} xLabel="rows seen" yLabel="share" asPercent levels=${[{ value: data.budget, name: "budget" }]} /></section>
        <section aria-labelledby="threshold"><h2 id="threshold">${thresholds ? "Threshold over time" : "Scores over time"}</h2>
          <${LineChart} step lines=${[{ name: "threshold", x: line.seen, y: line.threshold }, { name: "mean score of arrived rows", x: line.seen, y: line.score, control: true }]} xLabel="rows seen" yLabel="score" />
          <p class="note">${thresholds ? "A row is chosen where its score passes the threshold, which follows the budget." : `Manager ${data.manager} has no threshold that could be drawn.`} Grey: the mean score of the rows that arrived between two points.</p></section>`}
    <section aria-labelledby="drift"><h2 id="drift">Drift</h2>
      <p>${data.warnings.length ? "The scores are no longer what they were: see the warning above." : drift.page_hinkley === null ? `Too few rows to tell: each test needs ${count(drift.window)} scores of one model.` : "No drift was found in the scores of this model."}</p>
      <div class="scroll" tabindex="0" role="group" aria-label="Tests of drift"><table><thead><tr><th scope="col">test of</th><th scope="col" class="n">statistic</th><th scope="col">what it means</th></tr></thead>
        <tbody>${tests.map(([name, value, words]) => html`<tr><td>${name}</td><td class="n">${value === null ? "not yet" : number(value)}</td><td>${words}</td></tr>`)}</tbody></table></div></section>
    <section aria-labelledby="file"><h2 id="file">Its file</h2><p class="note">Decisions: ${data.decisions}</p><${Spec} text=${data.spec} name=${`${data.name}.yaml`} /></section>`;
}
