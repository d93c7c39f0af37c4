// Is given the traits that widget.py sets from Snapshots; draws them, and asks the kernel to cancel or retry.
// One hand-written module: no build, no network. Text from the kernel is only ever set as text, never as markup.

const SUBMITTED = 16, RUNNING = 32, FAILED = 64, MOSTLY_FAILED = 128;
const MAP_HEIGHT = 132, CELL_MIN = 3, CELL_MAX = 22;

function make(tag, className = "", text = "") {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text) node.textContent = text;
  return node;
}

function put(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

const digits = new Intl.NumberFormat("en-US");

function many(items) {
  return `${digits.format(items)} item${items === 1 ? "" : "s"}`;
}

function seconds(value) {
  // A number stays with its unit.
  const whole = Math.round(value);
  if (value < 0.001) return `${+(value * 1e6).toPrecision(2)}\u00a0µs`;
  if (value < 0.995) return `${+(value * 1e3).toPrecision(2)}\u00a0ms`;
  if (value < 9.95) return `${value.toFixed(1)}\u00a0s`;
  if (whole < 60) return `${whole}\u00a0s`;
  if (whole < 3600) return `${Math.floor(whole / 60)}\u00a0min ${String(whole % 60).padStart(2, "0")}\u00a0s`;
  return `${(value / 3600).toFixed(1)}\u00a0h`;
}

/** Sizes a canvas to its place and returns its context in CSS pixels; null while it is not visible. */
function brush(canvas, height) {
  const width = canvas.clientWidth, scale = window.devicePixelRatio || 1;
  if (!width) return null;
  canvas.style.height = `${height}px`;
  canvas.width = Math.round(width * scale);
  canvas.height = Math.round(height * scale);
  const context = canvas.getContext("2d");
  context.scale(scale, scale);
  return { context, width };
}

/** The ways to the kernel, all taken at once: while a cell runs only the control channel is heard. */
function ask(model, what) {
  const content = { view: model.get("view"), ask: what };
  try {
    const kernel = model.widget_manager.kernel;
    // crypto.randomUUID is there with https only.
    const id = `${Date.now().toString(36)}-${Math.random().toString(36).slice(2)}`;
    const header = {
      msg_id: id, msg_type: "nbparallel_control", session: kernel.clientId, username: kernel.username ?? "",
      date: new Date().toISOString(), version: "5.3",
    };
    const message = { header, parent_header: {}, metadata: {}, content, buffers: [], channel: "control" };
    kernel.sendControlMessage(message, false, true);
  } catch { /* another front end: the comm is left */ }
  try { model.send(content); } catch { /* the comm is closed */ }
}

/** Completes the summary that took the widget's place in this page: a Retry button, which what is saved has not. */
function offerRetry(model, open) {
  const put = () => {
    for (const slot of document.querySelectorAll(`.nbp-again-${model.get("view")}`)) {
      if (slot.firstChild) continue;
      // It lists the failures in the same order: what a person reads stays open.
      slot.parentNode.parentNode.querySelectorAll("details").forEach((node, i) => { node.open = open[i] ?? false; });
      const button = make("button", "nbp-again", "Retry failed");
      button.type = "button";
      button.style.cssText = 
        "margin-left:8px;padding:1px 12px;font:inherit;color:inherit;background:none;border:1px solid rgba(128,128,128,.6);border-radius:4px;cursor:pointer";
      button.addEventListener("click", () => { button.disabled = true; ask(model, "retry"); });
      slot.append(button);
      return true;
    }
  };
  const until = Date.now() + 3000;
  const look = () => { if (!put() && Date.now() < until) setTimeout(look, 50); };
  look();
}

/** After a reload in mid-run nobody told this page of the end: it puts the summary into the notebook itself. */
function leaveSummary(model) {
  const { data, model: id } = model.get("final");
  if (!data) return;
  try {
    for (const cell of model.widget_manager.context.model.cells) {
      for (let i = 0; i < (cell.outputs?.length ?? 0); i++) {
        const output = cell.outputs.get(i);
        if (output.data["application/vnd.jupyter.widget-view+json"]?.model_id === id) output.setData({ data });
      }
    }
  } catch { /* another front end: the widget stays and shows the end */ }
}

// ---- the map ---------------------------------------------------------------------------------------------------

function layout(count, width) {
  let size = Math.floor(Math.sqrt((width * MAP_HEIGHT) / Math.max(count, 1)));
  size = Math.min(CELL_MAX, Math.max(CELL_MIN, size));
  let columns = Math.max(1, Math.floor(width / size));
  while (size > CELL_MIN && Math.ceil(count / columns) * size > MAP_HEIGHT) columns = Math.floor(width / --size);
  // A map of several rows ends where the bar above it does.
  const rows = Math.ceil(count / columns);
  return { size, columns, rows, step: rows > 1 ? width / columns : size };
}

function drawMap(canvas, cells, colours) {
  const { size, columns, rows, step } = layout(cells.length, canvas.clientWidth);
  const drawn = brush(canvas, rows * size);
  if (!drawn) return;
  const { context } = drawn, gap = size > 5 ? 1 : size > 3 ? 0.5 : 0, side = size - gap;
  const left = Array.from({ length: columns + 1 }, (_, column) => Math.round(column * step));
  for (let i = 0; i < cells.length; i++) {
    const cell = cells[i], level = cell & 15;
    const x = left[i % columns], y = Math.floor(i / columns) * size, wide = left[(i % columns) + 1] - x - gap;
    if (level < 15) {
      context.fillStyle = cell & RUNNING ? colours.running : cell & SUBMITTED ? colours.waiting : colours.unsent;
      context.fillRect(x, y, wide, side);
      if (cell & RUNNING && size >= 6) {
        context.fillStyle = colours.mark;
        context.fillRect(x + wide / 3, y + side / 3, wide / 3, side / 3);
      }
    }
    if (!level) continue;
    const height = (side * level) / 15, bottom = y + side;
    context.fillStyle = cell & MOSTLY_FAILED ? colours.failed : colours.done;
    context.fillRect(x, bottom - height, wide, height);
    if (cell & MOSTLY_FAILED) {
      if (size >= 6) stroke(context, x + (wide - side) / 2, y, side, colours.mark);
    } else if (cell & FAILED) {
      // A corner, with an edge that is seen without its colour.
      const corner = Math.max(2, side * 0.6);
      context.fillStyle = colours.mark;
      context.fillRect(x, bottom - corner, corner, corner);
      context.fillStyle = colours.failed;
      context.fillRect(x, bottom - corner + 1, corner - 1, corner - 1);
    }
  }
}

function stroke(context, x, y, side, colour) {
  context.strokeStyle = colour;
  context.lineWidth = Math.max(1, side / 7);
  context.beginPath();
  context.moveTo(x + side * 0.25, y + side * 0.75);
  context.lineTo(x + side * 0.75, y + side * 0.25);
  context.stroke();
}

function cellWords(cell) {
  const level = cell & 15;
  const words = [level === 15 ? "done" : cell & RUNNING ? "running" : level ? "partly done"
    : cell & SUBMITTED ? "waiting" : "not sent yet"];
  if (cell & FAILED) words.push(cell & MOSTLY_FAILED ? "failed" : "with failures");
  return words.join(", ");
}

// ---- lanes and durations ---------------------------------------------------------------------------------------

function drawLane(canvas, busy, offset, count, pieces, colours) {
  const drawn = brush(canvas, 14);
  if (!drawn) return;
  const { context, width } = drawn, step = width / pieces;
  context.fillStyle = colours.unsent;
  context.fillRect(0, 0, width, 14);
  context.fillStyle = colours.done;
  for (let i = 0; i < count; i++) {
    const height = (14 * busy[offset + i]) / 255;
    context.fillRect(i * step, 14 - height, step + 0.4, height);
  }
}

function drawDurations(canvas, counts, colours) {
  const drawn = brush(canvas, 56);
  if (!drawn) return;
  const { context, width } = drawn, most = Math.max(1, ...counts), step = Math.min(width / counts.length, 28);
  counts.forEach((count, i) => {
    // One item is seen beside a million.
    const height = count ? Math.max(3, (54 * count) / most) : 1;
    context.fillStyle = count ? colours.done : colours.waiting;
    context.fillRect(i * step, 55 - height, Math.max(1, step - 2), height);
  });
  return step * counts.length;
}

// ---- tracebacks ------------------------------------------------------------------------------------------------

const PYTHON = new RegExp(
  "(?<comment>#.*$)|(?<string>[rbfu]{0,2}(?:\"(?:[^\"\\\\]|\\\\.)*\"|'(?:[^'\\\\]|\\\\.)*'))|(?<keyword>\\b(?:and|as|assert|async" +
  "|await|break|class|continue|def|del|elif|else|except|False|finally|for|from|global|if|import|in|is|lambda|None|nonlocal" +
  "|not|or|pass|raise|return|True|try|while|with|yield)\\b)", "g");

function traceback(text) {
  const pre = make("pre");
  pre.tabIndex = 0;
  const add = (words, kind) => pre.append(kind ? make("span", kind, words) : words);
  for (const line of text.replace(/\n+$/, "").split("\n")) {
    if (/^\s+(File "|Cell In\[)/.test(line)) add(line, "nbp-file");
    else if (/^\s*[\^~]+\s*$/.test(line) || /^\S/.test(line) && !/^(Traceback|The above|During|…)/.test(line)) add(line, "nbp-error");
    else if (/^\s/.test(line)) {
      let end = 0;
      for (const match of line.matchAll(PYTHON)) {
        add(line.slice(end, match.index));
        add(match[0], `nbp-${Object.keys(match.groups).find((kind) => match.groups[kind] !== undefined)}`);
        end = match.index + match[0].length;
      }
      add(line.slice(end));
    } else add(line);
    pre.append("\n");
  }
  return pre;
}

// ---- failures and output ---------------------------------------------------------------------------------------

/** Updates the list in place, so that what was opened stays open and keeps its focus. */
function drawFailures(list, groups, known) {
  const keys = new Set(groups.map((group) => group.key));
  for (const [key, node] of known) if (!keys.has(key)) { node.remove(); known.delete(key); }
  groups.forEach((group, place) => {
    let node = known.get(group.key);
    if (!node) {
      node = make("details", "nbp-group");
      const summary = make("summary");
      node.append(summary);
      const [index, item, message] = group.examples[0];
      summary.append(make("span", "nbp-many"), " ", make("b", "", group.type), `: ${message} `,
        make("span", "nbp-where", `item ${digits.format(index)}${item ? ` (${item})` : ""}${group.place ? ` · ${group.place}` : ""}`));
      node.addEventListener("toggle", () => fill(node));
      known.set(group.key, node);
    }
    node.group = group;
    put(node.querySelector(".nbp-many"), digits.format(group.many));
    if (node.open && node.shown !== group.examples.length) fill(node);
    if (list.children[place] !== node) list.insertBefore(node, list.children[place] ?? null);
  });
}

function fill(node) {
  const { examples, many, traceback: text } = node.group;
  if (!node.open || node.shown === examples.length) return;
  node.shown = examples.length;
  if (node.children.length === 1) node.append(text ? traceback(text) : make("p", "", "No traceback came with it."));
  while (node.children.length > 2) node.lastChild.remove(); // the traceback stays, wherever it is scrolled to
  const table = make("table", "nbp-examples");
  const head = table.createTHead().insertRow();
  for (const words of ["item", "value", "message"]) head.append(make("th", "", words));
  for (const cell of head.cells) cell.scope = "col";
  const body = table.createTBody();
  for (const [index, item, message] of [...examples].sort((one, other) => one[0] - other[0])) {
    const row = body.insertRow();
    row.insertCell().textContent = digits.format(index);
    row.insertCell().append(make("code", "", item));
    row.insertCell().textContent = message;
  }
  node.append(table);
  if (many > examples.length) node.append(make("span", "nbp-where", `and ${digits.format(many - examples.length)} more`));
}

function drawOutput(pre, entries) {
  const atEnd = pre.parentNode.scrollHeight - pre.parentNode.scrollTop - pre.parentNode.clientHeight < 8;
  pre.replaceChildren();
  for (const [index, stream, text] of entries) {
    const kind = stream === "stderr" ? "nbp-stderr" : stream === "stdout" ? "" : "nbp-noted";
    pre.append(make("span", kind, `item ${digits.format(index)}${stream === "stdout" ? "" : ` · ${stream}`}`),
      make("code", "", text.replace(/\n$/, "")));
  }
  if (atEnd) pre.parentNode.scrollTop = pre.parentNode.scrollHeight;
}

// ---- the whole -------------------------------------------------------------------------------------------------

function build(root) {
  const parts = { root };
  const place = (name, node, parent = root) => { parts[name] = node; parent.append(node); return node; };
  const section = (name, words) => {
    const panel = place(`${name}Panel`, make("section"), parts.panels);
    panel.append(make("h4", "", words));
    return panel;
  };
  root.className = "nbp";
  root.setAttribute("role", "group");
  const top = place("top", make("div", "nbp-top"));
  place("name", make("span", "nbp-name"), top);
  place("state", make("span", "nbp-state"), top);
  const buttons = place("buttons", make("span", "nbp-buttons"), top);
  for (const [name, words] of [["retry", "Retry failed"], ["cancel", "Cancel"]]) {
    place(name, make("button", "", words), buttons).type = "button";
  }
  place("bar", make("div", "nbp-bar")).setAttribute("role", "progressbar");
  for (const kind of ["done", "failed", "running"]) place(`bar_${kind}`, make("span", `nbp-is-${kind}`), parts.bar);
  const numbers = place("numbers", make("div", "nbp-numbers"));
  place("facts", make("ul", "nbp-facts"), numbers);
  place("pace", make("ul", "nbp-facts"), numbers);
  place("reason", make("div", "nbp-reason"));
  const map = place("mapPanel", make("div", "nbp-map"));
  place("map", make("canvas"), map).setAttribute("role", "img");
  const under = place("under", make("div", "nbp-under"), map);
  place("mapWords", make("span"), under);
  place("mapCell", make("span"), under);
  place("panels", make("div", "nbp-panels"));
  place("lanes", make("div", "nbp-lanes"), section("lanes", "Workers, and how busy they were"));
  place("moreLanes", make("div", "nbp-slowest"), parts.lanesPanel);
  const times = section("times", "Running time of items");
  place("times", make("canvas"), times).setAttribute("role", "img");
  const ends = place("timesEnds", make("div", "nbp-under"), times);
  place("timesLow", make("span"), ends);
  place("timesHigh", make("span"), ends);
  place("slowest", make("div", "nbp-slowest"), times);
  for (const [name, label] of [["failures", "Failures by type and place"], ["output", "What the items wrote"]]) {
    const box = place(`${name}Box`, make("details", `nbp-section nbp-${name}`));
    place(`${name}Title`, make("summary"), box);
    const scroll = place(`${name}Scroll`, make("div", "nbp-scroll"), box);
    scroll.tabIndex = 0;
    scroll.setAttribute("role", "region");
    scroll.setAttribute("aria-label", label);
  }
  parts.failuresBox.open = true;
  place("output", make("pre"), parts.outputScroll);
  place("said", make("div", "nbp-quiet")).setAttribute("aria-live", "polite");
  return parts;
}

function drawFacts(list, facts) {
  while (list.children.length > facts.length) list.lastChild.remove();
  facts.forEach(([kind, value, label], i) => {
    let item = list.children[i];
    if (!item) {
      item = make("li");
      item.append(make("i"), make("b"), make("span"));
      list.append(item);
    }
    const [mark, number, text] = item.children;
    mark.hidden = !kind;
    mark.className = `nbp-is-${kind}`;
    put(number, value);
    put(text, label);
  });
}

function drawHead(parts, head) {
  const { counts, words } = head;
  put(parts.name, head.name);
  put(parts.state, words.state);
  parts.root.setAttribute("aria-label", `Job ${head.name}`);
  const whole = head.total ?? Math.max(counts.done + counts.running, 1);
  const share = (count) => `${whole ? (100 * count) / whole : 0}%`;
  const endless = head.total === null && !head.finished;
  parts.bar.classList.toggle("nbp-endless", endless && counts.running > 0);
  parts.bar_done.style.width = endless ? "0" : share(counts.done - counts.failed);
  parts.bar_failed.style.width = endless ? "0" : share(counts.failed);
  parts.bar_running.style.width = endless ? (counts.running ? "30%" : "0") : share(counts.running);
  parts.bar.setAttribute("aria-valuetext", words.aria);
  if (endless) parts.bar.removeAttribute("aria-valuenow");
  else parts.bar.setAttribute("aria-valuenow", whole ? Math.round((100 * counts.done) / whole) : 100);
  parts.bar.setAttribute("aria-label", `Progress of ${head.name}`);

  drawFacts(parts.facts, words.facts);
  drawFacts(parts.pace, words.times);
  put(parts.reason, head.reason);
  parts.reason.hidden = !head.reason;
  // Read aloud: each quarter and the end, not each tenth of a second.
  const quarter = head.total ? Math.floor((4 * counts.done) / head.total) : 0;
  const step = `${head.state} ${quarter} ${head.reason}`;
  if (parts.step !== step) { parts.step = step; put(parts.said, words.aria); }
}

function drawLanes(parts, head, lanes, busy, colours) {
  parts.lanesPanel.hidden = !lanes.length;
  const rows = parts.lanes.children;
  while (rows.length > 3 * lanes.length) parts.lanes.lastChild.remove();
  let offset = 0;
  // Grows by steps, so that what was drawn does not creep.
  const longest = Math.max(...lanes.map((lane) => lane[4]), head.elapsed / head.lane_seconds);
  const pieces = Math.max(10, Math.ceil(longest / 5) * 5);
  lanes.forEach(([label, item, heard, items, count], i) => {
    if (!rows[3 * i]) parts.lanes.append(make("span"), make("canvas"), make("span", "nbp-now"));
    const since = Math.max(0, head.elapsed - heard);
    put(rows[3 * i], label);
    put(rows[3 * i + 2], item === null ? many(items) : `item ${digits.format(item)}${since > 1 ? `, ${seconds(since)}` : ""}`);
    rows[3 * i + 1].setAttribute("role", "img");
    rows[3 * i + 1].setAttribute("aria-label", `${label}: ${many(items)} done`);
    drawLane(rows[3 * i + 1], busy, offset, count, pieces, colours);
    offset += count;
  });
  put(parts.moreLanes, head.more_lanes ? `and ${head.more_lanes} more` : "");
}

function render({ model, el }) {
  const parts = build(make("div"));
  el.append(parts.root);
  const known = new Map(), dirty = new Set(["head", "cells", "lanes", "failures", "output"]);
  let home = null;
  let frame = 0, colours = null, asked = "";

  const bytes = (name) => { const view = model.get(name); return new Uint8Array(view.buffer ?? view, view.byteOffset ?? 0, view.byteLength); };
  const draw = () => {
    frame = 0;
    if (!colours) {
      parts.root.dataset.dark = String(isDark());
      const style = getComputedStyle(parts.root);
      colours = Object.fromEntries(["done", "running", "failed", "waiting", "unsent", "mark"].map(
        (name) => [name, style.getPropertyValue(`--nbp-${name}`).trim()]));
    }
    const head = model.get("head"), cells = bytes("cells");
    if (!head.words) return;
    if (dirty.has("head")) drawHead(parts, head);
    if (head.finished) asked = "";
    parts.cancel.hidden = head.finished;
    parts.cancel.disabled = asked === "cancel";
    put(parts.cancel, asked === "cancel" ? "Cancelling…" : "Cancel");
    parts.retry.hidden = !head.retry;
    parts.retry.disabled = asked === "retry";
    parts.mapPanel.hidden = !cells.length;
    if (dirty.has("cells") && cells.length) {
      drawMap(parts.map, cells, colours);
      put(parts.mapWords, head.cell_items === 1 ? "each square is one item" : `each square is ${digits.format(head.cell_items)} items`);
      parts.map.setAttribute("aria-label", `Map of the job. ${head.words.aria}`);
    }
    if (dirty.has("lanes")) {
      const durations = head.durations;
      parts.timesPanel.hidden = !durations.length;
      drawLanes(parts, head, model.get("lanes"), bytes("busy"), colours);
      if (durations.length) {
        const width = drawDurations(parts.times, durations, colours);
        parts.timesEnds.style.maxWidth = width ? `${Math.max(width, 110)}px` : "";
        put(parts.timesLow, seconds(head.durations_low));
        put(parts.timesHigh, seconds(head.durations_high));
        put(parts.slowest, head.slowest.length ? `slowest: ${head.slowest.map(([index, time]) => `item\u00a0${digits.format(index)} (${seconds(time)})`).join(", ")}` : "");
        parts.times.setAttribute("aria-label", `Items took between ${seconds(head.durations_low)} and ${seconds(head.durations_high)}`);
      }
      parts.panels.hidden = parts.lanesPanel.hidden && parts.timesPanel.hidden;
    }
    if (dirty.has("failures")) {
      const groups = model.get("failures");
      parts.failuresBox.hidden = !groups.length;
      drawFailures(parts.failuresScroll, groups, known);
    }
    put(parts.failuresTitle, `${digits.format(head.counts.failed)} failed${head.more_failures ? `, ${digits.format(head.more_failures)} of more kinds than are listed` : ""}`);
    if (dirty.has("output")) {
      const entries = model.get("output");
      parts.outputBox.hidden = !entries.length;
      drawOutput(parts.output, entries);
    }
    put(parts.outputTitle, `Output of items${head.output_cut ? `: the last of it, ${digits.format(head.output_cut)} characters are cut` : ""}`);
    dirty.clear();
  };
  const later = (...names) => {
    for (const name of names) dirty.add(name);
    frame ||= requestAnimationFrame(draw);
  };
  const all = () => { colours = null; later("head", "cells", "lanes", "failures"); };

  const changes = [["head", "lanes"], ["cells"], ["busy", "lanes"], ["failures"], ["output"]].map(
    (names) => [`change:${names[0]}`, () => later(...names)]);
  for (const [name, handler] of changes) model.on(name, handler);
  for (const what of ["cancel", "retry"]) {
    parts[what].addEventListener("click", () => { asked = what; ask(model, what); later("head"); });
  }
  parts.root.addEventListener("focusin", () => { home = parts.root.closest(".jp-Notebook"); });
  parts.root.addEventListener("focusout", (event) => { if (event.relatedTarget && !parts.root.contains(event.relatedTarget)) home = null; });
  parts.map.addEventListener("mousemove", (event) => {
    const cells = bytes("cells"), { cell_items: each, total } = model.get("head");
    const { size, columns, step } = layout(cells.length, parts.map.clientWidth);
    const column = Math.floor(event.offsetX / step), i = Math.floor(event.offsetY / size) * columns + column;
    const last = Math.min((i + 1) * each, total ?? Infinity) - 1;
    const range = i * each === last ? `item ${digits.format(last)}` : `items ${digits.format(i * each)}–${digits.format(last)}`;
    put(parts.mapCell, column < columns && i < cells.length ? `${range}: ${cellWords(cells[i])}` : "");
  });
  parts.map.addEventListener("mouseleave", () => put(parts.mapCell, ""));

  // The kernel replaces the output itself, in every page that it knows of.
  let timer = 0;
  const finish = () => { clearTimeout(timer); timer = setTimeout(() => leaveSummary(model), 1500); };
  const sizes = new ResizeObserver(() => later("cells", "lanes"));
  sizes.observe(parts.root);
  const themes = new MutationObserver(all);
  themes.observe(document.body, { attributes: true, attributeFilter: ["data-jp-theme-light", "data-jp-theme-name", "class"] });
  const system = window.matchMedia("(prefers-color-scheme: dark)");
  system.addEventListener("change", all);
  model.on("change:final", finish);
  later();
  finish();

  return () => {
    model.off("change:final", finish);
    clearTimeout(timer);
    offerRetry(model, Array.from(parts.failuresScroll.children, (node) => node.open));
    // What had the focus is gone: the notebook goes on hearing the keyboard.
    if (home && document.activeElement === document.body) home.focus();
    cancelAnimationFrame(frame);
    sizes.disconnect();
    themes.disconnect();
    system.removeEventListener("change", all);
    for (const [name, handler] of changes) model.off(name, handler);
  };
}

function isDark() {
  const light = document.body.dataset.jpThemeLight;
  return light === undefined ? window.matchMedia("(prefers-color-scheme: dark)").matches : light === "false";
}

export default { render };
