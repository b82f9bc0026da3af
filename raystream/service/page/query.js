// One query: its rows as a gallery or a table, its map and scores, how conditions were met, its file; or how far it is.

import { html, useEffect, useMemo, useState } from "./preact.js";
import { Histogram } from "./charts.js";
import { count, number, several, when } from "./format.js";
import { Gallery, RowDialog } from "./gallery.js";
import { NextQuery, useNextQuery } from "./next_query.js";
import { bytes, isServed, useData } from "./source.js";
import { Copy, Crumb, Facts, Loaded, Spec, Waiting, Warnings, save, say } from "./parts.js";
import { PoolMap } from "./pool_map.js";
import { Progress } from "./queries.js";

const QUERY_EVERY = 2000;
const untilItEnds = (query) => (query !== null && (query.title !== undefined || ["failed", "stopped"].includes(query.run.state)) ? 0 : QUERY_EVERY);

export function Query({ given }) {
  const [name, rank] = given;
  const at = `queries/${encodeURIComponent(name)}`;
  const found = useData(at, untilItEnds);
  return html`<${Crumb} href="#/queries">All queries<//>
    <${Loaded} of=${found} what=${`Query ${name}`}>
      ${(query) => (query.title === undefined ? html`<${Running} query=${query} again=${found.again} />` : html`<${Committed} query=${query} at=${at} rank=${rank === undefined ? null : Number(rank)} />`)}
    <//>`;
}

const TODO = {
  running: "It goes on by itself; this page follows it.",
  queued: "It waits for its turn; this page follows it.",
  failed: "Mend what the message names, and run the same command again: what is scored is kept.",
  stopped: "Its run gave no sign of life, or was interrupted. Run the same command again: what is scored is kept, and it goes on from there.",
  scored: "Its rows are scored and none is chosen. Run raystream query, or raystream select, with its file.",
};

function Running({ query, again }) {
  const { run } = query;
  return html`<h1>${query.name}</h1>
    <p class="lede"><${Progress} line=${{ ...run, error: null }} /></p>
    ${run.error && html`<div class="wrong" role="alert"><p><strong>It failed.</strong> ${run.error}</p></div>`}
    <p>${TODO[run.state] ?? ""} ${["failed", "stopped"].includes(run.state) && html`<button type="button" onClick=${again}>Look again</button>`}</p>
    <dl class="provenance">
      ${[["strategy", query.strategy], ["score", query.score], ["budget", count(query.budget)], ["pool", query.pool], ["rows", run.rows === null ? "" : `${count(run.done)} of ${count(run.rows)} scored`],
        ["units", run.units === null || run.units === undefined ? "" : `${count(run.units_done)} of ${count(run.units)}`], ["who", run.who], ["started", when(run.started)], ["last heard of", when(run.when)]]
        .filter(([, value]) => value).map(([key, value]) => html`<dt>${key}</dt><dd>${value}</dd>`)}
    </dl>
    ${query.spec && html`<section><h2>Its file</h2><${Spec} text=${query.spec} name=${`${query.name}.yaml`} /></section>`}`;
}

function Committed({ query, at, rank }) {
  const rows = useData(`${at}/rows`);
  const [shown, setShown] = useState(false);
  const ready = shown || rows.error !== null; // the server makes what lies further down once the rows are there: they are looked at first
  const histogram = useData(ready ? `${at}/histogram` : null);
  const next = useNextQuery();
  const [near, setNear] = useState(null);
  const go = (to) => {
    const where = `#/query/${encodeURIComponent(query.name)}${to === null ? "" : `/${to}`}`;
    if (to === null || rank === null) location.hash = where;
    else location.replace(where);
  };
  const sections = [["rows", "Rows"], ["map", "Map"], ["scores", "Scores"], ["conditions", "Conditions"], ["next", "Next query"], ["take", "Take along"], ["about", "About"]];
  return html`<div class="head"><h1>${query.title}</h1><p class="store">${query.name} · ${when(query.committed)}${query.run.who ? ` · ${query.run.who}` : ""}</p></div>
    <p class="lede">${query.lede}</p>
    <${Warnings} warnings=${query.warnings} />
    <${Facts} facts=${query.facts} />
    <nav class="within" aria-label="Sections">
      ${sections.map(([key, words]) => html`<button type="button" onClick=${() => {
        const heading = document.getElementById(key);
        heading.scrollIntoView();
        heading.focus({ preventScroll: true });
      }}>${words}${key === "next" && next.total ? ` (${count(next.total)})` : ""}</button>`)}
    </nav>
    <section aria-labelledby="rows">
      <h2 id="rows" tabindex="-1">The chosen rows</h2>
      <${Loaded} of=${rows} what="The rows">${(data) => html`<${Rows} at=${at} data=${data} go=${go} ready=${() => setShown(true)} />
        ${rank !== null && html`<${RowDialog} key=${rank} at=${at} rank=${rank} query=${query} data=${data} histogram=${histogram.data} go=${go} next=${next} near=${near} setNear=${setNear} />`}`}<//>
    </section>
    <section aria-labelledby="map">
      <h2 id="map" tabindex="-1">Where in the pool they lie</h2>
      <${MapSection} at=${at} rows=${rows.data} ready=${ready} next=${next} go=${go} />
    </section>
    <section aria-labelledby="scores">
      <h2 id="scores" tabindex="-1">Scores of the pool and of the batch</h2>
      <${Loaded} of=${histogram} what="The histogram">${(data) => data.missing ? html`<p class="note">${data.missing}</p>` : html`<${Histogram} ...${data} />
        <p class="note">Each adds up to 100%: ${data.whole ? "all" : "a sample of"} ${count(data.rows)} scored rows, and the chosen ones. The further the chosen lie to the right, the more the choice followed the score; diversity keeps them from the far right.</p>`}<//>
    </section>
    <section aria-labelledby="conditions">
      <h2 id="conditions" tabindex="-1">Quotas, costs and the certificate</h2>
      <${Conditions} query=${query} />
    </section>
    <section aria-labelledby="next">
      <h2 id="next" tabindex="-1">The next query</h2>
      ${rows.data && html`<${NextQuery} query=${query} rows=${rows.data} next=${next} />`}
    </section>
    <section aria-labelledby="take">
      <h2 id="take" tabindex="-1">Take along</h2>
      ${rows.data && html`<${TakeAlong} query=${query} at=${at} data=${rows.data} />`}
    </section>
    <section aria-labelledby="about">
      <h2 id="about" tabindex="-1">How it came about</h2>
      <dl class="provenance">${query.provenance.map(([key, value]) => html`<dt>${key}</dt><dd>${value}</dd>`)}</dl>
      ${query.spec && html`<h3>The query's file</h3><${Spec} text=${query.spec} name=${`${query.name}.yaml`} />`}
    </section>`;
}

// The gallery, with a field that finds a row by its id.
function Rows({ at, data, go, ready }) {
  const [wanted, setWanted] = useState("");
  const [table, setTable] = useState(false);
  const [kind, setKind] = useState(null);
  const places = useMemo(() => new Map(data.ids.map((id, place) => [id, place])), [data]);
  const place = places.get(wanted.trim());
  const fits = wanted.trim() === "" ? [] : data.ids.filter((id) => id.includes(wanted.trim())).slice(0, 6);
  return html`<div class="tools">
      <form class="search" role="search" onSubmit=${(event) => {
        event.preventDefault();
        const found = place ?? places.get(fits[0]);
        if (found === undefined) say(`No chosen row has the id ${wanted}.`);
        else go(found);
      }}>
        <label for="find"><span>Find a row</span></label>
        <input id="find" type="search" placeholder=${`its ${data.id}, such as ${data.ids[0] ?? ""}`} value=${wanted} onInput=${(event) => setWanted(event.target.value)} />
        <button type="submit">Show it</button>
      </form>
      ${kind !== "table" && html`<div class="choice" role="group" aria-label="How rows are shown">
        <button type="button" aria-pressed=${!table} onClick=${() => setTable(false)}>Cards</button>
        <button type="button" aria-pressed=${table} onClick=${() => setTable(true)}>Table</button>
      </div>`}
    </div>
    ${wanted.trim() !== "" && place === undefined && html`<p class="note" role="status">${fits.length
      ? html`Begin or contain it: ${fits.map((id) => html`<button type="button" class="link" onClick=${() => go(places.get(id))}>${id}</button> `)}`
      : `No chosen row has this id. If it is in the pool, it was not chosen: its score, or a row that stands for it, says why; find it on the map with the lasso.`}</p>`}
    ${data.ids.length < data.total && html`<p class="note">The first ${count(data.ids.length)} of ${count(data.total)} rows; selection.parquet has all.</p>`}
    <p class="note">In the order to label them.${table || kind === "table" ? "" : " Arrow keys move, Enter opens a row."}</p>
    <${Gallery} at=${at} data=${data} go=${go} asTable=${table} ready=${(found) => {
      setKind(found);
      ready();
    }} />`;
}

function MapSection({ at, rows, ready, next, go }) {
  const [near, setNear] = useState(false);
  useEffect(() => {
    const heading = document.getElementById("map");
    const observer = new IntersectionObserver((entries) => entries.some((entry) => entry.isIntersecting) && setNear(true), { rootMargin: "1200px" });
    observer.observe(heading);
    return () => observer.disconnect();
  }, []);
  const asked = near && ready;
  const found = useData(asked ? `${at}/map` : null);
  if (!asked || rows === null) return html`<${Waiting} what="the map" />`;
  return html`<${Loaded} of=${found} what="The map">${(data) => data.missing ? html`<p class="note">${data.missing}</p>` : html`<${PoolMap} at=${at} data=${data} rows=${rows} next=${next} go=${go} />`}<//>`;
}

function Conditions({ query }) {
  const { certificate } = query;
  return html`<p>${certificate === null
      ? "There is no certificate: the choice did not look at embeddings."
      : html`Every ${certificate.over === "pool" ? "eligible row of the pool" : "candidate"} lies within <b>${number(certificate.radius)}</b> of a chosen or labelled one${certificate.lower_bound !== null
          ? html`; no batch of this size gets below <b>${number(certificate.lower_bound)}</b>${certificate.lower_bound > 0 ? `, so this one is at most ${(certificate.radius / certificate.lower_bound).toFixed(2)} times the best` : ""}` : ""}.`}</p>
    ${query.constraints.length
      ? html`<div class="scroll" tabindex="0" role="group" aria-label="Conditions"><table><thead><tr><th scope="col">condition</th><th scope="col">in the batch</th><th scope="col">asked for</th></tr></thead>
          <tbody>${query.constraints.map((met) => html`<tr><td>${met.name}</td><td>${met.value}</td><td>${met.asked}</td></tr>`)}</tbody></table></div>`
      : html`<p class="note">No quotas, costs or other conditions were asked for.</p>`}`;
}

const TOOLS = ["label_studio", "cvat", "argilla", "prodigy", "ground_truth", "labelbox", "fiftyone", "csv", "jsonl", "parquet"];

function TakeAlong({ query, at, data }) {
  const [tool, setTool] = useState(TOOLS[0]);
  const single = ["csv", "jsonl", "parquet"].includes(tool);
  const command = `raystream export ${query.name} --to ${tool} --out ${single ? `batch.${tool}` : "batch"} --store ${/^[\w./:-]+$/.test(query.store) ? query.store : `'${query.store}'`}`;
  return html`<div class="actions">
      <${Copy} text=${() => data.ids.join("\n")} what=${several(data.ids.length, "id")}>Copy the ids<//>
      ${data.ids_file && html`<a class="button" download=${`${query.name}-ids.txt`} href=${data.ids_file}>Ids (text)</a>`}
      ${data.csv && html`<a class="button" download=${`${query.name}.csv`} href=${data.csv}>Rows (CSV)</a>`}
      ${isServed && html`<button type="button" onClick=${() => bytes(`${at}/selection.parquet`).then((blob) => save(blob, `${query.name}.parquet`), (error) => say(error.message))}>Rows (Parquet)</button>`}
    </div>
    <h3>To a labelling tool</h3>
    <div class="tools">
      <label class="choice"><span>Tool</span><select value=${tool} onChange=${(event) => setTool(event.target.value)}>${TOOLS.map((one) => html`<option key=${one} value=${one}>${one}</option>`)}</select></label>
      <code class="command" tabindex="0">${command}</code>
      <${Copy} text=${command} what="The command" />
    </div>`;
}
