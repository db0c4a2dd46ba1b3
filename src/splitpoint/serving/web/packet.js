// The hand-over packet, read as Packet.from_bytes reads it; and two checksums, since a page without https has no crypto.subtle.

const ROTATE = (value, bits) => BigInt.asUintN(64, (value >> bits) | (value << (64n - bits)));
const BLAKE_START = [0x6a09e667f3bcc908n, 0xbb67ae8584caa73bn, 0x3c6ef372fe94f82bn, 0xa54ff53a5f1d36f1n,
  0x510e527fade682d1n, 0x9b05688c2b3e6c1fn, 0x1f83d9abfb41bd6bn, 0x5be0cd19137e2179n];
const ORDER = [
  [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15], [14, 10, 4, 8, 9, 15, 13, 6, 1, 12, 0, 2, 11, 7, 5, 3],
  [11, 8, 12, 0, 5, 2, 15, 13, 10, 14, 3, 6, 7, 1, 9, 4], [7, 9, 3, 1, 13, 12, 11, 14, 2, 6, 5, 10, 4, 0, 15, 8],
  [9, 0, 5, 7, 2, 4, 10, 15, 14, 1, 11, 12, 6, 8, 3, 13], [2, 12, 6, 10, 0, 11, 8, 3, 4, 13, 7, 5, 15, 14, 1, 9],
  [12, 5, 1, 15, 14, 13, 4, 10, 0, 7, 6, 3, 9, 2, 8, 11], [13, 11, 7, 14, 12, 1, 3, 9, 5, 0, 15, 4, 8, 6, 2, 10],
  [6, 15, 14, 9, 11, 3, 0, 8, 12, 2, 13, 7, 1, 4, 10, 5], [10, 2, 8, 4, 7, 6, 1, 5, 15, 11, 9, 14, 3, 12, 13, 0]];
const MIXED = [[0, 4, 8, 12], [1, 5, 9, 13], [2, 6, 10, 14], [3, 7, 11, 15], [0, 5, 10, 15], [1, 6, 11, 12], [2, 7, 8, 13], [3, 4, 9, 14]];

/** BLAKE2b (RFC 7693) without a key: Uint8Array of `length` bytes. */
export function blake2b(bytes, length) {
  const state = [...BLAKE_START];
  state[0] ^= 0x01010000n ^ BigInt(length);
  const blocks = Math.max(1, Math.ceil(bytes.length / 128));
  for (let block = 0; block < blocks; block++) {
    const part = new Uint8Array(128);
    part.set(bytes.subarray(128 * block, 128 * (block + 1)));
    const view = new DataView(part.buffer);
    const words = Array.from({ length: 16 }, (_, i) => view.getBigUint64(8 * i, true));
    const last = block === blocks - 1;
    const v = [...state, ...BLAKE_START];
    v[12] ^= BigInt(last ? bytes.length : 128 * (block + 1));
    if (last) v[14] ^= 0xffffffffffffffffn;
    for (let round = 0; round < 12; round++) {
      const order = ORDER[round % 10];
      MIXED.forEach(([a, b, c, d], i) => {
        v[a] = BigInt.asUintN(64, v[a] + v[b] + words[order[2 * i]]);
        v[d] = ROTATE(v[d] ^ v[a], 32n);
        v[c] = BigInt.asUintN(64, v[c] + v[d]);
        v[b] = ROTATE(v[b] ^ v[c], 24n);
        v[a] = BigInt.asUintN(64, v[a] + v[b] + words[order[2 * i + 1]]);
        v[d] = ROTATE(v[d] ^ v[a], 16n);
        v[c] = BigInt.asUintN(64, v[c] + v[d]);
        v[b] = ROTATE(v[b] ^ v[c], 63n);
      });
    }
    for (let i = 0; i < 8; i++) state[i] ^= v[i] ^ v[i + 8];
  }
  const out = new DataView(new ArrayBuffer(64));
  state.forEach((word, i) => out.setBigUint64(8 * i, word, true));
  return new Uint8Array(out.buffer).slice(0, length);
}

/** SHA-256 (FIPS 180-4) as hexadecimal digits. */
export function sha256(bytes) {
  const primes = [];
  for (let n = 2; primes.length < 64; n++) if (primes.every((p) => n % p)) primes.push(n);
  const fraction = (value) => Math.floor((value - Math.floor(value)) * 2 ** 32);
  const turn = (value, bits) => (value >>> bits) | (value << (32 - bits));
  const state = Int32Array.from(primes.slice(0, 8), (p) => fraction(Math.sqrt(p)));
  const constants = Int32Array.from(primes, (p) => fraction(Math.cbrt(p)));
  const padded = new Uint8Array(64 * Math.ceil((bytes.length + 9) / 64));
  padded.set(bytes);
  padded[bytes.length] = 0x80;
  const view = new DataView(padded.buffer);
  view.setBigUint64(padded.length - 8, BigInt(8 * bytes.length));
  const w = new Int32Array(64);
  for (let at = 0; at < padded.length; at += 64) {
    for (let i = 0; i < 64; i++) {
      if (i < 16) w[i] = view.getInt32(at + 4 * i);
      else {
        const early = w[i - 15], late = w[i - 2];
        w[i] = w[i - 16] + (turn(early, 7) ^ turn(early, 18) ^ (early >>> 3)) + w[i - 7] + (turn(late, 17) ^ turn(late, 19) ^ (late >>> 10));
      }
    }
    let [a, b, c, d, e, f, g, h] = state;
    for (let i = 0; i < 64; i++) {
      const first = (h + (turn(e, 6) ^ turn(e, 11) ^ turn(e, 25)) + ((e & f) ^ (~e & g)) + constants[i] + w[i]) | 0;
      const second = ((turn(a, 2) ^ turn(a, 13) ^ turn(a, 22)) + ((a & b) ^ (a & c) ^ (b & c))) | 0;
      [h, g, f, e, d, c, b, a] = [g, f, e, (d + first) | 0, c, b, a, (first + second) | 0];
    }
    [a, b, c, d, e, f, g, h].forEach((value, i) => { state[i] += value; });
  }
  return [...state].map((word) => (word >>> 0).toString(16).padStart(8, "0")).join("");
}

const MAGIC = "SPLITPT1", DIGEST = 16;

function float16(half) {
  const sign = half & 0x8000 ? -1 : 1, exponent = (half >> 10) & 31, rest = half & 1023;
  if (exponent === 0) return sign * rest * 2 ** -24;
  if (exponent === 31) return rest ? NaN : sign * Infinity;
  return sign * (1 + rest / 1024) * 2 ** (exponent - 15);
}

/** The facts of a packet, with `latent` and `history` as Float32Array or null; throws for anything that is no whole packet. */
export function readPacket(buffer) {
  const bytes = new Uint8Array(buffer);
  if (String.fromCharCode(...bytes.subarray(0, 8)) !== MAGIC) throw new Error("this is no packet: it does not begin with the magic word");
  const body = bytes.subarray(0, Math.max(0, bytes.length - DIGEST)), digest = blake2b(body, DIGEST);
  if (bytes.length < 12 + DIGEST || digest.some((byte, i) => byte !== bytes[body.length + i])) throw new Error("the packet was damaged on the way: its checksum differs");
  const end = 12 + new DataView(body.buffer, body.byteOffset).getUint32(8, true);
  if (end > body.length) throw new Error("the packet's header is longer than the packet");
  const packet = { latent: null, history: null, ...JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(body.subarray(12, end))) };
  let start = end;
  for (const [name, dtype, shape] of packet.tensors) {
    const count = shape.reduce((product, side) => product * side, 1), width = { float16: 2, float32: 4 }[dtype];
    if (!width || start + count * width > body.length) throw new Error("the packet's " + name + " is cut short");
    const view = new DataView(body.buffer, body.byteOffset + start, count * width);
    packet[name] = Float32Array.from({ length: count }, (_, i) => (width === 4 ? view.getFloat32(4 * i, true) : float16(view.getUint16(2 * i, true))));
    if (!packet[name].every(Number.isFinite)) throw new Error("the packet's " + name + " holds NaN or infinity");
    start += count * width;
  }
  if (start !== body.length) throw new Error((body.length - start) + " bytes of the packet belong to no tensor");
  return packet;
}
