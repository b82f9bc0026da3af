// The next query: the one that is shown, with rows that must be in its batch or must not. Kept while the page is open.

import { html, useState } from "./preact.js";
import { Raw, count, idLiteral, json, several, yaml } from "./format.js";
import { Spec, say } from "./parts.js";
import { isServed, post } from "./source.js";

const CLOSED_KEYS = ["cluster", "output"];

export function useNextQuery() {
  const [asked, setAsked] = useState({ must_include: [], exclude: [] });
  const put = (key, ids) => {
    const other = key === "exclude" ? "must_include" : "exclude";
    const taken = new Set(ids);
    setAsked((known) => ({
      [key]: [...new Set([...known[key], ...ids])],
      [other]: known[other].filter((id) => !taken.has(id)),
    }));
    say(`${several(ids.length, "row")} ${key === "exclude" ? "excluded from" : "put into"} the next query.`);
  };
  const clear = () => setAsked({ must_include: [], exclude: [] });
  return { asked, put, clear, total: asked.must_include.length + asked.exclude.length };
}

// The query's file with these rows, and without its name: another query has another.
export function nextSpec(given, asked, kind) {
  const spec = structuredClone(given);
  const store = { ...spec.store };
  delete store.query;
  spec.store = store;
  spec.select = { ...spec.select };
  for (const key of ["must_include", "exclude"]) {
    const before = (spec.select[key] ?? []).map(String);
    const ids = [...new Set([...before, ...asked[key]])];
    if (ids.length) spec.select[key] = ids.map((id) => new Raw(idLiteral(id, kind)));
  }
  if (!Object.keys(spec.store).length) delete spec.store;
  return spec;
}

export function NextQuery({ query, rows, next }) {
  const [sent, setSent] = useState(null);
  if (!next.total) {
    return html`<p class="note">Exclude rows, or say that they must be in it: with the buttons of a row, or with the lasso on the map. The file of the next query then stands here.</p>`;
  }
  const spec = nextSpec(query.asked, next.asked, rows.id_kind);
  const text = yaml(spec);
  async function send() {
    setSent({ state: "sending" });
    const body = copied(spec);
    for (const key of CLOSED_KEYS) delete body[key];
    delete body.store;
    try {
      const answer = await post("v1/queries", json(body), { "Idempotency-Key": crypto.randomUUID?.() ?? `${Date.now()}-${Math.random()}` });
      setSent({ state: "sent", id: answer.id });
    } catch (error) {
      const none = error.status === 404 || error.status === 405;
      setSent({ state: "failed", words: none ? "This server takes no queries; copy the file and run raystream query with it." : error.message });
    }
  }
  return html`<p>${[next.asked.exclude.length && `${several(next.asked.exclude.length, "row")} excluded`, next.asked.must_include.length && `${several(next.asked.must_include.length, "row")} that must be in it`].filter(Boolean).join(", ")}.
      ${query.select.budget < next.asked.must_include.length ? html` <strong>The budget is ${count(query.select.budget)} rows, fewer than must be in it; raise select.budget.</strong>` : ""}</p>
    <div class="actions">
      ${isServed && html`<button type="button" class="primary" disabled=${sent?.state === "sending"} onClick=${send}>Ask the server</button>`}
      <button type="button" onClick=${next.clear}>Start over</button>
    </div>
    ${sent?.state === "sent" && html`<p role="status">Asked: <a href=${`#/query/${encodeURIComponent(sent.id)}`}>${sent.id}</a>; it appears among the <a href="#/queries">queries</a>.</p>`}
    ${sent?.state === "failed" && html`<p role="alert" class="wrong">${sent.words}</p>`}
    <${Spec} text=${text} name="next.yaml" />`;
}

// structuredClone forgets the class of raw text.
function copied(value) {
  if (value instanceof Raw || value === null || typeof value !== "object") return value;
  if (Array.isArray(value)) return value.map(copied);
  return Object.fromEntries(Object.entries(value).map(([key, inner]) => [key, copied(inner)]));
}
