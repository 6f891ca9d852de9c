"use strict";
const POLL_MS = 3000, MOST_SERIES = 8;
const LIGHT = ["#0b5fae", "#b3450a", "#1a7a3c", "#8b2fb0", "#7a6300", "#b01550", "#006f78", "#4b5563"];
const DARK = ["#6db3f2", "#f5a262", "#6fd08c", "#d59bf0", "#dcc35a", "#f78fb3", "#5fd0da", "#b8c0cc"];
const DASHES = ["", "7 4", "2 4"];
const dark = matchMedia("(prefers-color-scheme: dark)");
const state = {run: 0, status: null, chosen: null, history: {}, task: "", rows: new Map(), comparison: null, curves: []};
const at = id => document.getElementById(id);

/* Text is only ever set as text: names come from experiment files. */
function make(tag, content = "", classes = "") {
  const element = document.createElement(tag);
  element.textContent = content;
  if (classes) element.className = classes;
  return element;
}
function draw(tag, attributes, content) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (content !== undefined) element.textContent = content;
  return element;
}
function titled(element, text) { element.append(draw("title", {}, text)); return element; }

const fixed = (value, digits) => value === null || value === undefined ? "–" : value.toFixed(digits);
const signed = (value, digits) => value === null || value === undefined ? "–" : (value > 0 ? "+" : "") + value.toFixed(digits);
const share = value => value === null ? "–" : (100 * value).toFixed(1) + "%";
const minute = text => text ? text.slice(0, 16).replace("T", " ") : "–";
function duration(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  for (const [unit, length] of [["d", 86400], ["h", 3600], ["min", 60]])
    if (seconds >= 2 * length) return Math.round(seconds / length) + " " + unit;
  return Math.max(0, Math.round(seconds)) + " s";
}
const short = (text, length) => text.length > length ? text.slice(0, length - 1) + "…" : text;
const kind = text => ({running: "good", waiting: "wait", failed: "bad", dead: "bad"})[text] || "muted";
const color = index => (dark.matches ? DARK : LIGHT)[index % LIGHT.length];
const dash = index => DASHES[Math.floor(index / LIGHT.length) % DASHES.length];

async function ask(path, values = []) {
  const query = new URLSearchParams(values).toString();
  const answer = await fetch(query ? `${path}?${query}` : path, {cache: "no-store"});
  const content = await answer.json();
  if (!answer.ok) throw new Error(content.error);
  return content;
}

/* ---- plots ---- */
function ticks(low, high, count) {
  const span = high - low || Math.abs(high) || 1, raw = span / count, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map(factor => factor * power).find(width => width >= raw);
  const marks = [];
  for (let mark = Math.ceil(low / step - 1e-9) * step; mark <= high + step * 1e-6; mark += step) marks.push(mark);
  return {marks, digits: Math.max(0, Math.min(6, Math.ceil(-Math.log10(step) + (step / power === 2.5 ? 1 : 0))))};
}
/* Draws series of {name, index, points: [{time, value}]}; a missing value breaks the line. */
function plot(place, series, words, withZero) {
  const all = series.flatMap(one => one.points).filter(point => point.value !== null);
  if (!all.length) { place.replaceChildren(make("p", "nothing yet", "muted")); return; }
  const width = Math.max(240, place.clientWidth), height = 220, left = 56, right = 12, top = 10, bottom = 26;
  const times = all.map(point => point.time), values = all.map(point => point.value).concat(withZero ? [0] : []);
  let [low, high] = [Math.min(...values), Math.max(...values)];
  const pad = (high - low || Math.abs(high) || 1) * 0.06;
  [low, high] = [low - pad, high + pad];
  const [first, last] = [Math.min(...times), Math.max(...times)];
  const x = time => left + (last === first ? 0.5 : (time - first) / (last - first)) * (width - left - right);
  const y = value => top + (high - value) / (high - low) * (height - top - bottom);
  const newest = series.map(one => {
    const point = one.points.filter(point => point.value !== null).at(-1);
    return point ? `${one.name} ${fixed(point.value, 4)}` : "";
  }).filter(Boolean).join(", ");
  const svg = draw("svg", {viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": `${words}; newest: ${newest}`});
  const {marks, digits} = ticks(low, high, 4);
  for (const mark of marks) {
    svg.append(draw("line", {class: withZero && Math.abs(mark) < 1e-12 ? "zero" : "grid", x1: left, x2: width - right, y1: y(mark), y2: y(mark)}));
    svg.append(draw("text", {class: "tick", x: left - 6, y: y(mark) + 4, "text-anchor": "end"}, mark.toFixed(digits)));
  }
  const spots = last === first ? [first] : [0, 1, 2].map(part => first + (last - first) * part / 2);
  spots.forEach((time, index) => {
    const anchor = spots.length === 1 ? "middle" : ["start", "middle", "end"][index];
    const label = new Date(time).toISOString();
    const text = last - first > 3 * 86400e3 ? label.slice(0, 10) : label.slice(5, 16).replace("T", " ");
    svg.append(draw("text", {class: "tick", x: x(time), y: height - 8, "text-anchor": anchor}, text));
  });
  for (const one of series) {
    let path = "", open = false;
    for (const point of one.points) {
      if (point.value === null) { open = false; continue; }
      path += `${open ? "L" : "M"}${x(point.time).toFixed(1)} ${y(point.value).toFixed(1)}`;
      open = true;
    }
    if (path) svg.append(draw("path", {d: path, fill: "none", stroke: color(one.index), "stroke-width": 2, "stroke-dasharray": dash(one.index), "stroke-linejoin": "round"}));
    if (one.points.length <= 60)
      for (const point of one.points) if (point.value !== null)
        svg.append(titled(draw("circle", {cx: x(point.time), cy: y(point.value), r: 3.5, fill: color(one.index)}),
          `${one.name}, ${new Date(point.time).toISOString().slice(0, 16)}Z: ${fixed(point.value, 4)}`));
  }
  place.replaceChildren(svg);
}
function legend(place, series) {
  place.replaceChildren(...series.map(one => {
    const entry = make("span"), key = draw("svg", {width: 26, height: 10, "aria-hidden": "true"});
    key.append(draw("line", {x1: 1, x2: 25, y1: 5, y2: 5, stroke: color(one.index), "stroke-width": 2.5, "stroke-dasharray": dash(one.index)}));
    entry.append(key, document.createTextNode(one.name));
    return entry;
  }));
}
const timed = (points, value) => points.map(point => ({time: Date.parse(point.start), value: value(point) ?? null}));

/* ---- the run that is watched ---- */
function showProblems(status) {
  /* A job that has died is a problem of each of its models, and is shown once. */
  const models = new Map();
  for (const {kind, text, model} of status.problems) {
    const key = JSON.stringify([kind, text]);
    models.set(key, [...(models.get(key) || []), model]);
  }
  const items = [...models].map(([key, names]) => {
    const item = make("li"), [kind, text] = JSON.parse(key), more = names.length > 6 ? ` and ${names.length - 6} more` : "";
    item.append(make("span", kind, "bad"), document.createTextNode(` ${names.slice(0, 6).join(", ")}${more}: ${text}`));
    return item;
  });
  if (!items.length) items.push(make("li", "Nothing holds this run up.", "none good"));
  at("problems").replaceChildren(...items);
}
function row(model) {
  const line = make("tr"), cell = make("td"), box = make("input");
  box.type = "checkbox";
  box.setAttribute("aria-label", `plot ${model}`);
  box.addEventListener("change", () => {
    if (box.checked) state.chosen.add(model); else state.chosen.delete(model);
    if (state.chosen.size > MOST_SERIES) state.chosen.delete([...state.chosen][0]);
    showModels(state.status);
    refreshHistory();
  });
  cell.append(box);
  line.append(cell);
  const name = make("td", model, "name");
  name.title = model;
  line.append(name);
  for (const classes of ["", "", "number", "number", "number", "number", "", "number"]) line.append(make("td", "", classes));
  return {line, box};
}
function showModels(status) {
  const words = at("filter").value.toLowerCase(), shown = [];
  for (const model of status.models) {
    if (!model.model.toLowerCase().includes(words) || (at("troubled").checked && !model.problems.length)) continue;
    if (!state.rows.has(model.model)) state.rows.set(model.model, row(model.model));
    const {line, box} = state.rows.get(model.model);
    box.checked = state.chosen.has(model.model);
    line.className = model.problems.length ? "troubled" : "";
    const task = model.tasks[state.task] || {ne: null, ne_before: null}, snapshot = model.snapshot;
    const [, , job, window, behind, rate, ne, change, supervision, version] = line.children;
    job.replaceChildren(...jobWords(model));
    window.textContent = minute(model.window && model.window.end);
    const late = Math.max(0, ...Object.values(model.supervision).map(figures => figures.behind_windows || 0));
    behind.textContent = model.lag_s === null ? "–" : (model.lag_s ? duration(model.lag_s) : "0") + (late ? `, teacher ${late} w` : "");
    rate.textContent = model.rows_per_second === null ? "–" : Math.round(model.rows_per_second).toLocaleString("en");
    ne.textContent = fixed(task.ne, 4);
    change.textContent = task.ne !== null && task.ne_before ? signed(100 * (task.ne / task.ne_before - 1), 1) + "%" : "–";
    supervision.textContent = Object.entries(model.supervision)
      .map(([teacher, figures]) => `${teacher} ${share(figures.hit_rate)}, ${duration(figures.age_s)}`).join("; ") || "–";
    version.textContent = snapshot ? `${snapshot.in_use ?? "none"}${Object.keys(snapshot.held).length ? ` (${snapshot.newest} held)` : ""}` : "–";
    shown.push(line);
  }
  const body = at("models");
  /* Rows stay where they are unless the list has changed, so that the focus stays too. */
  if (shown.length !== body.children.length || shown.some((line, index) => body.children[index] !== line)) body.replaceChildren(...shown);
  at("count").textContent = `${shown.length} of ${status.models.length}`;
}
function jobWords(model) {
  const words = [];
  for (const [job, text] of [[model.job, model.state], [model.labelling_job, model.labelling_state]]) {
    if (!job || (words.length && job === model.job)) continue;
    if (words.length) words.push(make("br"));
    words.push(document.createTextNode(short(job, 28) + " "), make("span", text, kind(text)));
  }
  return words.length ? words : [document.createTextNode("–")];
}
function showJobs(status) {
  at("jobs").replaceChildren(...status.jobs.map(job => {
    const line = make("tr"), last = make("td", job.error || job.waiting_for || "", "text");
    const window = job.window ? `${job.window.index + 1} of ${job.windows}` : "–", beat = make("td");
    beat.textContent = ["running", "waiting", "dead"].includes(job.state) ? `${duration(job.silent_s)} ago` : minute(job.beat);
    const name = make("td", job.job, "name");
    name.title = job.job;
    line.append(name, make("td", job.state, kind(job.state)), make("td", `${job.host}, ${job.pid}`), beat,
      make("td", window), make("td", job.rows.toLocaleString("en"), "number"), last);
    return line;
  }));
}
function showTasks(status) {
  const tasks = [...new Set(status.models.flatMap(model => Object.keys(model.tasks)))];
  if (!tasks.includes(state.task)) state.task = tasks[0] || "";
  if ([...at("task").options].map(option => option.value).join("\n") === tasks.join("\n")) return;
  at("task").replaceChildren(...tasks.map(task => new Option(task, task, false, task === state.task)));
}
function choose(status) {
  if (state.chosen) return;
  const controls = new Set(status.models.map(model => model.control));
  const names = status.models.filter(model => !controls.has(model.model)).map(model => model.model);
  state.chosen = new Set(names.slice(0, 5));
}
function showCurves() {
  const series = value => Object.entries(state.history).map(([name, points], index) => ({name, index, points: timed(points, value)}));
  legend(at("legend"), series(() => null));
  plot(at("ne"), series(point => point.tasks[state.task]?.ne), "NE over time");
  plot(at("gain"), series(point => point.tasks[state.task]?.gain_percent), "NE gain over the control in percent", true);
  plot(at("age"), series(point => {
    const ages = Object.values(point.supervision).map(figures => figures.age_s).filter(age => age !== null);
    return ages.length ? Math.max(...ages) / 3600 : null;
  }), "Age of the supervision in hours", true);
}
async function refreshHistory() {
  const run = state.run, names = [...state.chosen];
  const history = names.length ? await ask("/api/history", [["run", run], ...names.map(name => ["model", name])]) : {};
  if (run === state.run) { state.history = history; showCurves(); }
}

/* ---- who teaches whom ---- */
function showTeaching(status) {
  const controls = new Set(status.models.map(model => model.control).filter(Boolean));
  const nodes = new Map();
  for (const model of status.models) if (!controls.has(model.model) || model.teachers.length)
    nodes.set(model.model, {name: model.model, teachers: model.teachers, troubled: model.problems.length > 0});
  for (const node of [...nodes.values()]) for (const teacher of node.teachers)
    if (!nodes.has(teacher)) nodes.set(teacher, {name: teacher, teachers: [], troubled: false});
  const taught = new Set([...nodes.values()].flatMap(node => node.teachers));
  fold(nodes, taught);
  const depth = node => node.depth ??= node.teachers.length ? 1 + Math.max(...node.teachers.map(name => depth(nodes.get(name)))) : 0;
  const columns = [];
  for (const node of nodes.values()) (columns[depth(node)] ??= []).push(node);
  const wide = 172, gap = 72, step = 38, rows = Math.max(...columns.map(column => column.length));
  const width = columns.length * (wide + gap) - gap + 8, height = rows * step + 8;
  const edges = [...nodes.values()].flatMap(node => node.teachers.map(teacher => `${teacher} teaches ${node.name}`));
  const svg = draw("svg", {viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": short(edges.join("; ") || "no model teaches another", 2000)});
  columns.forEach((column, index) => column.forEach((node, position) => {
    node.x = 4 + index * (wide + gap);
    node.y = 4 + (rows - column.length) * step / 2 + position * step;
  }));
  for (const node of nodes.values()) for (const name of node.teachers) {
    const from = nodes.get(name), [x, y] = [from.x + wide, from.y + 15], middle = (x + node.x) / 2;
    svg.append(draw("path", {class: "edge", d: `M${x} ${y}C${middle} ${y} ${middle} ${node.y + 15} ${node.x} ${node.y + 15}`}));
  }
  for (const node of nodes.values()) {
    svg.append(titled(draw("rect", {class: node.troubled ? "node troubled" : "node", x: node.x, y: node.y, width: wide, height: 30, rx: 7}), node.name));
    svg.append(draw("text", {x: node.x + 10, y: node.y + 19}, (node.troubled ? "! " : "") + short(node.name, node.troubled ? 19 : 21)));
  }
  at("teaching").replaceChildren(svg);
}
/* Folds students that have the same teachers and teach nobody, above a screen of them: those with problems stay. */
function fold(nodes, taught) {
  const groups = new Map();
  for (const node of nodes.values()) if (!taught.has(node.name)) {
    const key = JSON.stringify(node.teachers);
    groups.set(key, [...(groups.get(key) || []), node]);
  }
  for (const group of groups.values()) if (group.length > 12) {
    const quiet = group.filter(node => !node.troubled).slice(8);
    for (const node of quiet) nodes.delete(node.name);
    if (quiet.length) nodes.set("\0" + quiet[0].name, {name: `and ${quiet.length} more`, teachers: quiet[0].teachers, troubled: false});
  }
}

/* ---- comparison ---- */
function table(headings, lines) {
  const scroll = make("div", "", "scroll"), element = make("table"), head = make("tr");
  scroll.tabIndex = 0;
  for (const heading of headings) { const cell = make("th", heading); cell.scope = "col"; head.append(cell); }
  element.append(make("thead"), make("tbody"));
  element.tHead.append(head);
  for (const cells of lines) {
    const line = make("tr");
    for (const cell of cells) line.append(cell instanceof Node ? cell : make("td", cell));
    element.tBodies[0].append(line);
  }
  scroll.append(element);
  return scroll;
}
/* Draws gains as points with their intervals, on a scale that all of them share. */
function whisker(entry, reach) {
  const cell = make("td"), svg = draw("svg", {width: 160, height: 18, role: "img", "aria-label": gainWords(entry)});
  const x = value => 80 + 76 * value / reach;
  svg.append(draw("line", {class: "zero", x1: 80, x2: 80, y1: 0, y2: 18}));
  if (entry.ne_gain_percent !== null) {
    if (entry.interval95) svg.append(draw("line", {x1: x(entry.interval95[0]), x2: x(entry.interval95[1]), y1: 9, y2: 9, stroke: color(0), "stroke-width": 2}));
    svg.append(draw("circle", {cx: x(entry.ne_gain_percent), cy: 9, r: 4, fill: color(0)}));
  }
  cell.append(svg);
  return cell;
}
function gainWords(entry) {
  if (entry.ne_gain_percent === null) return entry.note || "–";
  const interval = entry.interval95 ? ` (${signed(entry.interval95[0], 3)} to ${signed(entry.interval95[1], 3)})` : "";
  return signed(entry.ne_gain_percent, 3) + interval;
}
const value = (values, label) => label in values ? short(JSON.stringify(values[label]), 60) : "–";
function showComparison() {
  const {runs, differences, figures, gains} = state.comparison, labels = runs.map(run => run.label);
  const reach = Math.max(1e-9, ...gains.flatMap(gain => [gain.ne_gain_percent, ...(gain.interval95 || [])]).map(Math.abs));
  const parts = [make("h3", "Differences of config")];
  parts.push(differences.length ? table(["key", ...labels], differences.map(entry => [entry.key, ...labels.map(label => value(entry.values, label))]))
    : make("p", "none", "muted"));
  parts.push(make("h3", `Gain over ${labels[0]} on the same examples, % of NE (95% interval)`));
  parts.push(gains.length ? table(["run", "model", "task", "examples", "gain", ""], gains.map(gain =>
    [gain.run, gain.model, gain.task, gain.examples.toLocaleString("en"), gainWords(gain), whisker(gain, reach)]))
    : make("p", "no model and task that two of these runs predict", "muted"));
  parts.push(make("h3", "Figures"));
  parts.push(table(["run", "model", "task", "NE", "AUC", "gain over its control, %"], figures.map(entry =>
    [entry.run, entry.model, entry.task, fixed(entry.ne, 4), fixed(entry.auc, 4), gainWords({
      ne_gain_percent: entry.ne_gain_percent ?? null, interval95: entry.gain_low === null || entry.gain_low === undefined ? null : [entry.gain_low, entry.gain_high]})])));
  const models = [...new Set(figures.map(entry => entry.model))], chooser = make("select"), curves = make("div", "", "plot"), keys = make("div", "", "legend");
  chooser.append(...models.map(model => new Option(model, model)));
  const label = make("label", "NE over time of ");
  label.append(chooser);
  parts.push(make("h3", "Curves"), label, keys, curves);
  at("comparison").replaceChildren(...parts);
  const redraw = () => { legend(keys, state.curves); plot(curves, state.curves, "NE over time by run"); };
  chooser.addEventListener("change", () => fetchCurves(chooser.value, figures, labels).then(redraw).catch(failed));
  fetchCurves(models[0], figures, labels).then(redraw).catch(failed);
}
const failed = error => { at("comparing").textContent = error.message; };
async function fetchCurves(model, figures, labels) {
  const task = figures.find(entry => entry.model === model).task;
  const asked = state.compared.map(async (run, index) => {
    if (!figures.some(entry => entry.run === labels[index] && entry.model === model)) return null;
    const history = await ask("/api/history", [["run", run], ["model", model]]);
    return {name: labels[index], index, points: timed(history[model], point => point.tasks[task]?.ne)};
  });
  state.curves = (await Promise.all(asked)).filter(Boolean);
}
async function compareRuns() {
  state.compared = [...at("choices").querySelectorAll("input:checked")].map(box => box.value);
  at("comparing").textContent = "reading predictions";
  at("compare").disabled = true;
  try {
    state.comparison = await ask("/api/compare", state.compared.map(run => ["run", run]));
    at("comparing").textContent = "";
    showComparison();
  } catch (error) { failed(error); }
  at("compare").disabled = false;
}

/* ---- the clock ---- */
async function look() {
  const run = state.run;
  try {
    const status = await ask("/api/status", [["run", run]]);
    if (run !== state.run) return;
    state.status = status;
    document.title = `${status.problems.length ? `(${status.problems.length}) ` : ""}${status.name} – exfm`;
    showTasks(status);
    choose(status);
    showProblems(status);
    showModels(status);
    showJobs(status);
    showTeaching(status);
    at("report").hidden = !status.has_report;
    at("report").href = `/report?run=${run}`;
    await refreshHistory();
    at("live").className = "";
    at("live").textContent = `as of ${status.at.slice(11, 19)} UTC` + (status.stream_until ? `, stream until ${minute(status.stream_until)}` : "");
  } catch (error) {
    at("live").className = "lost";
    at("live").textContent = error instanceof TypeError ? "no answer; is exfm ui still running?" : error.message;
  }
}
async function poll() {
  if (!document.hidden) await look();
  setTimeout(poll, POLL_MS);
}
function again() { if (state.status) { showCurves(); if (state.comparison) showComparison(); } }

at("filter").addEventListener("input", () => state.status && showModels(state.status));
at("troubled").addEventListener("change", () => state.status && showModels(state.status));
at("task").addEventListener("change", () => { state.task = at("task").value; showModels(state.status); showCurves(); });
at("run").addEventListener("change", () => {
  Object.assign(state, {run: Number(at("run").value), status: null, chosen: null, history: {}, rows: new Map()});
  look();
});
at("compare").addEventListener("click", compareRuns);
dark.addEventListener("change", again);
let resized = 0;
addEventListener("resize", () => { clearTimeout(resized); resized = setTimeout(again, 150); });
ask("/api/runs").then(runs => {
  at("run").replaceChildren(...runs.map(run => new Option(run.label, run.run)));
  at("comparing-runs").hidden = runs.length < 2;
  at("choices").replaceChildren(...runs.map((run, index) => {
    const label = make("label"), box = make("input");
    Object.assign(box, {type: "checkbox", value: run.run, checked: index < 2});
    label.append(box, document.createTextNode(` ${run.label}`));
    return label;
  }));
  poll();
}).catch(error => { at("live").className = "lost"; at("live").textContent = error.message; });
