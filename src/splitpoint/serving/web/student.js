"use strict";
const at = (id) => document.getElementById(id);
let token = "", seed = Math.floor(Math.random() * 1e6), steps = 50;

async function send(path, options = {}) {
  const headers = token ? { Authorization: "Bearer " + token } : {};
  const answer = await fetch(path, { ...options, headers: { ...headers, ...options.headers } });
  if (!answer.ok) throw new Error((await answer.json().catch(() => ({}))).error || "status " + answer.status);
  return answer;
}

function say(text, bad) {
  at("state").textContent = text;
  at("state").className = bad ? "bad" : "soft";
}

// As much arithmetic as a denoising step of the miniature: a matrix product, timed here and scaled to its operations.
function measureStep() {
  const n = 160, a = new Float32Array(n * n).fill(0.5), b = new Float32Array(n * n).fill(0.25), c = new Float32Array(n * n);
  const product = () => {
    for (let i = 0; i < n; i++) for (let k = 0; k < n; k++) {
      const value = a[i * n + k];
      for (let j = 0; j < n; j++) c[i * n + j] += value * b[k * n + j];
    }
  };
  product();
  const times = [];
  for (let i = 0; i < 7; i++) {
    const began = performance.now();
    product();
    times.push(performance.now() - began);
  }
  const median = times.sort((x, y) => x - y)[3] / 1000;
  return Math.min(2, Math.max(0.02, (median * 3e8) / (2 * n ** 3)));
}

at("join").addEventListener("submit", async (event) => {
  event.preventDefault();
  try {
    const body = JSON.stringify({ code: at("code").value, name: at("name").value });
    token = (await (await send("/v1/join", { method: "POST", body })).json()).token;
    const facts = await (await send("/v1/classroom")).json();
    steps = facts.num_steps;
    for (const style of facts.styles) at("style").append(new Option(style, style));
    for (const concept of facts.concepts) at("concepts").append(new Option(concept));
    const step = measureStep();
    at("step").value = step.toFixed(2);
    at("measured").textContent = "This browser would take about " + (1000 * step).toFixed(0) + " ms a step. Change it to play another device.";
    at("joining").hidden = true;
    at("drawing").hidden = false;
    say("joined as " + at("name").value);
    at("prompt").focus();
  } catch (error) {
    say(error.message, true);
  }
});

at("ask").addEventListener("submit", async (event) => {
  event.preventDefault();
  at("go").disabled = true;
  at("answer").hidden = false;
  at("picture").hidden = true;
  at("result").textContent = "";
  at("decision").textContent = "asking …";
  const began = performance.now();
  try {
    const body = JSON.stringify({ prompt: at("prompt").value, seed: seed++, device_step_s: Number(at("step").value), alpha: Number(at("alpha").value) });
    const key = crypto.randomUUID ? crypto.randomUUID() : String(Math.random()).slice(2);
    const answer = await (await send("/v1/requests", { method: "POST", body, headers: { "Idempotency-Key": key } })).json();
    const predicted = answer.predicted.total_s.toFixed(1);
    at("decision").textContent = answer.granted
      ? "Granted: " + answer.steps + " of " + steps + " steps on the edge, " + answer.split_point + " on your device. Predicted: " + predicted + " s."
      : "Not granted: all " + steps + " steps on your device. Predicted: " + predicted + " s.";
    const picture = await send("/v1/requests/" + answer.id + "/draw?style=" + encodeURIComponent(at("style").value), { method: "POST" });
    at("picture").src = URL.createObjectURL(await picture.blob());
    at("picture").alt = at("prompt").value + " in the style " + at("style").value;
    at("picture").hidden = false;
    at("result").textContent = "Measured here: " + ((performance.now() - began) / 1000).toFixed(1) + " s.";
  } catch (error) {
    at("result").textContent = error.message;
  }
  at("go").disabled = false;
});
