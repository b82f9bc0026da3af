// The pool's map: up to 200,000 points drawn into the pixels of a canvas, which takes some milliseconds on any machine and needs no WebGL.
// Where many points lie on one pixel its grey is stronger. A lasso selects; what isn't selected is greyed, not gone.

import { html, useEffect, useMemo, useRef, useState } from "./preact.js";
import { useWidth } from "./charts.js";
import { count, percent, several } from "./format.js";
import { get } from "./source.js";
import { Copy, say } from "./parts.js";

const LABELLED = 1;
const CHOSEN = 2;
const SIDE = 65535;
const NEAR = 12;
const PREDICTIONS = 10;

function array(Kind, text) {
  const binary = atob(text);
  const bytes = new Uint8Array(binary.length);
  for (let at = 0; at < binary.length; at += 1) bytes[at] = binary.charCodeAt(at);
  return new Kind(bytes.buffer);
}

// A colour of the stylesheet as [red, green, blue].
function colour(element, name) {
  const probe = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  probe.fillStyle = getComputedStyle(element).getPropertyValue(name).trim() || "#888";
  probe.fillRect(0, 0, 1, 1);
  return probe.getImageData(0, 0, 1, 1).data.slice(0, 3);
}

// Where points lie on the canvas: from the grid to pixels, zoomed by `scale` around (x, y) in units of the grid.
function placing(view, width, height) {
  const size = Math.min(width, height) * view.scale;
  return { size, left: width / 2 - (view.x / SIDE) * size, top: height / 2 - (1 - view.y / SIDE) * size };
}

// Draw all points; the count on each pixel decides how strong its grey is.
export function draw(canvas, points, view, selected, palette) {
  const { width, height } = canvas;
  const context = canvas.getContext("2d");
  const { size, left, top } = placing(view, width, height);
  const counts = new Uint16Array(width * height);
  const ratio = width / (canvas.clientWidth || width);
  const least = points.pool < 5000 ? 2.6 : points.pool < 50000 ? 1.6 : 1; // few points are seen by their size, many by their density
  const wide = Math.max(1, Math.round(ratio * least * Math.min(2.5, Math.max(1, Math.sqrt(view.scale / 2)))));
  const lit = selected === null ? null : new Uint8Array(width * height);
  const factor = size / SIDE;
  let most = 1;
  for (let at = 0; at < points.pool; at += 1) {
    const across = (left + points.x[at] * factor) | 0;
    const down = (top + (SIDE - points.y[at]) * factor) | 0;
    if (across < 0 || down < 0 || across + wide > width || down + wide > height) continue;
    for (let row = 0; row < wide; row += 1) {
      for (let column = 0; column < wide; column += 1) {
        const place = (down + row) * width + across + column;
        const now = (counts[place] += 1);
        if (now > most) most = now;
        if (lit !== null && selected[at]) lit[place] = 1;
      }
    }
  }
  const image = context.createImageData(width, height);
  const pixels = new Uint32Array(image.data.buffer);
  const shades = new Uint32Array(most + 1);
  const chosen = new Uint32Array(most + 1);
  for (let value = 1; value <= most; value += 1) {
    const strength = 0.42 + 0.58 * (Math.log(value) / Math.log(most + 1));
    shades[value] = mixed(palette.paper, palette.pool, selected === null ? strength : strength * 0.45);
    chosen[value] = mixed(palette.paper, palette.accent, 0.45 + 0.55 * strength);
  }
  const ground = mixed(palette.paper, palette.paper, 1);
  for (let place = 0; place < pixels.length; place += 1) {
    const value = counts[place];
    pixels[place] = value === 0 ? ground : lit !== null && lit[place] ? chosen[value] : shades[value];
  }
  context.putImageData(image, 0, 0);
  for (const at of points.marked) {
    const across = left + points.x[at] * factor;
    const down = top + (SIDE - points.y[at]) * factor;
    if (across < -9 || down < -9 || across > width + 9 || down > height + 9) continue;
    context.globalAlpha = selected === null || selected[at] ? 1 : 0.28;
    if (points.kind[at] === LABELLED) diamond(context, across, down, 4 * ratio, palette.labelled, ratio);
    else dot(context, across, down, (points.chosen > 300 ? 3 : 4.5) * ratio, palette.of(at), palette.paper, ratio);
  }
  context.globalAlpha = 1;
}

function mixed(from, to, share) {
  const [red, green, blue] = [0, 1, 2].map((at) => Math.round(from[at] + (to[at] - from[at]) * share));
  return (255 << 24) | (blue << 16) | (green << 8) | red;
}

function diamond(context, x, y, radius, [red, green, blue], ratio) {
  context.beginPath();
  context.moveTo(x, y - radius);
  context.lineTo(x + radius, y);
  context.lineTo(x, y + radius);
  context.lineTo(x - radius, y);
  context.closePath();
  context.strokeStyle = `rgb(${red} ${green} ${blue})`;
  context.lineWidth = 1.4 * ratio;
  context.stroke();
}

function dot(context, x, y, radius, [red, green, blue], paper, ratio) {
  context.beginPath();
  context.arc(x, y, radius, 0, 2 * Math.PI);
  context.fillStyle = `rgb(${red} ${green} ${blue})`;
  context.fill();
  context.strokeStyle = `rgb(${paper[0]} ${paper[1]} ${paper[2]})`;
  context.lineWidth = ratio;
  context.stroke();
}

// Which points lie within a polygon, both in units of the grid.
export function inside(points, polygon) {
  const found = new Uint8Array(points.x.length);
  const [xs, ys] = [polygon.map(([x]) => x), polygon.map(([, y]) => y)];
  const [left, right, low, high] = [Math.min(...xs), Math.max(...xs), Math.min(...ys), Math.max(...ys)];
  for (let at = 0; at < found.length; at += 1) {
    const [x, y] = [points.x[at], points.y[at]];
    if (x < left || x > right || y < low || y > high) continue;
    let within = false;
    for (let i = 0, j = xs.length - 1; i < xs.length; j = i, i += 1) {
      if (ys[i] > y !== ys[j] > y && x < ((xs[j] - xs[i]) * (y - ys[i])) / (ys[j] - ys[i]) + xs[i]) within = !within;
    }
    if (within) found[at] = 1;
  }
  return found;
}

function pointsOf(data) {
  const kind = array(Uint8Array, data.kind);
  const marked = [];
  kind.forEach((value, at) => value && marked.push(at));
  return { x: array(Uint16Array, data.x), y: array(Uint16Array, data.y), kind, marked, pool: kind.length - data.ranks.length, chosen: data.ranks.length };
}

const WHOLE = { x: SIDE / 2, y: SIDE / 2, scale: 1 };

export function PoolMap({ at, data, rows, next, go }) {
  const points = useMemo(() => pointsOf(data), [data]);
  const [frame, width] = useWidth();
  const canvas = useRef(null);
  const [view, setView] = useState(WHOLE);
  const [tool, setTool] = useState("move");
  const [path, setPath] = useState([]);
  const [selected, setSelected] = useState(null);
  const [reading, setReading] = useState("");
  const [scheme, setScheme] = useState(0);
  const drag = useRef(null);
  const height = Math.round(width * (width > 560 ? 0.62 : 1));
  const ratio = Math.min(2, globalThis.devicePixelRatio || 1);
  const coloured = data.classes !== undefined && data.classes.length <= PREDICTIONS;

  useEffect(() => {
    const dark = matchMedia("(prefers-color-scheme: dark)");
    const changed = () => setScheme((known) => known + 1);
    dark.addEventListener("change", changed);
    return () => dark.removeEventListener("change", changed);
  }, []);
  const palette = useMemo(() => {
    const of = (name) => [...colour(document.body, name)];
    const classes = (data.classes ?? []).map((_, number) => of(`--class-${number}`));
    const accent = of("--chosen");
    return {
      paper: of("--paper"), pool: of("--pool-line"), labelled: of("--labelled"), accent,
      of: (place) => (coloured ? classes[data.predicted[place - points.pool]] ?? accent : accent),
    };
  }, [data, scheme]);
  useEffect(() => {
    if (!width) return undefined;
    const asked = requestAnimationFrame(() => {
      draw(canvas.current, points, view, selected, palette);
      canvas.current.dataset.drawn = String(points.x.length);
    });
    return () => cancelAnimationFrame(asked);
  }, [points, view, selected, palette, width, height]);

  // From a pointer to units of the grid.
  const onGrid = (event) => {
    const box = canvas.current.getBoundingClientRect();
    const { size, left, top } = placing(view, width, height);
    return [((event.clientX - box.left - left) / size) * SIDE, SIDE - ((event.clientY - box.top - top) / size) * SIDE];
  };
  const zoom = (by, around = [view.x, view.y]) => setView((known) => {
    const scale = Math.min(200, Math.max(0.5, known.scale * by));
    const kept = known.scale / scale;
    return { scale, x: around[0] + (known.x - around[0]) * kept, y: around[1] + (known.y - around[1]) * kept };
  });
  const shift = (across, up) => setView((known) => ({ ...known, x: known.x + (across * SIDE) / known.scale, y: known.y + (up * SIDE) / known.scale }));
  const select = (found) => {
    const any = found !== null && found.some((one) => one);
    setSelected(any ? found : null);
    say(any ? `${several(found.reduce((sum, one) => sum + one, 0), "row")} selected.` : "No row is selected.");
  };
  const seen = () => {
    const half = [(width / 2 / (Math.min(width, height) * view.scale)) * SIDE, (height / 2 / (Math.min(width, height) * view.scale)) * SIDE];
    select(inside(points, [[view.x - half[0], view.y - half[1]], [view.x + half[0], view.y - half[1]], [view.x + half[0], view.y + half[1]], [view.x - half[0], view.y + half[1]]]));
  };
  // The chosen or labelled point under the pointer.
  const under = (event) => {
    const [x, y] = onGrid(event);
    const reach = (NEAR / (Math.min(width, height) * view.scale)) * SIDE;
    let [best, least] = [-1, reach];
    for (const place of points.marked) {
      const distance = Math.hypot(points.x[place] - x, points.y[place] - y);
      if (distance < least) [best, least] = [place, distance];
    }
    return best;
  };
  const rankOf = (place) => (place >= points.pool ? data.ranks[place - points.pool] : null);

  const down = (event) => {
    if (event.button) return;
    canvas.current.setPointerCapture(event.pointerId);
    drag.current = { x: event.clientX, y: event.clientY, view, moved: false };
    if (tool === "lasso") setPath([onGrid(event)]);
  };
  const moved = (event) => {
    if (drag.current === null) {
      const place = under(event);
      const rank = place < 0 ? null : rankOf(place);
      setReading(place < 0 ? "" : rank === null ? "a labelled row" : `rank ${rank}: ${rows.ids[rank] ?? ""}${coloured ? `, ${data.classes[data.predicted[place - points.pool]] ?? ""}` : ""}`);
      return;
    }
    if (Math.hypot(event.clientX - drag.current.x, event.clientY - drag.current.y) > 3) drag.current.moved = true;
    if (tool === "lasso") {
      const to = onGrid(event);
      setPath((known) => [...known, to]);
      return;
    }
    const size = Math.min(width, height) * drag.current.view.scale;
    setView({ ...drag.current.view, x: drag.current.view.x - ((event.clientX - drag.current.x) / size) * SIDE, y: drag.current.view.y + ((event.clientY - drag.current.y) / size) * SIDE });
  };
  const up = (event) => {
    const was = drag.current;
    drag.current = null;
    if (was === null) return;
    if (!was.moved) {
      const place = under(event);
      if (place >= 0 && rankOf(place) !== null) go(rankOf(place));
    } else if (tool === "lasso" && path.length > 2) select(inside(points, path));
    setPath([]);
  };
  useEffect(() => {
    if (!width) return undefined;
    const wheel = (event) => {
      if (!event.ctrlKey && !event.metaKey && document.activeElement !== canvas.current) return; // the page scrolls on
      event.preventDefault();
      zoom(Math.exp(-event.deltaY / 300), onGrid(event));
    };
    const element = canvas.current;
    element.addEventListener("wheel", wheel, { passive: false });
    return () => element.removeEventListener("wheel", wheel);
  });
  const keys = (event) => {
    const act = {
      ArrowLeft: () => shift(-0.15, 0), ArrowRight: () => shift(0.15, 0), ArrowUp: () => shift(0, 0.15), ArrowDown: () => shift(0, -0.15),
      "+": () => zoom(1.5), "=": () => zoom(1.5), "-": () => zoom(1 / 1.5), 0: () => setView(WHOLE), Enter: seen, Escape: () => { setPath([]); select(null); },
    }[event.key];
    if (act === undefined) return;
    event.preventDefault();
    act();
  };
  const outline = useMemo(() => {
    const { size, left, top } = placing(view, width, height);
    return path.map(([x, y]) => `${((x / SIDE) * size + left).toFixed(1)},${((1 - y / SIDE) * size + top).toFixed(1)}`).join(" ");
  }, [path, view, width, height]);

  return html`<div class="map">
    <div class="tools">
      <div class="choice" role="group" aria-label="What dragging does">
        <button type="button" aria-pressed=${tool === "move"} onClick=${() => setTool("move")}>Move</button>
        <button type="button" aria-pressed=${tool === "lasso"} onClick=${() => setTool("lasso")}>Lasso</button>
      </div>
      <div class="choice" role="group" aria-label="Zoom">
        <button type="button" aria-label="Zoom out" onClick=${() => zoom(1 / 1.5)}>−</button>
        <button type="button" aria-label="Zoom in" onClick=${() => zoom(1.5)}>+</button>
        <button type="button" onClick=${() => setView(WHOLE)}>Whole</button>
      </div>
      <button type="button" onClick=${seen}>Select what is in view</button>
      <ul class="legend">
        <li><i class="pool"></i>pool</li>
        ${data.labelled > 0 && html`<li><i class="labelled"></i>labelled</li>`}
        ${coloured ? data.classes.map((name, number) => html`<li><i class=${`class-${number}`}></i>${name}</li>`) : html`<li><i class="chosen"></i>chosen</li>`}
      </ul>
    </div>
    <div class=${`plane ${tool}`} ref=${frame}>
      ${width > 0 && html`<canvas ref=${canvas} width=${Math.round(width * ratio)} height=${Math.round(height * ratio)} style=${{ width: `${width}px`, height: `${height}px` }} tabindex="0" role="application"
        aria-label="Map of the pool. Arrow keys move, plus and minus zoom, 0 shows all, Enter selects what is in view, Escape selects nothing."
        onPointerDown=${down} onPointerMove=${moved} onPointerUp=${up} onPointerCancel=${up} onKeyDown=${keys} onPointerLeave=${() => setReading("")}></canvas>
      <svg class="lasso" width=${width} height=${height} aria-hidden="true">${path.length > 1 && html`<polygon points=${outline} />`}</svg>`}
    </div>
    <p class="reading" aria-hidden="true">${reading || " "}</p>
    ${selected !== null && html`<${Selected} at=${at} points=${points} selected=${selected} clear=${() => select(null)} next=${next} />`}
    <p class="note">The stronger the grey, the more rows (${data.whole ? "all" : "a sample of"} ${count(points.x.length)}${data.labelled ? `, ${count(data.labelled)} of them labelled, as diamonds` : ""}). Points are the chosen ones${coloured ? ", coloured by what the model takes them for" : ""}; a click opens one.
      The axes are the two directions in which the embeddings vary most; they show ${percent(data.share, 0)} of the variance, so rows that are close here may be far apart all the same. Ctrl and the wheel zoom.</p>
  </div>`;
}

// What a lasso holds, and what can be done with it.
function Selected({ at, points, selected, clear, next }) {
  const sums = useMemo(() => {
    const found = { total: 0, chosen: 0, labelled: 0 };
    selected.forEach((one, place) => {
      if (!one) return;
      found.total += 1;
      if (points.kind[place] === CHOSEN) found.chosen += 1;
      else if (points.kind[place] === LABELLED) found.labelled += 1;
    });
    return found;
  }, [selected]);
  const [ids, setIds] = useState(null);
  const [failed, setFailed] = useState("");
  useEffect(() => {
    let alive = true;
    setIds(null);
    get(`${at}/map/ids`).then((data) => alive && setIds(data.ids.filter((_, place) => selected[place])), (error) => alive && setFailed(error.message));
    return () => {
      alive = false;
    };
  }, [selected]);
  return html`<div class="selected" role="region" aria-label="Selected rows">
    <p><b>${several(sums.total, "row")}</b> selected, ${count(sums.chosen)} chosen, ${count(sums.labelled)} labelled.</p>
    <div class="actions">
      <${Copy} disabled=${ids === null} text=${() => ids.join("\n")} what=${several(sums.total, "id")}>Copy the ids<//>
      <button type="button" disabled=${ids === null} onClick=${() => next.put("exclude", ids)}>Exclude from the next query</button>
      <button type="button" disabled=${ids === null} onClick=${() => next.put("must_include", ids)}>Must be in the next one</button>
      <button type="button" onClick=${clear}>Select nothing</button>
    </div>
    ${failed && html`<p class="wrong" role="alert">${failed}</p>`}
    ${ids !== null && html`<details><summary>The ids</summary><pre class="ids" tabindex="0" aria-label="The ids">${ids.slice(0, 5000).join("\n")}${ids.length > 5000 ? "\n…" : ""}</pre></details>`}
  </div>`;
}
