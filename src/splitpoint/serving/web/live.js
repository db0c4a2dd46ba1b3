"use strict";
const at = (id) => document.getElementById(id);
const token = new URLSearchParams(location.hash.slice(1)).get("token") || "";
const seconds = (value) => (value === null || value === undefined ? "–" : value.toFixed(2) + " s");
const history = [];
const dots = new Map();
const SVG = "http://www.w3.org/2000/svg";

function shape(parent, name, attributes, text) {
  const node = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text !== undefined) node.textContent = text;
  parent.append(node);
  return node;
}

function element(name, text, kind) {
  const node = document.createElement(name);
  if (text !== undefined) node.textContent = text;
  if (kind) node.className = kind;
  return node;
}

function line(row, steps) {
  const item = element("li");
  const who = element("span", row.user + ": " + row.prompt);
  who.title = who.textContent;
  const track = element("div", undefined, "track");
  const done = element("div", undefined, "done");
  done.style.width = (100 * row.done) / steps + "%";
  const gap = element("div");
  gap.style.width = (100 * (row.steps - row.done)) / steps + "%";
  const rest = element("div", undefined, "rest");
  rest.style.width = (100 * (steps - row.steps)) / steps + "%";
  track.append(done, gap, rest);
  item.append(who, track, element("span", row.done + " of " + row.steps, "number"));
  return item;
}

function drawTicks(view) {
  const plot = at("ticks");
  plot.replaceChildren();
  const now = view.time_s, most = Math.max(2, view.max_batch), x = (t) => 40 + (430 * (t - now + 120)) / 120, y = (b) => 140 - (125 * b) / most;
  for (const b of [0, Math.round(most / 2), most]) {
    shape(plot, "line", { x1: 40, x2: 470, y1: y(b), y2: y(b), class: "axis" });
    shape(plot, "text", { x: 34, y: y(b) + 4, "text-anchor": "end" }, b);
  }
  for (let i = 0; i < history.length; i++) {
    const [t, b] = history[i], end = i + 1 < history.length ? history[i + 1][0] : now;
    if (b) shape(plot, "rect", { x: Math.max(40, x(t)), y: y(b), width: Math.max(0.5, x(end) - Math.max(40, x(t))), height: 140 - y(b) });
  }
  for (const ago of [120, 60, 0]) shape(plot, "text", { x: x(now - ago), y: 160, "text-anchor": ago === 0 ? "end" : ago === 120 ? "start" : "middle" }, ago ? ago + " s ago" : "now");
}

function drawDots() {
  const plot = at("dots"), rows = [...dots.values()];
  plot.replaceChildren();
  const most = Math.max(1, ...rows.flat()) * 1.05, x = (s) => 50 + (420 * s) / most, y = (s) => 140 - (130 * s) / most;
  shape(plot, "line", { x1: 50, x2: 470, y1: 140, y2: 140, class: "axis" });
  shape(plot, "line", { x1: 50, x2: 50, y1: 10, y2: 140, class: "axis" });
  shape(plot, "line", { x1: x(0), y1: y(0), x2: x(most), y2: y(most), class: "same" });
  for (const [predicted, measured] of rows) shape(plot, "circle", { cx: x(predicted), cy: y(measured), r: 4, class: "dot" });
  shape(plot, "text", { x: 470, y: 160, "text-anchor": "end" }, "predicted, up to " + most.toFixed(1) + " s");
  shape(plot, "text", { x: 56, y: 20 }, "measured");
  if (!rows.length) shape(plot, "text", { x: 260, y: 80, "text-anchor": "middle" }, "after the first picture");
}

function show(view) {
  at("policy").textContent = view.policy;
  at("batch").textContent = view.batch.length;
  at("most").textContent = "of " + view.max_batch + " places";
  at("waiting").textContent = view.waiting.length;
  at("price").textContent = (1000 * view.price_s).toFixed(0) + " ms";
  at("p95p").textContent = seconds(view.p95_predicted_s);
  at("p95m").textContent = seconds(view.p95_measured_s);
  at("error").textContent = view.error_share === null ? "–" : (100 * view.error_share).toFixed(1) + " %";
  at("rows").replaceChildren(...view.batch.map((row) => line(row, view.num_steps)));
  at("nobody").hidden = view.batch.length > 0;
  history.push([view.time_s, view.batch.length]);
  while (history.length && history[0][0] < view.time_s - 125) history.shift();
  for (const row of view.finished) dots.set(row.id, [row.predicted_total_s, row.total_s]);
  while (dots.size > 200) dots.delete(dots.keys().next().value);
  drawTicks(view);
  drawDots();
  at("last").replaceChildren(...view.finished.slice().reverse().map((row) => {
    const tr = element("tr");
    tr.append(element("td", row.user), element("td", row.steps || "at home"), element("td", (1000 * row.price_s).toFixed(0) + " ms"), element("td", seconds(row.predicted_total_s)), element("td", seconds(row.total_s)));
    return tr;
  }));
  const shown = new Set([...at("pictures").children].map((node) => node.dataset.id));
  for (const picture of view.pictures) {
    if (shown.has(picture.id)) continue;
    const figure = element("figure"), image = element("img");
    image.src = "/pictures/" + picture.id + ".png?token=" + encodeURIComponent(token);
    image.alt = picture.prompt + ", by " + picture.user;
    figure.dataset.id = picture.id;
    figure.append(image, element("figcaption", picture.user + ": " + picture.prompt));
    at("pictures").prepend(figure);
  }
  while (at("pictures").children.length > 48) at("pictures").lastChild.remove();
  at("state").textContent = view.draining ? "closing" : "live, tick " + view.tick;
  at("state").className = "soft";
}

const events = new EventSource("/events?token=" + encodeURIComponent(token));
events.onmessage = (event) => show(JSON.parse(event.data));
events.onerror = () => {
  at("state").textContent = token ? "the edge does not answer; trying again" : "this page needs the token that the edge printed";
  at("state").className = "bad";
};
