// Numbers, times and ids as text, and a query's file as YAML.

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });

export function count(value) {
  return value === null || value === undefined ? "" : whole.format(value);
}

export function several(value, noun) {
  return `${count(value)} ${noun}${value === 1 ? "" : "s"}`;
}

export function number(value, digits = 4) {
  if (value === null || value === undefined || value === "") return "";
  if (typeof value !== "number") return String(value);
  if (Number.isInteger(value) && Math.abs(value) >= 1000) return whole.format(value);
  return Number(value.toPrecision(digits)).toString();
}

export function percent(value, digits = 1) {
  return value === null || value === undefined ? "" : `${(100 * value).toFixed(digits)}%`;
}

export function duration(seconds) {
  if (seconds === null || seconds === undefined) return "";
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  if (seconds < 90) return `${Math.round(seconds)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return `${(seconds / 3600).toFixed(1)} h`;
}

// "today 14:05", "yesterday 09:12", "3 Nov 2026 17:40", in the reader's own time.
export function when(iso, now = new Date()) {
  if (!iso) return "";
  const date = new Date(/[zZ]|[+-]\d\d:?\d\d$/.test(iso) ? iso : `${iso}Z`);
  if (Number.isNaN(date.getTime())) return iso;
  const time = date.toLocaleTimeString("en-GB", { hour: "2-digit", minute: "2-digit" });
  const days = Math.round((new Date(now).setHours(0, 0, 0, 0) - new Date(date).setHours(0, 0, 0, 0)) / 86400000);
  if (days === 0) return `today ${time}`;
  if (days === 1) return `yesterday ${time}`;
  return `${date.toLocaleDateString("en-GB", { day: "numeric", month: "short", year: "numeric" })} ${time}`;
}

// An id as it stands in a query's file: ids come as text, whatever they are in the pool, since a browser can't hold every integer.
export function idLiteral(id, kind) {
  return kind === "integer" && /^-?\d+$/.test(id) ? id : JSON.stringify(id);
}

// Raw text within data that becomes YAML or JSON: digits too many for a number.
export class Raw {
  constructor(text) {
    this.text = text;
  }
}

export function json(value) {
  if (value instanceof Raw) return value.text;
  if (Array.isArray(value)) return `[${value.map(json).join(", ")}]`;
  if (value !== null && typeof value === "object") {
    return `{${Object.entries(value).map(([key, inner]) => `${JSON.stringify(key)}: ${json(inner)}`).join(", ")}}`;
  }
  return JSON.stringify(value);
}

const PLAIN = /^[A-Za-z_][A-Za-z0-9_./-]*$/;
const WORDS = new Set(["true", "false", "null", "yes", "no", "on", "off", "y", "n", "~"]);

// Block style for sections, one line for what fits there; every text that might be read as something else is quoted.
export function yaml(value, indent = "") {
  return Object.entries(value)
    .map(([key, inner]) => {
      const name = PLAIN.test(key) ? key : JSON.stringify(key);
      if (inner !== null && typeof inner === "object" && !Array.isArray(inner) && !(inner instanceof Raw) && Object.keys(inner).length) {
        return `${indent}${name}:\n${yaml(inner, `${indent}  `)}`;
      }
      return `${indent}${name}: ${flow(inner)}\n`;
    })
    .join("");
}

function flow(value) {
  if (typeof value === "string") return PLAIN.test(value) && !WORDS.has(value.toLowerCase()) ? value : JSON.stringify(value);
  if (Array.isArray(value)) return `[${value.map(flow).join(", ")}]`;
  return json(value);
}
