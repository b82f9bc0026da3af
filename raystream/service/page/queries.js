// All queries of the store as a table that follows the store: filter, sort, choose some to compare.

import { html, useEffect, useMemo, useRef, useState } from "./preact.js";
import { count, duration, number, percent, several, when } from "./format.js";
import { Empty, Loaded, State } from "./parts.js";
import { useData } from "./source.js";

const LIST_EVERY = 2000;
const SHOWN = 100;
const MOST = 8;
const COLUMNS = [
  ["name", "query"],
  ["state", "state"],
  ["when", "when"],
  ["who", "who"],
  ["strategy", "strategy"],
  ["chosen", "rows", true],
  ["rows", "pool", true],
  ["labelled", "labelled", true],
  ["radius", "radius", true],
  ["seconds", "time", true],
];
const ORDER = { running: 0, queued: 1, failed: 2, damaged: 3, stopped: 4, scored: 5, committed: 6 };

export function Queries() {
  const found = useData("queries", LIST_EVERY);
  return html`<${Loaded} of=${found} what="The list of queries">${(data) => html`<${Table} data=${data} />`}<//>`;
}

function Table({ data }) {
  const [filter, setFilter] = useState("");
  const [state, setState] = useState("");
  const [sort, setSort] = useState(["when", -1]);
  const [ticked, setTicked] = useState([]);
  const [shown, setShown] = useState(SHOWN);
  const input = useRef(null);
  useEffect(() => {
    const pressed = (event) => {
      if (event.key !== "/" || /^(INPUT|TEXTAREA|SELECT)$/.test(event.target.tagName)) return;
      event.preventDefault();
      input.current?.focus();
    };
    addEventListener("keydown", pressed);
    return () => removeEventListener("keydown", pressed);
  }, []);
  const states = useMemo(() => [...new Set(data.queries.map((line) => line.state))].sort((a, b) => (ORDER[a] ?? 9) - (ORDER[b] ?? 9)), [data]);
  const lines = useMemo(() => {
    const words = filter.toLowerCase().split(/\s+/).filter(Boolean);
    const fits = (line) => words.every((word) => [line.name, line.state, line.strategy, line.score, line.pool, line.model, line.who, when(line.when)].join(" ").toLowerCase().includes(word));
    const [key, way] = sort;
    const value = (line) => (key === "state" ? ORDER[line.state] : line[key]);
    return data.queries
      .filter((line) => (!state || line.state === state) && fits(line))
      .sort((a, b) => {
        const [x, y] = [value(a), value(b)];
        if (x === y) return 0;
        if (x === null || x === undefined) return 1;
        if (y === null || y === undefined) return -1;
        return (x < y ? -1 : 1) * way;
      });
  }, [data, filter, state, sort]);
  const flip = (key) => setSort(([known, way]) => (known === key ? [key, -way] : [key, key === "when" || COLUMNS.find(([name]) => name === key)[2] ? -1 : 1]));
  const tick = (name, on) => setTicked((known) => (on ? [...known, name].slice(-MOST) : known.filter((one) => one !== name)));

  const comparison = `#/compare/${ticked.map(encodeURIComponent).join("/")}`;
  const compare = () => {
    if (ticked.length > 1) location.hash = comparison;
  };

  if (!data.queries.length) {
    return html`<h1>Queries</h1><${Empty}>
      <p>This store holds no query yet.</p>
      <p>Run <code>raystream query query.yaml --store ${data.store}</code>; it appears here as soon as it starts. <code>raystream init</code> writes a file to begin with.</p>
    <//>`;
  }
  return html`<div class="head"><h1>Queries</h1><p class="store">${data.store}</p></div>
    <div class="tools">
      <label class="search"><span>Filter</span>
        <input ref=${input} type="search" placeholder="name, strategy, pool, who, yesterday …" value=${filter} onInput=${(event) => setFilter(event.target.value)} />
      </label>
      <label class="choice"><span>State</span>
        <select value=${state} onChange=${(event) => setState(event.target.value)}>
          <option value="">all</option>
          ${states.map((name) => html`<option key=${name} value=${name}>${name} (${data.queries.filter((line) => line.state === name).length})</option>`)}
        </select>
      </label>
      <p class="sum" role="status">${lines.length === data.total ? `${count(data.total)} ${data.total === 1 ? "query" : "queries"}` : `${count(lines.length)} of ${count(data.total)}`}</p>
    </div>
    ${lines.length === 0
      ? html`<${Empty}><p>No query fits. <button type="button" onClick=${() => { setFilter(""); setState(""); }}>Show all</button></p><//>`
      : html`<div class="scroll wide" tabindex="0" role="group" aria-label="The list of queries"><table class="list" aria-label="Queries">
          <thead><tr>
            <th scope="col"><span class="unseen">compare</span></th>
            ${COLUMNS.map(([key, name, right]) => html`<th key=${key} scope="col" class=${right ? "n" : ""} aria-sort=${sort[0] === key ? (sort[1] > 0 ? "ascending" : "descending") : undefined}>
              <button type="button" onClick=${() => flip(key)}>${name}<span aria-hidden="true">${sort[0] === key ? (sort[1] > 0 ? " ↑" : " ↓") : ""}</span></button>
            </th>`)}
          </tr></thead>
          <tbody>${lines.slice(0, shown).map((line) => html`<${Line} key=${line.name} line=${line} ticked=${ticked.includes(line.name)} tick=${tick} compare=${compare} />`)}</tbody>
        </table></div>`}
    ${lines.length > shown && html`<p class="more"><button type="button" onClick=${() => setShown(shown + 500)}>Show more</button> ${count(shown)} of ${count(lines.length)} are shown.</p>`}
    ${ticked.length > 0 && html`<div class="basket" role="region" aria-label="Queries to compare">
      <span>${ticked.length === 1 ? html`<b>${ticked[0]}</b>: tick another one to compare` : `${ticked.length} queries; Enter on a ticked one compares them`}</span>
      ${ticked.length > 1 && html`<a class="button primary" href=${comparison}>Compare</a>`}
      <button type="button" onClick=${() => setTicked([])}>Clear</button>
    </div>`}`;
}

function Line({ line, ticked, tick, compare }) {
  const committed = line.state === "committed";
  const [pool] = (line.pool || "").split(", ");
  return html`<tr class=${ticked ? "ticked" : ""}>
    <td class="tick">${committed && html`<input type="checkbox" aria-label=${`Compare ${line.name}`} checked=${ticked} onChange=${(event) => tick(line.name, event.target.checked)} onKeyDown=${(event) => event.key === "Enter" && ticked && compare()} />`}</td>
    <th scope="row" data-name="query"><a href=${`#/query/${encodeURIComponent(line.name)}`}>${line.name}</a></th>
    <td data-name="state"><${Progress} line=${line} /></td>
    <td data-name="when" class="nowrap">${when(line.when)}</td>
    <td data-name="who">${line.who}</td>
    <td data-name="strategy">${line.strategy}${line.score && html` <span class="by">${line.score}</span>`}</td>
    <td data-name="rows" class="n">${line.chosen !== null ? count(line.chosen) : line.budget !== null && html`<span class="by">of ${count(line.budget)}</span>`}</td>
    <td data-name="pool" class="n" title=${line.pool}>${count(line.rows)} <span class="by path">${tail(pool)}</span></td>
    <td data-name="labelled" class="n">${line.labelled ? count(line.labelled) : ""}</td>
    <td data-name="radius" class="n">${number(line.radius)}</td>
    <td data-name="time" class="n">${committed ? duration(line.seconds) : ""}</td>
  </tr>`;
}

export function Progress({ line }) {
  const share = line.rows ? line.done / line.rows : null;
  if (line.state === "running" && share !== null) {
    return html`<span class="going"><${State} state=${line.state} /> ${percent(share, 0)}
      <progress max="1" value=${share} aria-label=${`${line.name}: scored`}></progress>
      <span class="by">${[line.rate ? `${count(line.rate)} rows/s` : "", line.seconds_left !== null ? `${duration(line.seconds_left)} left` : ""].filter(Boolean).join(", ")}</span></span>`;
  }
  return html`<${State} state=${line.state} />${line.error && html`<span class="why" title=${line.error}>${line.error}</span>`}${line.warnings > 0 && html` <span class="by">${several(line.warnings, "warning")}</span>`}`;
}

function tail(uri) {
  const parts = (uri || "").split("/").filter(Boolean);
  return parts.length ? parts[parts.length - 1] : "";
}
