// The micrographs of a job as the page knows them: numbers, limits, what was put aside or taken back by hand, edited picks.

export class Session {
  constructor(data) {
    this.limits = { ...data.limits };
    this.marks = new Map([...data.keep.map((row) => [row, "keep"]), ...data.remove.map((row) => [row, "remove"])]);
    this.edits = new Map(); // row -> [[x, y, score]]: the picks of a micrograph as they are now
    this.changes = new Map(); // row -> {added, removed}
    this.listeners = [];
    this.take(data);
  }

  take(data) {
    this.data = data;
    this.names = data.names;
    this.columns = data.columns;
    this.rank = new Array(data.order.length); // place of each row in the order in which they were taken
    data.order.forEach((row, place) => { this.rank[row] = place; });
    this.judge();
  }

  // Newer data of the same job: rows may have moved, so that what was done by hand goes by name.
  renew(data) {
    const rows = new Map(data.names.map((name, row) => [name, row]));
    const moved = (map) => new Map([...map].flatMap(([row, value]) => (rows.has(this.names[row]) ? [[rows.get(this.names[row]), value]] : [])));
    [this.marks, this.edits, this.changes] = [this.marks, this.edits, this.changes].map(moved);
    this.take(data);
    this.tell();
  }

  tell() { for (const listener of this.listeners) { listener(); } }

  shown(column, row) {
    const value = column.values[row];
    if (value === null || value === undefined) { return "–"; }
    const text = value.toLocaleString("en", { minimumFractionDigits: column.digits, maximumFractionDigits: column.digits });
    return column.unit ? `${text} ${column.unit}` : text;
  }

  column(key) { return this.columns.find((column) => column.key === key); }

  // Limits are kept as the options take them; columns are in the units that are shown.
  limit(column, side) {
    const option = column.options[side];
    return option && this.limits[option] !== undefined ? this.limits[option] * column.factor : null;
  }

  setLimit(column, side, value) {
    const option = column.options[side];
    if (value === null) { delete this.limits[option]; } else { this.limits[option] = Number((value / column.factor).toPrecision(6)); }
    this.judge();
    this.tell();
  }

  judge() {
    const limited = this.columns.filter((column) => Object.values(column.options).some((option) => this.limits[option] !== undefined));
    this.why = this.names.map((_, row) => this.reason(row, limited));
    this.stay = this.why.reduce((sum, why) => sum + (why ? 0 : 1), 0);
  }

  reason(row, limited) {
    const mark = this.marks.get(row);
    if (mark) { return mark === "keep" ? "" : "put aside by hand"; }
    if (this.data.problems[row]) { return this.data.problems[row]; }
    for (const column of limited) {
      const value = column.values[row], [least, most] = [this.limit(column, "least"), this.limit(column, "most")];
      if (least === null && most === null) { continue; }
      if (value === null) { return `${column.heading} is not known`; }
      if ((least !== null && value < least) || (most !== null && value > most)) { return `${column.heading} ${this.shown(column, row)}`; }
    }
    return "";
  }

  turn(row) {
    const aside = Boolean(this.why[row]);
    this.marks.delete(row);
    this.judge();
    if (Boolean(this.why[row]) === aside) { this.marks.set(row, aside ? "keep" : "remove"); this.judge(); }
    this.tell();
  }

  marked(kind) { return [...this.marks].filter(([, mark]) => mark === kind).map(([row]) => row).sort((a, b) => a - b); }

  get chosen() { return this.marks.size > 0 || Object.keys(this.limits).length > 0; }

  // What the server is asked for: limits by option, rows of the lists as ranges.
  query() {
    const found = new URLSearchParams({ version: this.data.version });
    for (const [option, value] of Object.entries(this.limits)) { found.set(option, String(value)); }
    for (const kind of ["keep", "remove"]) { const rows = ranges(this.marked(kind)); if (rows) { found.set(kind, rows); } }
    return found.toString().replaceAll("%2C", ",");
  }

  edit(row, picks, change) {
    this.edits.set(row, picks);
    const so = this.changes.get(row) ?? { added: 0, removed: 0 };
    this.changes.set(row, { added: so.added + (change > 0 ? 1 : 0), removed: so.removed + (change < 0 ? 1 : 0) });
    this.tell();
  }

  unedit(row) { this.edits.delete(row); this.changes.delete(row); this.tell(); }
}

function ranges(rows) {
  const parts = [];
  for (const row of rows) {
    const last = parts.at(-1);
    if (last && last[1] === row - 1) { last[1] = row; } else { parts.push([row, row]); }
  }
  return parts.map(([first, last]) => (first === last ? first : `${first}-${last}`)).join(",");
}

export const PICTURES = document.body.dataset.news.replace(/news$/, "micrograph");

export function picture(kind, name) { return `${PICTURES}/${kind}/${name.split("/").map(encodeURIComponent).join("/")}`; }

// A name of which the middle is left out: what tells micrographs apart is mostly at the end.
export function shortened(name, most) {
  const first = Math.floor(most / 3);
  return name.length <= most ? name : `${name.slice(0, first)}…${name.slice(-(most - first - 1))}`;
}

export function ending(name, most) { return name.length <= most ? name : `…${name.slice(1 - most)}`; }

export function drawn(parent, kind, given = {}) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", kind);
  for (const [name, value] of Object.entries(given)) { element.setAttribute(name, value); }
  parent?.append(element);
  return element;
}

// Round steps over a range, as axes have them.
export function ticks(low, high, most) {
  const rough = (high - low) / most, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((each) => each * power).find((each) => each >= rough * 0.999) ?? power * 10, found = [];
  for (let at = Math.ceil(low / step - 1e-9) * step; at <= high + 1e-9 * step; at += step) { found.push(Math.abs(at) < step * 1e-6 ? 0 : at); }
  return { step, at: found, text: (value) => value.toLocaleString("en", { maximumFractionDigits: Math.max(0, -Math.floor(Math.log10(step) + 1e-9)) }) };
}
