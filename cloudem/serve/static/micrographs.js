// The micrographs of a job: plots of the session, a list of pictures, a large view, and what is chosen of them.

import { add, ask, copied, keep, sentence, writer } from "./choice.js";
import { MicrographView } from "./micrograph-view.js";
import { PICTURES, Session, ending, picture, shortened } from "./session.js";
import { SessionPlots } from "./session-plots.js";

const body = document.body, area = document.getElementById("micrographs"), address = `${PICTURES}s`, SHOWN = 24, ROWS = 50;
let session = null, plots = null, view = null, list = null;

async function load() {
  if (!body.dataset.micrographs) { return; }
  const answer = await fetch(address).catch(() => null);
  if (!answer?.ok) { return; }
  const data = await answer.json();
  if (session) {
    const name = view.name;
    session.renew(data);
    plots?.renew();
    list.renew();
    view.renew(name);
  } else if (data.names.length) { build(data); }
}

function build(data) {
  session = new Session(data);
  area.hidden = false;
  const heading = add(area, "h2", "Micrographs ");
  const count = add(heading, "span", "", { className: "quiet", role: "status" });
  view = new MicrographView(area, session, () => list.rows);
  if (session.names.length > 1 && session.columns.some((column) => column.plotted)) {
    plots = new SessionPlots(area, session, (row) => view.open(row));
    add(area, "p", "Over the order in which they were taken. Click a point to see the micrograph; drag the triangles to set limits, or use the arrow keys.", { className: "quiet" });
  }
  choosing();
  picks();
  list = new List();
  const say = () => { count.textContent = session.stay === session.names.length ? session.names.length.toLocaleString("en") : `${session.stay.toLocaleString("en")} of ${session.names.length.toLocaleString("en")} stay`; };
  session.listeners.push(say);
  say();
  area.dataset.ready = "1";
}

// What limits and lists become.
function choosing() {
  const panel = add(area, "div", "", { className: "choice" }), row = add(panel, "p", "", { className: "choice-row" });
  const count = add(row, "b", "", { role: "status" }), chips = add(row, "span", "", { className: "chips" });
  const clear = add(row, "button", "Clear all", { type: "button" });
  clear.addEventListener("click", () => { session.limits = {}; session.marks.clear(); session.judge(); session.tell(); });
  const told = add(panel, "div", "", { hidden: true }), command = copied(told, "Command"), step = copied(told, "Step of a workflow");
  const lists = add(told, "div", ""), { button, outcome } = writer(told, (words) => ask(`${address}/choice?${session.query()}`, words, { method: "POST" }));
  let latest = 0, waiting = null;

  function say() {
    panel.hidden = !session.chosen;
    const by = session.marked("remove").length, back = session.marked("keep").length;
    count.textContent = `${session.stay.toLocaleString("en")} of ${session.names.length.toLocaleString("en")} micrographs stay`;
    chips.textContent = "";
    for (const column of session.columns) {
      for (const side of Object.keys(column.options)) { if (session.limit(column, side) !== null) { limit(column, side); } }
    }
    if (by) { add(chips, "span", `${by} put aside by hand`, { className: "chip" }); }
    if (back) { add(chips, "span", `${back} taken back by hand`, { className: "chip" }); }
    clearTimeout(waiting);
    if (session.chosen) { waiting = setTimeout(question, 200); } else { told.hidden = true; }
  }

  function limit(column, side) {
    const chip = add(chips, "span", `${column.heading} ${side === "least" ? "≥" : "≤"} `, { className: "chip" });
    const value = Number(session.limit(column, side).toPrecision(4));
    const field = add(chip, "input", "", { type: "number", step: "any", value, size: 5 });
    field.setAttribute("aria-label", `${side === "least" ? "Least" : "Most"} ${column.heading}`);
    field.addEventListener("change", () => session.setLimit(column, side, field.value === "" ? null : Number(field.value)));
    if (column.unit) { chip.append(` ${column.unit} `); }
    const cross = add(chip, "button", "×", { type: "button", title: "Remove this limit" });
    cross.setAttribute("aria-label", "Remove this limit");
    cross.addEventListener("click", () => session.setLimit(column, side, null));
  }

  async function question() {
    const number = latest += 1, found = await ask(`${address}/choice?${session.query()}`, outcome);
    if (number !== latest) { return; }
    told.hidden = false;
    if (!found) { return; }
    count.textContent = `${found.stay.toLocaleString("en")} of ${found.count.toLocaleString("en")} micrographs stay`;
    command.textContent = found.command;
    step.textContent = found.step;
    lists.textContent = "";
    for (const [file, text] of Object.entries(found.lists)) {
      const part = copied(lists, `List ${file}`);
      part.textContent = text;
      add(part.row, "button", "Download", { type: "button" }).addEventListener("click", () => keep(file, text));
    }
    if (button) {
      button.hidden = !found.file;
      button.textContent = `Write ${[found.file, ...Object.keys(found.lists)].join(" and ")}`;
      outcome.textContent = sentence(found.said);
    }
  }

  session.listeners.push(say);
  say();
}

// What edited picks become.
function picks() {
  const panel = add(area, "div", "", { className: "choice", hidden: true }), row = add(panel, "p", "", { className: "choice-row" });
  const count = add(row, "b", "", { role: "status" });
  const file = add(row, "button", "Download picks-edited.star", { type: "button", title: "All picks, those of edited micrographs as they are now" });
  const command = copied(panel, "Command");
  const { button, outcome } = writer(panel, (words) => ask(`${address}/picks`, words, { method: "POST", body: JSON.stringify({ version: session.data.version, picks: Object.fromEntries(session.edits) }) }));
  if (button) { button.textContent = "Write picks-edited.star and its workflow"; }
  file.addEventListener("click", async () => {
    const answer = await fetch(`${address}/picks.star`).catch(() => null);
    if (!answer?.ok) { outcome.textContent = "The picks cannot be read."; return; }
    const quoted = (name) => (/^[^\s"'#_][^\s]*$/.test(name) && !/^(data_|loop_)/.test(name) ? name : `"${name}"`);
    const starts = [...session.edits.keys()].map((number) => `${quoted(session.names[number])} `);
    const others = (await answer.text()).split("\n").filter((line) => line && !starts.some((start) => line.startsWith(start)));
    const mine = [...session.edits].flatMap(([number, all]) => all.map(([x, y, score]) => `${quoted(session.names[number])} ${x.toFixed(2)} ${y.toFixed(2)} ${score ?? 0}`));
    keep("picks-edited.star", `\n${[...others, ...mine, ""].join("\n")}`);
  });
  session.listeners.push(() => {
    const all = [...session.changes.values()], sum = (what) => all.reduce((total, each) => total + each[what], 0);
    panel.hidden = all.length === 0;
    count.textContent = `Picks of ${all.length} ${all.length === 1 ? "micrograph" : "micrographs"} are edited: ${sum("added")} added, ${sum("removed")} removed`;
    command.textContent = `cloudem import-coordinates ${session.data.place} --coordinates picks-edited.star --out picks-edited`;
  });
}

class List {
  constructor() {
    this.page = 0;
    const row = add(area, "p", "", { className: "choice-row list-tools" });
    this.search = add(row, "input", "", { type: "search", placeholder: "name" });
    this.search.setAttribute("aria-label", "Search by name");
    this.which = this.select(row, "Show", [["all", "all"], ["stay", "that stay"], ["aside", "put aside"], ["hand", "chosen by hand"]]);
    this.by = this.select(row, "by", []);
    this.down = add(row, "button", "↑", { type: "button", title: "Turn the order round" });
    this.down.setAttribute("aria-label", "Turn the order round");
    this.look = this.select(row, "as", [["pictures", "pictures"], ["table", "table"]]);
    const turn = add(row, "span", "", { className: "pager" });
    const pager = (text, label, by) => { const found = add(turn, "button", text, { type: "button", title: label }); found.setAttribute("aria-label", label); found.addEventListener("click", () => { this.page += by; this.draw(); }); return found; };
    this.before = pager("←", "Page before", -1);
    this.told = add(turn, "span", "", { role: "status" });
    this.after = pager("→", "Next page", 1);
    this.cells = add(area, "div", "");
    this.seen = new IntersectionObserver((entries) => {
      for (const { isIntersecting, target } of entries) { if (isIntersecting) { target.src = target.dataset.at; this.seen.unobserve(target); } }
    }, { rootMargin: "300px" });
    for (const each of [this.search, this.which, this.by, this.look]) { each.addEventListener("input", () => { this.page = 0; this.sort(); }); }
    this.down.addEventListener("click", () => { this.turned = !this.turned; this.page = 0; this.sort(); });
    session.listeners.push(() => this.later());
    this.renew();
  }

  select(parent, label, options) {
    const around = add(parent, "label", `${label} `), found = add(around, "select", "");
    for (const [value, text] of options) { add(found, "option", text, { value }); }
    return found;
  }

  renew() {
    const chosen = this.by.value;
    this.by.textContent = "";
    for (const [value, text] of [["order", "order taken"], ["name", "name"], ...session.columns.map((column) => [column.key, column.heading])]) { add(this.by, "option", text, { value }); }
    this.by.value = [...this.by.options].some((each) => each.value === chosen) ? chosen : "order";
    this.sort();
  }

  later() { if (!this.waiting) { this.waiting = setTimeout(() => { this.waiting = null; this.sort(); }, 120); } }

  sort() {
    const key = this.by.value, wanted = this.search.value.trim().toLowerCase(), { names, why, marks, rank } = session;
    const belongs = { all: () => true, stay: (row) => !why[row], aside: (row) => why[row], hand: (row) => marks.has(row) || session.edits.has(row) }[this.which.value];
    const values = session.column(key)?.values, sign = this.turned ? -1 : 1;
    const compare = key === "name" ? (a, b) => sign * names[a].localeCompare(names[b], "en", { numeric: true })
      : key === "order" || !values ? (a, b) => sign * (rank[a] - rank[b])
        : (a, b) => (values[a] === null) - (values[b] === null) || sign * (values[a] - values[b]) || rank[a] - rank[b];
    this.rows = session.data.order.filter((row) => belongs(row) && (!wanted || names[row].toLowerCase().includes(wanted))).sort(compare);
    this.down.textContent = this.turned ? "↓" : "↑";
    this.draw();
  }

  draw() {
    const pictures = this.look.value === "pictures", size = pictures ? SHOWN : ROWS, last = Math.max(0, Math.ceil(this.rows.length / size) - 1);
    this.page = Math.min(Math.max(this.page, 0), last);
    const first = this.page * size, shown = this.rows.slice(first, first + size);
    this.told.textContent = this.rows.length ? `${(first + 1).toLocaleString("en")}–${(first + shown.length).toLocaleString("en")} of ${this.rows.length.toLocaleString("en")}` : "none";
    this.before.disabled = this.page === 0;
    this.after.disabled = this.page === last;
    this.cells.style.setProperty("--aspect", session.data.aspect);
    this.cells.className = pictures ? "micrograph-list" : "micrograph-table";
    const kept = pictures ? new Map([...this.cells.querySelectorAll("figure")].map((each) => [each.dataset.name, each])) : new Map();
    this.cells.replaceChildren(...(pictures ? shown.map((row) => this.cell(row, kept.get(session.names[row]))) : [this.table(shown)]));
  }

  // Pictures that are there already stay, so that nothing flickers.
  cell(row, before) {
    const name = session.names[row], figure = before ?? add(this.cells, "figure", "", { tabIndex: 0 }), why = session.why[row];
    if (!before) {
      figure.dataset.name = name;
      figure.setAttribute("role", "button");
      figure.setAttribute("aria-label", `Micrograph ${name}`);
      const frame = add(figure, "div", "", { className: "thumbnail" });
      if (session.data.images) {
        const image = add(frame, "img", "", { alt: "", width: 168, height: 168 });
        image.dataset.at = picture("small", name);
        this.seen.observe(image);
        image.addEventListener("error", () => { image.remove(); frame.dataset.lost = "no picture"; });
      } else { frame.dataset.lost = "no picture"; }
      add(add(figure, "figcaption", ""), "b", ending(name, 18), { title: name });
      const open = (event) => { if (!event.target.closest("button")) { view.open(session.names.indexOf(name)); } };
      figure.addEventListener("click", open);
      figure.addEventListener("keydown", (event) => {
        if (event.target !== figure) { return; }
        if (event.key === "Enter" || event.key === " ") { event.preventDefault(); open(event); }
        if (event.key === "x") { session.turn(session.names.indexOf(name)); }
        const step = { ArrowRight: "nextElementSibling", ArrowLeft: "previousElementSibling" }[event.key];
        if (step) { event.preventDefault(); figure[step]?.focus(); }
      });
      const turn = add(frame, "button", "", { type: "button" });
      turn.addEventListener("click", () => session.turn(session.names.indexOf(name)));
    }
    figure.classList.toggle("aside", Boolean(why));
    figure.classList.toggle("hand", session.marks.has(row));
    const turn = figure.querySelector("button");
    turn.textContent = why ? "Take back" : "Put aside";
    const caption = figure.querySelector("figcaption");
    caption.querySelectorAll("span").forEach((each) => each.remove());
    for (const column of this.told_columns()) { add(caption, "span", session.shown(column, row), { title: column.heading }); }
    if (why) { add(caption, "span", why, { className: "why" }); }
    return figure;
  }

  told_columns() {
    const keys = ["defocus", "ctf_fit_resolution", "pick_count"], by = session.column(this.by.value);
    const found = keys.map((key) => session.column(key)).filter(Boolean);
    if (!found.length) { found.push(...session.columns.slice(0, 2)); }
    return by && !found.includes(by) ? [by, ...found.slice(0, 2)] : found;
  }

  table(shown) {
    const table = document.createElement("table"), head = add(add(table, "thead", ""), "tr", ""), rows = add(table, "tbody", "");
    table.className = "jobs";
    const heading = (key, text, kind) => {
      const cell = add(head, "th", text + (this.by.value === key ? (this.turned ? " ↓" : " ↑") : ""), { className: kind });
      cell.addEventListener("click", () => { if (this.by.value === key) { this.turned = !this.turned; } else { this.by.value = key; this.turned = false; } this.page = 0; this.sort(); });
    };
    heading("name", "micrograph", "");
    for (const column of session.columns) { heading(column.key, column.unit ? `${column.heading} (${column.unit})` : column.heading, "n"); }
    add(head, "th", "put aside");
    for (const row of shown) {
      const line = add(rows, "tr", "", { tabIndex: 0, className: session.why[row] ? "aside" : "" });
      add(line, "td", shortened(session.names[row], 36), { title: session.names[row] });
      for (const column of session.columns) { add(line, "td", session.shown({ ...column, unit: "" }, row), { className: "n" }); }
      add(line, "td", session.why[row], { className: "why" });
      line.addEventListener("click", () => view.open(row));
      line.addEventListener("keydown", (event) => { if (event.key === "Enter") { view.open(row); } });
    }
    return table;
  }
}

document.addEventListener("micrographs-changed", load);
load();
