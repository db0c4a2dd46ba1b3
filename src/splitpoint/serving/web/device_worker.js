// The device itself, beside the page: loads the models, takes the steps that are left, makes the picture.
import { readPacket } from "./packet.js";
import { advance, guide, ruleOf } from "./sampler.js";

let ort, facts, text, decoder, unet, cancelled = false;
let work = Promise.resolve();

const breath = () => new Promise((resolve) => { // lets a "cancel" come in
  const channel = new MessageChannel();
  channel.port1.onmessage = () => { channel.port1.close(); resolve(); };
  channel.port2.postMessage(0);
});
let wake = () => {};
const rest = (seconds) => new Promise((resolve) => { wake = resolve; setTimeout(resolve, 1000 * seconds); });
const now = () => performance.now() / 1000;

// --- loading ---

async function bytesOf(url, options = {}, count = () => {}) {
  const answer = await fetch(url, options);
  if (!answer.ok) throw new Error("a file cannot be loaded: status " + answer.status);
  const reader = answer.body.getReader(), parts = [];
  for (let part = await reader.read(); !part.done; part = await reader.read()) {
    parts.push(part.value);
    count(part.value.length);
  }
  return new Uint8Array(await new Blob(parts).arrayBuffer());
}

async function loadRuntime({ script, wasm, origin }) {
  const checked = (file) => bytesOf(file.url, { integrity: file.integrity });
  if (origin) { // from elsewhere: only with the checksum that the edge knows
    ort = await import(URL.createObjectURL(new Blob([await checked(script)], { type: "text/javascript" })));
    ort.env.wasm.wasmBinary = (await checked(wasm)).buffer;
  } else {
    ort = await import(script.url);
    ort.env.wasm.wasmPaths = { wasm: new URL(wasm.url, location.href).href }; // compiled as it streams in, and kept compiled
  }
  ort.env.wasm.numThreads = 1; // threads share memory, which browsers allow with https only
}

async function load({ facts: told, style }) {
  const began = now();
  const files = facts ? [told.unets[style]] : [told.text_encoder, told.decoder, told.unets[style]];
  const total = files.reduce((sum, file) => sum + file.bytes, 0);
  let done = 0, shown = 0;
  const count = (bytes) => {
    done += bytes;
    if (done - shown > total / 50 || done === total) postMessage({ kind: "loading", share: (shown = done) / total });
  };
  const session = async (file) => ort.InferenceSession.create(await bytesOf(file.url, {}, count), { executionProviders: ["wasm"] });
  if (!ort) await loadRuntime(told.runtime);
  if (!facts) [text, decoder] = [await session(told.text_encoder), await session(told.decoder)];
  await unet?.release();
  unet = undefined; // never the one of another style, whatever happens to this one
  unet = await session(told.unets[style]);
  facts = told;
  postMessage({ kind: "loaded", style, seconds: now() - began });
}

// --- the networks ---

const latentSize = () => facts.latent_shape.reduce((product, side) => product * side, 1);
const tensor = (values, ...shape) => new ort.Tensor("float32", values, shape);

async function conditioning(tokens) {
  const ids = new ort.Tensor("int64", BigInt64Array.from(tokens.flat(), BigInt), [tokens.length, tokens[0].length]);
  return (await text.run({ tokens: ids })).text.data;
}

/** The network's output for lines of latents that all stand at one timestep. */
async function denoise(latents, timestep, conditions) {
  const lines = conditions.length / (facts.text_shape[0] * facts.text_shape[1]);
  const given = { latents: tensor(latents, lines, ...facts.latent_shape), timesteps: tensor(new Float32Array(lines).fill(timestep), lines), text: tensor(conditions, lines, ...facts.text_shape) };
  return (await unet.run(given)).output.data;
}

/** The picture of a latent: {width, height, pixels} with four bytes a pixel. */
async function decode(latent) {
  const { data, dims } = (await decoder.run({ latents: tensor(latent, 1, ...facts.latent_shape) })).pictures;
  const [, , height, width] = dims, size = width * height, pixels = new Uint8ClampedArray(4 * size).fill(255);
  for (let i = 0; i < size; i++) for (let c = 0; c < 3; c++) pixels[4 * i + c] = Math.round(255 * data[c * size + i]);
  return { width, height, pixels };
}

// --- the last steps ---

function checkFits(packet, table) {
  if (packet.model !== facts.fingerprint) throw new Error("the packet is from another model");
  const settings = (config) => JSON.stringify(Object.entries(config).sort());
  if (settings(packet.scheduler_config) !== settings(table.config) || packet.num_steps !== table.rows.length) throw new Error("the packet is of another run than the edge's table");
  const size = latentSize();
  if (packet.latent?.length !== size || (packet.history && packet.history.length !== size)) throw new Error("the packet's latent has another shape than this model's");
  if (table.remembers[packet.step] && !packet.history) throw new Error("the packet lacks the estimate of the step before");
}

/** One step of one row, guidance applied: [latents, clean]. */
async function takeStep(latents, clean, row, conditions, scale) {
  const rule = ruleOf(row), size = latents.length, guided = scale > 1;
  const inputs = new Float32Array(guided ? 2 * size : size);
  for (let i = 0; i < inputs.length; i++) inputs[i] = latents[i % size] / rule.scale;
  const found = await denoise(inputs, rule.timestep, conditions);
  const output = guided ? guide(found.subarray(0, size), found.subarray(size), scale) : found;
  return advance(latents, output, clean, rule);
}

async function draw({ content, tokens, table, pace_s = 0, every = 0 }) {
  cancelled = false;
  const began = now(), packet = readPacket(content), step_s = [];
  checkFits(packet, table);
  const prompt = await conditioning(tokens.slice(0, 1)), guided = packet.guidance_scale > 1;
  const none = guided ? await conditioning(tokens.slice(1)) : new Float32Array(0);
  const conditions = new Float32Array(none.length + prompt.length);
  conditions.set(none);
  conditions.set(prompt, none.length);
  let latents = packet.latent, clean = packet.history, late = 0;
  for (let step = packet.step; step < packet.num_steps; step++) {
    const start = now(), count = step + 1 - packet.step;
    [latents, clean] = await takeStep(latents, clean, table.rows[step], conditions, packet.guidance_scale);
    if (!latents.every(Number.isFinite)) throw new Error("the picture is no longer finite after step " + (step + 1));
    step_s.push(now() - start);
    const look = every && count % every === 0 && step + 1 < packet.num_steps;
    postMessage({ kind: "stepped", step: step + 1, picture: look ? await decode(latents) : null });
    const ahead = began + count * pace_s - now();
    late += pace_s && ahead < -0.05 * pace_s ? 1 : 0;
    if (ahead > 0) await rest(ahead);
    await breath();
    if (cancelled) return postMessage({ kind: "cancelled" });
  }
  const stepped = now(), picture = await decode(latents), done = now();
  postMessage({ kind: "drawn", picture, step_s, late_steps: late, device_s: stepped - began, decode_s: done - stepped });
}

/** The latent of a packet as a picture: what arrived. */
async function look({ content }) {
  const began = now(), { latent } = readPacket(content);
  postMessage({ kind: "looked", picture: await decode(latent), decode_s: now() - began });
}

// --- the device's speed ---

/** Seconds of real steps with so many requests at once, guidance on, and of one picture; first steps are slow, while the browser still compiles. */
async function measure({ batch = 1, warm_s = 1, repeats = 9 }) {
  const size = latentSize(), step_s = [];
  const noise = Float32Array.from({ length: 2 * batch * size }, (_, i) => Math.sin(i * i)), row = [500, 1, ...new Array(12).fill(0.5)];
  const conditions = Float32Array.from({ length: 2 * batch * facts.text_shape[0] * facts.text_shape[1] }, (_, i) => Math.cos(i * i));
  const until = now() + warm_s, picture_s = [];
  while (step_s.length < repeats) {
    const began = now(), found = await denoise(noise, 500, conditions), half = found.length / 2;
    advance(noise.subarray(0, half), guide(found.subarray(0, half), found.subarray(half), 3), null, ruleOf(row));
    const stepped = now();
    if (picture_s.length < 3) {
      await decode(noise.slice(0, size));
      picture_s.push(now() - stepped);
    }
    if (stepped > until) step_s.push(stepped - began);
    await breath();
  }
  postMessage({ kind: "measured", batch, step_s, decode_s: picture_s.at(-1) });
}

const DOES = { load, draw, look, measure };

onmessage = ({ data }) => {
  if (data.kind === "cancel") {
    cancelled = true;
    wake();
  } else work = work.then(() => DOES[data.kind](data)).catch((error) => postMessage({ kind: "failed", during: data.kind, text: error.message }));
};
