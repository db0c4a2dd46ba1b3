// This device's speed as the files that `splitpoint profile` writes, so that every notebook reads them.
import { sha256 } from "./packet.js";

const COLUMNS = ["device", "device_type", "architecture", "dtype", "mode", "guidance", "batch_size", "repeat", "status", "step_s", "model_flop", "peak_memory_bytes", "threads", "torch_version"];
export const NAME = "my_machine.csv";

/** What a browser says of itself, in a few words. */
export function machineName() {
  const said = navigator.userAgent;
  const browser = /Edg\/(\d+)/.exec(said) ? "Edge " + RegExp.$1 : /Firefox\/(\d+)/.exec(said) ? "Firefox " + RegExp.$1
    : /(?:Headless)?Chrome\/(\d+)/.exec(said) ? "Chrome " + RegExp.$1 : /Version\/(\d+).*Safari/.exec(said) ? "Safari " + RegExp.$1 : "a browser";
  const system = /iPhone|iPad|Android|Windows|Macintosh|Linux/.exec(said)?.[0] ?? "unknown system";
  return browser + " on " + system + ", " + (navigator.hardwareConcurrency ?? "?") + " cores";
}

/** The CSV and its sidecar, from [{batch, step_s: [seconds, …]}, …]. */
export function profileFiles(machine, measured, facts) {
  const quoted = '"' + machine.replaceAll('"', "'").replace(/[\r\n]/g, " ") + '"';
  const rows = measured.flatMap(({ batch, step_s }) => step_s.map((seconds, repeat) =>
    [quoted, "browser", "mini", "fp32", "wasm", "True", batch, repeat, "ok", seconds, 2 * batch * facts.flop, "", 1, facts.runtime.name].join(",")));
  const csv = [COLUMNS.join(","), ...rows].join("\n") + "\n";
  const meta = {
    kind: "measured", command: "splitpoint edge --classroom, the page /student", seed: null,
    date_utc: new Date().toISOString().slice(0, 16).replace("T", " "), device: machine.replaceAll('"', "'"),
    settings: { fingerprint: facts.fingerprint, user_agent: navigator.userAgent }, versions: { runtime: facts.runtime.name },
    sha256: sha256(new TextEncoder().encode(csv)), licence: "MIT",
  };
  return [[NAME, csv, "text/csv"], [NAME + ".meta.json", JSON.stringify(meta, null, 1), "application/json"]];
}
