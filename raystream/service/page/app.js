// The page: its head, and the view that the address names. Addresses are #/queries, #/query/NAME, #/query/NAME/RANK, #/compare/A/B, …

import { html, render, useEffect, useState } from "./preact.js";
import { Loop, Loops, Simulation, Simulations, Stream, Streams } from "./campaigns.js";
import { Compare } from "./compare.js";
import { Said } from "./parts.js";
import { Queries } from "./queries.js";
import { Query } from "./query.js";
import { fixed, isServed, isSignedIn, signIn, signOut, useData } from "./source.js";

const LISTS = { queries: "Queries", loops: "Loops", simulations: "Simulations", streams: "Streams" };
const VIEWS = { queries: Queries, query: Query, compare: Compare, loops: Loops, loop: Loop, simulations: Simulations, simulation: Simulation, streams: Streams, stream: Stream };
const OF = { query: "queries", compare: "queries", loop: "loops", simulation: "simulations", stream: "streams" };

function address() {
  const parts = location.hash.replace(/^#\/?/, "").split("/").filter(Boolean).map(decoded);
  if (parts.length) return parts;
  return isServed ? ["queries"] : fixed.home;
}

function decoded(part) {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}

function App() {
  const [parts, setParts] = useState(address);
  const [token, setToken] = useState(0);
  useEffect(() => {
    const moved = () => setParts(address());
    addEventListener("hashchange", moved);
    return () => removeEventListener("hashchange", moved);
  }, []);
  const [view, ...given] = parts;
  const View = VIEWS[view];
  const list = OF[view] ?? view;
  const what = given[0] ?? LISTS[view] ?? "";
  useEffect(() => {
    document.title = what ? `${what} · raystream` : "raystream";
    scrollTo(0, 0);
  }, [view, given[0]]);
  return html`<a class="skip" href="#main" onClick=${(event) => {
      event.preventDefault();
      document.getElementById("main").focus();
    }}>To the content</a>
    <header class="top">
      <a class="mark" href="#/">raystream</a>
      ${isServed && html`<nav aria-label="Views">
        ${Object.entries(LISTS).map(([key, name]) => html`<a key=${key} href=${`#/${key}`} aria-current=${key === list ? "page" : undefined}>${name}</a>`)}
      </nav>`}
      ${isSignedIn() && html`<button type="button" class="quiet" onClick=${() => {
        signOut();
        setToken(token + 1);
      }}>Sign out</button>`}
    </header>
    <main id="main" tabindex="-1" key=${token}>
      ${isServed ? html`<${Gate} signed=${() => setToken(token + 1)}><${Shown} View=${View} view=${view} given=${given} /><//>` : html`<${Shown} View=${View} view=${view} given=${given} />`}
    </main>
    <${Said} />`;
}

function Shown({ View, view, given }) {
  if (View === undefined) return html`<h1>There is no view “${view}”</h1><p><a href="#/queries">All queries</a></p>`;
  return html`<${View} key=${`${view}/${view === "query" ? given[0] : given.join("/")}`} given=${given} />`;
}

// Asks for a token where the server wants one.
function Gate({ signed, children }) {
  const who = useData("campaigns");
  if (who.error && (who.error.status === 401 || who.error.status === 403)) return html`<${SignIn} error=${who.error} signed=${signed} />`;
  return children;
}

function SignIn({ error, signed }) {
  const [token, setToken] = useState("");
  return html`<form class="sign-in" onSubmit=${(event) => {
    event.preventDefault();
    signIn(token.trim());
    signed();
  }}>
    <h1>Sign in</h1>
    <p>${error.status === 403 ? `The server says: ${error.message}.` : isSignedIn() ? "The server doesn't know this token, or it has expired." : "This server asks for a token."}
      ${" "}The page shows all of a store; whoever runs the server makes a token for it by <code>raystream token</code>.</p>
    <label for="token">Token</label>
    <input id="token" type="password" autocomplete="off" required value=${token} onInput=${(event) => setToken(event.target.value)} />
    <button type="submit" class="primary">Sign in</button>
    <p class="note">It is kept in this tab alone, until it is closed.</p>
  </form>`;
}

const root = document.getElementById("app");
root.textContent = "";
render(html`<${App} />`, root);
