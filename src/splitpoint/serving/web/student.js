// The page of one student: joins, loads the student's own model, measures it, asks, and lets the worker draw the last steps.
import { machineName, profileFiles } from "./profile.js";

const at = (id) => document.getElementById(id);
const EVERY = 4; // steps between two looks at the picture
let token = "", name = "", facts = null, worker = null, loaded = null, seed = Math.floor(Math.random() * 1e6);
let current = null; // the request that is under way: {answer, style, began, controller, …}

// --- the edge ---

async function send(path, options = {}) {
  const headers = token ? { Authorization: "Bearer " + token } : {};
  const answer = await fetch(path, { ...options, headers: { ...headers, ...options.headers } });
  if (!answer.ok) throw Object.assign(new Error((await answer.json().catch(() => ({}))).error || "status " + answer.status), { status: answer.status });
  return answer;
}

const json = async (path, options) => (await send(path, options)).json();
const post = (path, body, headers) => send(path, { method: "POST", body: JSON.stringify(body), headers });

function say(text, bad) {
  at("state").textContent = text;
  at("state").className = bad ? "bad" : "soft";
}

// --- what is kept for a reload: who this is for as long as the tab lives, and the packet until its picture is there ---

const stored = () => new Promise((resolve, reject) => {
  const asked = indexedDB.open("splitpoint", 1);
  asked.onupgradeneeded = () => asked.result.createObjectStore("packets");
  asked.onsuccess = () => resolve(asked.result);
  asked.onerror = () => reject(asked.error);
});

async function packets(mode, action) {
  try {
    const base = await stored();
    return await new Promise((resolve, reject) => {
      const asked = action(base.transaction("packets", mode).objectStore("packets"));
      asked.onsuccess = () => resolve(asked.result);
      asked.onerror = () => reject(asked.error);
    }).finally(() => base.close());
  } catch { // a private window keeps nothing; then a reload cannot go on
    return undefined;
  }
}

async function keep(record) {
  if (await packets("readwrite", (store) => store.put(record, record.answer.id)) !== undefined) sessionStorage.setItem("packet", record.answer.id);
}

async function forget(id) {
  sessionStorage.removeItem("packet");
  await packets("readwrite", (store) => store.delete(id));
}

// --- the worker ---

const waiting = new Map(); // kind of answer -> [resolve, reject, when something happens on the way]

function ask(message, kind, onTheWay = () => {}) {
  return new Promise((resolve, reject) => {
    waiting.set(kind, [resolve, reject, onTheWay]);
    worker.postMessage(message);
  });
}

function startWorker() {
  worker = new Worker("/device_worker.js", { type: "module" });
  worker.onmessage = ({ data }) => {
    if (data.kind === "failed" || data.kind === "cancelled") {
      const kind = { load: "loaded", measure: "measured", look: "looked", draw: "drawn" }[data.during ?? "draw"];
      const [, reject] = waiting.get(kind) ?? [];
      waiting.delete(kind);
      reject?.(new Error(data.text ?? "cancelled"));
    } else if (waiting.has(data.kind)) {
      waiting.get(data.kind)[0](data);
      waiting.delete(data.kind);
    } else for (const [, , onTheWay] of waiting.values()) onTheWay(data);
  };
  worker.onerror = () => { for (const [, reject] of waiting.values()) reject(new Error("this browser cannot compute the steps")); waiting.clear(); };
}

function median(values) {
  const sorted = [...values].sort((x, y) => x - y);
  return sorted[Math.floor(sorted.length / 2)];
}

/** Load a style and measure the device with it; the edge hears of this speed. */
async function load(style) {
  const mine = (loaded = { style, ready: false });
  at("go").disabled = true;
  at("loading").hidden = false;
  at("measured").textContent = "Your model is on its way …";
  try {
    await ask({ kind: "load", facts: facts.browser, style }, "loaded", (data) => { if (data.kind === "loading") at("loading").value = data.share; });
    at("measured").textContent = "Measuring a few steps …";
    const { step_s, decode_s } = await ask({ kind: "measure" }, "measured");
    if (loaded !== mine) return;
    Object.assign(mine, { ready: true, step_s: median(step_s), decode_s });
    showSpeed();
    at("profile").hidden = false;
    at("go").disabled = current !== null;
  } catch (error) {
    if (loaded !== mine) return;
    drawnByEdge("Your browser cannot run the model (" + error.message + ").");
  }
  at("loading").hidden = true;
}

const real = () => loaded.step_s + (at("grow").checked ? loaded.decode_s / EVERY : 0);

function showSpeed() {
  at("step").value = real().toFixed(3);
  at("measured").textContent = "Measured: a step takes this device " + (1000 * loaded.step_s).toFixed(0) + " ms, a picture " + (1000 * loaded.decode_s).toFixed(0) + " ms.";
}

// --- for browsers that cannot: the machine of the edge plays this device, at the speed that a matrix product has here ---

function measureStep() {
  const n = 160, a = new Float32Array(n * n).fill(0.5), b = new Float32Array(n * n).fill(0.25), c = new Float32Array(n * n);
  const product = () => {
    for (let i = 0; i < n; i++) for (let k = 0; k < n; k++) {
      const value = a[i * n + k];
      for (let j = 0; j < n; j++) c[i * n + j] += value * b[k * n + j];
    }
  };
  product();
  const times = Array.from({ length: 7 }, () => { const began = performance.now(); product(); return performance.now() - began; });
  return Math.min(2, Math.max(0.02, (median(times) / 1000 * 3e8) / (2 * n ** 3)));
}

function drawnByEdge(why) {
  worker?.terminate();
  worker = null;
  loaded = { ready: true, step_s: measureStep(), decode_s: 0 };
  at("grow").checked = false;
  at("growing").hidden = at("loading").hidden = at("profile").hidden = true;
  at("step").value = loaded.step_s.toFixed(3);
  at("measured").textContent = why + " The edge's machine draws your last steps, at the speed of this browser: about " + (1000 * loaded.step_s).toFixed(0) + " ms a step.";
  at("go").disabled = current !== null;
}

// --- joining ---

async function enter() {
  facts = await json("/v1/classroom");
  at("style").replaceChildren(...facts.styles.map((style) => new Option(style, style)));
  at("style").value = sessionStorage.getItem("style") ?? facts.styles[0];
  at("concepts").replaceChildren(...facts.concepts.map((concept) => new Option(concept)));
  at("joining").hidden = true;
  at("device").hidden = at("drawing").hidden = false;
  at("machine").value = machineName();
  say("joined as " + name);
  if (!facts.browser || typeof WebAssembly === "undefined") {
    drawnByEdge(facts.browser ? "This browser has no WebAssembly." : "This edge has no models for browsers.");
    return;
  }
  startWorker();
  await load(at("style").value);
}

at("join").addEventListener("submit", async (event) => {
  event.preventDefault();
  try {
    const joined = await (await post("/v1/join", { code: at("code").value, name: at("name").value })).json();
    ({ token, name } = joined);
    sessionStorage.setItem("who", JSON.stringify({ token, name }));
    at("prompt").focus();
    await enter();
    at("prompt").focus();
  } catch (error) {
    say(error.message, true);
  }
});

at("style").addEventListener("change", () => {
  sessionStorage.setItem("style", at("style").value);
  if (worker) load(at("style").value);
});
at("grow").addEventListener("change", () => { if (loaded?.ready) showSpeed(); });

// --- one picture ---

function show(canvas, { width, height, pixels }) {
  Object.assign(at(canvas), { width, height });
  at(canvas).getContext("2d").putImageData(new ImageData(pixels, width, height), 0, 0);
}

const tell = (text) => { at("doing").textContent = text; };

/** The end of a request: what was predicted beside what was measured. */
function compare(predicted, measured) {
  const names = { edge_s: "the edge", transfer_s: "hand-over", device_s: "your device", decode_s: "picture", total_s: "all" };
  at("times").tBodies[0].replaceChildren(...Object.entries(names).map(([key, text]) => {
    const row = document.createElement("tr");
    for (const part of [text, predicted[key]?.toFixed(2) ?? "–", measured[key]?.toFixed(2) ?? "–"]) row.append(Object.assign(document.createElement("td"), { textContent: part }));
    return row;
  }));
  at("times").hidden = false;
  tell("");
  at("result").textContent = "Predicted " + predicted.total_s.toFixed(1) + " s, measured " + measured.total_s.toFixed(1) + " s.";
}

function clear() {
  at("answer").hidden = false;
  at("answer").scrollIntoView({ block: "nearest", behavior: matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth" });
  for (const id of ["arrived", "mine", "times", "steps"]) at(id).hidden = true;
  for (const id of ["decision", "doing", "result"]) at(id).textContent = "";
  at("go").disabled = true;
  at("style").disabled = true;
}

at("ask").addEventListener("submit", async (event) => {
  event.preventDefault();
  clear();
  const request = { prompt: at("prompt").value, seed: seed++, device_step_s: Number(at("step").value), alpha: Number(at("alpha").value) };
  current = { style: at("style").value, began: Date.now(), controller: new AbortController(), pace_s: at("step").value === real().toFixed(3) ? 0 : request.device_step_s };
  tell("asking …");
  await finished(async () => {
    const key = "page-" + seed + "-" + Math.random().toString(36).slice(2);
    const answer = (current.answer = await (await post("/v1/requests", request, { "Idempotency-Key": key })).json());
    Object.assign(current, { prompt: request.prompt, seed: request.seed });
    at("cancel").hidden = false;
    decision(answer);
    return worker ? drawnHere() : drawnThere();
  });
});

function decision(answer) {
  at("decision").textContent = (answer.granted
    ? "Granted: " + answer.steps + " of " + answer.num_steps + " steps on the edge, " + answer.split_point + " on your device."
    : "Not granted: all " + answer.num_steps + " steps on your device.") + " One more member cost the others " + (1000 * answer.price_s).toFixed(0) + " ms a step.";
}

/** Run one request to its end, whatever that is, and make the page ready for the next one. */
async function finished(draw) {
  let failed = "";
  try {
    await draw();
  } catch (error) {
    tell("");
    failed = error.name === "AbortError" || error.message === "cancelled" ? "Cancelled." : error.message;
    if (current.answer) {
      await forget(current.answer.id);
      send("/v1/requests/" + current.answer.id, { method: "DELETE" }).catch(() => {});
    }
  }
  current = null;
  for (const id of ["cancel", "steps"]) at(id).hidden = true;
  at("go").disabled = !loaded?.ready;
  at("style").disabled = false;
  if (failed) at("result").textContent = failed; // last: whoever reads it may ask again
}

/** The packet: from the edge at its own step, or with no step done from this request's noise. */
async function packetOf(answer) {
  const options = { signal: current.controller.signal }, path = "/v1/requests/" + answer.id;
  if (!answer.granted) return { content: await (await send(path + "/whole", options)).arrayBuffer(), spans: {} };
  tell("the edge takes the first " + answer.steps + " steps …");
  for (;;) { // hold: the edge drops the request if this connection closes
    const found = await send(path + "/packet?wait=20&hold=1", options);
    if (found.status === 200) return { content: await found.arrayBuffer(), spans: JSON.parse(found.headers.get("x-spans") ?? "{}") };
  }
}

async function drawnHere() {
  const { answer } = current, options = { signal: current.controller.signal };
  const [{ content, spans }, tokens, table] = await Promise.all([
    packetOf(answer), json("/v1/requests/" + answer.id + "/tokens", options), json("/v1/tables/" + encodeURIComponent(answer.scheduler), options)]);
  const edge_s = ["queue_s", "steps_s", "hand_over_s"].reduce((sum, part) => sum + (spans[part] ?? 0), 0);
  const transfer_s = answer.granted ? Math.max(0, (Date.now() - current.began) / 1000 - edge_s - (spans.held_s ?? 0)) : 0;
  Object.assign(current, { content, tokens, table, edge_s, transfer_s });
  const { controller, ...record } = current;
  await keep(record);
  await lastSteps();
}

/** The part that a saved packet goes on with after a reload. */
async function lastSteps() {
  const { answer, content, tokens, table, style, seed, pace_s } = current, left = answer.split_point;
  at("steps").max = Math.max(1, left);
  at("steps").value = 0;
  at("steps").hidden = false;
  const looked = await ask({ kind: "look", content }, "looked");
  show("start", looked.picture);
  at("arrived").hidden = false;
  at("by").textContent = "drawn by your device, seed " + seed;
  current.controller.signal.throwIfAborted();
  at("picture").setAttribute("aria-label", current.prompt + " in the style " + style);
  tell("your device takes " + left + " steps …");
  const drawn = await ask({ kind: "draw", content, tokens, table, pace_s, every: at("grow").checked ? EVERY : 0 }, "drawn", (data) => {
    if (data.kind !== "stepped") return;
    at("steps").value = data.step - answer.steps;
    if (data.picture) {
      show("picture", data.picture);
      at("mine").hidden = false;
    }
  });
  show("picture", drawn.picture);
  at("mine").hidden = false;
  const { device_s, late_steps } = drawn, decode_s = looked.decode_s + drawn.decode_s;
  const measured = { transfer_s: current.transfer_s, device_s, decode_s, total_s: (Date.now() - current.began) / 1000, late_steps };
  if (drawn.step_s.length && !pace_s) {
    Object.assign(loaded, { step_s: median(drawn.step_s), decode_s: drawn.decode_s }); // the next request is planned with what this one took
    showSpeed();
  }
  await acknowledge(measured);
  compare(answer.predicted, { ...measured, edge_s: current.edge_s });
}

async function acknowledge(measured) {
  const { id } = current.answer, picture = await new Promise((resolve) => at("picture").toBlob(resolve, "image/png"));
  await forget(id);
  try {
    await send("/v1/requests/" + id + "/picture", { method: "POST", body: picture });
    await post("/v1/requests/" + id + "/ack", measured);
  } catch (error) {
    if (!error.status) say("the picture is here, but the edge does not answer", true); // a status: the edge has forgotten this one
  }
}

async function drawnThere() {
  const { answer, style, prompt } = current;
  tell("waiting for the picture …");
  const got = await send("/v1/requests/" + answer.id + "/draw?style=" + encodeURIComponent(style), { method: "POST", signal: current.controller.signal });
  const image = await createImageBitmap(await got.blob());
  Object.assign(at("picture"), { width: image.width, height: image.height }).getContext("2d").drawImage(image, 0, 0);
  at("picture").setAttribute("aria-label", prompt + " in the style " + style);
  at("by").textContent = "drawn by the edge's machine, seed " + current.seed;
  at("mine").hidden = false;
  compare(answer.predicted, { total_s: (Date.now() - current.began) / 1000 });
}

at("cancel").addEventListener("click", () => {
  current?.controller.abort();
  worker?.postMessage({ kind: "cancel" });
});

addEventListener("pagehide", () => { // whoever leaves while the edge computes gives the place back; a packet that is here is kept for a reload
  if (current?.answer && !current.content) fetch("/v1/requests/" + current.answer.id, { method: "DELETE", keepalive: true, headers: { Authorization: "Bearer " + token } });
});

// --- the profile ---

at("profiling").addEventListener("click", async () => {
  at("profiling").disabled = at("go").disabled = true;
  at("files").textContent = "measuring …";
  try {
    const measured = [];
    for (const batch of [1, 2, 4, 8]) measured.push(await ask({ kind: "measure", batch, repeats: 12 }, "measured"));
    const links = profileFiles(at("machine").value || machineName(), measured, facts.browser).map(([file, content, type]) =>
      Object.assign(document.createElement("a"), { href: URL.createObjectURL(new Blob([content], { type })), download: file, textContent: file }));
    at("files").replaceChildren("Save ", links[0], " and ", links[1], ".");
  } catch (error) {
    at("files").textContent = error.message;
  }
  at("profiling").disabled = false;
  at("go").disabled = current !== null;
});

// --- after a reload ---

async function goOn() {
  const who = JSON.parse(sessionStorage.getItem("who") ?? "null");
  if (!who) return;
  ({ token, name } = who);
  const id = sessionStorage.getItem("packet");
  const record = id ? await packets("readonly", (store) => store.get(id)) : undefined;
  if (record) sessionStorage.setItem("style", record.style);
  await enter();
  if (!record || !worker) return;
  clear();
  current = { ...record, controller: new AbortController() };
  at("cancel").hidden = false;
  decision(record.answer);
  await finished(lastSteps);
}

goOn().catch((error) => {
  sessionStorage.clear();
  say(error.message, true);
});
