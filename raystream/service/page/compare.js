// Several committed queries side by side: what was asked differently, which rows they share, scores, certificates.

import { html, useMemo } from "./preact.js";
import { count, duration, number, percent, when } from "./format.js";
import { Copy, Crumb, Loaded } from "./parts.js";
import { useData } from "./source.js";

export function Compare({ given }) {
  const path = useMemo(() => `compare?${given.map((name) => `query=${encodeURIComponent(name)}`).join("&")}`, [given.join("/")]);
  const found = useData(path);
  return html`<${Crumb} href="#/queries">All queries<//>
    <h1>${given.length} queries compared</h1>
    <${Loaded} of=${found} what="The comparison">${(data) => html`<${Compared} data=${data} />`}<//>`;
}

const FIGURES = [
  ["committed", (one) => when(one.when)],
  ["strategy", (one) => one.strategy],
  ["score", (one) => one.score ?? "none"],
  ["chosen rows", (one) => count(one.chosen)],
  ["rows of the pool", (one) => count(one.rows)],
  ["labelled rows", (one) => count(one.labelled)],
  ["covering radius", (one) => (one.certificate ? number(one.certificate.radius) : "none")],
  ["lower bound", (one) => (one.certificate?.lower_bound != null ? number(one.certificate.lower_bound) : "none")],
  ["radius is over", (one) => one.certificate?.over ?? "none"],
  ["score, lowest", (one) => number(one.quantiles?.[0])],
  ["score, median", (one) => number(one.quantiles?.[2])],
  ["score, highest", (one) => number(one.quantiles?.[4])],
  ["time", (one) => duration(one.seconds)],
];

function Compared({ data }) {
  const { queries } = data;
  const classes = [...new Set(queries.flatMap((one) => Object.keys(one.classes)))];
  const most = Math.max(1, ...queries.flatMap((one) => Object.values(one.classes)));
  const head = html`<tr><td></td>${queries.map((one) => html`<th scope="col" class="named"><a href=${`#/query/${encodeURIComponent(one.name)}`}>${one.name}</a></th>`)}</tr>`;
  return html`<section aria-labelledby="overlap">
      <h2 id="overlap">Which rows they share</h2>
      <p class="note">Rows of the batch on the left that are in the batch above, too. A number of rows alone says little of large pools: two good batches rarely share many.</p>
      <div class="scroll" tabindex="0" role="group" aria-label="Rows that batches share"><table class="overlap">
        <thead>${head}</thead>
        <tbody>${queries.map((one, i) => html`<tr><th scope="row">${one.name}</th>${queries.map((other, j) => {
          const share = one.chosen ? data.overlap[i][j] / one.chosen : 0;
          return html`<td class=${`n shade-${i === j ? "own" : Math.ceil(share * 4)}`}>${count(data.overlap[i][j])} <span class="by">${percent(share, 0)}</span></td>`;
        })}</tr>`)}</tbody>
      </table></div>
      <p class="actions"><${Copy} disabled=${!data.in_all.length} text=${() => data.in_all.join("\n")} what=${`${data.in_all.length} ids`}>Copy the ids that are in all (${count(data.in_all.length)})<//></p>
    </section>
    <section aria-labelledby="differ">
      <h2 id="differ">What was asked differently</h2>
      ${data.differences.length === 0
        ? html`<p class="note">Nothing: they differ in the pool's files, the labelled rows or the model alone.</p>`
        : html`<div class="scroll" tabindex="0" role="group" aria-label="Keys that differ"><table><thead>${head}</thead>
            <tbody>${data.differences.map((row) => html`<tr><th scope="row"><code>${row.key}</code></th>${row.values.map((value) => html`<td>${value === null ? html`<span class="by">not given</span>` : typeof value === "object" ? JSON.stringify(value, (_, inner) => (inner === null ? undefined : inner)) : String(value)}</td>`)}</tr>`)}</tbody>
          </table></div>`}
    </section>
    <section aria-labelledby="figures">
      <h2 id="figures">Figures</h2>
      <div class="scroll" tabindex="0" role="group" aria-label="Figures"><table><thead>${head}</thead>
        <tbody>${FIGURES.map(([name, of]) => html`<tr><th scope="row">${name}</th>${queries.map((one) => html`<td class="n">${of(one)}</td>`)}</tr>`)}</tbody>
      </table></div>
      <p class="note">Radii are comparable where they are over the same rows with the same embeddings; scores where both are of the same model.</p>
    </section>
    ${classes.length > 0 && html`<section aria-labelledby="classes">
      <h2 id="classes">What the model takes the chosen rows for</h2>
      <div class="scroll" tabindex="0" role="group" aria-label="Predictions"><table><thead>${head}</thead>
        <tbody>${classes.map((name) => html`<tr><th scope="row">${name}</th>${queries.map((one) => html`<td class="n"><meter min="0" max=${most} value=${one.classes[name] ?? 0} aria-label=${`${name}, ${one.name}`}></meter> ${count(one.classes[name] ?? 0)}</td>`)}</tr>`)}</tbody>
      </table></div>
    </section>`}`;
}
