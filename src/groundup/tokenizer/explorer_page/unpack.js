// Reads a tokenizer back out of the form that explorer.py packs it into.

/** The bytes that were deflated (zlib's format) and then written in base64. */
async function inflate(base64) {
  const packed = Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

/** A reader of the packed bytes, front to back. */
class Packed {
  constructor(bytes) {
    this.bytes = bytes;
    this.place = 0;
  }

  /** The next number: seven bits a byte, lowest first, the top bit set on all but the last. */
  number() {
    let value = 0;
    for (let scale = 1; ; scale *= 128) {
      const byte = this.bytes[this.place++];
      value += (byte & 127) * scale;
      if (byte < 128) return value;
    }
  }

  numbers(count) {
    return Array.from({ length: count }, () => this.number());
  }

  /** Numbers that were written as differences, the sign in the lowest bit. */
  running(count) {
    let value = 0;
    return this.numbers(count).map((code) => (value += code % 2 ? -(code + 1) / 2 : code / 2));
  }

  byteString(length) {
    return toByteString(this.bytes.subarray(this.place, (this.place += length)));
  }
}

/** Bytes as a string with one character per byte: what a Map can look up. */
function toByteString(bytes) {
  let text = "";
  for (const byte of bytes) text += String.fromCharCode(byte);
  return text;
}

/**
 * {tokens, merged, cuts}: id -> byte string; and by rank, the id that a merge makes and how many of its bytes
 * come from the left of the two.
 */
async function unpack(header) {
  const packed = new Packed(await inflate(header.packed));
  const ids = packed.running(header.tokens);
  const lengths = packed.numbers(header.tokens);
  const merged = packed.running(header.merges);
  const cuts = packed.numbers(header.merges);
  const tokens = new Map(ids.map((id, number) => [id, packed.byteString(lengths[number])]));
  return { tokens, merged, cuts };
}
