// Where data comes from: the server, or the page itself when it is one file. Every resource is a path below `page/data/`.

import { useEffect, useRef, useState } from "./preact.js";

const TOKEN = "raystream-token";
const inlined = document.getElementById("raystream-data");

export const fixed = inlined === null ? null : JSON.parse(inlined.textContent);
export const isServed = fixed === null;

export class Failure extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

export function signIn(token) {
  sessionStorage.setItem(TOKEN, token);
}

export function signOut() {
  sessionStorage.removeItem(TOKEN);
}

export function isSignedIn() {
  return isServed && sessionStorage.getItem(TOKEN) !== null;
}

function headers() {
  const token = sessionStorage.getItem(TOKEN);
  return token === null ? {} : { Authorization: `Bearer ${token}` };
}

async function answer(path, options) {
  let response;
  try {
    response = await fetch(path, { credentials: "same-origin", ...options, headers: { ...headers(), ...(options?.headers ?? {}) } });
  } catch {
    throw new Failure(0, "The server can't be reached. Is raystream serve still running? The page tries again by itself.");
  }
  if (response.ok) return response;
  const told = await response.json().catch(() => ({}));
  const detail = typeof told.detail === "string" ? told.detail : told.title;
  throw new Failure(response.status, detail || `The server answered ${response.status}.`);
}

// The text of a resource; parsed only where it changed.
async function text(path) {
  return (await answer(`page/data/${path}`)).text();
}

export async function get(path) {
  if (!isServed) {
    if (path in fixed.data) return fixed.data[path];
    throw new Failure(404, "This file holds one query as it was written; open the page of raystream serve for all else.");
  }
  return JSON.parse(await text(path));
}

export async function bytes(path) {
  return (await answer(`page/data/${path}`)).blob();
}

export async function post(path, body, more) {
  const options = { method: "POST", body, headers: { "Content-Type": "application/json", ...more } };
  return (await answer(path, options)).json();
}

// A resource that may change: {data, error, again}. Asked every so many milliseconds while the page can be seen; 0: once; a function of the
// data, null until they are there, says it of what may come to an end.
export function useData(path, every = 0) {
  const [found, setFound] = useState({ path: null, data: null, error: null });
  const [turn, setTurn] = useState(0);
  const last = useRef("");
  useEffect(() => {
    let alive = true;
    let timer = 0;
    let known = null;
    if (path === null) return undefined;
    async function ask() {
      try {
        if (!isServed) {
          const data = await get(path);
          if (alive) setFound({ path, data, error: null });
          return;
        }
        if (!document.hidden || last.current === "") {
          const told = await text(path);
          if (alive && told !== last.current) {
            last.current = told;
            known = JSON.parse(told);
            setFound({ path, data: known, error: null });
          } else if (alive) {
            setFound((before) => (before.error === null ? before : { ...before, error: null }));
          }
        }
      } catch (error) {
        if (alive) setFound((before) => ({ path, data: before.path === path ? before.data : null, error }));
        if (error.status === 401 || error.status === 403) return;
      }
      const wait = typeof every === "function" ? every(known) : every;
      if (alive && wait) timer = setTimeout(ask, wait);
    }
    last.current = "";
    ask();
    return () => {
      alive = false;
      clearTimeout(timer);
    };
  }, [path, every, turn]);
  const current = found.path === path;
  return { data: current ? found.data : null, error: current ? found.error : null, again: () => setTurn((known) => known + 1) };
}
