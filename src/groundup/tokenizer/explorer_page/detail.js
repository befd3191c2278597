// One token: what it is, and the merges of its word step by step.

const SHOWN_STEPS = 100, SHOWN_SYMBOLS = 60, SHOWN_CHARACTERS = 200;

/** Shows tokens of one tokenizer in the element `root`. */
class Detail {
  constructor(root, tokenizer) {
    this.root = root;
    this.tokenizer = tokenizer;
  }

  part(selector) {
    return this.root.querySelector(selector);
  }

  show({ id, piece }) {
    const bytes = this.tokenizer.token(id);
    const word = byteString(Array.from(piece.text).slice(0, SHOWN_CHARACTERS).join(""));
    const facts = {
      Id: String(id),
      Bytes: element("span", "hex", hex(bytes)),
      Word: element("span", "word", visible(word)),
      "Its ids": listed(piece.ids, SHOWN_SYMBOLS),
    };
    this.part("h3").replaceChildren("Token ", element("span", "symbol new", visible(bytes)));
    this.part(".facts").replaceChildren(
      ...Object.entries(facts).flatMap(([name, value]) => [element("dt", "", name), element("dd", "", value)]));
    this.showSteps(piece);
  }

  showSteps(piece) {
    const { start, steps, complete } = piece.special ? NO_STEPS : this.tokenizer.mergeSteps(piece.text, SHOWN_STEPS);
    const count = `${complete ? "" : "more than "}${plural(steps.length, "merge")}`;
    this.part(".remark").textContent = this.remark(piece, steps.length ? count : "no merge");
    this.part(".scroll").hidden = !steps.length;
    const first = tableRow([["right", "0"], ["", "bytes"], ["right", ""], ["", this.symbols(start)]]);
    this.part("tbody").replaceChildren(first, ...steps.map((step, place) => this.stepRow(step, place + 1)));
    tell(this.part(".more"), !complete && "The later steps are not shown.");
  }

  remark(piece, count) {
    if (piece.special) return "A special token: read as a whole, never merged from its parts.";
    if (this.tokenizer.whole(piece.text) === undefined) return `This word takes ${count}.`;
    const taken = "The word is a token, and this tokenizer takes such a word as it is.";
    return count === "no merge" ? taken : `${taken} By merging it would take ${count}.`;
  }

  stepRow(step, place) {
    const pair = [this.symbol(step.left), this.symbol(step.right)];
    return tableRow([["right", String(place)], ["", pair], ["right", number(step.rank)], ["", this.symbols(step.symbols, step.at)]]);
  }

  /** The first symbols, that at the place `fresh` marked as new. */
  symbols(ids, fresh) {
    const more = ids.length > SHOWN_SYMBOLS ? [` … ${number(ids.length - SHOWN_SYMBOLS)} more`] : [];
    return [...ids.slice(0, SHOWN_SYMBOLS).map((id, place) => this.symbol(id, place === fresh)), ...more];
  }

  symbol(id, isNew = false) {
    return element("span", isNew ? "symbol new" : "symbol", visible(this.tokenizer.token(id)), { "data-id": id, title: `id ${id}` });
  }
}

const NO_STEPS = { start: [], steps: [], complete: true };
