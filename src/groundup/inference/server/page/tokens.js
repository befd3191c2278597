
// An answer as tokens, each with its probability and what else might have come.
const tip = byId("tip");
const SHOWN = 5;

/** The tokens of a streamed chunk: {text, probability, others: [{text, probability}]}, of either endpoint. */
function tokensOf(choice) {
  const content = choice.logprobs?.content;
  if (content) {
    return content.map((entry) => ({
      bytes: entry.bytes, logprob: entry.logprob,
      others: entry.top_logprobs.map((other) => ({ text: other.token, probability: Math.exp(other.logprob) })),
    }));
  }
  const { tokens = [], token_logprobs: logprobs, top_logprobs: tops } = choice.logprobs ?? {};
  return tokens.map((token, place) => ({
    bytes: bytesOf(token), logprob: logprobs[place],
    others: Object.entries(tops?.[place] ?? {}).map(([text, logprob]) => ({ text, probability: Math.exp(logprob) })),
  }));
}

/** Tokens that are no whole characters are spelled `bytes:\xe4\xbd`. */
function bytesOf(token) {
  const escaped = /^bytes:((?:\\x[0-9a-f]{2})+)$/.exec(token);
  return escaped ? escaped[1].slice(2).split("\\x").map((hex) => parseInt(hex, 16)) : new TextEncoder().encode(token);
}

/** The text of an answer, drawn token by token; `text` is what the server showed of it. */
class Answer {
  constructor(place) {
    this.place = place;
    this.text = "";
    this.count = 0;
    this.drawn = "";
    this.decoder = new TextDecoder();
    this.at = -1;
    place.tabIndex = 0;
    place.setAttribute("role", "group");
    place.setAttribute("aria-label", "Answer. Arrow keys move through its tokens.");
    place.addEventListener("pointerover", (event) => this.pointAt(event.target));
    place.addEventListener("pointerleave", () => this.leave());
    place.addEventListener("keydown", (event) => this.key(event));
    place.addEventListener("blur", () => this.leave());
  }

  get spans() { return Array.from(this.place.querySelectorAll(".token")); }

  add(text, tokens) {
    this.text += text;
    this.count += tokens.length;
    for (const token of tokens) {
      const piece = this.decoder.decode(new Uint8Array(token.bytes), { stream: true });
      if (!piece) continue;  // the beginning of a character: its last token shows it
      const span = element("span", "token", piece);
      span.facts = { text: piece, probability: Math.exp(token.logprob), others: token.others };
      span.style.setProperty("--surprise", Math.min(1, -token.logprob / 6).toFixed(3));
      this.place.append(span);
      this.drawn += piece;
    }
  }

  /** Take away what the server did not show: an end token, a stop text. Or show what came without tokens. */
  finish() {
    if (this.drawn === this.text) return;
    if (!this.drawn.startsWith(this.text)) { this.place.textContent = this.text; return; }
    let left = this.text.length;
    for (const span of this.spans) {
      if (left <= 0) span.remove();
      else if (span.textContent.length > left) span.textContent = span.textContent.slice(0, left);
      left -= span.textContent.length;
    }
  }

  pointAt(target) {
    if (target.facts) this.select(target);
  }

  leave() {
    this.place.querySelector(".at")?.classList.remove("at");
    this.at = -1;
    tip.hidden = true;
  }

  key(event) {
    const spans = this.spans;
    const places = { ArrowRight: this.at + 1, ArrowLeft: Math.max(this.at, 1) - 1, Home: 0, End: spans.length - 1 };
    if (event.key === "Escape") this.leave();
    if (!(event.key in places) || !spans.length) return;
    event.preventDefault();
    const span = spans[Math.min(places[event.key], spans.length - 1)];
    this.select(span);
    byId("spoken").textContent = `${span.facts.text}, ${share(span.facts.probability)}`;
  }

  select(span) {
    this.place.querySelector(".at")?.classList.remove("at");
    span.classList.add("at");
    this.at = this.spans.indexOf(span);
    showTip(span);
  }
}

function row(text, probability, own) {
  const item = element("li", own ? "own" : "");
  const track = element("span", "track");
  const filled = element("span");
  filled.style.width = `${(100 * probability).toFixed(1)}%`;
  track.append(filled);
  item.append(element("code", "", visible(text)), track, element("span", "share", share(probability)));
  return item;
}

function showTip(span) {
  const { text, probability, others } = span.facts;
  const head = element("p");
  head.append(element("b", "", share(probability)), " likely");
  const list = element("ul");
  const best = others.slice(0, SHOWN);
  const isOwn = (other) => other.text === text && Math.abs(other.probability - probability) < 1e-9;
  list.append(...best.map((other) => row(other.text, other.probability, isOwn(other))));
  if (!best.some(isOwn)) list.append(row(text, probability, true));
  tip.replaceChildren(head, list);
  tip.hidden = false;
  const box = span.getClientRects()[0], { width, height } = tip.getBoundingClientRect();
  const above = box.top - height - 8;
  tip.style.left = `${Math.max(12, Math.min(box.left, innerWidth - width - 12))}px`;
  tip.style.top = `${above >= 8 ? above : box.bottom + 8}px`;
}
