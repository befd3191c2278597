// One tokenizer's side of the page: its tokens of the text, and how they differ from the other's.

const SHOWN_TOKENS = 2000, SHOWN_ROWS = 500, LISTED_IDS = 20_000;

/** One tokenizer's view of the text. */
class Side {
  /** `changed()` is called when another tokenizer is chosen, `selected(end)` when a token is, in bytes of the text. */
  constructor(tokenizers, chosen, changed, selected) {
    this.root = byId("side").content.cloneNode(true).firstElementChild;
    this.tokenizers = tokenizers;
    this.selected = 0; // the place of a token
    this.tokens = [];
    this.spans = []; // the tokens drawn, and how they look
    this.looks = [];
    this.told = selected;
    this.listen(changed);
    this.choose(chosen);
  }

  part(selector) {
    return this.root.querySelector(selector);
  }

  listen(changed) {
    const chooser = this.part("select");
    chooser.append(...this.tokenizers.map(({ name }, place) => element("option", "", name, { value: place })));
    chooser.addEventListener("change", () => {
      this.choose(Number(chooser.value));
      changed();
    });
    const list = this.part(".tokens");
    const placeOf = (event) => event.target.closest(".token")?.place;
    list.addEventListener("pointerover", (event) => this.point(placeOf(event)));
    list.addEventListener("focusin", (event) => this.point(placeOf(event)));
    list.addEventListener("click", (event) => this.pick(placeOf(event)));
    list.addEventListener("keydown", (event) => this.move(event));
    this.part(".all").addEventListener("toggle", () => this.showTable());
  }

  choose(chosen) {
    const header = this.tokenizers[chosen];
    this.part("select").value = chosen;
    this.part(".chooser").hidden = this.tokenizers.length < 2;
    this.part("h2").hidden = this.tokenizers.length > 1;
    this.part("h2").textContent = header.name;
    this.part(".about").textContent = about(header);
    this.part(".tokens").setAttribute("aria-label", `Tokens of ${header.name}`);
    this.part(".problem").hidden = !header.problem;
    this.part(".problem").textContent = header.problem ?? "";
    this.tokenizer = header.tokenizer;
    this.detail = new Detail(this.part(".detail"), header.tokenizer);
  }

  /** Encode `text`: `tokens` becomes [{id, piece, end}], where `end` is in bytes. */
  encode(text, readSpecials) {
    let end = 0;
    this.tokens = (this.tokenizer?.pieces(text, readSpecials) ?? []).flatMap((piece) =>
      piece.ids.map((id) => ({ id, piece, end: (end += this.tokenizer.token(id).length) })));
    this.bytes = end;
    this.ends = new Set(this.tokens.map((token) => token.end));
  }

  /** Show the tokens of a text of so many bytes; boundaries that `other` does not have are marked. */
  show(other, bytes) {
    this.draw(this.tokens.slice(0, SHOWN_TOKENS).map((token, place) => this.look(token, place, other)));
    this.part(".count").textContent = number(this.tokens.length);
    this.part(".ratio").textContent = this.tokens.length ? (bytes / this.tokens.length).toFixed(2) : "–";
    tell(this.part(".hidden"), this.tokens.length > SHOWN_TOKENS &&
      `${plural(this.tokens.length - SHOWN_TOKENS, "more token")} counted, but not drawn.`);
    this.showDifference(other);
    this.showTable();
    this.select(Math.min(this.selected, this.spans.length - 1));
  }

  /** What a token looks like: its id and its classes. */
  look({ id, piece, end }, place, other) {
    const startsWord = place && this.tokens[place - 1].piece !== piece ? " starts-word" : "";
    const onlyHere = other?.bytes === this.bytes && !other.ends.has(end) ? " only-here" : "";
    return { id, kind: `token${startsWord}${piece.special ? " special" : ""}${onlyHere}` };
  }

  /** Replace the tokens drawn by those of `looks`, except at both ends where they look the same. */
  draw(looks) {
    const old = this.looks;
    const same = (a, b) => a && b && a.id === b.id && a.kind === b.kind && this.drawnBy === this.tokenizer;
    let before = 0, after = 0;
    while (same(old[before], looks[before])) before += 1;
    while (after < Math.min(old.length, looks.length) - before && same(old.at(-1 - after), looks.at(-1 - after))) after += 1;
    const fresh = looks.slice(before, looks.length - after).map((look) => this.span(look));
    const gone = this.spans.splice(before, old.length - after - before, ...fresh);
    for (const node of gone.flatMap(withGap)) node.remove();
    if (before) this.spans[before - 1].after(...fresh.flatMap(withGap));
    else this.part(".tokens").prepend(...fresh.flatMap(withGap));
    this.spans.forEach((span, place) => { span.place = place; });
    Object.assign(this, { looks, drawnBy: this.tokenizer });
  }

  span({ id, kind }) {
    const bytes = this.tokenizer.token(id);
    const spoken = textOf(bytes)?.trim() || `bytes ${hex(bytes)}`;
    const attributes = { role: "option", tabindex: -1, "aria-selected": false, "aria-label": `${spoken}, id ${id}` };
    return Object.assign(element("span", kind, visible(bytes), attributes), { gap: document.createElement("wbr") });
  }

  showDifference(other) {
    const line = this.part(".difference");
    line.hidden = !other?.tokenizer || !this.tokenizer;
    if (line.hidden) return;
    if (this.bytes !== other.bytes) {
      line.textContent = "Boundaries are not compared: the two do not see the same bytes of this text.";
      return;
    }
    const only = this.tokens.filter((token) => !other.ends.has(token.end)).length;
    const counts = `${plural(only, "boundary").replace(/ys$/, "ies")} only here, ${number(this.ends.size - only)} in both.`;
    line.replaceChildren(...(only ? [element("span", "swatch")] : []), counts);
  }

  point(place) {
    if (place === undefined) return;
    const { id } = this.tokens[place];
    const bytes = this.tokenizer.token(id);
    this.part(".pointed").replaceChildren(
      `id ${id} · `, element("span", "word", visible(bytes)), ` · ${plural(bytes.length, "byte")}: `,
      element("span", "hex", hex(bytes)));
  }

  /** Make a token the one whose merges are shown, and the one that Tab leads to. */
  select(place) {
    const span = this.spans[place];
    this.part(".detail").hidden = !span;
    for (const marked of this.root.querySelectorAll('[aria-selected="true"]')) marked.setAttribute("aria-selected", false);
    for (const reached of this.root.querySelectorAll('.token[tabindex="0"]')) reached.tabIndex = -1;
    if (!span) return;
    this.selected = place;
    span.setAttribute("aria-selected", true);
    span.tabIndex = 0;
    this.detail.show(this.tokens[place]);
  }

  /** The user's choice of a token: it gets the focus, and the other side follows. */
  pick(place) {
    if (place === undefined) return;
    this.select(place);
    this.spans[place].focus();
    this.told(this.tokens[place].end);
  }

  /** The place of the token that holds the byte before `offset`. */
  placeAt(offset) {
    return Math.max(0, this.tokens.findIndex((token) => token.end >= offset));
  }

  /** Where the first of the longest words that are drawn ends, in bytes. */
  longestWord() {
    const lengths = this.tokens.slice(0, SHOWN_TOKENS).map((token) => token.piece.text.length);
    return this.tokens[lengths.indexOf(Math.max(...lengths))]?.end ?? 0;
  }

  move(event) {
    const steps = { ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1, Home: -Infinity, End: Infinity };
    if (!Object.hasOwn(steps, event.key)) return;
    event.preventDefault();
    this.pick(Math.max(0, Math.min(this.spans.length - 1, this.selected + steps[event.key])));
  }

  /** The list of ids and the table, while they are open. */
  showTable() {
    if (!this.part(".all").open) return;
    this.part(".ids").value = listed(this.tokens.map((token) => token.id), LISTED_IDS);
    const rows = this.tokens.slice(0, SHOWN_ROWS).map(({ id }, place) => {
      const bytes = this.tokenizer.token(id);
      return tableRow([["right", String(place)], ["right", String(id)], ["word", visible(bytes)], ["hex", hex(bytes)]]);
    });
    this.part(".all tbody").replaceChildren(...rows);
    tell(this.part(".cut"), this.tokens.length > SHOWN_ROWS && `The table has the first ${SHOWN_ROWS} tokens.`);
  }
}

/** The nodes of a token: lines may break before the first of a word. */
function withGap(span) {
  return span.matches(".starts-word") ? [span.gap, span] : [span];
}

function about(header) {
  const order = header.rankedByToken ? "ranked by id" : plural(header.merges, "merge");
  const pattern = header.pattern.length > 60 ? "own pattern" : `pattern ${header.pattern}`;
  return `${number(header.tokens)} tokens, ${plural(header.specials.length, "special token")}, ${order}, ${pattern}`;
}
