// Charts as SVG of the page: text is text, colours are the page's. The numbers stand below each in a table, for whoever can't see it.

import { html, useEffect, useRef, useState } from "./preact.js";
import { count, number, percent } from "./format.js";

export const COLOURS = 8;

// The width that an element has, and goes on having.
export function useWidth(least = 280) {
  const element = useRef(null);
  const [width, setWidth] = useState(0);
  useEffect(() => {
    const observer = new ResizeObserver(([entry]) => setWidth(Math.max(least, Math.floor(entry.contentRect.width))));
    observer.observe(element.current);
    return () => observer.disconnect();
  }, []);
  return [element, width];
}

// Round values within a range, 1, 2 or 5 times a power of ten apart.
export function ticks(low, high, about) {
  const span = high - low;
  if (!(span > 0)) return [low];
  const rough = span / Math.max(about, 1);
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => power * factor).find((size) => size >= rough * 0.999);
  const found = [];
  for (let at = Math.ceil(low / step - 1e-9); at <= Math.floor(high / step + 1e-9); at += 1) found.push(Number((at * step).toPrecision(12)));
  return found;
}

function scale(low, high, start, end) {
  return (value) => start + ((value - low) / (high - low || 1)) * (end - start);
}

// Points in runs: a line is broken where there is no value.
function runs(xs, ys) {
  const found = [];
  let run = [];
  xs.forEach((x, at) => {
    if (ys[at] === null || ys[at] === undefined) {
      if (run.length) found.push(run);
      run = [];
    } else run.push([x, ys[at]]);
  });
  if (run.length) found.push(run);
  return found;
}

function path(points, x, y) {
  return points.map(([a, b], at) => `${at ? "L" : "M"}${x(a).toFixed(1)} ${y(b).toFixed(1)}`).join("");
}

function band(line, x, y) {
  const ends = line.x.map((at, i) => [at, line.low[i], line.high[i]]).filter(([, low, high]) => low !== null && high !== null);
  if (ends.length < 2) return null;
  const up = path(ends.map(([at, , high]) => [at, high]), x, y);
  const back = path(ends.map(([at, low]) => [at, low]).reverse(), x, y).replace("M", "L");
  return `${up}${back}Z`;
}

// lines: [{name, x, y, low?, high?, control?}]; levels: [{value, name}]; marks: [{value, name}] on the x axis.
export function LineChart({ lines, xLabel, yLabel, asPercent, levels = [], marks = [], title, step }) {
  const [element, width] = useWidth();
  const [at, setAt] = useState(null);
  const drawn = lines.filter((line) => line.y.some((value) => value !== null && value !== undefined));
  const written = asPercent ? (value) => percent(value) : (value) => number(value);
  const onAxis = asPercent ? (value) => percent(value, yTicks.length > 1 && yTicks[1] - yTicks[0] < 0.00999 ? 1 : 0) : written;
  if (!drawn.length) return html`<p class="note">There are no values to draw yet.</p>`;
  const values = drawn.flatMap((line) => [...line.y, ...(line.low ?? []), ...(line.high ?? [])]).filter((value) => value !== null && value !== undefined);
  for (const level of levels) values.push(level.value);
  const xs = drawn.flatMap((line) => line.x);
  const [left, right] = [Math.min(...xs), Math.max(...xs)];
  const spread = Math.max(...values) - Math.min(...values) || Math.abs(values[0]) || 1;
  const [low, high] = [Math.min(...values) - spread * 0.05, Math.max(...values) + spread * 0.05];
  const height = width > 560 ? 320 : 260;
  const box = { left: 58, right: width - 16, top: 14, bottom: height - 42 };
  const x = scale(left, right === left ? left + 1 : right, box.left, box.right);
  const y = scale(low, high, box.bottom, box.top);
  const xTicks = ticks(left, right, Math.max(3, Math.floor(width / 110)));
  const yTicks = ticks(low, high, 5);
  const stops = [...new Set(xs)].sort((a, b) => a - b);
  const named = colours(drawn);

  function look(event) {
    const frame = event.currentTarget.getBoundingClientRect();
    const value = left + ((event.clientX - frame.left - box.left) / (box.right - box.left)) * (right - left);
    setAt(stops.reduce((best, stop) => (Math.abs(stop - value) < Math.abs(best - value) ? stop : best), stops[0]));
  }
  const shown = at === null ? [] : drawn.map((line) => [line, line.x.indexOf(at)]).filter(([line, place]) => place >= 0 && line.y[place] !== null);

  return html`<figure class="chart-frame" ref=${element}>
    <ul class="legend">
      ${drawn.map((line) => html`<li key=${line.name}><i class=${named.get(line.name)}></i>${line.name}</li>`)}
    </ul>
    ${width > 0 &&
    html`<svg class="lines" width=${width} height=${height} role="img" aria-label=${title ?? `${yLabel || drawn[0].name} by ${xLabel}`}
      onPointerMove=${look} onPointerLeave=${() => setAt(null)}>
      ${yTicks.map((tick) => html`<line class="grid" x1=${box.left} x2=${box.right} y1=${y(tick)} y2=${y(tick)} />
        <text x=${box.left - 8} y=${y(tick) + 4} text-anchor="end">${onAxis(tick)}</text>`)}
      <line class="axis" x1=${box.left} x2=${box.right} y1=${box.bottom} y2=${box.bottom} />
      ${xTicks.map((tick) => html`<text x=${x(tick)} y=${box.bottom + 18} text-anchor="middle">${count(tick)}</text>`)}
      <text x=${(box.left + box.right) / 2} y=${height - 4} text-anchor="middle">${xLabel}</text>
      ${levels.map((level) => html`<line class="level" x1=${box.left} x2=${box.right} y1=${y(level.value)} y2=${y(level.value)} />
        <text class="strong" x=${box.right} y=${y(level.value) - 5} text-anchor="end">${level.name}</text>`)}
      ${marks.map((mark, place) => html`<line class="mark" x1=${x(mark.value)} x2=${x(mark.value)} y1=${box.top} y2=${box.bottom} />
        <text class="strong" x=${x(mark.value) > width / 2 ? x(mark.value) - 5 : x(mark.value) + 5} y=${box.top + 12 + 15 * (place % 4)}
          text-anchor=${x(mark.value) > width / 2 ? "end" : "start"}>${mark.name}</text>`)}
      ${drawn.map((line) => line.low && line.high && html`<path class=${`band ${drawn.length > 4 ? "many " : ""}${named.get(line.name)}`} d=${band(line, x, y)} />`)}
      ${drawn.map((line) => html`<path class=${`line ${named.get(line.name)}`} d=${runs(line.x, line.y).map((run) => path(run, x, y)).join("")} />
        ${line.x.length <= 40 && !step && line.x.map((value, place) => line.y[place] !== null && line.y[place] !== undefined &&
          html`<circle class=${`dot ${named.get(line.name)}`} cx=${x(value)} cy=${y(line.y[place])} r="3" />`)}`)}
      ${at !== null && html`<line class="cursor" x1=${x(at)} x2=${x(at)} y1=${box.top} y2=${box.bottom} />
        ${shown.map(([line, place]) => html`<circle class=${`dot ${named.get(line.name)}`} cx=${x(at)} cy=${y(line.y[place])} r="4.5" />`)}`}
    </svg>`}
    <p class="reading" aria-hidden="true">
      ${at === null ? " " : `${count(at)} ${xLabel}: ${shown.map(([line, place]) => `${line.name} ${written(line.y[place])}`).join(" · ")}`}
    </p>
    <details>
      <summary>The numbers as a table</summary>
      <${Numbers} lines=${drawn} stops=${stops} xLabel=${xLabel} written=${written} />
    </details>
  </figure>`;
}

function Numbers({ lines, stops, xLabel, written }) {
  const [open, setOpen] = useState(100);
  return html`<div class="scroll" tabindex="0" role="group" aria-label="The numbers of the chart">
    <table>
      <thead><tr><th class="n">${xLabel}</th>${lines.map((line) => html`<th class="n">${line.name}</th>`)}</tr></thead>
      <tbody>
        ${stops.slice(0, open).map((stop) => html`<tr><td class="n">${count(stop)}</td>${lines.map((line) => {
          const place = line.x.indexOf(stop);
          return html`<td class="n">${place < 0 || line.y[place] === null ? "" : written(line.y[place])}</td>`;
        })}</tr>`)}
      </tbody>
    </table>
    ${stops.length > open && html`<button type="button" onClick=${() => setOpen(stops.length)}>All ${count(stops.length)} lines</button>`}
  </div>`;
}

// The class of each line's colour: control lines are grey, the others take one after the other.
function colours(lines) {
  let next = 0;
  return new Map(lines.map((line) => [line.name, line.control ? "control" : `c${next++ % COLOURS}`]));
}

// Shares of pool and batch over a score.
export function Histogram({ edges, pool, chosen, score, mark }) {
  const [element, width] = useWidth();
  const height = width > 560 ? 280 : 240;
  const box = { left: 52, right: width - 12, top: 12, bottom: height - 42 };
  const highest = Math.max(...pool, ...chosen);
  const x = scale(edges[0], edges[edges.length - 1], box.left, box.right);
  const y = scale(0, highest * 1.04, box.bottom, box.top);
  const stairs = (shares) => `M${x(edges[0])} ${y(0)}${shares.map((share, at) => `L${x(edges[at]).toFixed(1)} ${y(share).toFixed(1)}L${x(edges[at + 1]).toFixed(1)} ${y(share).toFixed(1)}`).join("")}L${x(edges[edges.length - 1])} ${y(0)}Z`;
  return html`<figure class="chart-frame" ref=${element}>
    <ul class="legend"><li><i class="pool"></i>pool</li><li><i class="chosen"></i>chosen</li></ul>
    ${width > 0 &&
    html`<svg class="lines" width=${width} height=${height} role="img" aria-label=${`Shares of pool and chosen rows over ${score}`}>
      ${ticks(0, highest, 4).map((tick) => html`<line class="grid" x1=${box.left} x2=${box.right} y1=${y(tick)} y2=${y(tick)} />
        <text x=${box.left - 8} y=${y(tick) + 4} text-anchor="end">${percent(tick, highest < 0.1 ? 1 : 0)}</text>`)}
      <path class="pool-area" d=${stairs(pool)} />
      <path class="chosen-area" d=${stairs(chosen)} />
      <line class="axis" x1=${box.left} x2=${box.right} y1=${box.bottom} y2=${box.bottom} />
      ${ticks(edges[0], edges[edges.length - 1], Math.max(3, Math.floor(width / 110))).map((tick) => html`<text x=${x(tick)} y=${box.bottom + 18} text-anchor="middle">${number(tick)}</text>`)}
      <text x=${(box.left + box.right) / 2} y=${height - 4} text-anchor="middle">${score} (higher: label sooner)</text>
      ${mark !== null && mark !== undefined && html`<line class="mark" x1=${x(mark)} x2=${x(mark)} y1=${box.top} y2=${box.bottom} />`}
    </svg>`}
  </figure>`;
}

// The share of the pool with a lower score, as far as the histogram tells.
export function below(histogram, score) {
  if (!histogram || histogram.missing || score === null || score === undefined) return null;
  let sum = 0;
  for (let at = 0; at < histogram.pool.length; at += 1) {
    const [low, high] = [histogram.edges[at], histogram.edges[at + 1]];
    if (score >= high) sum += histogram.pool[at];
    else if (score > low) sum += (histogram.pool[at] * (score - low)) / (high - low);
  }
  return Math.min(1, sum);
}
