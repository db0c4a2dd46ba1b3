// One step of a sampler, from a row of the edge's table; the formulas are those of splitpoint.diffusion.sampler.

const NAMES = ["timestep", "scale", "p", "q", "r", "u", "w", "z", "s", "a", "b", "c", "d", "k"];

/** A row of the table by its names. */
export const ruleOf = (row) => Object.fromEntries(NAMES.map((name, i) => [name, row[i]]));

/** Classifier-free guidance: away from the output without prompt. */
export const guide = (without, withPrompt, scale) => withPrompt.map((value, i) => without[i] + scale * (value - without[i]));

/** The next latents and `clean`, what this step takes for the finished ones; `previous` is the last step's, or null. */
export function advance(latents, output, previous, rule) {
  const clean = new Float32Array(latents.length), following = new Float32Array(latents.length);
  for (let i = 0; i < latents.length; i++) {
    clean[i] = (rule.p * latents[i] - rule.q * output[i]) / rule.r;
    const direction = (rule.u * output[i] + rule.w * latents[i] + rule.z * clean[i]) / rule.s;
    following[i] = rule.a * latents[i] + rule.b * clean[i] + rule.c * direction;
    if (previous) following[i] += rule.d * (rule.k * (clean[i] - previous[i]));
  }
  return [following, clean];
}
