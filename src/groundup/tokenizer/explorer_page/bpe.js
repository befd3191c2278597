// Byte-pair encoding: the merges of a tokenizer applied in the order of their ranks.

const ID_RANGE = 2 ** 24; // ids and ranks are below it, and pieces shorter: two fit into one exact number
const CACHED_PIECES = 1 << 16, CACHED_LENGTH = 64;
const GONE = -1; // the right half of a merged pair

/** The smallest of the numbers pushed comes out first. */
class Heap {
  items = [];

  push(item) {
    let place = this.items.length;
    for (let parent; place && this.items[(parent = (place - 1) >> 1)] > item; place = parent) {
      this.items[place] = this.items[parent];
    }
    this.items[place] = item;
  }

  pop() {
    const top = this.items[0];
    const last = this.items.pop();
    if (this.items.length) this.sink(last);
    return top;
  }

  sink(item) {
    const { items } = this;
    let place = 0;
    for (let child; (child = 2 * place + 1) < items.length; place = child) {
      if (items[child + 1] < items[child]) child += 1;
      if (items[child] >= item) break;
      items[place] = items[child];
    }
    items[place] = item;
  }
}

class Tokenizer {
  constructor(header, { tokens, merged, cuts }) {
    Object.assign(this, header);
    this.tokens = tokens;
    this.ids = new Map(Array.from(tokens, ([id, token]) => [token, id]));
    this.merged = merged;
    this.ranks = this.rankedByToken ? new Map() : this.pairRanks(cuts);
    this.specialIds = new Map(this.specials);
    this.specialTexts = new Map(this.specials.map(([text, id]) => [id, text]));
    this.split = splitter(this.pattern, this.source);
    this.cache = new Map();
  }

  static async read(header) {
    return new Tokenizer(header, await unpack(header));
  }

  pairRanks(cuts) {
    return new Map(cuts.map((cut, rank) => {
      const token = this.tokens.get(this.merged[rank]);
      return [this.ids.get(token.slice(0, cut)) * ID_RANGE + this.ids.get(token.slice(cut)), rank];
    }));
  }

  /** The rank of a pair of ids. Ranked by token, every pair whose concatenation is a token has that token's id. */
  rank(left, right) {
    if (!this.rankedByToken) return this.ranks.get(left * ID_RANGE + right);
    return this.ids.get(this.tokens.get(left) + this.tokens.get(right));
  }

  /** [{text, ids, special}]: the pre-tokens of `text`, and its special tokens where they are to be read. */
  pieces(text, readSpecials = false) {
    const parts = splitSpecials(wellFormed(text), readSpecials ? [...this.specialIds.keys()] : []);
    return parts.flatMap(({ part, special }) => {
      if (special) return [{ text: part, ids: [this.specialIds.get(part)], special }];
      return this.split(this.normalizer ? part.normalize(this.normalizer) : part).map((piece) => ({ text: piece, ids: this.encodePiece(piece), special }));
    });
  }

  encode(text, readSpecials = false) {
    return this.pieces(text, readSpecials).flatMap((piece) => piece.ids);
  }

  encodePiece(piece) {
    const known = this.cache.get(piece);
    if (known) return known;
    const whole = this.whole(piece);
    const ids = whole === undefined ? this.merge(this.symbols(piece)) : [whole];
    if (this.cache.size >= CACHED_PIECES) this.cache.clear();
    if (piece.length <= CACHED_LENGTH) this.cache.set(piece, ids);
    return ids;
  }

  /** The id of a piece that is a token, if such a piece is taken as it is, whether merges lead there or not. */
  whole(piece) {
    return this.ignoreMerges ? this.ids.get(byteString(piece)) : undefined;
  }

  /** The ids of the bytes of `piece`; a byte that has none disappears. */
  symbols(piece) {
    return Array.from(byteString(piece), (byte) => this.ids.get(byte)).filter((id) => id !== undefined);
  }

  /**
   * Merge until no adjacent pair has a rank: always the pair of lowest rank, of equal ones the leftmost.
   * `goOn` hears of each merge, {rank, left, right, merged} in ids and the place of its first byte, before it is
   * made, and stops everything by answering false.
   */
  merge(symbols, goOn = () => true) {
    const left = symbols.map((_, place) => place - 1);
    const right = symbols.map((_, place) => place + 1);
    const heap = new Heap();
    const rankAt = (place) => {
      if (place < 0 || symbols[place] === GONE || right[place] >= symbols.length) return undefined;
      return this.rank(symbols[place], symbols[right[place]]);
    };
    const offer = (place) => {
      const rank = rankAt(place);
      if (rank !== undefined) heap.push(rank * ID_RANGE + place);
    };
    symbols.forEach((_, place) => offer(place));
    while (heap.items.length) {
      const item = heap.pop();
      const place = item % ID_RANGE;
      const rank = (item - place) / ID_RANGE;
      if (rankAt(place) !== rank) continue; // another merge was faster
      const partner = right[place];
      const merged = this.rankedByToken ? rank : this.merged[rank];
      if (!goOn({ rank, left: symbols[place], right: symbols[partner], merged, place })) break;
      symbols[place] = merged;
      symbols[partner] = GONE;
      right[place] = right[partner];
      if (right[partner] < symbols.length) left[right[partner]] = place;
      offer(left[place]);
      offer(place);
    }
    return symbols.filter((symbol) => symbol !== GONE);
  }

  /**
   * The merges of `piece` one by one: {start, steps: [{rank, left, right, merged, symbols, at}], complete}. `start`
   * are the symbols before; each step has those after it, the new one `at` its place in them. `complete` is
   * whether the first `limit` steps, which come back, are all.
   */
  mergeSteps(piece, limit = Infinity) {
    const told = [];
    this.merge(this.symbols(piece), (step) => told.push(step) <= limit);
    const start = this.symbols(piece);
    const live = start.map((id, place) => ({ id, place }));
    const steps = told.slice(0, limit).map(({ place, ...step }) => {
      const at = live.findIndex((symbol) => symbol.place === place);
      live.splice(at, 2, { id: step.merged, place });
      return { ...step, symbols: live.map((symbol) => symbol.id), at };
    });
    return { start, steps, complete: told.length <= limit };
  }

  /** The bytes of a token as a string with one character per byte. */
  token(id) {
    return this.tokens.get(id) ?? byteString(this.specialTexts.get(id));
  }
}

/** The UTF-8 bytes of `text` as a string with one character per byte. */
function byteString(text) {
  return toByteString(new TextEncoder().encode(text));
}
