// What all views share: states of loading and failure, copying, downloads, facts.

import { html, useState } from "./preact.js";
import { isServed } from "./source.js";

let said = null;

// Words for a screen reader, and for a moment on the page.
export function say(words) {
  said?.(words);
}

export function Said() {
  const [words, setWords] = useState("");
  said = (told) => {
    setWords(told);
    clearTimeout(said.timer);
    said.timer = setTimeout(() => setWords(""), 4000);
  };
  return html`<div class="said" role="status" aria-live="polite">${words}</div>`;
}

export function Waiting({ what }) {
  return html`<p class="waiting" role="status">Loading ${what} …</p>`;
}

export function Failed({ error, again, what }) {
  const signed = error.status === 401 || error.status === 403;
  return html`<div class="wrong" role="alert">
    <p><strong>${what ?? "This"} can't be shown.</strong> ${error.message}</p>
    ${again && !signed && html`<button type="button" onClick=${again}>Try again</button>`}
  </div>`;
}

// Children once the data is there; what it waits for, or why it isn't, until then.
export function Loaded({ of, what, children }) {
  if (of.data === null) return of.error ? html`<${Failed} error=${of.error} again=${of.again} what=${what} />` : html`<${Waiting} what=${what} />`;
  return html`${of.error && html`<p class="stale" role="status">${of.error.message}</p>`}${children(of.data)}`;
}

export function Empty({ children }) {
  return html`<div class="empty">${children}</div>`;
}

export async function copy(text, what) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = document.createElement("textarea");
    area.value = text;
    area.className = "aside";
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  say(`${what} copied.`);
}

export function Copy({ text, what, children, disabled }) {
  return html`<button type="button" disabled=${disabled} onClick=${() => copy(typeof text === "function" ? text() : text, what)}>
    ${children ?? "Copy"}
  </button>`;
}

export function save(content, name, type = "text/plain") {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(content instanceof Blob ? content : new Blob([content], { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

export function Facts({ facts }) {
  return html`<dl class="facts">
    ${facts.map(
      (fact) => html`<div key=${fact.name}>
        <dt>${fact.name}</dt>
        <dd class=${String(fact.value).length > 14 ? "value long" : "value"}>${fact.value}</dd>
        <dd class="meaning">${fact.meaning}</dd>
      </div>`,
    )}
  </dl>`;
}

export function Warnings({ warnings }) {
  if (!warnings?.length) return null;
  return html`<section class="warnings" role="note" aria-label="Warnings">
    <strong>${warnings.length === 1 ? "Warning" : "Warnings"}</strong>
    <ul>
      ${warnings.map((warning) => html`<li>${warning}</li>`)}
    </ul>
  </section>`;
}

export function Spec({ text, name }) {
  return html`<div class="spec">
    <div class="actions">
      <${Copy} text=${text} what="The file">Copy the file<//>
      <button type="button" onClick=${() => save(text, name)}>Download ${name}</button>
    </div>
    <pre tabindex="0" aria-label=${name}>${text}</pre>
  </div>`;
}

export function State({ state }) {
  return html`<span class=${`state ${state.replaceAll(" ", "-")}`}>${state}</span>`;
}

export function Crumb({ href, children }) {
  return isServed ? html`<p class="crumb"><a href=${href}>← ${children}</a></p>` : null;
}
