// The batch as cards or as a table, and one row large with the reason why it was chosen.

import { html, useEffect, useLayoutEffect, useRef, useState } from "./preact.js";
import { below } from "./charts.js";
import { count, number, percent, several } from "./format.js";
import { get, isServed, useData } from "./source.js";
import { Copy, Waiting } from "./parts.js";

const CHUNK = 50;
const SENTINEL = 25;
const STEP = 1000;

// What is shown of the rows, chunk by chunk, as they come near: {kind, items by rank, note}; an item is null where there is none to show.
// `ready` is called with the kind once the first are there.
function useInputs(at, total, ready) {
  const [found, setFound] = useState({ kind: null, items: {}, note: "" });
  const asked = useRef(new Set());
  const want = (chunk) => {
    if (asked.current.has(chunk) || chunk * CHUNK >= total) return;
    asked.current.add(chunk);
    get(`${at}/inputs/${chunk}`).then(
      (data) => setFound((known) => ({ kind: known.kind ?? data.kind, items: Object.assign({}, known.items, Object.fromEntries(Array.from({ length: Math.min(CHUNK, total - chunk * CHUNK) }, (_, place) => [chunk * CHUNK + place, null])), data.items), note: known.note || data.note })),
      (error) => setFound((known) => ({ ...known, kind: known.kind ?? "table", note: known.note || error.message })),
    );
  };
  useEffect(() => (total ? want(0) : ready("table")), [at]);
  useEffect(() => {
    if (found.kind !== null) ready(found.kind);
  }, [found.kind]);
  return [found, want];
}

export function Gallery({ at, data, go, asTable, ready }) {
  const [inputs, want] = useInputs(at, data.ids.length, ready);
  const [shown, setShown] = useState(STEP);
  const [current, setCurrent] = useState(0);
  const list = useRef(null);
  useEffect(() => {
    if (!list.current || asTable) return undefined;
    const observer = new IntersectionObserver((entries) => entries.forEach((entry) => entry.isIntersecting && want(Math.floor(Number(entry.target.dataset.rank) / CHUNK))), { rootMargin: "1500px 0px" });
    for (const card of list.current.querySelectorAll("[data-near]")) observer.observe(card);
    return () => observer.disconnect();
  }, [inputs.kind, shown, asTable, data]);
  if (!data.ids.length) return html`<p class="note">The batch has no row.</p>`;
  if (inputs.kind === null) return html`<${Waiting} what="the rows" />`;
  const ranks = Array.from({ length: Math.min(shown, data.ids.length) }, (_, rank) => rank);
  const rest = data.ids.length > shown && html`<p class="more"><button type="button" onClick=${() => setShown(shown + STEP)}>Show more</button> ${count(shown)} of ${count(data.ids.length)} are shown.</p>`;
  if (asTable || inputs.kind === "table") return html`${inputs.note && html`<p class="note">${inputs.note}</p>`}<${RowTable} data=${data} ranks=${ranks} go=${go} />${rest}`;
  // Arrow keys move among the cards, of which one alone is in the order of the Tab key.
  const move = (event) => {
    const cards = [...list.current.children];
    const across = Math.max(1, cards.filter((card) => card.offsetTop === cards[0].offsetTop).length);
    const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: across, ArrowUp: -across, Home: -Infinity, End: Infinity }[event.key];
    if (step === undefined) return;
    event.preventDefault();
    const to = Math.min(ranks.length - 1, Math.max(0, current + step));
    setCurrent(to);
    cards[to].firstElementChild.focus();
  };
  return html`${inputs.note && html`<p class="note">${inputs.note}</p>`}
    <ol class=${`cards gallery ${inputs.kind}`} ref=${list} onKeyDown=${move}>
      ${ranks.map((rank) => html`<${Card} key=${rank} rank=${rank} data=${data} item=${inputs.items[rank]} kind=${inputs.kind} focusable=${rank === current} go=${go} focused=${setCurrent} />`)}
    </ol>${rest}`;
}

function same(before, after) {
  return before.item === after.item && before.focusable === after.focusable && before.data === after.data && before.kind === after.kind;
}

function Card(props) {
  const drawn = useRef(null);
  const before = useRef(null);
  if (before.current === null || !same(before.current, props)) {
    before.current = props;
    drawn.current = card(props);
  }
  return drawn.current;
}

function card({ rank, data, item, kind, focusable, go, focused }) {
  const { columns } = data;
  const prediction = predicted(data, rank);
  return html`<li data-rank=${rank} data-near=${rank % SENTINEL === 0 ? "" : undefined}>
    <button type="button" class="card" tabindex=${focusable ? 0 : -1} onFocus=${() => focused(rank)} onClick=${() => go(rank)}>
      ${kind === "pictures" && html`<span class="frame">${item ? html`<img class=${item.small ? "small" : ""} src=${item.uri} alt="" decoding="async" />` : item === null ? "no picture" : ""}</span>`}
      <span class="about">
        ${kind === "texts" && textOf(item)}
        <span class="line"><span class="rank">${rank}</span><span class="score">${typeof columns.score?.[rank] === "number" ? columns.score[rank].toPrecision(3) : ""}</span></span>
        ${prediction !== "" && html`<span class="prediction">${prediction}</span>`}
        <span class="id">${data.ids[rank]}</span>
        ${columns.why?.[rank] && html`<span class="why">${columns.why[rank]}</span>`}
      </span>
    </button>
  </li>`;
}

function textOf(item) {
  const words = item === null ? "no text" : item?.trim() === "" ? "a blank text" : null;
  return words === null ? html`<span class="text">${item ?? ""}</span>` : html`<span class="rank">${words}</span>`;
}

export function predicted(data, rank) {
  const value = (data.columns.prediction_name ?? data.columns.prediction)?.[rank];
  return value === null || value === undefined ? "" : String(value);
}

const HIDDEN = new Set(["rank", "prediction"]);

function RowTable({ data, ranks, go }) {
  const names = Object.keys(data.columns).filter((name) => !(HIDDEN.has(name) && (name === "rank" || data.columns.prediction_name)) && data.columns[name].some((value) => value !== null && value !== ""));
  const numeric = new Set(names.filter((name) => data.columns[name].every((value) => value === null || typeof value === "number")));
  return html`<div class="scroll wide" tabindex="0" role="group" aria-label="The chosen rows"><table class="rows list">
    <thead><tr><th scope="col" class="n">rank</th><th scope="col">${data.id}</th>${names.map((name) => html`<th scope="col" class=${numeric.has(name) ? "n" : ""}>${name.replaceAll("_", " ")}</th>`)}</tr></thead>
    <tbody>${ranks.map((rank) => html`<tr key=${rank}><td class="n" data-name="rank">${rank}</td>
      <td data-name=${data.id}><button type="button" class="link" onClick=${() => go(rank)}>${data.ids[rank]}</button></td>
      ${names.map((name) => html`<td data-name=${name} class=${numeric.has(name) ? "n" : ""}>${clamped(cell(data.columns[name][rank]))}</td>`)}</tr>`)}</tbody>
  </table></div>`;
}

// A long value takes three lines of a table; the row, opened, shows more of it.
function clamped(text) {
  return text.length > 80 ? html`<span class="clamp">${text}</span>` : text;
}

function cell(value) {
  if (value === null || value === undefined) return "";
  return typeof value === "object" ? JSON.stringify(value) : typeof value === "number" ? number(value) : String(value);
}

// Why this row, in a sentence, out of what the selection says of it.
export function reason(query, data, rank, histogram) {
  const { columns } = data;
  const of = (name) => columns[name]?.[rank] ?? null;
  const parts = [`Taken as number ${count(rank + 1)} of ${count(data.total)} by ${query.strategy}.`];
  if (of("why")) parts.push(`Bound by: ${of("why")}.`);
  const share = below(histogram, of("score"));
  if (of("score") !== null) parts.push(`Its ${query.score ?? "score"} is ${number(of("score"))}${share === null ? "" : `, higher than that of ${percent(share, share > 0.99 ? 2 : 0)} of the pool`}.`);
  if (of("represents") !== null) parts.push(`It stands for ${several(of("represents"), "candidate")} that ${of("represents") === 1 ? "is" : "are"} nearest to it.`);
  if (of("distance") !== null) parts.push(`When it was taken, the nearest chosen or labelled row was ${number(of("distance"))} away.`);
  return parts.join(" ");
}

export function RowDialog({ at, rank, query, data, histogram, go, next, near, setNear }) {
  const dialog = useRef(null);
  const there = rank >= 0 && rank < data.ids.length;
  useLayoutEffect(() => {
    dialog.current.showModal();
    return () => dialog.current?.close();
  }, []);
  const [detail, setDetail] = useState(null);
  useEffect(() => {
    let alive = true;
    if (!there) return undefined;
    const chunk = Math.floor(rank / CHUNK);
    const fallback = () => get(`${at}/inputs/${chunk}`).then((inputs) => (inputs.kind === "pictures" ? { picture: inputs.items[rank] } : { text: inputs.items[rank] }));
    (isServed ? get(`${at}/row/${rank}`) : fallback()).then((data) => alive && setDetail(data), (error) => alive && setDetail({ note: error.message }));
    return () => {
      alive = false;
    };
  }, [rank]);
  const close = () => go(null);
  const step = (by) => {
    const to = rank + by;
    if (to >= 0 && to < data.ids.length) go(to);
  };
  const keys = (event) => {
    if (event.target.closest("input, textarea, select")) return;
    if (event.key === "ArrowRight") step(1);
    else if (event.key === "ArrowLeft") step(-1);
    else return;
    event.preventDefault();
  };
  if (!there) return html`<dialog ref=${dialog} class="row" aria-label="No such row" onCancel=${close}><p>No row has rank ${String(rank)}.</p><button type="button" onClick=${close}>Close</button></dialog>`;
  const id = data.ids[rank];
  const represents = data.columns.represents?.[rank];
  const figures = [["score", "score"], ["confidence", "confidence"], ["gain", "gain"], ["distance", "distance"], ["represents", "represents"]].filter(([name]) => data.columns[name]?.[rank] !== null && data.columns[name]?.[rank] !== undefined);
  const picture = detail?.picture;
  return html`<dialog ref=${dialog} class="row" aria-labelledby="row-id" onKeyDown=${keys} onCancel=${(event) => { event.preventDefault(); close(); }}
      onClick=${(event) => event.target === dialog.current && close()}>
    <div class="inner">
      <div class="bar">
        <button type="button" onClick=${() => step(-1)} disabled=${rank === 0} aria-label="The row before">←</button>
        <span>${count(rank + 1)} of ${count(data.ids.length)}</span>
        <button type="button" onClick=${() => step(1)} disabled=${rank === data.ids.length - 1} aria-label="The next row">→</button>
        <span class="spacer"></span>
        <button type="button" onClick=${close} autofocus>Close</button>
      </div>
      <div class="two">
        <div class="large">
          ${detail === null ? html`<${Waiting} what="the row" />` : picture ? html`<${Zoom} picture=${picture} id=${id} />` : detail.text?.trim() ? html`<p class="whole" tabindex="0">${detail.text}</p>` : html`<p class="note">${detail.note || "What the model saw of it can't be shown as a picture or a text."}</p>`}
        </div>
        <div>
          <h2 id="row-id">${id}</h2>
          ${predicted(data, rank) !== "" && html`<p class="taken">The model takes it for <b>${predicted(data, rank)}</b>${data.columns.confidence?.[rank] != null ? `, with confidence ${percent(data.columns.confidence[rank])}` : ""}.</p>`}
          <p>${reason(query, data, rank, histogram)}</p>
          <dl class="provenance">
            ${figures.map(([name, key]) => html`<dt>${name}</dt><dd>${number(data.columns[key][rank], 6)}</dd>`)}
            ${data.kept.map((name) => html`<dt>${name}</dt><dd>${cell(data.columns[name]?.[rank])}</dd>`)}
            ${detail?.path && html`<dt>where</dt><dd>${detail.path}, row ${count(detail.row)}</dd>`}
          </dl>
          <div class="actions">
            <${Copy} text=${id} what="The id">Copy the id<//>
            <button type="button" onClick=${() => next.put("exclude", [id])} disabled=${next.asked.exclude.includes(id)}>Exclude from the next query</button>
            <button type="button" onClick=${() => next.put("must_include", [id])} disabled=${next.asked.must_include.includes(id)}>Must be in the next one</button>
          </div>
        </div>
      </div>
      ${isServed && represents !== null && represents !== undefined && html`<${Near} key=${rank} at=${at} rank=${rank} represents=${represents} open=${near === true} setOpen=${setNear} next=${next} />`}
    </div>
  </dialog>`;
}

function Zoom({ picture, id }) {
  const [zoomed, setZoomed] = useState(false);
  return html`<button type="button" class=${zoomed ? "zoom zoomed" : "zoom"} aria-pressed=${zoomed} aria-label=${zoomed ? "Whole picture" : "Zoom"} onClick=${() => setZoomed(!zoomed)}>
    <img class=${picture.small ? "small" : ""} src=${picture.uri} alt=${id} />
  </button>`;
}

// The rows that a chosen one stands for.
function Near({ at, rank, represents, open, setOpen, next }) {
  const found = useData(open ? `${at}/near/${rank}` : null);
  return html`<section class="near" aria-label="Rows that it stands for">
    <button type="button" aria-expanded=${open} onClick=${() => setOpen(!open)}>${open ? "Hide" : "Show"} the rows that it stands for (${count(represents)})</button>
    ${open && (found.data === null ? (found.error ? html`<p class="wrong" role="alert">${found.error.message}</p>` : html`<${Waiting} what="the rows" />`) : html`<${NearRows} data=${found.data} next=${next} />`)}
  </section>`;
}

function NearRows({ data, next }) {
  if (data.missing) return html`<p class="note">${data.missing}</p>`;
  if (!data.ids.length) return html`<p class="note">None of the rows that are looked at is nearest to it.</p>`;
  return html`<p class="note">${data.ids.length < data.total ? `The nearest ${count(data.ids.length)} of ${several(data.total, "row")}` : several(data.total, "row")}${data.whole ? "" : " of a sample of the pool"}, by distance.
      <button type="button" class="link" onClick=${() => next.put("exclude", data.ids)}>Exclude them from the next query</button></p>
    ${data.note && html`<p class="note">${data.note}</p>`}
    <ol class=${`cards ${data.kind}`}>
      ${data.ids.map((id, place) => html`<li key=${id}>
        ${data.kind === "pictures" && html`<span class="frame">${data.items[place] ? html`<img class=${data.items[place].small ? "small" : ""} src=${data.items[place].uri} alt=${id} />` : "no picture"}</span>`}
        <span class="about">
          ${data.kind === "texts" && textOf(data.items[place] ?? null)}
          <span class="line"><span class="rank">${number(data.distances[place], 3)} away</span><span class="score">${number(data.scores[place], 3)}</span></span>
          <span class="id">${id}</span>
        </span>
      </li>`)}
    </ol>`;
}
