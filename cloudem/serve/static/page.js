// Keeps a page up to date: listens for events while it is seen, and asks where none arrive.

const body = document.body, live = document.getElementById("live"), signal = document.getElementById("signal");
const SILENCE_MS = 5000, ASK_MS = 3000;
let source = null, silence = null, asking = null;

function told(text) { if (signal) signal.textContent = text; }

async function show(news) {
  if (!news) { return; }
  const moved = [...live.querySelectorAll("[data-scrolls]")].map((area) => [area.scrollLeft, area.scrollTop]);
  live.innerHTML = news.html; // made by the server's templates, which escape all that comes from files
  live.querySelectorAll("[data-scrolls]").forEach((area, number) => { if (moved[number]) { area.scrollTo(...moved[number]); } });
  sortable(live);
  const area = document.getElementById("map"), others = (news.others ?? []).join(" ");
  if (news.map && (String(news.map) !== body.dataset.map || others !== area.dataset.others)) {
    body.dataset.map = news.map;
    area.dataset.others = others;
    document.dispatchEvent(new CustomEvent("map-changed"));
  }
  if ((news.micrographs ?? body.dataset.micrographs) !== body.dataset.micrographs) {
    body.dataset.micrographs = news.micrographs;
    document.dispatchEvent(new CustomEvent("micrographs-changed"));
  }
  if (body.dataset.sections && news.version !== body.dataset.version) {
    body.dataset.version = news.version;
    await draw();
  }
}

async function draw() {
  for (const part of ["details", "sections"]) {
    const answer = await fetch(body.dataset[part]), area = document.getElementById(part);
    if (!answer.ok) { continue; }
    const open = [...area.querySelectorAll("details[id][open]")].map((each) => each.id);
    area.innerHTML = await answer.text();
    for (const id of open) { document.getElementById(id)?.setAttribute("open", ""); }
  }
}

async function ask() {
  try {
    const answer = await fetch(body.dataset.news);
    if (answer.ok) { await show(await answer.json()); told("asking every 3 s"); } else { told("the server answers " + answer.status); }
  } catch { told("the server does not answer; trying again"); }
}

function listen() {
  if (source || !body.dataset.events) { return; }
  source = new EventSource(body.dataset.events);
  const alive = () => {
    clearTimeout(silence);
    clearInterval(asking);
    asking = null;
    told("live");
    silence = setTimeout(quiet, SILENCE_MS);
  };
  source.onmessage = (event) => { alive(); show(JSON.parse(event.data)); };
  source.addEventListener("beat", alive);
  source.onerror = () => { told("trying to reach the server"); };
  silence = setTimeout(quiet, SILENCE_MS);
}

function quiet() { if (!asking) { ask(); asking = setInterval(ask, ASK_MS); } }

function rest() {
  clearTimeout(silence);
  clearInterval(asking);
  asking = null;
  if (source) { source.close(); source = null; }
}

document.addEventListener("visibilitychange", () => { if (document.hidden) { rest(); } else { listen(); } });
addEventListener("pagehide", rest);

let order = null;
function sortable(root) {
  for (const table of root.querySelectorAll("table[data-sorts]")) {
    const headings = [...table.tHead.rows[0].cells];
    headings.forEach((heading, column) => heading.addEventListener("click", () => {
      order = { column, down: order && order.column === column ? !order.down : false };
      sort(table);
    }));
    if (order) { sort(table); }
  }
}

function sort(table) {
  const value = (row) => {
    const cell = row.cells[order.column];
    const number = parseFloat(cell.dataset.value ?? "");
    return Number.isNaN(number) ? cell.textContent.trim() : number;
  };
  const rows = [...table.tBodies[0].rows].sort((a, b) => {
    const [x, y] = [value(a), value(b)];
    const sign = typeof x === "number" && typeof y === "number" ? x - y : String(x).localeCompare(String(y), "en", { numeric: true });
    return order.down ? -sign : sign;
  });
  table.tBodies[0].append(...rows);
}

sortable(document);
if (body.dataset.sections) {
  // the map first: drawing the sections keeps the server busy
  const area = document.getElementById("map");
  if (area.hidden || area.dataset.ready) { draw(); } else {
    const patience = setTimeout(draw, 5000);
    document.addEventListener("map-ready", () => { clearTimeout(patience); draw(); }, { once: true });
  }
}
if (!document.hidden) { listen(); }
